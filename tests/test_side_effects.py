"""What else a circuit changes: other behaviours before and after it is switched off."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples, unchecked
from typer.testing import CliRunner

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build
from tl_multitrace.cli import app as cli
from tl_multitrace.demo import load_demo_model
from tl_multitrace.runs.folder import rewrite_report
from tl_multitrace.runs.job import Job, Log, run_job

SEARCH, ELSEWHERE = pairs_of(random_examples(6, seed=1)), pairs_of(random_examples(5, seed=2, wrong=1, tokens=2))


@cache
def model() -> Any:
    return build(f"{'bridge' if HAS_BRIDGE else 'hooked'}-gpt2", torch.float64)


@cache
def circuit() -> mt.Circuit:
    groups = mt.heads(model(), site="pattern" if HAS_BRIDGE else "z") + mt.mlps(model())
    return mt.select(mt.Tracer(model(), SEARCH, groups), [3], mt.TopK())[3]


@cache
def measured() -> mt.SideEffects:
    others = {"logits": (ELSEWHERE, mt.LogitDiff()), "odds": (ELSEWHERE, mt.OddsRatio())}
    return mt.side_effects(circuit(), others)


# ------------------------------------------------------------------------------------------------------ the numbers
@pytest.mark.parametrize("how", ["mean", "zero"])
@pytest.mark.parametrize("side", ["source", "base"])
def test_before_and_after_are_the_metric_without_and_with_the_switch(how: Any, side: Any) -> None:
    pairs = ELSEWHERE if side == "base" else ELSEWHERE.swap()
    found = mt.side_effects(circuit(), {"it": (ELSEWHERE, mt.LogitDiff())}, how=how, side=side)["it"]

    def metric() -> torch.Tensor:
        return mt.Tracer(model(), pairs, mt.heads(model())).base_metric

    before = metric()
    with circuit().ablate(model(), how):
        after = metric()
    assert (found.before.mean, found.after.mean) == pytest.approx((float(before.mean()), float(after.mean())), abs=1e-6)
    assert found.change.mean == pytest.approx(float((after - before).mean()), abs=1e-6)
    assert found.change.n == 5 and float((after - before).abs().max()) > 0.05
    assert found.clear == (found.change.low > 0 or found.change.high < 0)


def test_the_divergence_is_that_of_the_next_token() -> None:
    total = []
    pairs = ELSEWHERE.swap()
    for row, n in zip(pairs.base_tokens, pairs.lengths.tolist(), strict=True):
        with torch.no_grad():
            plain = model()(row[None, :n])[0, -1].log_softmax(-1)
            with circuit().ablate(model()):
                switched = model()(row[None, :n])[0, -1].log_softmax(-1)
        total.append(float((plain.exp() * (plain - switched)).sum()))
    assert measured()["logits"].kl.mean == pytest.approx(sum(total) / len(total), abs=1e-6)
    assert measured()["logits"].kl == measured()["odds"].kl


def test_a_relative_metric_starts_at_zero_and_says_so() -> None:
    odds = measured()["odds"]
    assert odds.before.mean == 0 and odds.after == odds.change
    assert measured().notes == ("odds is measured relative to the model as it is, which therefore reads 0",)


def test_an_inert_circuit_has_no_side_effects() -> None:
    mute = build(f"{'bridge' if HAS_BRIDGE else 'hooked'}-gpt2", torch.float64)
    with torch.no_grad():
        mute.blocks[1].mlp.W_out.zero_()
        mute.blocks[1].mlp.b_out.fill_(0.3)
    inert = mt.Circuit(mt.mlps(mute, 1) + mt.neurons(mute, 1)[[4]], (0, 1), 3, 0.0)  # its mean is its only value
    found = mt.side_effects(inert, {"it": (ELSEWHERE, mt.LogitDiff())}, mute, reference=SEARCH)["it"]
    assert abs(found.change.mean) < 1e-9 and found.kl.mean < 1e-9 and not found.clear


# ---------------------------------------------------------------------------------------------------- what it offers
def test_it_shows_and_stores_itself(tmp_path: Path) -> None:
    found = measured()
    assert mt.SideEffects.load(found.save(tmp_path / "s.json")) == found
    frame = found.to_dataframe()
    assert frame["behaviour"].tolist() == ["logits", "odds"]
    assert (frame["change_low"] <= frame["change"]).all() and (frame["change"] <= frame["change_high"]).all()
    assert "mean ablation of 3 components" in repr(found) and "logit_diff" in repr(found)
    assert "<table" in found._repr_html_()
    figure = found.plot()
    titles = [ax.get_xlabel() for ax in figure.axes]
    assert titles == ["KL of the next token (nats)", "nats", "relative change of odds"]
    assert len(found) == 2 and found.provenance["side_effects"]["forwards"] > 0
    with pytest.raises(KeyError, match="no behaviour 'x'; measured: logits, odds"):
        found["x"]


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    others: Any = {"it": (ELSEWHERE, mt.LogitDiff())}
    loaded = mt.Circuit.load(circuit().save(tmp_path / "c.json"))
    with pytest.raises(ValueError, match="carries no model"):
        mt.side_effects(loaded, others)
    with pytest.raises(ValueError, match="pass reference=pairs"):
        mt.side_effects(loaded, others, model())
    again = mt.side_effects(loaded, others, model(), reference=SEARCH)["it"]
    assert replace(again, name="logits") == measured()["logits"]
    with pytest.raises(ValueError, match="there is no behaviour to measure"):
        mt.side_effects(circuit(), {})
    wrong: Any = "off"
    with unchecked(), pytest.raises(ValueError, match="unknown ablation 'off'"):
        mt.side_effects(circuit(), others, how=wrong)
    with unchecked(), pytest.raises(ValueError, match="unknown side 'off'"):
        mt.side_effects(circuit(), others, side=wrong)


# ------------------------------------------------------------------------------------------------------------ in a job
def test_tasks_are_taken_as_they_are() -> None:
    demo = load_demo_model()
    made = mt.task("ioi", demo, n=30)
    chosen = mt.select(mt.Tracer(demo, made.pairs, mt.heads(demo), made.metric), [3])[3]
    found = mt.side_effects(chosen, {"ioi": made, "facts": mt.task("facts", demo, n=20)})
    assert found["ioi"].before.mean > 3  # the model names the receiver where the prompt calls for it
    assert found["ioi"].change.high < 0 and found["ioi"].kl.mean > 0.1


def test_a_job_measures_them_within_its_share() -> None:
    log = Log()
    run = run_job(Job(task="ioi", components="heads", budget="3", n=60, stability=0, device="cpu"), log)
    assert run.side_effects is not None and run.side_effects.effects[0].name == "ioi"
    assert len(run.side_effects) >= 3
    search = run.path.cost["equivalents"] * run.tracer.n  # type: ignore[union-attr]
    assert run.side_effects.provenance["side_effects"]["forwards"] <= 0.2 * search


def test_the_run_folder_and_its_report_hold_them(tmp_path: Path) -> None:
    options = ["run", "--task", "ioi", "--components", "heads", "--budget", "3", "--n", "60", "--stability", "0"]
    result = CliRunner().invoke(cli.app, [*options, "--device", "cpu", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "Ablated     " in result.output and "ioi logit_diff -" in result.output
    assert (tmp_path / "run" / "figures" / "side_effects.png").is_file()
    shown = CliRunner().invoke(cli.app, ["show", str(tmp_path / "run" / "side_effects.json")])
    assert "mean ablation of 3 components" in " ".join(shown.output.split())
    again = rewrite_report(tmp_path / "run", tmp_path / "again.html").read_text()
    assert "What else it changes" in again and again == (tmp_path / "run" / "report.html").read_text()


def test_a_short_search_leaves_them_out() -> None:
    lines: list[str] = []
    run = run_job(Job(task="ioi", components="heads", budget="1", n=8, stability=0, device="cpu"), Log(lines.append))
    assert run.side_effects is None
    assert any(line.startswith("Side effects left out") for line in lines)
