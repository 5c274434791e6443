"""What the command line prints about a result: tables, and the closing lines in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tl_multitrace.circuit import Circuit
from tl_multitrace.evaluation import SideEffects
from tl_multitrace.records.read import printable
from tl_multitrace.records.stats import FEW, Score
from tl_multitrace.runs.folder import REPORT, load, read_record
from tl_multitrace.runs.job import Log
from tl_multitrace.runs.run import Run
from tl_multitrace.solvers import SubsetPath

if TYPE_CHECKING:
    import pandas as pd

TOP = 5


def closing_lines(run: Run, log: Log, out: Path) -> Iterator[str]:
    """What a run found, in plain words, and where the report is."""
    circuit, facts = run.circuit, log.facts
    unit = str(circuit.provenance.get("metric_unit") or circuit.provenance.get("metric"))
    yield ""
    yield str(facts.get("question", ""))
    yield f"  {_found(circuit)}"
    yield f"  Effect      {_score(circuit.score)}{_share(circuit)}; {unit}"
    yield f"  By budget   {_by_budget(run.path)}"
    if not run.path.success:
        yield f"  Search      {run.path.message}"
    yield f"  Held out    {_score(circuit.held_out)}"
    yield f"  Chance      {_chance(circuit.chance)}"
    yield f"  Verdict     {run.verdict}"
    yield f"  Strongest   {_strongest(circuit)}"
    yield from _side_effects(run.side_effects)
    yield f"  Cost        {run.path.cost.get('equivalents', 0):.0f} forwards over the prompt set, {_seconds(log)}"
    yield f"Report: {out / REPORT}"


def _found(circuit: Circuit) -> str:
    verb = "lowers" if circuit.effect < 0 else "raises"
    metric = str(circuit.provenance.get("metric", "the metric"))
    names = ", ".join(circuit.labels[:12]) + (" ..." if len(circuit) > 12 else "")
    return f"Patching {len(circuit)} of {circuit.n_groups} components {verb} {metric}: {names}"


def _score(score: Score | None) -> str:
    if score is None:
        return "not measured"
    if score.low is None:
        return f"{score.mean:.3g}, no interval: one distinct prompt"
    few = " only" if score.n < FEW else ""
    return f"{score.mean:.3g}, 95 % interval {score.low:.3g} to {score.high:.3g} over {score.n} distinct prompts{few}"


def _chance(chance: Score | None) -> str:
    if chance is None:
        return "not measured"
    return f"{chance}, which holds 95 % of {chance.n} random sets of that size"


def _share(circuit: Circuit) -> str:
    if circuit.share is None:
        return f"; share of patching all {circuit.n_groups} {circuit.no_share}" if circuit.no_share else ""
    return f"; {circuit.share:.0%} of patching all {circuit.n_groups}"


def _by_budget(path: SubsetPath, most: int = 6) -> str:
    """The effect at a few budgets: whether components add up or work only together."""
    ranks = sorted({round(i * (len(path) - 1) / (most - 1)) for i in range(most)})
    return ", ".join(f"{c.size}: {c.score.mean:.3g}" for c in (path.choices[i] for i in ranks))


def _strongest(circuit: Circuit) -> str:
    if not circuit.marginals:
        return "not measured"
    frame = circuit.to_dataframe().head(TOP)
    parts = [f"{name} ({lost:.3g})" for name, lost in zip(frame["component"], frame["marginal"], strict=True)]
    return ", ".join(parts) + ": effect lost without it"


def _side_effects(found: SideEffects | None) -> Iterator[str]:
    """Other behaviours, those that move most first; positive is a rise of the metric."""
    if found is None:
        return
    ranked = sorted(found.effects, key=lambda e: -e.kl.mean)
    parts = [f"{e.name} {e.metric} {e.change.mean:+.3g}{'' if e.clear else ' (unclear)'}" for e in ranked[:TOP]]
    yield f"  Ablated     {', '.join(parts)}: change of each metric"


def _seconds(log: Log) -> str:
    return f"{sum(log.timings.values()):.0f} s in all"


# ---------------------------------------------------------------------- tables


def shown(path: Path) -> Iterator[Any]:
    """What to print about a run folder, or any file that :func:`tl_multitrace.load` reads.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: none of these, or not as it was written.
    """
    found = load(path)
    if isinstance(found, Run):
        record = read_record(path)
        yield f"Run {path}: {record.status}, {printable(record.finished)}, {sum(record.timings.values()):.1f} s"
        yield from _circuit(found.circuit, verdict=str(found.verdict))
        yield f"Report: {path / REPORT}"
    elif isinstance(found, Circuit):
        yield from _circuit(found)
    else:
        yield printable(repr(found))


def _circuit(circuit: Circuit, **known: str) -> Iterator[Any]:
    facts = Table.grid(padding=(0, 2))
    for name, value in (dict(circuit.summary()) | known).items():
        facts.add_row(Text(name, style="bold"), Text(printable(value)))
    yield Text(f"Circuit of {len(circuit)} of {circuit.n_groups} components", style="bold")
    yield facts
    yield table_of(circuit.to_dataframe()[["component", "kind", "layer", "marginal", "share"]])


def task_list(frame: pd.DataFrame) -> Iterator[Any]:
    """What to print about the tasks."""
    yield table_of(frame.drop(columns=["source", "licence"]))
    yield ""
    for (source, licence), part in frame.groupby(["source", "licence"]):
        yield f"{', '.join(part['name'])}: {source} ({licence})."


def table_of(frame: pd.DataFrame) -> Table:
    """A table for the terminal."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in frame.columns:
        numeric = frame[name].dtype.kind in "if"
        table.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*[Text(printable(_cell(value))) for value in row])
    return table


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
