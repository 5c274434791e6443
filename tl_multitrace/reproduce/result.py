"""``Reproduction``: what an experiment gave on the model at hand, beside what was published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, result
from tl_multitrace.records.write import write_text

if TYPE_CHECKING:
    import pandas as pd

UNPUBLISHED = "not published as a number"
RECORD, TABLE, MARKDOWN, CURVE = "reproduction.json", "table.csv", "table.md", "curve.png"
COLUMNS = ("quantity", "unit", "ours", "low", "high", "held_out", "prompts", "published", "published_model", "source")


@dataclass(frozen=True)
class Published:
    """A number from the literature.

    Attributes:
        value: in the unit of its row.
        model: that it was measured on.
        source: where it stands.

    Examples:
        >>> from tl_multitrace.reproduce import Published
        >>> Published(value=0.31, model="gpt2", source="arXiv:2004.12265, figure 3").value
        0.31
    """

    value: float
    model: str
    source: str


@dataclass(frozen=True)
class Row:
    """One quantity, ours and theirs.

    Attributes:
        quantity: what it is.
        unit: of all its numbers.
        ours: on the prompts that the search saw, as in the published experiments; None where only theirs is known.
        low: lower end of its 95 % interval over prompts.
        high: upper end.
        held_out: the same on prompts that the search never saw.
        n: prompts.
        published: theirs; None where no number was found.

    Examples:
        >>> from tl_multitrace.reproduce import Row
        >>> row = Row("effect of all heads", "relative change of odds", ours=0.30, low=0.25, high=0.36, n=160)
        >>> row.published is None
        True
    """

    quantity: str
    unit: str
    ours: float | None
    low: float | None = None
    high: float | None = None
    held_out: float | None = None
    n: int | None = None
    published: Published | None = None


@dataclass(frozen=True)
class Curve:
    """One line of the figure.

    Attributes:
        name: in the legend.
        x: places.
        y: heights.
        kind: ``"line"``, ``"dashed"`` (held-out prompts) or ``"published"`` (grey, with markers).
        low: lower ends of 95 % intervals, or empty.
        high: upper ends, or empty.

    Examples:
        >>> from tl_multitrace.reproduce import Curve
        >>> Curve("greedy", x=(1.0, 2.0, 3.0), y=(0.1, 0.2, 0.25)).kind
        'line'
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    kind: Literal["line", "dashed", "published"] = "line"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@result("tl_multitrace.reproduction", key="result")
@dataclass(frozen=True, repr=False)
class Reproduction(Result):
    """A published experiment, run again.

    Attributes:
        name: what ``tl-multitrace reproduce`` calls it.
        title: what it is.
        source: publication.
        model: that it ran on here.
        rows: the table.
        curves: the figure.
        axes: labels of its x and y axis.
        settings: of this run.
        notes: where this run departs from the published one.
        cost: forward equivalents and seconds.
        provenance: model, prompts and versions.

    Examples:
        >>> found = mt.reproduce("ioi", model="demo", quick=True, n=8)
        >>> list(found.to_dataframe().columns)[:3]
        ['quantity', 'unit', 'ours']
    """

    name: str
    title: str
    source: str
    model: str
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    axes: tuple[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=dict)

    def __getitem__(self, quantity: str) -> Row:
        """A row by its quantity; raises KeyError for one that is not in the table."""
        for row in self.rows:
            if row.quantity == quantity:
                return row
        raise KeyError(f"no quantity {quantity!r}; the table has {', '.join(r.quantity for r in self.rows)}.")

    def to_dataframe(self) -> pd.DataFrame:
        """One row per quantity: ours with its interval, held out, prompts; the published number, its model, source."""
        import pandas as pd

        rows = []
        for r in self.rows:
            theirs = (
                (None, "", "") if r.published is None else (r.published.value, r.published.model, r.published.source)
            )
            rows.append((r.quantity, r.unit, r.ours, r.low, r.high, r.held_out, r.n, *theirs))
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def to_markdown(self) -> str:
        """The table for a text, with settings and notes under it."""
        head = [
            "quantity",
            "unit",
            f"ours ({self.model})",
            "95 % interval",
            "held out",
            "prompts",
            "published",
            "source",
        ]
        lines = [head, ["---"] * len(head), *[_cells(row) for row in self.rows]]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        settings = "\n".join(f"- {name}: {value}" for name, value in self.settings.items())
        notes = "\n".join(f"- {note}" for note in self.notes)
        parts = [f"# {self.title}", f"Published: {self.source}.", table, f"Settings:\n\n{settings}"]
        return "\n\n".join([*parts, *([f"Differences from the published run:\n\n{notes}"] if notes else [])]) + "\n"

    def headline(self) -> str:
        """What was run on what."""
        return f"{self.title}, on {self.model} ({self.source})"

    def summary(self) -> list[tuple[str, str]]:
        """Every quantity, ours and theirs."""
        return [(row.quantity, f"{_number(row.ours)} {row.unit}{_held(row)}; {_theirs(row)}") for row in self.rows]

    def __repr__(self) -> str:
        width = max((len(row.quantity) for row in self.rows), default=0)
        lines = [f"  {name:{width}s}  {value}" for name, value in self.summary()]
        return "\n".join([self.headline(), *lines, *[f"  note: {note}" for note in self.notes]])

    def write(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write record, tables (CSV, markdown) and curve into a folder; raises FileExistsError unless ``overwrite``."""
        place = Path(folder)
        check_free(place, overwrite=overwrite)
        self.save(place / RECORD, overwrite=overwrite)
        write_text(place / TABLE, self.to_dataframe().to_csv(index=False, lineterminator="\n"), overwrite=overwrite)
        write_text(place / MARKDOWN, self.to_markdown(), overwrite=overwrite)
        self.drawn("png", place / CURVE, overwrite=overwrite)
        return place


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder with results before any work is done; raises FileExistsError or NotADirectoryError."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file. Give a folder for --out.")
    there = [name for name in (RECORD, TABLE, MARKDOWN, CURVE) if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(f"{folder / there[0]} exists. Choose another --out, or add --overwrite to replace it.")


def _cells(row: Row) -> list[str]:
    interval = "" if row.low is None or row.high is None else f"{row.low:.3g} to {row.high:.3g}"
    theirs = UNPUBLISHED if row.published is None else f"{row.published.value:.4g} ({row.published.model})"
    source = "" if row.published is None else row.published.source
    held = "" if row.held_out is None else f"{row.held_out:.3g}"
    return [
        row.quantity,
        row.unit,
        _number(row.ours),
        interval,
        held,
        "" if row.n is None else str(row.n),
        theirs,
        source,
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _held(row: Row) -> str:
    return "" if row.held_out is None else f" (held out {row.held_out:.3g})"


def _theirs(row: Row) -> str:
    if row.published is None:
        return UNPUBLISHED
    return f"published {row.published.value:.4g} on {row.published.model}"
