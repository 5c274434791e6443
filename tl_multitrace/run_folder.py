"""The folder a run leaves: written beside its place, moved there when it is whole, read back by name.

======================  ==============================================================
``circuit.json``        the chosen circuit with its scores
``path.json``           the best set for every budget
``effects.csv``         one row per prompt pair: texts, subgroup, split, effect
``figures/``            the report's figures, as PNG and SVG
``report.html``         everything on one page
``views.json``          what the page's views of the model are drawn from
``flow.*``              direct effects between the components: JSON, GraphML, DOT
``evaluation.json``     the circuit on held-out prompts: faithfulness, random sets
``stability.json``      which components come back on resampled prompts
``side_effects.json``   other behaviours with the circuit switched off
``run.json``            status, arguments, versions, machine, seed, timings and cost of every step
======================  ==============================================================
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tl_multitrace import machine
from tl_multitrace.files import File, read_json, write_json
from tl_multitrace.job import Job, Log
from tl_multitrace.machine import versions
from tl_multitrace.render import Run, write_report
from tl_multitrace.untrusted import member

JUDGED = ("evaluation.json", "stability.json", "side_effects.json")
RECORD, REPORT, FIGURES = "run.json", "report.html", "figures"
FLOW_FILES = ("flow.json", "flow.graphml", "flow.dot")
OWN_FILES = (RECORD, REPORT, FIGURES, "circuit.json", "path.json", "effects.csv", "views.json", *FLOW_FILES, *JUDGED)
"""What a run writes; a folder with anything else in it is never replaced."""

PNG_DPI = 160
Status = Literal["complete", "interrupted"]


class RunFile(File):
    """``run.json``: what was asked for, with what, how long it took, and how it ended.

    ``cost`` is the search's, in forwards over its prompts; ``steps`` counts everything that ran, step by step, in runs
    of single prompt pairs; ``timings`` are seconds.
    """

    FORMAT: ClassVar[str] = "tl_multitrace.run"
    format: Literal["tl_multitrace.run"] = "tl_multitrace.run"
    version: int = 1
    status: Status
    started: str
    finished: str
    seed: int
    arguments: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)
    steps: dict[str, dict[str, float]] = Field(default_factory=dict)
    facts: dict[str, Any] = Field(default_factory=dict)


def check_place(out: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that a run must not be written to.

    Raises:
        FileExistsError: it holds something, and ``overwrite`` is False or not all of it is a run's.
        NotADirectoryError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file. Give a folder for --out.")
    found = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    if found and not overwrite:
        raise FileExistsError(f"{out} exists and is not empty. Choose another --out, or add --overwrite to replace it.")
    foreign = [name for name in found if name not in OWN_FILES]
    if foreign or (found and RECORD not in found):
        what = f"holds {foreign[0]!r}, which no run writes" if foreign else f"has no {RECORD}, so it is no run folder"
        raise FileExistsError(f"{out} {what}: --overwrite would delete it. Choose another --out.")


@contextmanager
def writing(out: Path, job: Job, log: Log, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write a run into, which takes its place at ``out`` when the block ends.

    After Ctrl-C the finished files stay, with status ``"interrupted"``, unless an earlier run is at ``out``: that one
    is then left as it was. After an error nothing is left.

    Raises:
        FileExistsError: see :func:`check_place`.
    """
    check_place(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    started = _now()
    try:
        yield place
        _write_record(place, job, log, "complete", started)
        _publish(place, out)
    except KeyboardInterrupt:
        if not out.is_dir() or not any(out.iterdir()):
            _write_record(place, job, log, "interrupted", started)
            _publish(place, out)
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _publish(place: Path, out: Path) -> None:
    """Move a finished folder to its name; what was there before goes only once the new one stands."""
    place.chmod(0o755)
    if not out.exists():
        os.replace(place, out)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    os.replace(out, old)
    os.replace(place, out)
    shutil.rmtree(old)


def _write_record(place: Path, job: Job, log: Log, status: Status, started: str) -> None:
    record = RunFile(
        status=status,
        started=started,
        finished=_now(),
        seed=job.seed,
        arguments=job.arguments(),
        versions=versions(),
        machine=machine.record(log.device),
        timings=log.timings,
        cost=log.cost,
        steps=log.steps,
        facts=log.facts,
    )
    write_json(place / RECORD, record.model_dump(mode="json"), overwrite=True)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


# ---------------------------------------------------------------------- a run's files


def write_run(run: Run, place: Path) -> Run:
    """Write a measured run's files into an empty folder: data first, so that an interruption leaves the result."""
    saved = run.save(place)
    figures = place / FIGURES
    figures.mkdir()
    for svg in place.glob("*.svg"):
        os.replace(svg, figures / svg.name)
    _write_pngs(saved, figures)
    write_report(saved, place / REPORT)
    return saved


def _write_pngs(run: Run, figures: Path) -> None:
    import matplotlib.pyplot as plt

    for name, figure in run.figures().items():
        figure.savefig(figures / f"{name}.png", dpi=PNG_DPI, bbox_inches="tight", facecolor="white")
        plt.close(figure)


def read_record(folder: Path) -> RunFile:
    """``run.json`` of a run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: truncated, foreign or of a newer version.
    """
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder} has no {RECORD}, so it is not a run folder.")
    return read_json(member(folder, RECORD), RunFile)


def read_run(folder: Path) -> Run:
    """A complete run from its folder; no model is needed.

    Raises:
        FileNotFoundError: not a run folder.
        ValueError: a run that was interrupted before it had a result, or a file that is not as it was written.
    """
    record = read_record(folder)
    if not (folder / "circuit.json").is_file() or not (folder / "path.json").is_file():
        raise ValueError(f"the run in {folder} was {record.status} before it had a result. Run it again.")
    return replace(Run.from_folder(folder, title=str(record.facts.get("title", ""))), facts=record.facts)


def rewrite_report(folder: Path, path: Path | None = None, *, overwrite: bool = True) -> Path:
    """Write the HTML report of a run folder anew, by default over the old one."""
    return write_report(read_run(folder), path or folder / REPORT, overwrite=overwrite)
