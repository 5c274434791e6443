"""Unfinished runs: what ``--resume`` goes on with, what it refuses and why, and what is never touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from interrupted import Killed, differences, killed_after
from typer.testing import CliRunner

from tl_multitrace.cli import app as cli
from tl_multitrace.engine import cache
from tl_multitrace.records.write import locked

QUICK = ["run", "--task", "ioi", "--components", "heads", "--budget", "2", "--n", "16", "--device", "cpu"]
QUICK += ["--solver", "greedy", "--stability", "0", "--quiet"]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def unfinished(out: Path, forwards: int = 40) -> Path:
    """A run that was killed after so many forwards."""
    with killed_after(forwards), pytest.raises(Killed):
        CliRunner().invoke(cli.app, [*QUICK, "--out", str(out)], catch_exceptions=False)
    return out


def content(out: Path) -> dict[str, Any]:
    """Results by file, without what a clock says."""
    found = {p.name: json.loads(p.read_text()) for p in sorted(out.glob("*.json")) if p.name != "run.json"}
    return {name: _timeless(value) for name, value in found.items()}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds"}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "EVERY", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    result = call(*QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("forwards", [15, 40])
def test_resume_completes_with_the_same_files(forwards: int, tmp_path: Path, whole: Path) -> None:
    out = unfinished(tmp_path / "run", forwards)
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    result = call(*QUICK, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert not list(differences(content(out), content(whole)))
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_complete_run_says_so_and_runs_nothing(whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    with killed_after(0):
        result = call(*QUICK, "--out", whole, "--resume")
    assert result.exit_code == 0 and "holds this run already, complete" in result.output
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_a_complete_run_of_other_arguments_is_not_replaced(whole: Path) -> None:
    before = content(whole)
    result = call(*QUICK, "--seed", 5, "--out", whole, "--resume")
    assert result.exit_code == 1 and "finished run of another seed (0, not 5)" in result.output
    assert content(whole) == before


def test_an_unfinished_run_needs_a_word(tmp_path: Path) -> None:
    result = call(*QUICK, "--out", unfinished(tmp_path / "run"))
    assert result.exit_code == 1 and "Add --resume to go on where it stopped, or --overwrite" in result.output


def test_an_unfinished_run_of_other_arguments(tmp_path: Path) -> None:
    out = unfinished(tmp_path / "run")
    result = call(*QUICK, "--seed", 3, "--out", out, "--resume")
    assert result.exit_code == 1 and "was started with seed 0, not 3. Repeat its arguments to go on" in result.output
    assert (out / "checkpoint" / "run.json").is_file() and list((out / "checkpoint" / "found").iterdir())


@pytest.mark.parametrize("package", ["tl_multitrace", "transformer_lens", "torch"])
def test_an_unfinished_run_of_another_version(package: str, tmp_path: Path) -> None:
    record = unfinished(tmp_path / "run") / "checkpoint" / "run.json"
    changed = json.loads(record.read_text())
    changed["versions"][package] = "0.0.7"
    record.write_text(json.dumps(changed))
    result = call(*QUICK, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 1 and f"was started with {package} 0.0.7, and this is" in result.output


def test_an_unfinished_run_of_another_model(tmp_path: Path) -> None:
    record = unfinished(tmp_path / "run") / "checkpoint" / "run.json"
    changed = json.loads(record.read_text())
    changed["model"]["digest"] = "another"
    record.write_text(json.dumps(changed))
    result = call(*QUICK, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 1 and "weights or its configuration have changed" in result.output
    assert json.loads(record.read_text()) == changed


def test_a_record_that_was_cut_off_is_named(tmp_path: Path) -> None:
    record = unfinished(tmp_path / "run") / "checkpoint" / "run.json"
    record.write_text(record.read_text()[:40])
    result = call(*QUICK, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 1 and "run.json" in result.output and "Traceback" not in result.output


def test_overwrite_starts_anew(tmp_path: Path, whole: Path) -> None:
    out = unfinished(tmp_path / "run")
    result = call(*QUICK, "--out", out, "--overwrite")
    assert result.exit_code == 0, result.output
    assert content(out) == content(whole)


def test_two_processes_do_not_share_a_run_folder(tmp_path: Path) -> None:
    out = unfinished(tmp_path / "run")
    with locked(out / "checkpoint"):
        result = call(*QUICK, "--out", out, "--resume")
    assert result.exit_code == 1 and "another process is working in" in result.output
    assert list((out / "checkpoint" / "found").iterdir())


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_files_of_others_are_never_deleted(option: str, tmp_path: Path) -> None:
    out = unfinished(tmp_path / "run")
    (out / "thesis.tex").write_text("years of work")
    result = call(*QUICK, "--out", out, option)
    assert result.exit_code == 1 and "holds 'thesis.tex', which no run writes" in result.output
    assert (out / "thesis.tex").read_text() == "years of work" and (out / "checkpoint").is_dir()


def test_a_run_that_found_nothing_leaves_nothing(tmp_path: Path) -> None:
    with killed_after(0), pytest.raises(Killed):
        CliRunner().invoke(cli.app, [*QUICK, "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert not (tmp_path / "run").exists()
