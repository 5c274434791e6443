"""Bars show effect, cost and time left; logs say what every stage found and cost; nothing is said unless asked for."""

from __future__ import annotations

import importlib
import logging
import os
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tl_multitrace as mt
from tl_multitrace import progress
from tl_multitrace.cli import app as cli
from tl_multitrace.cli.logs import Level, logged

FACTS = [
    ("The Falcon Tower is in the city of", "Falcon Tower", " Rome"),
    ("The Harbor Museum is in the city of", "Harbor Museum", " Rome"),
]
model_of = cache(lambda: mt.load_model("demo", "cpu"))
task_of = cache(lambda: mt.task("ioi", model_of(), n=12, seed=0))


@pytest.fixture(autouse=True)
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)


def tracer(**options: Any) -> mt.Tracer:
    return mt.Tracer(model_of(), task_of().pairs, mt.heads(model_of()), metric=task_of().metric, **options)


def path() -> mt.SubsetPath:
    return mt.select(tracer(progress=False), [2], mt.AttributionPatching())


# ---------------------------------------------------------------------------------------------------------------- bars
LOOPS: dict[str, tuple[Callable[[], Any], str]] = {
    "sweep": (lambda: mt.select(tracer(), [1, 2], progress=True), r"sweep: .*best=[-\d.e+]+, cost=\d+"),
    "group testing": (lambda: mt.select(tracer(), [1, 2], progress=True), r"group testing: .*best=.*cost=\d+"),
    "greedy": (lambda: mt.select(tracer(progress=True), 2, mt.Greedy()), r"greedy: .*best=.*cost=\d+"),
    "exchange": (
        lambda: mt.select(
            mt.Tracer(model_of(), task_of().pairs[:4], mt.neurons(model_of()), metric=task_of().metric),
            2,
            progress=True,
        ),
        r"exchange: .*best=.*cost=\d+",
    ),
    "stability": (
        lambda: mt.stability(tracer(), mt.TopK(), 3, budget=2, progress=True),
        r"resamples: .*effect=[-\d.e+]+, overlap=[\d.]+, cost=\d+",
    ),
    "random sets": (lambda: mt.evaluate(loud(path())[2], task_of().pairs, draws=8), r"random sets: .*cost=\d+"),
    "trace": (
        lambda: mt.causal_trace(model_of(), *FACTS[0][:1], subject=FACTS[0][1], samples=2, progress=True),
        r"cells x samples: .*effect=[-\d.e+]+, cost=\d+",
    ),
    "average trace": (
        lambda: mt.average_causal_trace(model_of(), FACTS, samples=2, known_only=False, progress=True, restore="mlp"),
        r"facts: .*effect=[-\d.e+]+, cost=\d+",
    ),
    "flow": (
        lambda: mt.information_flow(path()[2], tracer(), progress=True),
        r"senders: .*effect=[-\d.e+]+, cost=\d+",
    ),
}


def loud(found: mt.SubsetPath) -> mt.SubsetPath:
    assert found.tracer is not None
    found.tracer.progress = True
    return found


@pytest.mark.filterwarnings("ignore:window", "ignore:the corruption", "ignore:the model", "ignore:the total effect")
@pytest.mark.parametrize("name", LOOPS)
def test_a_bar_shows_effect_cost_and_time_left(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    work, shown = LOOPS[name]
    work()
    told = capsys.readouterr().err
    assert re.search(shown, told), told[-2000:]
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", told), told[-2000:]  # passed and left


def test_nothing_is_shown_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = mt.select(tracer(), [1, 2])
    mt.evaluate(found[2], task_of().pairs, draws=4)
    mt.stability(tracer(), mt.TopK(), 2, budget=2)
    assert capsys.readouterr() == ("", "")


def test_tracers_made_from_one_another_keep_its_bars() -> None:
    assert tracer(progress=True).on(task_of().pairs[:4]).progress
    assert not tracer(progress=True).on(task_of().pairs[:4], progress=False).progress


def test_in_a_file_updates_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 15.0)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.delitem(progress.sys.modules, "ipykernel", raising=False)
    with progress.bar(3, "steps", False) as shown:
        assert shown.disable
    with progress.bar(3, "steps", True) as shown:
        assert shown.mininterval == 15.0


# ---------------------------------------------------------------------------------------------------------------- logs
def lines_of(work: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.INFO, "tl_multitrace"):
        work()
    return [f"{r.name} {r.levelname} {r.getMessage()}" for r in caplog.records]


def told(lines: list[str], pattern: str) -> bool:
    return any(re.search(pattern, line) for line in lines)


def test_a_search_says_what_every_stage_found_and_cost(caplog: pytest.LogCaptureFixture) -> None:
    lines = lines_of(lambda: mt.select(tracer(), [1, 2, 3]), caplog)
    assert told(lines, r"tracer INFO base run of 12 pairs on cpu: .*'batch_size': \d+")
    assert told(lines, r"select INFO screened search: 32 components, budgets 1, 2, 3, maximize")
    for stage in ("sweep", "group testing", "swaps"):
        assert told(lines, rf"search INFO {stage}: best effect [-\d.e+]+, \d+ sets evaluated, [\d.]+ forward equiv"), (
            lines
        )
    assert told(lines, r"select INFO screened search: best effect [\d.]+ of [\d.]+ with everything on, [\d.]+ forward")


def test_penalised_runs_are_told_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    lines = lines_of(lambda: mt.select(tracer(), [2], mt.PGBCT(epochs=1, sweep=(1.0, 2.0))), caplog)
    assert told(lines, r"run with l1 x 1, \d+ components: .* forward equivalents")
    assert told(lines, r"run with l1 x 2, \d+ components")


def test_an_overfit_search_warns(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("tl_multitrace.solvers.select")  # the package has a function of that name
    monkeypatch.setattr(module, "overfit_notes", lambda *_: ["quote the held-out effect"])
    assert told(lines_of(path, caplog), "WARNING quote the held-out effect")


def test_traces_and_models_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert told(
        lines_of(lambda: mt.load_model("demo", "cpu"), caplog), r"demo loaded on cpu as torch.float32 in [\d.]+ s"
    )
    options = {"samples": 2, "restore": "mlp", "window": 1}
    lines = lines_of(
        lambda: mt.average_causal_trace(model_of(), [*FACTS, ("The sky is", "sky", " Rome")], **options), caplog
    )
    assert told(lines, r"average INFO fact 1 of 3 .*: total effect [-\d.e]+, [\d.]+ forward equivalents")
    assert told(lines, r"average WARNING .* of 3 facts left out")


def test_a_library_that_nobody_configured_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    mt.select(tracer(), [1, 2])
    assert capfd.readouterr() == ("", "")


# -------------------------------------------------------------------------------------------------------- command line
def test_a_log_file_has_times_and_steps(tmp_path: Path) -> None:
    file = tmp_path / "logs.txt"
    job = ["run", "--task", "ioi", "--components", "heads@0", "--budget", "1", "--n", "8", "--device", "cpu"]
    job += ["--stability", "0", "--held-out", "0", "--solver", "top-k", "--quiet"]
    result = CliRunner().invoke(cli.app, [*job, "--out", str(tmp_path / "run"), "--log-file", str(file)])
    assert result.exit_code == 0, result.output
    text = file.read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO tl_multitrace\.runs\.job: Loading demo$", text, re.M)
    assert re.search(r"INFO tl_multitrace\.runs\.job: search: [\d.]+ s, \d+ prompt runs", text)
    assert "base run of 8 pairs" in text and "Loading demo" not in result.stderr


def test_the_level_is_that_of_screen_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(level: Level | None, file: Path | None) -> str:
        with logged(False, level, file), warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.getLogger("tl_multitrace.x").info("a step")
            logging.getLogger("elsewhere").info("chatter")
            logging.getLogger("tl_multitrace.x").warning("beware")
            if file is not None:
                warnings.warn("mind the gap", UserWarning, stacklevel=1)
        return capsys.readouterr().err

    assert work(None, None) == "beware\n"
    assert "INFO tl_multitrace.x: a step" in work(Level.info, None)
    assert "a step" not in work(Level.error, None) and "beware" not in work(Level.error, None)
    file = tmp_path / "a.log"
    assert "a step" not in work(None, file)
    assert all(word in file.read_text() for word in ("a step", "beware", "mind the gap"))
    assert "chatter" not in file.read_text()


def test_loggers_are_put_back_and_errors_are_in_the_file(tmp_path: Path) -> None:
    root, package = logging.getLogger(), logging.getLogger("tl_multitrace")
    before = (list(root.handlers), root.level, package.level)
    with pytest.raises(ValueError, match="broken"), logged(True, Level.info, tmp_path / "a.log"):
        raise ValueError("broken")
    assert (list(root.handlers), root.level, package.level) == before
    assert "ValueError: broken" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize(("rank", "name"), [("0", "a.log"), ("3", "a.rank3.log"), ("", "a.log"), ("x", "a.log")])
def test_every_rank_writes_a_file_of_its_own(
    rank: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    with logged(True, None, tmp_path / "a.log"):
        logging.getLogger("tl_multitrace").info("here")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_log_file_that_cannot_be_written_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    target = tmp_path / "missing" / "a.log"
    result = CliRunner().invoke(
        cli.app, ["run", "--task", "ioi", "--out", str(tmp_path / "run"), "--log-file", str(target)]
    )
    assert result.exit_code == 1 and "missing" in result.output
    assert os.listdir(tmp_path) == []
