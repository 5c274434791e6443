"""A circuit as text for a terminal, and as HTML for a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_multitrace.circuit import Circuit

MOST = 30
"""Components that are listed; the others are counted."""


def as_text(circuit: Circuit) -> str:
    """What is known about a circuit, then its components."""
    body = [f"  {name:9s} {value}" for name, value in circuit.summary()]
    frame = circuit.to_dataframe().head(MOST)
    rows = [f"  {r.component:>12s}  {_number(r.marginal):>10s}  {_percent(r.share):>6s}" for r in frame.itertuples()]
    table = [f"  {'component':>12s}  {'marginal':>10s}  {'share':>6s}", *rows] if rows else []
    more = [f"  ... and {len(circuit) - MOST} more"] if len(circuit) > MOST else []
    return "\n".join([_head(circuit), *body, *table, *more])


def as_html(circuit: Circuit) -> str:
    """The same as two tables."""
    facts = "".join(
        f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in circuit.summary()
    )
    frame = circuit.to_dataframe().drop(columns=["kind", "layer", "index", "position"])
    table = frame.to_html(index=False, float_format=lambda x: f"{x:.3g}")
    return f"<b>{_head(circuit)}</b><table>{facts}</table>{table}"


def _head(circuit: Circuit) -> str:
    return f"Circuit of {len(circuit)} of {circuit.n_groups} components"


def _number(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.3g}"


def _percent(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.0%}"
