"""``tl-multitrace trace``: what it leaves behind, how it resumes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from test_cli import call, flat

import tl_multitrace as mt
from tl_multitrace.causal_trace import TraceGrid, average, causal_trace

PROMPT = ["--prompt", "The Falcon Tower is in the city of", "--subject", "Falcon Tower"]
QUICK = ["--samples", 2, "--device", "cpu"]
FACTS = [
    ("The Falcon Tower is in the city of", "Falcon Tower", "Rome"),
    ("The Falcon Bridge is in the city of", "Falcon Bridge", "Berlin"),
    ("The Falcon Tower is made of", "Falcon Tower", "glass"),
    ("The Falcon Tower is made of", "Falcon Tower", "Rome"),  # not what the model says
]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    records = [
        {"known_id": i, "prompt": p, "subject": s, "attribute": a, "prediction": f" {a}"}
        for i, (p, s, a) in enumerate(FACTS)
    ]
    path = tmp_path / "known.json"
    path.write_text(json.dumps(records))
    return path


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------------------- one prompt
def test_one_prompt_leaves_trace_table_and_picture(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call(
        "trace", *PROMPT, "--answer", " Rome", "--restore", "resid, mlp+attn", "--window", 2, *QUICK, "-o", out
    )
    assert result.exit_code == 0, result.output
    kinds = ("resid", "mlp+attn")
    assert names(out) == {f"{k}.{end}" for k in kinds for end in ("json", "safetensors", "csv", "png")}
    assert all((out / f"{k}.png").read_bytes().startswith(b"\x89PNG") for k in kinds)
    grid = TraceGrid.load(out / "resid.json")
    same = causal_trace(
        mt.load_model("demo", device="cpu"), PROMPT[1], subject=PROMPT[3], answer=" Rome", samples=2, window=2
    )
    assert torch.equal(grid.restored, same.restored)
    table = pd.read_csv(out / "resid.csv")
    assert table["effect"].to_numpy() == pytest.approx(same.effect.flatten().numpy(), abs=1e-6)
    assert repr(grid) in result.stdout and "windows of 2 layers" in result.stdout
    assert result.stdout.rstrip().endswith(f"Wrote {out}")
    assert "cells x samples" in result.stderr and "cells x samples" not in result.stdout
    shown = call("show", out / "resid.json")
    assert shown.exit_code == 0 and shown.stdout.strip() == repr(grid)


def test_options_reach_the_trace(tmp_path: Path) -> None:
    options = ["--corruption", "uniform", "--noise", 2, "--seed", 5, "--severed", "both", "--subject", "all", "-q"]
    result = call("trace", *PROMPT, *options, *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0 and result.stderr == "", result.output
    grid = TraceGrid.load(tmp_path / "run" / "resid.json")
    assert grid.severed == ("mlp", "attn") and grid.subject == (1, len(grid.tokens))
    made = grid.provenance["intervention"]
    assert (made["kind"], made["noise"], made["seed"]) == ("uniform", 2.0, 5)


def test_what_a_reader_must_know_is_printed_once(tmp_path: Path) -> None:
    result = call("trace", *PROMPT, "--answer", " Paris", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert result.stdout.count("the model does not predict the answer") == 1
    assert "its rank is 3" in result.stdout


def test_earlier_results_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    run = ["trace", *PROMPT, *QUICK, "--out", tmp_path, "-q"]
    assert call(*run).exit_code == 0
    before = (tmp_path / "resid.json").read_bytes()
    refused = call(*run, "--seed", 1, "--restore", "attn,resid")
    assert refused.exit_code == 1 and "resid.json exists. Choose another --out, or add --overwrite" in refused.stderr
    assert (tmp_path / "resid.json").read_bytes() == before and not (tmp_path / "attn.json").exists()
    assert call(*run, "--seed", 1, "--overwrite").exit_code == 0
    assert TraceGrid.load(tmp_path / "resid.json").provenance["intervention"]["seed"] == 1


# ------------------------------------------------------------------------------------------------------ many facts
def test_facts_leave_an_average_and_every_facts_own_trace(facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("trace", "--facts", facts, "--restore", "resid,head", *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    grid = TraceGrid.load(out / "resid.json")
    assert grid.averaged and len(grid.corrupted) == 3
    assert "1 of 4 facts left out: 1 not predicted by the model" in result.stdout
    assert "facts: 100%" in result.stderr
    assert {p.stem for p in (out / "resid" / "facts").glob("*.json")} == {"0", "1", "2"}
    assert {"resid.png", "resid-lines.png", "resid.csv", "head.png"} <= names(out)
    assert "head-lines.png" not in names(out)
    some = call("trace", "--facts", facts, "--all-facts", "-n", 4, *QUICK, "--out", tmp_path / "all", "-q")
    assert some.exit_code == 0 and len(TraceGrid.load(tmp_path / "all" / "resid.json").corrupted) == 4


def test_an_interrupted_run_is_resumed(facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real, traced = ["trace", "--facts", facts, *QUICK, "--out", tmp_path / "run"], average.trace_question, []

    def interrupted(*args: Any, **options: Any) -> Any:
        if len(traced) == 2:
            raise KeyboardInterrupt
        traced.append(1)
        return real(*args, **options)

    monkeypatch.setattr(average, "trace_question", interrupted)
    stopped = call(*run)
    assert stopped.exit_code == 130 and "Interrupted." in stopped.stderr and "Traceback" not in stopped.output
    assert not (tmp_path / "run" / "resid.json").exists()
    assert len(list((tmp_path / "run" / "resid" / "facts").glob("*.json"))) == 2
    traced[:] = [1]  # one more may be traced
    resumed = call(*run)
    assert resumed.exit_code == 0, resumed.output
    assert len(traced) == 2
    other = call(*run, "--samples", 3)
    assert other.exit_code == 1 and "a run with other samples" in other.stderr


# ------------------------------------------------------------------------------------------------- what is refused
USAGE = {
    "nothing": ([], "give --prompt with --subject, or --facts"),
    "no subject": (PROMPT[:2], "give --prompt with --subject, or --facts"),
    "both": ([*PROMPT, "--facts", "x.json"], "give --prompt with --subject, or --facts"),
    "subject of facts": (["--facts", "x.json", "--subject", "a"], "give --prompt with --subject, or --facts"),
    "answer of facts": (["--facts", "x.json", "--answer", "a"], "--answer goes with --prompt"),
    "restore": ([*PROMPT, "--restore", "resid,soul"], "cannot restore 'soul'"),
    "restore nothing": ([*PROMPT, "--restore", "resid,"], "cannot restore nothing"),
    "restore both": ([*PROMPT, "--restore", "head+mlp"], "cannot share a grid"),
    "samples": ([*PROMPT, "--samples", "0"], "'--samples'"),
    "window": ([*PROMPT, "--window", "0"], "'--window'"),
    "noise": ([*PROMPT, "--noise", "-1"], "'--noise'"),
    "corruption": ([*PROMPT, "--corruption", "rain"], "rain"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_told_before_anything_is_loaded(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = USAGE[case]
    monkeypatch.setattr("tl_multitrace.cli.trace.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    result = call("trace", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert message in flat(result.stderr), result.stderr
    assert not list(tmp_path.iterdir())


ERRORS = {
    "subject": (["--subject", "Eiffel"], "the subject 'Eiffel' is not in the prompt"),
    "split": (["--subject", "alcon Tow"], "does not end at token boundaries; the tokens around it read 'Falcon Tower'"),
    "answer": (["--answer", "Rome"], "has no leading space"),
    "unknown answer": (["--answer", " Xyzzy"], "a word this tokenizer does not know"),
    "model": (["--model", "./no-such-folder"], "no model folder './no-such-folder'"),
    "dtype": (["--dtype", "float7"], "float7"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    arguments, message = ERRORS[case]
    result = call("trace", *PROMPT, *QUICK, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert message in flat(result.stderr) and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())
    assert call("trace", *PROMPT, *QUICK, *arguments, "--out", tmp_path / "run", "--debug").exception is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no facts file"),
        ("[]", "there are no facts"),
        ('[{"prompt": "a"}]', "fact 0 has the keys ['prompt']"),
        ("{", "line 1: expected one JSON object, found no JSON"),
        ('[{"prompt": "The Falcon Tower", "subject": "Eiffel"}]', "no fact is left of 1"),
    ],
)
def test_files_without_facts(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    if text is not None:
        path.write_text(text)
    result = call("trace", "--facts", path, *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 1 and message in flat(result.stderr), result.output
    assert not (tmp_path / "run").exists()


def test_a_table_of_facts_is_traced(tmp_path: Path) -> None:
    lines = ["prompt;subject;answer", "The Falcon Tower is in the city of;Falcon Tower;Rome"]
    (tmp_path / "facts.csv").write_text("\n".join(lines))
    result = call("trace", "--facts", tmp_path / "facts.csv", "--all-facts", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert [p.name for p in (tmp_path / "run").glob("*.json")]
