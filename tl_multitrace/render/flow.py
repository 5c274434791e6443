"""The flow of information as a figure: tokens on the left, the answer on the right, a line per direct effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_multitrace.render.layers import Drawn, Place, layout, step
from tl_multitrace.render.style import COLOURS, GREY, new_axes, styled

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_EDGES = 40
WIDEST = 6.0
"""Line width in points of the strongest edge."""

POSITIVE, NEGATIVE = COLOURS[:2]
BEND = 0.45
ARRIVE = 0.4
"""Columns before a node's middle at which its edges arrive, and have the letter of their input."""

PORT = {"q": -0.22, "k": 0.0, "v": 0.22}
"""Rows from a node's middle at which an edge enters it, by input."""

OUTSIDE = "#dcdcdc"
"""Fill of components that are not the circuit's own."""

THIN = {"linewidth": 0.6}


def plot_flow(
    graph: nx.MultiDiGraph, *, min_share: float = 0.0, most: int = MOST_EDGES, ax: Axes | None = None
) -> Figure:
    """Direct effects between components, layer by layer from left to right.

    An edge's width is the size of its effect; blue raises the metric, red lowers it. The letter where it enters says by
    which input: queries, keys or values. Grey nodes are not of the circuit, but there for what passes through them.
    Components without an edge are dotted, and left out where they are many.

    Args:
        graph: of :func:`~tl_multitrace.information_flow`.
        min_share: leave out edges whose size is below this share of the strongest edge's.
        most: edges to draw, the strongest first; the title says how many were left out.
        ax: axes to draw in; default: a new figure.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: not such a graph.

    Examples:
        >>> from tl_multitrace.render import plot_flow
        >>> plot_flow(mt.information_flow(circuit)).savefig("flow.png")
    """
    drawn = strongest(check_flow(graph), min_share, most)
    places, ways = layout(graph, drawn)
    ys = [y for way in ways.values() for _, y in way] + [y for _, y in places.values()]
    widest, ports = max((abs(e.effect) for e in drawn), default=1.0), _ports(drawn)
    with styled():
        width, height = 1.35 * (1 + max(x for x, _ in places.values())), 0.5 * (max(ys) - min(ys))
        figure, ax = new_axes(ax, max(5.0, width), max(2.6, height + 1.6))
        for edge in reversed(drawn):
            port = ports[edge.receiver, edge.input]
            _draw_edge(ax, ways[edge.sender, edge.receiver], edge, widest, port)
        linked = {name for e in drawn for name in (e.sender, e.receiver)}
        for name, place in places.items():
            _draw_node(ax, place, name, graph.nodes[name], name in linked)
        _finish(ax, graph, places, drawn, ys)
    return figure


def check_flow(graph: Any) -> nx.MultiDiGraph:
    """The graph, if it is one of direct effects.

    Raises:
        ValueError: nodes or edges lack what those of :func:`~tl_multitrace.information_flow` carry.
    """
    if not graph.is_directed() or not graph.is_multigraph() or "answer" not in graph:
        raise ValueError("not a graph of information_flow(): it has no node 'answer' or is not directed.")
    for name, node in graph.nodes(data=True):
        if not isinstance(node.get("kind"), str) or not isinstance(node.get("layer"), int):
            raise ValueError(f"not a graph of information_flow(): the node {name!r} has no kind and layer.")
    for a, b, edge in graph.edges(data=True):
        numbers = [edge.get("effect"), edge.get("low", 0.0), edge.get("high", 0.0)]  # of one prompt: no interval
        whole = all(isinstance(v, int | float) for v in numbers) and ("low" in edge) == ("high" in edge)
        if not whole or not step(graph.nodes[a]) < step(graph.nodes[b]):
            raise ValueError(
                f"not a graph of information_flow(): the edge from {a!r} to {b!r} has no effect, or runs back."
            )
    return graph


def strongest(graph: nx.MultiDiGraph, min_share: float, most: int) -> list[Drawn]:
    """The edges to draw, strongest first."""
    edges = [Drawn(a, b, str(d["input"]), float(d["effect"])) for a, b, d in graph.edges(data=True)]
    edges.sort(key=lambda e: -abs(e.effect))
    least = min_share * abs(edges[0].effect) if edges else 0.0
    return [e for e in edges[:most] if abs(e.effect) >= least]


# ---------------------------------------------------------------------- drawing


def _draw_edge(ax: Axes, way: Sequence[Place], edge: Drawn, widest: float, port: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x, y), end = way[-1], (way[-1][0] - ARRIVE, way[-1][1] + port)
    points, codes = [way[0]], [Path.MOVETO]
    for (x1, y1), (x2, y2) in zip(way, [*way[1:-1], end], strict=False):
        points += [(x1 + BEND * (x2 - x1), y1), (x2 - BEND * (x2 - x1), y2), (x2, y2)]
        codes += [Path.CURVE4] * 3
    curve = Path([*points, (x, y)], [*codes, Path.LINETO])
    colour = POSITIVE if edge.effect >= 0 else NEGATIVE
    width = max(0.6, WIDEST * abs(edge.effect) / widest)
    patch = PathPatch(curve, fill=False, edgecolor=colour, linewidth=width, alpha=0.75, capstyle="butt", zorder=1)
    patch.set_gid(f"edge-{edge.sender}-{edge.receiver}-{edge.input}")
    ax.add_patch(patch)
    if edge.input in PORT:
        box: dict[str, Any] = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": GREY}
        ax.text(*end, edge.input, fontsize=7, color="black", ha="center", va="center", bbox=box | THIN, zorder=2)


def _ports(drawn: Sequence[Drawn]) -> dict[tuple[str, str], float]:
    """Where edges enter a node: apart by input where it has several."""
    inputs: dict[str, set[str]] = {}
    for edge in drawn:
        inputs.setdefault(edge.receiver, set()).add(edge.input)
    return {(n, x): PORT.get(x, 0.0) if len(found) > 1 else 0.0 for n, found in inputs.items() for x in found}


def _draw_node(ax: Axes, place: Place, name: str, attributes: Mapping[str, Any], linked: bool) -> None:
    text = str(attributes.get("text") or "")
    label = _short(str(attributes.get("label", name))) + (f"\n{_short(text)}" if text else "")
    style: dict[str, Any] = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": GREY}
    style |= {} if attributes.get("chosen", True) else {"facecolor": OUTSIDE}
    style |= {} if linked else {"linestyle": ":"}
    ax.text(*place, label, fontsize=8, color="black", ha="center", va="center", bbox=style, zorder=3, linespacing=1.15)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _short(text: str) -> str:
    return _plain(text if len(text) <= 22 else text[:21] + "…")


def _finish(
    ax: Axes, graph: nx.MultiDiGraph, places: Mapping[str, Place], drawn: Sequence[Drawn], ys: Sequence[float]
) -> None:
    total = graph.number_of_edges()
    columns = {x: graph.nodes[n] for n, (x, _) in places.items()}
    ax.set_xlim(-0.6, max(columns) + 0.5)
    ax.set_ylim(max(ys) + 0.6, min(ys) - 0.6)
    ax.xaxis.tick_top()
    ax.set_xticks(sorted(columns), [_column_name(columns[x]) for x in sorted(columns)])
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    left = f"the {len(drawn)} strongest of {total} edges" if len(drawn) < total else f"{total} edge{'s' * (total != 1)}"
    ax.set_title(f"Direct effects, {left}", loc="left", pad=10)
    _legend(ax, str(graph.graph.get("unit", "effect")), max((abs(e.effect) for e in drawn), default=0.0))


def _legend(ax: Axes, unit: str, largest: float) -> None:
    from matplotlib.lines import Line2D

    signs = ((POSITIVE, "raises the metric"), (NEGATIVE, "lowers it"))
    handles = [Line2D([], [], color=c, linewidth=3, label=text) for c, text in signs]
    handles.append(Line2D([], [], color=GREY, linewidth=WIDEST, label=f"{largest:.3g} ({_plain(unit)})"))
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)


def _column_name(attributes: Mapping[str, Any]) -> str:
    layer, late = step(attributes)
    if attributes["kind"] in ("token", "answer"):
        return "tokens" if attributes["kind"] == "token" else ""
    return f"layer {layer}\n{'MLP' if late else 'attention'}"
