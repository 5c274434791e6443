"""Where the nodes of a layered graph go, and the ways of its edges around the nodes in between.

An edge that passes over columns has a waypoint in each of them, which takes a place in the column as nodes do
(Sugiyama et al. 1981). Columns are swept to and fro: each is ordered by what its members are connected to, and every
member moves to where its neighbours are, as far as the distance to the next one allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx as nx

AFTER_ATTENTION = ("neuron", "mlp_dim", "mlp")
NODE, WAYPOINT = 1.0, 0.5
"""Rows that a node and a waypoint take."""

SWEEPS = 16
MOST_IDLE = 12
"""Components without an edge that are still shown."""

Place = tuple[float, float]
"""Column and row."""

Member = str | tuple[str, str, int]
"""A node, or the waypoint of an edge (sender, receiver) in a column."""


@dataclass(frozen=True)
class Drawn:
    """One edge to draw.

    Attributes:
        sender: node it leaves.
        receiver: node it enters.
        input: by which input.
        effect: mean effect.
    """

    sender: str
    receiver: str
    input: str
    effect: float


def layout(
    graph: nx.MultiDiGraph, edges: Sequence[Drawn]
) -> tuple[dict[str, Place], dict[tuple[str, str], list[Place]]]:
    """Places of the nodes, and the way of every edge from node to node.

    Tokens without an edge are left out, and so are components without one where they are many.
    """
    linked = {name for e in edges for name in (e.sender, e.receiver)}
    idle = [n for n, d in graph.nodes(data=True) if d["kind"] not in ("token", "answer") and n not in linked]
    shown = {*linked, "answer", *(idle if len(idle) <= MOST_IDLE else ())}
    names = [n for n in graph if n in shown]
    steps = sorted({step(graph.nodes[n]) for n in names})
    column = {n: steps.index(step(graph.nodes[n])) for n in names}
    columns: list[list[Member]] = [[n for n in names if column[n] == i] for i in range(len(steps))]
    columns[0].sort(key=lambda n: _position(graph.nodes[n]))
    chains: dict[tuple[str, str], list[Member]] = {}
    for a, b in dict.fromkeys((e.sender, e.receiver) for e in edges):
        between: list[Member] = [(a, b, i) for i in range(column[a] + 1, column[b])]
        for point in between:
            columns[int(point[2])].append(point)
        chains[a, b] = [a, *between, b]
    rows = _rows(columns, list(chains.values()), tokens=steps[0][0] < 0)
    ways = {pair: [(float(column[pair[0]] + i), rows[m]) for i, m in enumerate(c)] for pair, c in chains.items()}
    return {n: (float(column[n]), rows[n]) for n in names}, ways


def step(attributes: Mapping[str, Any]) -> tuple[int, bool]:
    """Order of computation: a block's MLP comes after its attention."""
    return int(attributes["layer"]), attributes["kind"] in AFTER_ATTENTION


def _position(attributes: Mapping[str, Any]) -> tuple[int, str]:
    text = str(attributes.get("position", ""))
    return (int(text), "") if text.isdigit() else (1 << 30, text)


# ---------------------------------------------------------------------- rows


def _rows(columns: list[list[Member]], chains: Sequence[Sequence[Member]], tokens: bool) -> dict[Member, float]:
    near: dict[Member, list[Member]] = {m: [] for column in columns for m in column}
    for chain in chains:
        for a, b in pairwise(chain):
            near[a].append(b)
            near[b].append(a)
    rows = {m: i - (len(column) - 1) / 2 for column in columns for i, m in enumerate(column)}
    for sweep in range(SWEEPS):
        order = list(enumerate(columns))
        for i, column in order[::-1] if sweep % 2 else order:
            wanted = {m: _mean([rows[n] for n in near[m]]) for m in column if near[m]}
            last = max(wanted.values(), default=_mean(list(rows.values())))
            wanted |= {m: last for m in column if m not in wanted}  # nodes without an edge stand below the others
            if not (tokens and i == 0):  # tokens stay in the order of the prompt
                column.sort(key=wanted.__getitem__)
            rows |= dict(zip(column, _apart(column, wanted), strict=True))
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _apart(column: Sequence[Member], wanted: Mapping[Member, float]) -> list[float]:
    """Rows as near to the wanted ones as distances allow: least squares, which is an isotonic regression."""
    from scipy.optimize import isotonic_regression

    size = [NODE if isinstance(m, str) else WAYPOINT for m in column]
    below = [sum(size[:i]) + size[i] / 2 for i in range(len(size))]
    if not column:
        return []
    fitted = isotonic_regression([wanted[m] - b for m, b in zip(column, below, strict=True)]).x
    return [float(x) + b for x, b in zip(fitted, below, strict=True)]
