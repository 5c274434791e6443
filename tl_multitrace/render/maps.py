"""Where the chosen components are: layer by head, with a column for every other kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.groups import Component
from tl_multitrace.records.record import draws
from tl_multitrace.render.style import GREY, diverging, new_axes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRIPS = {"attn": "attention", "mlp": "MLP", "neuron": "neurons", "mlp_dim": "MLP dims", "resid": "residual"}
GAP, STRIP = 0.6, 1.6
"""Space before a strip and its width, in head columns."""


@dataclass(frozen=True)
class Cell:
    """What was chosen in one place of the map.

    Attributes:
        column: head number, or a strip's kind.
        layer: block number.
        count: components there (several neurons of a layer, one head at several positions).
        marginal: sum of their marginal effects, or None where they were not measured.
    """

    column: int | str
    layer: int
    count: int
    marginal: float | None


def cells(circuit: Circuit) -> list[Cell]:
    """The circuit's components by place: one cell per head, and one per layer for every other kind."""
    found: dict[tuple[int | str, int], list[float | None]] = {}
    marginals = circuit.marginals or [None] * len(circuit)
    for component, marginal in zip(circuit.components, marginals, strict=True):
        found.setdefault((_column(component), component.layer), []).append(marginal)
    return [Cell(column, layer, len(m), _total(m)) for (column, layer), m in sorted(found.items(), key=_order)]


def _order(item: tuple[tuple[int | str, int], Any]) -> tuple[int, str, int]:
    (column, layer), _ = item
    return layer, str(type(column)), column if isinstance(column, int) else list(STRIPS).index(column)


def _column(c: Component) -> int | str:
    return int(c.index or 0) if c.kind == "head" else c.kind


def _total(marginals: list[float | None]) -> float | None:
    known = [m for m in marginals if m is not None]
    return sum(known) if known else None


@dataclass(frozen=True)
class Grid:
    """Geometry of the map, in head columns and layers."""

    n_layers: int
    n_heads: int
    strips: tuple[str, ...]

    @classmethod
    def of(cls, circuit: Circuit) -> Grid:
        """From the model's shape in the provenance, or from the components where it is unknown."""
        model: Mapping[str, Any] = circuit.provenance.get("model") or {}
        kinds = [c.kind for c in circuit.components]
        layers = max([int(model.get("n_layers") or 0), *(c.layer + 1 for c in circuit.components)])
        known = [int(model.get("n_heads") or 0), *(int(c.index or 0) + 1 for c in circuit if c.kind == "head")]
        heads = max(known) if "head" in kinds or not kinds else 0
        return cls(max(layers, 1), heads, tuple(k for k in STRIPS if k in kinds))

    def x(self, column: int | str) -> float:
        """Left edge of a column."""
        if isinstance(column, int):
            return float(column)
        return self.n_heads + (GAP if self.n_heads else 0.0) + self.strips.index(column) * (STRIP + GAP)

    def width(self, column: int | str) -> float:
        """Width of a column."""
        return 1.0 if isinstance(column, int) else STRIP

    @property
    def right(self) -> float:
        """Right edge of the map."""
        return max(self.x(self.strips[-1]) + STRIP if self.strips else float(self.n_heads), 1.0)

    @property
    def inches(self) -> float:
        """Size of a cell: readable in a small model, and one page for a large one."""
        return min(0.52, max(0.075, min(9.0 / self.right, 8.0 / self.n_layers)))


@draws(Circuit)
def plot_circuit(circuit: Circuit, ax: Axes | None = None) -> Figure:
    """Layer by head map of the chosen components, coloured by marginal effect.

    Every chosen head is a cell of the model's whole grid; attention layers, MLP layers, neurons and residual states
    have a strip of their own, where a cell says how many of a layer were chosen (×3). Blue: the effect is lost without
    the component (its marginal effect is positive); red: the effect grows without it; white: zero.

    Args:
        circuit: the chosen set. The size of the grid is the model's, from ``circuit.provenance["model"]``.
        ax: axes to draw in; default: a new figure.

    Returns:
        The matplotlib figure.

    Examples:
        >>> from tl_multitrace.render import plot_circuit
        >>> plot_circuit(circuit).savefig("circuit.png")
    """
    grid, found = Grid.of(circuit), cells(circuit)
    with styled():
        figure, ax = new_axes(ax, max(3.6, grid.right * grid.inches + 1.9), max(2.2, grid.n_layers * grid.inches + 1.0))
        _draw_grid(ax, grid)
        colours = _colours(found)
        for cell in found:
            _draw_cell(ax, grid, cell, colours)
        if colours is not None:
            unit = str(circuit.provenance.get("metric_unit") or "effect")
            bar = figure.colorbar(colours, ax=ax, shrink=0.9, aspect=25, pad=0.02)
            bar.set_label(f"effect lost without it\n({unit})", labelpad=9)
            bar.ax.tick_params(labelsize=9)
        _label(ax, grid, f"{len(circuit)} of {circuit.n_groups} components")
    return figure


def _colours(found: list[Cell]) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known = [abs(c.marginal) for c in found if c.marginal is not None]
    if not known:
        return None
    largest = max(known) or 1.0
    return ScalarMappable(Normalize(-largest, largest), diverging())


def _draw_grid(ax: Axes, grid: Grid) -> None:
    blocks = [(0.0, float(grid.n_heads))] if grid.n_heads else []
    blocks += [(grid.x(s), STRIP) for s in grid.strips]
    fine = max(grid.n_layers, grid.n_heads) <= 48
    for left, width in blocks:
        lines = [left, left + width]
        if fine and width == grid.n_heads:
            lines = [left + i for i in range(grid.n_heads + 1)]
        rows = range(grid.n_layers + 1) if fine else (0, grid.n_layers)
        ax.vlines(lines, 0, grid.n_layers, colors=GREY, linewidth=0.5, alpha=0.45)
        ax.hlines(list(rows), left, left + width, colors=GREY, linewidth=0.5, alpha=0.45)


def _draw_cell(ax: Axes, grid: Grid, cell: Cell, colours: Any) -> None:
    from matplotlib.patches import Rectangle

    face = GREY if colours is None or cell.marginal is None else colours.to_rgba(cell.marginal)
    left, width = grid.x(cell.column), grid.width(cell.column)
    box = Rectangle((left, cell.layer), width, 1, facecolor=face, edgecolor=GREY, linewidth=1.0)
    box.set_gid(f"cell-L{cell.layer}-{cell.column}")
    ax.add_patch(box)
    room = grid.inches >= 0.3
    text = "" if not room else f"×{cell.count}" if cell.count > 1 else _short(cell.marginal)
    if text:
        dark = not isinstance(face, str) and sum(face[:3]) / 3 < 0.55
        ax.text(
            left + width / 2,
            cell.layer + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=min(8, 16 * grid.inches),
            color="white" if dark else "black",
        )


def _short(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.0f}" if 100 <= abs(value) < 10000 else f"{value:.2g}"
    return text.replace("-", "−").replace("0.", ".", 1) if abs(value) < 1 else text.replace("-", "−")


def _label(ax: Axes, grid: Grid, title: str) -> None:
    step = max(1, round(max(grid.n_layers, grid.n_heads) / 16))
    layers = range(0, grid.n_layers, step)
    heads = range(0, grid.n_heads, step)
    ax.set_xlim(-0.05, grid.right + 0.05)
    ax.set_ylim(grid.n_layers + 0.05, -0.05)  # layer 0 on top, as in TransformerLens' own maps
    ax.set_aspect("equal")
    ax.set_yticks([i + 0.5 for i in layers], [str(i) for i in layers])
    names = [str(h) for h in heads] + [STRIPS[s] for s in grid.strips]
    ax.set_xticks([h + 0.5 for h in heads] + [grid.x(s) + STRIP / 2 for s in grid.strips], names)
    for label in ax.get_xticklabels()[len(heads) :]:
        label.set(rotation=0 if grid.inches >= 0.45 else 90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("layer")
    ax.set_xlabel("head" if grid.n_heads else "")
    ax.set_title(title, loc="left")
