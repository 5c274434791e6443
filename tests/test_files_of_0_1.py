"""Every file that version 0.1 wrote is read, and what is read holds all that was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tl_multitrace as mt
from tl_multitrace.causal_trace import CausalTokens
from tl_multitrace.records.record import DRAWINGS
from tl_multitrace.render import Run, load_views, save_views
from tl_multitrace.runs.checkpoint import Checkpoint
from tl_multitrace.runs.folder import read_record

OLD = Path(__file__).resolve().parent / "files_of_0_1"
RESULTS: dict[str, Any] = {
    "circuit": mt.Circuit,
    "circuit-unmeasured": mt.Circuit,
    "path": mt.SubsetPath,
    "path-goals": mt.SubsetPath,
    "solvers": mt.SolverComparison,
    "evaluation": mt.CircuitReport,
    "significance": mt.Significance,
    "stability": mt.Stability,
    "comparison": mt.CircuitComparison,
    "recovery": mt.Recovery,
    "mib": mt.MibScores,
    "side_effects": mt.SideEffects,
    "front": mt.Front,
    "trace": mt.TraceGrid,
    "trace-heads": mt.TraceGrid,
    "trace-groups": mt.TraceGrid,
    "trace-average": mt.TraceGrid,
    "traces/facts/0": mt.TraceGrid,
    "tokens": CausalTokens,
    "reproduction": mt.Reproduction,
}


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lost(old: Any, new: Any, place: str = "") -> list[str]:
    """What stands in an old file and not, or otherwise, in the new one; the new one may hold more."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [x for k, v in old.items() for x in lost(v, new.get(k, "nothing"), f"{place}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [x for i, (a, b) in enumerate(zip(old, new, strict=True)) for x in lost(a, b, f"{place}.{i}")]
    return [] if old == new else [f"{place}: {old!r} is now {new!r}"]


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_read_with_all_that_was_written(name: str, tmp_path: Path) -> None:
    old = OLD / f"{name}.json"
    found = mt.load(old)
    assert type(found) is RESULTS[name]
    assert repr(found) and found._repr_html_() and len(found.to_dataframe()) > 0
    assert not lost(content(old), content(found.save(tmp_path / old.name)))


def test_the_numbers_are_those_that_were_measured() -> None:
    circuit, union = (mt.Circuit.load(OLD / f"{name}.json") for name in ("circuit", "circuit-unmeasured"))
    path, grid = mt.SubsetPath.load(OLD / "path.json"), mt.TraceGrid.load(OLD / "trace.json")
    stored = content(OLD / "circuit.json")
    assert circuit.labels == ["L0H1", "L0H3"] == path[2].labels and circuit.effect == stored["effect"]
    assert circuit.score is not None and circuit.score.low == stored["score"]["low"]
    assert union.effect != union.effect and set(union.components) == set(circuit.components)
    assert path[2].effect == circuit.effect and path.sizes == [1, 2]
    assert grid.best(1)[["token", "layer"]].to_dict("records") == [{"token": " Tower", "layer": 0}]


@pytest.mark.parametrize("name", ["flow", "knowledge"])
def test_a_graph_is_read_with_all_that_was_written(name: str, tmp_path: Path) -> None:
    old = OLD / f"{name}.json"
    assert not lost(content(old), content(mt.save_graph(mt.load(old), tmp_path / "a.json")))


def test_views_are_read_with_all_that_was_written(tmp_path: Path) -> None:
    old = OLD / "views.json"
    assert not lost(content(old), content(save_views(load_views(old), tmp_path / "a.json")))
    assert mt.load(old) == load_views(old)


def test_a_diagnosis_is_read_with_all_that_was_written(tmp_path: Path) -> None:
    old, found = OLD / "diagnosis.json", mt.load(OLD / "diagnosis.json")
    assert isinstance(found, mt.Diagnosis) and [check.name for check in found.failed] == ["GPU"]
    assert not lost(content(old), found.to_dict()) and mt.load(found.save(tmp_path / "a.json")) == found


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    record, run = read_record(OLD / "run"), mt.load(OLD / "run")
    assert mt.load(OLD / "run" / "run.json") == record
    assert record.status == "complete" and record.arguments["task"] == "professions"
    assert run.circuit.labels == ["L0H1", "L0H3"] and run.effects is not None and len(run.effects) == 12
    assert None not in (run.views, run.flow, run.evaluation, run.stability, run.side_effects)
    run.save(tmp_path)
    again = Run.from_folder(tmp_path)
    assert again.circuit == run.circuit and repr(again.path) == repr(run.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"format": "eap_ig", "version": 1}',
            r"a\.json is not a file of tl_multitrace \(format: 'eap_ig'\)",
        ),
        ('{"version": 1}', r"is not a file of tl_multitrace \(format: None\)"),
        ("[1]", r"is not a file of tl_multitrace \(format: 'list'\)"),
        ('{"format": ["tl_multitrace.path"]}', r"is not a file of tl_multitrace"),
        ('{"format": "tl_multitrace.path", "version": 9}', r"has version 9 of tl_multitrace\.path; .*reads up to 1"),
        ('{"format": "tl_multitrace.path", "version": 1}', r"a\.json: groups: Field required"),
        ('{"format": "tl_multitrace.mib", "version": 1}', r"a\.json: result: "),
        ('{"format": "tl_multitrace.comparison", "version": 1, "runs": 3}', r"a\.json: runs: "),
        ('{"format": "tl_mu', "is not complete JSON"),
    ],
)
def test_what_is_no_file_of_ours_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        mt.load(tmp_path / "a.json")


def test_what_belongs_to_a_process_is_never_read_from_a_file(tmp_path: Path) -> None:
    circuit = content(OLD / "circuit.json")
    assert "tracer" not in circuit
    (tmp_path / "a.json").write_text(json.dumps({**circuit, "tracer": {"model": "mine"}}))
    with pytest.raises(ValueError, match="tracer: is never in a file"):
        mt.load(tmp_path / "a.json")


def test_a_folder_without_a_run_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no run\.json, so it is not a run folder"):
        mt.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file '.*nowhere\.json'"):
        mt.load(tmp_path / "nowhere.json")


def test_every_result_has_its_figure() -> None:
    drawn = {kind for kind, how in DRAWINGS if how == "plot"}
    assert drawn == {*RESULTS.values()} - {mt.SolverComparison}  # which draws its paths
    with pytest.raises(NotImplementedError, match="a Diagnosis has no figure"):
        mt.load(OLD / "diagnosis.json").plot()


def test_what_goes_on_where_it_stopped_is_read(tmp_path: Path) -> None:
    shutil.copytree(OLD / "unfinished", tmp_path / "run")
    with pytest.raises(ValueError, match="started with n 12, not 13"):
        Checkpoint(tmp_path / "run", {"model": "demo", "n": 13}).start()
    shutil.copytree(OLD / "traces", tmp_path / "traces")
    facts = [("The Falcon Tower is in the city of", "Falcon Tower", " Rome")]
    with pytest.raises(ValueError, match=r"holds the traces of a run with other (model, )?facts"):
        mt.average_causal_trace(mt.load_model("demo"), facts, samples=2, folder=tmp_path / "traces")
