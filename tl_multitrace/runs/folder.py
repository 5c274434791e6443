"""The folder a run leaves: what it finds is kept while it runs, moved to its place when it is whole, read back by name.

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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from tl_multitrace import machine
from tl_multitrace.distributed import ALONE, Ranks
from tl_multitrace.machine import versions
from tl_multitrace.records.read import member
from tl_multitrace.records.record import Record, load_record, result
from tl_multitrace.records.write import locked
from tl_multitrace.render import write_report
from tl_multitrace.runs.checkpoint import NAME, Checkpoint
from tl_multitrace.runs.job import Job, Log
from tl_multitrace.runs.run import Run

JUDGED = ("evaluation.json", "stability.json", "side_effects.json")
RECORD, REPORT, FIGURES = "run.json", "report.html", "figures"
FLOW_FILES = ("flow.json", "flow.graphml", "flow.dot")
OWN_FILES = (
    RECORD,
    REPORT,
    FIGURES,
    "circuit.json",
    "path.json",
    "effects.csv",
    "views.json",
    *FLOW_FILES,
    *JUDGED,
)
"""What a run leaves; a folder with anything else in it, but for the run in progress, is never replaced."""

PNG_DPI = 160
Status = Literal["running", "complete", "interrupted"]


@result("tl_multitrace.run")
@dataclass(frozen=True)
class RunFile(Record):
    """``run.json``: what was asked for, with what, how long it took, and how it ended.

    ``cost`` is the search's, in forwards over its prompts; ``steps`` counts everything that ran, step by step, in runs
    of single prompt pairs; ``timings`` are seconds.
    """

    status: Status
    started: str
    finished: str
    seed: int
    arguments: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def check_place(out: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Refuse a folder that a run must not be written to.

    Raises:
        FileExistsError: it holds something, and ``overwrite`` is False or not all of it is a run's.
        NotADirectoryError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file. Give a folder for --out.")
    found = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    unfinished = NAME in found
    if unfinished and not (overwrite or resume):
        raise FileExistsError(
            f"{out} holds an unfinished run. Add --resume to go on where it stopped, or --overwrite to start anew."
        )
    if found and not (overwrite or (resume and unfinished)):
        raise FileExistsError(f"{out} exists and is not empty. Choose another --out, or add --overwrite to replace it.")
    foreign = [name for name in found if name not in (*OWN_FILES, NAME)]
    if foreign or (found and RECORD not in found and not unfinished):
        what = f"holds {foreign[0]!r}, which no run writes" if foreign else f"has no {RECORD}, so it is no run folder"
        raise FileExistsError(f"{out} {what}: --overwrite would delete it. Choose another --out.")


def is_complete(out: Path, job: Job) -> bool:
    """Whether the run of a job is there already.

    Raises:
        FileExistsError: the run that is there was asked for something else.
    """
    if not (out / RECORD).is_file() or (out / NAME).is_dir():
        return False
    there = read_record(out)
    asked = _record(job, Log(), "complete", "").content()["arguments"]
    differing = [name for name, value in asked.items() if there.arguments.get(name) != value]
    if there.status == "complete" and differing:
        raise FileExistsError(
            f"{out} holds the finished run of another {differing[0]} ({there.arguments.get(differing[0])!r}, not "
            f"{asked[differing[0]]!r}). Choose another --out, or add --overwrite to replace it."
        )
    return there.status == "complete"


@contextmanager
def writing(
    out: Path, job: Job, log: Log, *, overwrite: bool = False, resume: bool = False, ranks: Ranks = ALONE
) -> Iterator[Checkpoint]:
    """The unfinished run of a folder, whose ``result`` takes its place there when the block ends.

    While it runs, the folder holds ``checkpoint/`` and a ``run.json`` that says so (an earlier run's files stay until
    they are replaced). After Ctrl-C, an error or a kill, what was found stays for ``resume``; where nothing was found,
    nothing is left.

    Raises:
        FileExistsError: see :func:`check_place`; or another process works there.
        ValueError: the unfinished run is not this job's.
    """
    checkpoint = Checkpoint(out, _record(job, log, "running", "").content()["arguments"], ranks)
    if not ranks.first:
        ranks.after_first(lambda: None)
        yield checkpoint
        ranks.after_first(lambda: None)
        return
    started = _now()
    with ExitStack() as stack:
        ranks.after_first(lambda: _enter(stack, checkpoint, overwrite=overwrite, resume=resume))
        fresh = not (out / RECORD).is_file() or read_record(out).status != "complete"
        if fresh:
            _write_record(out, job, log, "running", started)
        try:
            yield checkpoint
            _write_record(checkpoint.result, job, log, "complete", started)
            ranks.after_first(lambda: _publish(checkpoint))
        except BaseException:
            _stop(checkpoint, fresh)
            if fresh and out.is_dir():
                _write_record(out, job, log, "interrupted", started)
            raise


def _enter(stack: ExitStack, checkpoint: Checkpoint, *, overwrite: bool, resume: bool) -> None:
    check_place(checkpoint.folder, overwrite=overwrite, resume=resume)
    stack.enter_context(locked(checkpoint.place))
    if overwrite and not resume:
        for old in (checkpoint.found, checkpoint.place / RECORD):
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    checkpoint.start()


def _stop(checkpoint: Checkpoint, fresh: bool) -> None:
    """Keep what was found; without that, leave the folder as it was."""
    if checkpoint.has_found:
        shutil.rmtree(checkpoint.result, ignore_errors=True)
        return
    checkpoint.drop()
    if fresh:
        shutil.rmtree(checkpoint.folder, ignore_errors=True)


def _publish(checkpoint: Checkpoint) -> None:
    """Move finished files to their place, the record last, so that a kill on the way leaves a run to go on with."""
    out, names = checkpoint.folder, {p.name for p in checkpoint.result.iterdir()}
    for old in (p for p in out.iterdir() if p.name in OWN_FILES and p.name != RECORD):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name in sorted(names, key=lambda name: name == RECORD):
        os.replace(checkpoint.result / name, out / name)
    checkpoint.drop()


def _write_record(place: Path, job: Job, log: Log, status: Status, started: str) -> None:
    _record(job, log, status, started).save(place / RECORD, overwrite=True)


def _record(job: Job, log: Log, status: Status, started: str) -> RunFile:
    return RunFile(
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


def load(path: str | Path) -> Any:
    """Whatever result a file of this package holds, or the run of a run folder; no model is needed.

    A graph comes as networkx has it, everything else as the class whose ``save`` wrote it, a run folder as
    :class:`tl_multitrace.render.Run`. Files of other tools are read by :mod:`tl_multitrace.interop`.

    Args:
        path: of the file or folder; of a causal trace the JSON file.

    Raises:
        FileNotFoundError: there is nothing, or a folder that is not a run's.
        ValueError: not a file of this package, cut off, of a newer version, or a run without a result.

    Examples:
        >>> mt.load(circuit.save("found.json")).labels
        ['L0H1', 'L0H3']
        >>> mt.load(path.save("path.json")).sizes
        [1, 2]
        >>> grid = mt.causal_trace(model, "The Falcon Tower is in the city of", subject="Falcon Tower", samples=2)
        >>> type(mt.load(grid.save("trace.json"))).__name__
        'TraceGrid'
    """
    place = Path(path)
    return read_run(place) if place.is_dir() else load_record(place)


def read_record(folder: Path) -> RunFile:
    """``run.json`` of a run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: truncated, foreign or of a newer version.
    """
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder} has no {RECORD}, so it is not a run folder.")
    return RunFile.load(member(folder, RECORD))


def read_run(folder: Path) -> Run:
    """A complete run from its folder; no model is needed.

    Raises:
        FileNotFoundError: not a run folder.
        ValueError: a run that was interrupted before it had a result, or a file that is not as it was written.
    """
    record = read_record(folder)
    if not (folder / "circuit.json").is_file() or not (folder / "path.json").is_file():
        raise ValueError(f"the run in {folder} was {record.status} before it had a result. Run it again with --resume.")
    return replace(Run.from_folder(folder, title=str(record.facts.get("title", ""))), facts=record.facts)


def rewrite_report(folder: Path, path: Path | None = None, *, overwrite: bool = True) -> Path:
    """Write the HTML report of a run folder anew, by default over the old one."""
    return write_report(read_run(folder), path or folder / REPORT, overwrite=overwrite)
