"""Graphs in files: the package's own JSON, GraphML for other graph programs, and DOT for Graphviz.

Attributes are text, numbers and booleans, which all three hold. JSON is what this package reads back; nothing else is
parsed, so that no foreign file can do harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import FiniteFloat

from tl_multitrace.flow.nodes import MLP
from tl_multitrace.records.read import short
from tl_multitrace.records.record import Record, result
from tl_multitrace.records.write import write_text

if TYPE_CHECKING:
    import networkx as nx

Value = bool | int | FiniteFloat | str
RISES, FALLS = "#0072B2", "#D55E00"  # as in the figures
WIDEST = 5.0
"""Width in points of the strongest edge of a DOT file."""


@dataclass(frozen=True)
class NodeRecord:
    """A node in a file."""

    id: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class EdgeRecord:
    """An edge in a file; ``key`` tells edges of the same two nodes apart."""

    source: str
    target: str
    key: str = ""
    attributes: Mapping[str, Value] = field(default_factory=dict)


@result("tl_multitrace.graph")
@dataclass(frozen=True)
class GraphRecord(Record):
    """A graph in a file."""

    directed: bool
    nodes: tuple[NodeRecord, ...]
    edges: tuple[EdgeRecord, ...]
    attributes: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        there = {node.id for node in self.nodes}
        absent = [n for edge in self.edges for n in (edge.source, edge.target) if n not in there]
        if absent:
            raise ValueError(f"an edge names {short(absent[0])}, which is not among the nodes.")

    def opened(self) -> nx.Graph:
        """The graph itself."""
        import networkx as nx

        graph = nx.MultiDiGraph() if self.directed else nx.Graph()
        graph.graph.update(self.attributes)
        for node in self.nodes:
            graph.add_node(node.id)
            graph.nodes[node.id].update(node.attributes)  # not as keywords: a file may name one of networkx' own
        for edge in self.edges:
            ends = (edge.source, edge.target, edge.key) if self.directed else (edge.source, edge.target)
            graph.add_edge(*ends)
            graph.edges[ends].update(edge.attributes)
        return graph


def save_graph(graph: nx.Graph, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a graph of :func:`information_flow` or :func:`knowledge_graph`; the name's ending says how.

    Args:
        graph: with attributes of text, numbers and booleans.
        path: ``.json`` (read back by :func:`load_graph`), ``.graphml`` (Gephi, Cytoscape, yEd, networkx), or ``.dot``
            or ``.gv`` (Graphviz).
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists.
        ValueError: another ending; an attribute that is not finite or of another type.

    Examples:
        >>> graph = mt.information_flow(circuit)
        >>> mt.save_graph(graph, "flow.graphml").name
        'flow.graphml'
    """
    place = Path(path)
    record = _record(graph, place)
    if place.suffix == ".json":
        return record.save(place, overwrite=overwrite)
    if place.suffix == ".graphml":
        return write_text(place, to_graphml(graph), overwrite=overwrite)
    if place.suffix in (".dot", ".gv"):
        return write_text(place, to_dot(graph), overwrite=overwrite)
    raise ValueError(f"cannot write {place.name!r}: end the name in .json, .graphml or .dot.")


def load_graph(path: str | Path) -> nx.Graph:
    """Read a graph from the JSON that :func:`save_graph` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: cut off, of another format or a newer version, or an edge between nodes that are not there.

    Examples:
        >>> graph = mt.information_flow(circuit)
        >>> again = mt.load_graph(mt.save_graph(graph, "flow.json"))
        >>> set(again.nodes) == set(graph.nodes)
        True
    """
    return GraphRecord.load(path).opened()


def _record(graph: nx.Graph, path: Path) -> GraphRecord:
    given = {
        "directed": graph.is_directed(),
        "attributes": dict(graph.graph),
        "nodes": [{"id": str(n), "attributes": d} for n, d in graph.nodes(data=True)],
        "edges": [{"source": str(a), "target": str(b), "key": k, "attributes": d} for a, b, k, d in _edges(graph)],
    }
    try:
        record: GraphRecord = GraphRecord.FILE.adapter.validate_python(given)
    except ValueError as error:  # pydantic's own is one
        raise ValueError(f"{path} was not written: {error}") from None
    return record


def _edges(graph: nx.Graph) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    if graph.is_multigraph():
        yield from ((a, b, str(k), d) for a, b, k, d in graph.edges(keys=True, data=True))
    else:
        yield from ((a, b, "", d) for a, b, d in graph.edges(data=True))


# ---------------------------------------------------------------------- other programs' formats


def to_graphml(graph: nx.Graph) -> str:
    """The graph as GraphML text; the input of an edge is its attribute, and every edge has an id of its own.

    Examples:
        >>> from tl_multitrace.flow import to_graphml
        >>> "<graphml" in to_graphml(mt.information_flow(circuit))
        True
    """
    import networkx as nx

    plain = nx.MultiDiGraph() if graph.is_directed() else nx.MultiGraph()
    plain.graph.update(_readable(graph.graph))
    for name, attributes in graph.nodes(data=True):
        plain.add_node(_text(name), **_readable(attributes))
    # programs take two edges of one id for one edge, and "q" is the input of many
    for number, (a, b, _, attributes) in enumerate(_edges(graph)):
        plain.add_edge(_text(a), _text(b), key=f"e{number}", **_readable(attributes))
    return "\n".join(nx.generate_graphml(plain)) + "\n"


def _readable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _text(v) if isinstance(v, str) else v for k, v in attributes.items()}


def _text(value: Any) -> str:
    # XML 1.0 has no way to write control characters, not even escaped
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", str(value))


def to_dot(graph: nx.Graph) -> str:
    """The graph as DOT text for Graphviz: layers from left to right, width for size, blue positive, red negative.

    Examples:
        >>> from tl_multitrace.flow import to_dot
        >>> to_dot(mt.information_flow(circuit)).splitlines()[0]
        'digraph {'
    """
    arrow = "->" if graph.is_directed() else "--"
    kind = "digraph" if graph.is_directed() else "graph"
    widest = max((abs(d.get("effect", 0.0)) for *_, d in _edges(graph)), default=0.0) or 1.0
    nodes = [f"{_quoted(n)}{_attributes({**d, 'label': _label(n, d)})}" for n, d in graph.nodes(data=True)]
    ranks = [f"{{ rank=same; {' '.join(map(_quoted, names))} }}" for names in _ranks(graph)]
    ties = [
        f"{_quoted(a)} {arrow} {_quoted(b)}{_attributes({**d, **_look(d, widest)})}" for a, b, _, d in _edges(graph)
    ]
    style = ["rankdir=LR", 'node [shape=box, style=rounded, fontname="sans-serif"]']
    lines = [f"{kind} {{", *(f"  {line};" for line in (*style, *nodes, *ranks, *ties))]
    return "\n".join([*lines, "}"]) + "\n"


def _label(name: str, attributes: Mapping[str, Any]) -> str:
    label, text = str(attributes.get("label", name)), str(attributes.get("text", ""))
    return f"{label}\n{text}" if text else label


def _look(attributes: Mapping[str, Any], widest: float) -> dict[str, Any]:
    effect = float(attributes.get("effect", 0.0))
    label = f"{attributes.get('input', '')} {effect:.3g}".strip()
    width = max(0.3, WIDEST * abs(effect) / widest)
    return {"label": label, "penwidth": round(width, 3), "color": FALLS if effect < 0 else RISES}


def _ranks(graph: nx.Graph) -> list[list[str]]:
    """Nodes that are computed at the same time: a block's MLP comes after its attention."""
    by_step: dict[tuple[int, bool], list[str]] = {}
    for name, attributes in graph.nodes(data=True):
        if "layer" in attributes and graph.is_directed():
            by_step.setdefault((int(attributes["layer"]), attributes.get("kind") in MLP), []).append(name)
    return [names for _, names in sorted(by_step.items()) if len(names) > 1]


def _attributes(values: Mapping[str, Any]) -> str:
    return " [" + ", ".join(f"{_quoted(k)}={_quoted(v)}" for k, v in values.items()) + "]" if values else ""


def _quoted(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
