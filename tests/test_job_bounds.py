"""``--keep``: other tasks stay within bounds while a job searches, and the report says how every number moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tl_multitrace as mt
from tl_multitrace.cli import app as cli
from tl_multitrace.render import Run
from tl_multitrace.runs.bounds import bound_from_text, constraints_of

RUN = ["run", "--task", "professions", "--components", "heads@0-1", "--budget", "2", "--n", "20", "--device", "cpu"]
RUN += ["--stability", "2", "--solver", "greedy"]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("keep") / "run"
    result = call(*RUN, "--keep", "neutral_text=0.05", "--keep", "ioi=-1", "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


def test_a_run_keeps_what_it_is_told_to(finished: tuple[Path, Any]) -> None:
    table = Run.from_folder(finished[0]).path.goals()
    assert set(table["goal"]) == {"professions", "neutral_text", "ioi"}
    bounds = dict(zip(table["goal"], table["bound"], strict=True))
    assert (bounds["neutral_text"], bounds["ioi"]) == ("<= 0.05", ">= -1")
    assert table["kept"].dropna().astype(bool).all()
    assert table["held_out"].notna().all()


def test_the_report_shows_goals_and_bounds(finished: tuple[Path, Any]) -> None:
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert 'id="goals"' in page and "What was pushed, and what was kept" in page
    assert "≤ 0.05" in page and ("yes, also held out" in page or "yes, not held out" in page)
    assert Run.from_folder(finished[0]).stability is not None


def test_a_circuit_of_several_goals_is_judged_by_the_first(finished: tuple[Path, Any]) -> None:
    run = Run.from_folder(finished[0])
    assert run.evaluation is not None
    assert run.evaluation.direction == "maximize"


def test_bounds_as_text() -> None:
    assert bound_from_text("neutral_text=0.02") == ("neutral_text", 0.02)
    assert bound_from_text(" ioi =-0.5") == ("ioi", -0.5)
    for wrong in ("ioi", "ioi=", "ioi=much", "ioi=inf", "=3"):
        with pytest.raises(ValueError, match=r"--keep takes TASK=CHANGE|unknown task"):
            bound_from_text(wrong)
    refused = call(*RUN, "--keep", "poems=1", "--out", "never")
    assert refused.exit_code == 2 and "unknown task 'poems'" in " ".join(refused.output.split())


def test_what_is_kept_is_the_prompts_own_answer() -> None:
    """On ioi the base prompt's answer stays: its pairs are turned round; neutral text has one prompt and is not."""
    model = mt.load_model("demo", device="cpu")
    search = mt.Tracer(model, mt.task("professions", model, n=8).pairs, mt.heads(model))
    made, unseen = constraints_of(["ioi=-1", "neutral_text=0.1"], search, seed=0, held_out=True)
    ioi, text = made
    assert float(ioi.tracer.base_metric.mean()) > 2
    assert (ioi.at_least, text.at_most) == (-1.0, 0.1)
    assert set(unseen) == {"ioi", "neutral_text"}
    assert {c.position for c in ioi.tracer.groups.components} == {"everywhere"}


def test_the_goals_of_a_task_with_two_wishes() -> None:
    model = mt.load_model("demo", device="cpu")
    task = mt.task("variable_binding", model, n=12)
    groups = task.hook_groups(model)
    objective = task.objective(groups, model, weights={"variable_binding": 2.0})
    assert [g.name for g in objective.goals] == ["variable_binding", *task.desiderata]
    assert [g.weight for g in objective.goals] == [2.0, *[1.0] * len(task.desiderata)]
    path = mt.select(objective, [3])
    assert path.choices[0].goals["variable_binding"].mean > 0
    with pytest.raises(ValueError, match="has no goal 'poems'"):
        task.objective(groups, model, weights={"poems": 1.0})
