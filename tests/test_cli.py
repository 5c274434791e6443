"""The command line: what a run leaves behind, what is refused, and how it ends."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import tl_multitrace as mt
from tl_multitrace.cli import app as cli
from tl_multitrace.distributed import RankError
from tl_multitrace.runs.folder import OWN_FILES, read_run
from tl_multitrace.runs.job import Job, Log, run_job
from tl_multitrace.spec import budgets_from_text, groups_from_text

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["run", "--task", "ioi", "--components", "heads", "--budget", "2", "--n", "16", "--device", "cpu"]
FILES = {"circuit.json", "path.json", "effects.csv", "views.json", "report.html", "run.json", "figures"}
FILES |= {"flow.json", "flow.graphml", "flow.dot", "evaluation.json", "stability.json", "side_effects.json"}


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def flat(text: str) -> str:
    """Output as one line without the frame that typer draws around usage errors."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("cli") / "run"
    result = call(*QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


# ------------------------------------------------------------------------------------------------ what a run leaves
def test_a_run_folder_holds_everything(finished: tuple[Path, Any]) -> None:
    out, _ = finished
    assert {p.name for p in out.iterdir()} == FILES == set(OWN_FILES)
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"{name}.{kind}"
        for name in ("circuit", "path", "subgroups", "flow", "evaluation", "stability", "side_effects")
        for kind in ("png", "svg")
    }
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in out.glob("figures/*.png"))
    assert [p.name for p in out.parent.iterdir()] == ["run"]  # no temporary folder


def test_the_record_of_a_run(finished: tuple[Path, Any]) -> None:
    record = json.loads((finished[0] / "run.json").read_text())
    assert (record["status"], record["seed"], record["arguments"]["task"]) == ("complete", 0, "ioi")
    assert record["versions"]["tl_multitrace"] == mt.__version__
    assert {"python", "torch", "transformer_lens"} <= set(record["versions"])
    steps = {"model", "prompts", "search", "scores", "flow", "evaluation", "stability", "side_effects", "report"}
    assert set(record["timings"]) == steps
    assert record["cost"]["equivalents"] > 0
    assert record["facts"]["kept"] == 16
    assert {"circuitsvis", "scipy", "transformers"} <= set(record["versions"])
    machine = record["machine"]
    assert (machine["device"], machine["deterministic_algorithms"]) == ("cpu", False)
    assert machine["threads"] == 1 and machine["memory_total"] > 1 << 28
    assert machine["platform"].startswith(platform.system())


def test_the_record_counts_every_step_that_runs_the_model(finished: tuple[Path, Any]) -> None:
    record = json.loads((finished[0] / "run.json").read_text())
    steps = record["steps"]
    assert set(steps) == {"search", "scores", "flow", "evaluation", "stability", "side_effects"}
    pairs = mt.SubsetPath.load(finished[0] / "path.json").provenance["prompts"]["n"]
    search = steps["search"]["forwards"] + steps["search"]["backwards"]
    # the tracer's own base and source runs come before the search begins to count
    assert record["cost"]["equivalents"] * pairs < search < (record["cost"]["equivalents"] + 12) * pairs
    assert steps["stability"]["forwards"] > 2 * steps["search"]["forwards"]  # five searches


def test_a_run_that_max_cost_stops_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call(*QUICK, "--max-cost", 6, "--stability", 2, "--out", out)
    path = mt.SubsetPath.load(out / "path.json")
    assert result.exit_code == 0 and not path.success and path.cost["equivalents"] <= 6
    assert f"Search      {path.message}" in result.stdout and path.message in (out / "report.html").read_text()
    record = json.loads((out / "run.json").read_text())
    assert record["arguments"]["max_cost"] == 6.0
    # each of the two repetitions: base and source, six for the search, a few for its scores
    assert sum(record["steps"]["stability"].values()) <= 2 * 16 * path.provenance["prompts"]["n"]
    refused = call(*QUICK, "--max-cost", 0, "--out", tmp_path / "none")
    assert refused.exit_code == 2 and "max-cost" in flat(refused.output)


@pytest.mark.parametrize(
    ("components", "solver", "told"),
    [
        ("heads@0", None, "Tracing edges between the components, on "),
        ("heads@0,resid@1", "top-k", "left out: L1RESID is a residual state"),
        ("heads,mlps", "attribution", "left out: they would take longer than the search"),
    ],
)
def test_edges_are_traced_where_there_are_any_and_they_are_cheap(
    components: str, solver: str | None, told: str
) -> None:
    lines: list[str] = []
    job = Job(task="professions", components=components, budget="8", n=16, solver=solver, device="cpu", held_out=0.0)
    run = run_job(job, Log(lines.append))
    assert any(told in line for line in lines), lines
    assert (run.flow is not None) == ("Tracing" in told)
    if run.flow is not None:
        assert (run.circuit.provenance["metric"], run.flow.graph["unit"]) == ("odds_ratio", "nats")
        assert {n for n, d in run.flow.nodes(data=True) if d.get("chosen") is False} == {f"L{i}MLP" for i in range(4)}


def test_effects_have_one_row_per_prompt_and_agree_with_the_circuit(finished: tuple[Path, Any]) -> None:
    table, circuit = pd.read_csv(finished[0] / "effects.csv"), mt.Circuit.load(finished[0] / "circuit.json")
    assert table["split"].value_counts().to_dict() == {"search": 12, "held out": 4}
    means = table.groupby("split")["effect"].mean()
    assert circuit.score is not None and circuit.held_out is not None
    assert means["search"] == pytest.approx(circuit.effect, rel=1e-4)
    assert means["held out"] == pytest.approx(circuit.held_out.mean, rel=1e-4)


def test_the_closing_lines_say_what_was_found_and_where_the_report_is(finished: tuple[Path, Any]) -> None:
    out, result = finished
    circuit = mt.Circuit.load(out / "circuit.json")
    assert f"Patching {len(circuit)} of 32 components raises logit_diff: {circuit.labels[0]}" in result.stdout
    assert f"Effect      {circuit.effect:.3g}, 95 % interval" in result.stdout
    assert "Held out" in result.stdout and "random sets of that size" in result.stdout
    assert result.stdout.rstrip().endswith(f"Report: {out / 'report.html'}")
    assert "Searching 32 heads" in result.stderr and "Searching" not in result.stdout


def test_quiet_says_only_what_was_found(finished: tuple[Path, Any], tmp_path: Path) -> None:
    result = call(*QUICK, "--out", tmp_path / "run", "--quiet", "--held-out", 0)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "Held out    not measured" in result.stdout
    assert set(pd.read_csv(tmp_path / "run" / "effects.csv")["split"]) == {"search"}


def test_show_prints_runs_circuits_and_paths(finished: tuple[Path, Any]) -> None:
    out, _ = finished
    label = mt.Circuit.load(out / "circuit.json").labels[0]
    for path, head in (("", "Run "), ("circuit.json", "Circuit of "), ("path.json", "SubsetPath by ")):
        result = call("show", out / path)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(head)
        assert label in result.stdout or path == "path.json"


def test_report_writes_the_page_again_without_a_model(finished: tuple[Path, Any], tmp_path: Path) -> None:
    out, elsewhere = finished[0], tmp_path / "again.html"
    before = (out / "report.html").read_text(encoding="utf-8")
    assert call("report", out, "--out", elsewhere).exit_code == 0
    assert elsewhere.read_text(encoding="utf-8") == before
    (out / "report.html").unlink()
    assert call("report", out).exit_code == 0
    assert (out / "report.html").read_text(encoding="utf-8") == before
    refused = call("report", out, "--out", elsewhere)
    assert refused.exit_code == 1 and "exists" in refused.stderr


def test_the_list_of_tasks() -> None:
    result = call("tasks")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in mt.tasks()["name"])


@pytest.mark.slow
def test_the_demo_as_a_user_runs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tl_multitrace", "demo", "--out", "demo-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "beyond chance" in done.stdout and "not clearly" not in done.stdout
    assert done.stdout.rstrip().endswith("Report: demo-run/report.html")
    circuit = read_run(tmp_path / "demo-run").circuit
    assert circuit.held_out is not None and circuit.chance is not None
    assert circuit.held_out.low > circuit.chance.high
    assert circuit.share is not None and circuit.share > 0.5


# ------------------------------------------------------------------------------------------------- prompts of a file
def test_a_users_own_prompts(tmp_path: Path) -> None:
    rows = ["base,source,answer,wrong_answer,group"]
    rows += [
        f"The {word} said that,The man said that, he, she,{word}" for word in ("nurse", "maid", "nanny", "unheard")
    ]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    quick = ["--components", "heads@0", "--budget", 1, "--held-out", 0, "--metric", "odds_ratio", "--device", "cpu"]
    result = call("run", "--prompts", tmp_path / "mine.csv", *quick, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "1 left out: a word the tokenizer does not know" in result.stderr
    assert read_run(tmp_path / "run").circuit.provenance["metric"] == "odds_ratio"
    assert sorted(pd.read_csv(tmp_path / "run" / "effects.csv")["label"]) == ["maid", "nanny", "nurse"]


def test_a_malformed_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("base,source,answer\na,b\n")
    result = call("run", "--prompts", tmp_path / "mine.csv", "--device", "cpu", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert f"{tmp_path / 'mine.csv'}, line 2: expected 3 fields, found 2" in result.stderr
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------- what is refused
USAGE = {
    "no prompts": ([], "give one of --task and --prompts"),
    "both": (["--task", "ioi", "--prompts", "x.csv"], "give one of --task and --prompts"),
    "task": (["--task", "iou"], "unknown task 'iou'. Did you mean 'ioi'?"),
    "solver": (["--task", "ioi", "--solver", "gredy"], "unknown solver 'gredy'. Did you mean 'greedy'?"),
    "metric": (["--task", "ioi", "--metric", "odds"], "unknown metric 'odds'"),
    "intervention": (["--task", "ioi", "--intervention", "x"], "unknown intervention 'x'"),
    "components": (["--task", "ioi", "--components", "headz"], "unknown components 'headz'"),
    "site": (["--task", "ioi", "--components", "heads:q"], "use heads:z or heads:pattern"),
    "budget": (["--task", "ioi", "--budget", "0"], "a budget counts components and is at least 1"),
    "budget text": (["--task", "ioi", "--budget", "ten"], "budgets must be numbers such as 5, 0-3"),
    "direction": (["--task", "ioi", "--direction", "up"], "maximize"),
    "held out": (["--task", "ioi", "--held-out", "1.5"], "0.9"),
    "stability": (["--task", "ioi", "--stability", "1"], "--stability needs 2 searches or more to compare"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_told_before_anything_is_loaded(case: str, tmp_path: Path) -> None:
    arguments, message = USAGE[case]
    result = call("run", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert message in flat(result.stderr)
    assert not list(tmp_path.iterdir())


ERRORS = {
    "layer": (["--components", "heads@9"], "layer 9 is outside tl-multitrace-demo, which has layers 0 to 3"),
    "model": (["--model", "./no-such-folder"], "no model folder './no-such-folder'"),
    "budgets": (["--budget", "30-40"], "budget 40 is outside 1 to 32"),
    "twice": (["--components", "heads,heads@1"], "L1H0 stands twice"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    arguments, message = ERRORS[case]
    result = call(*QUICK, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert message in result.stderr and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        CliRunner().invoke(
            cli.app, [*QUICK, *arguments, "--out", str(tmp_path / "run"), "--debug"], catch_exceptions=False
        )


def test_files_that_are_no_results(tmp_path: Path, finished: tuple[Path, Any]) -> None:
    cut = tmp_path / "circuit.json"
    cut.write_text((finished[0] / "circuit.json").read_text()[:200])
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"format": "other"}')
    for path, message in (
        (cut, "not complete JSON"),
        (foreign, "not a file of tl_multitrace (format: 'other')"),
        (tmp_path, "no run.json"),
    ):
        result = call("show", path)
        assert result.exit_code == 1 and message in result.stderr, result.output
    assert call("show", tmp_path / "none.json").exit_code == 1


def test_a_folder_in_use_is_kept_unless_told_otherwise(finished: tuple[Path, Any]) -> None:
    out = finished[0]
    refused = call(*QUICK, "--out", out)
    assert refused.exit_code == 1 and "exists and is not empty" in refused.stderr
    replaced = call(*QUICK, "--out", out, "--overwrite", "--seed", 1)
    assert replaced.exit_code == 0, replaced.output
    assert json.loads((out / "run.json").read_text())["seed"] == 1
    assert [p.name for p in out.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("names", [["thesis.tex"], ["run.json", "notes.txt"]])
def test_overwrite_never_deletes_what_is_not_a_runs(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    result = call(*QUICK, "--out", tmp_path, "--overwrite")
    assert result.exit_code == 1 and "--overwrite would delete it" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


# -------------------------------------------------------------------------------------------- components and budgets
@pytest.fixture(scope="module")
def model() -> Any:
    return mt.load_model("demo", device="cpu")


def test_components_as_text(model: Any) -> None:
    groups = groups_from_text(model, "heads:pattern@0-1, neurons@3,mlps")
    assert len(groups) == 16 + 512 + 4
    assert {c.site for c in groups if c.kind == "head"} == {"pattern"}
    assert {c.layer for c in groups if c.kind == "neuron"} == {3}
    kinds = {"attn": "attn", "mlp_dims": "mlp_dim", "resid:post": "resid"}
    for text, kind in kinds.items():
        assert set(groups_from_text(model, text).kinds) == {kind}
    for text, position in {"heads/last": "last", "mlps@1/everywhere": "everywhere", "neurons@0/all": None}.items():
        assert {c.position for c in groups_from_text(model, text).components} == {position}
    with pytest.raises(ValueError, match="unknown positions 'first' in 'heads/first': use /all, /last, /subject"):
        groups_from_text(model, "heads/first")
    with pytest.raises(ValueError, match="no components in ' ,'"):
        groups_from_text(model, " ,")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", (1, 2, 3)),
        ("99", tuple(range(1, 11))),
        ("2-4", (2, 3, 4)),
        ("8,2", (2, 8)),
        ("1-2+7", (1, 2, 7)),
        ("heads=2, neurons=5", {"head": 2, "neuron": 5}),
    ],
)
def test_budgets_as_text(text: str, expected: Any) -> None:
    assert budgets_from_text(text, 10) == expected


@pytest.mark.parametrize("text", ["", "-1", "3-1", "1.5", "heads=x", "hands=2"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="budgets"):
        budgets_from_text(text, 10)


@pytest.mark.parametrize("name", ["greedy", "Greedy", "top-k", "TopK", "PGB-CT", "pgbct", "integrated gradients"])
def test_solvers_by_name(name: str) -> None:
    from tl_multitrace.solvers import SOLVERS, solver_by_name

    assert type(solver_by_name(name)) in SOLVERS.values()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RankError("rank 1 is gone: start again"), "rank 1 is gone: start again"),
        (ValueError("a budget of 0"), "a budget of 0"),
        (KeyError("no task 'x'"), "no task 'x'"),
        (TypeError("bad"), "TypeError: bad (add --debug for the traceback)"),
        (ValueError(), "ValueError: no message (add --debug for the traceback)"),
    ],
)
def test_an_error_of_ours_needs_no_name(error: Exception, line: str) -> None:
    assert cli.one_line(error) == line
