"""The in-between type of all foreign formats: nodes and edges of a circuit, with scores and flags.

Our own :class:`~tl_multitrace.circuit.Circuit` is a set of components with measured effects. Other tools describe a
circuit by the edges between components, by a score on every edge, or by a list of heads. A :class:`CircuitGraph` holds
whatever such a file holds, no more: ``None`` means that the file does not say.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tl_multitrace.interop.node_names import EMBEDDINGS, QKV, Edge, is_edge, node_of, unplaced
from tl_multitrace.interop.shape import Shape

if TYPE_CHECKING:
    import pandas as pd

    from tl_multitrace.circuit import Circuit


class LeftOut(UserWarning):
    """A format cannot hold something that was to be written; the message lists what.

    Examples:
        >>> import warnings
        >>> tracer = mt.Tracer(model, task.pairs, mt.neurons(model, [0])[:8])
        >>> circuit = mt.select(tracer, 1, mt.TopK())[1]
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = mt.to_eap_ig(circuit, "circuit.json")
        >>> caught[0].category.__name__
        'LeftOut'
    """


class Mark(NamedTuple):
    """What a file says of an edge.

    Attributes:
        score: how much the edge matters, in the tool's own unit and sign.
        in_graph: whether the circuit has it.

    Examples:
        >>> from tl_multitrace.interop import Mark
        >>> Mark(score=0.3, in_graph=True).score
        0.3
    """

    score: float | None = None
    in_graph: bool | None = None


class NodeMark(NamedTuple):
    """What a file says of a node: as :class:`Mark`, and per dimension of its output (``[d_model]``) the same.

    Attributes:
        dims: which dimensions of its output are in the circuit.
        dim_scores: how much each of them matters.

    Examples:
        >>> from tl_multitrace.interop import NodeMark
        >>> NodeMark(in_graph=True).dims is None
        True
    """

    score: float | None = None
    in_graph: bool | None = None
    dims: tuple[bool, ...] | None = None
    dim_scores: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class CircuitGraph:
    """A circuit as other tools write it.

    Attributes:
        shape: layers, heads and width of the model it is of.
        nodes: by name (``a9.h6``, ``m0``, ``input``, ``logits``; ``a9.h6@5`` at a position), what is said of them.
        edges: by ends, what is said of them.
        groups: named lists of nodes, such as the roles of heads.
        format: name of the format it was read from, ``""`` for none.
        extra: what only that format holds, kept so that writing it again loses nothing.
        left_out: what could not be taken over when this graph was made, in words.

    Raises:
        ValueError: a node or edge outside the shape.

    Examples:
        >>> graph = mt.CircuitGraph.from_circuit(circuit)
        >>> graph.chosen
        ('input', 'logits', 'a0.h1', 'a0.h3')
        >>> graph.with_edges(score=0.0).to_dataframe().query("in_graph").shape[0]
        9
        >>> graph.to_circuit(model).labels
        ['L0H1', 'L0H3']
    """

    shape: Shape
    nodes: Mapping[str, NodeMark] = field(default_factory=dict)
    edges: Mapping[Edge, Mark] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    format: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in (*self.nodes, *(name for names in self.groups.values() for name in names)):
            if not self.shape.holds(name):
                raise ValueError(f"node {name!r} is outside a model of {self.shape}.")
        for edge in self.edges:
            if not self.shape.has_edge(edge):
                raise ValueError(f"edge {edge.name!r} is outside a model of {self.shape}.")

    def kept_by(self, format: str) -> Mapping[str, Any]:
        """What only the format of this name holds, where the graph was read from it; else nothing."""
        return self.extra if self.format == format else {}

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the nodes in the circuit.

        Flagged ones where nodes are flagged. Else, where edges are: nodes that an edge of the circuit enters and
        another leaves (embeddings need none to enter, logits none to leave).

        Raises:
            ValueError: nothing is flagged, there are only scores.
        """
        if any(mark.in_graph is not None for mark in self.nodes.values()):
            return tuple(name for name, mark in self.nodes.items() if mark.in_graph)
        if any(mark.in_graph is not None for mark in self.edges.values()):
            return self._connected()
        raise ValueError(
            "the file holds scores but says of no node or edge that it is in the circuit. Choose first, such as "
            "graph.keep(edges=200) or graph.keep(nodes=20)."
        )

    def _connected(self) -> tuple[str, ...]:
        kept = [edge for edge, mark in self.edges.items() if mark.in_graph]
        entered, left = {e.target for e in kept}, {e.source for e in kept}
        names = dict.fromkeys(name for e in kept for name in (e.source, e.target))
        entered |= {name for name in names if node_of(name).kind in EMBEDDINGS}
        left |= {name for name in names if node_of(name).kind == "logits"}
        return tuple(name for name in names if name in entered and name in left)

    def keep(self, *, edges: int | None = None, nodes: int | None = None, signed: bool = False) -> CircuitGraph:
        """The graph with so many best-scored edges, or heads and MLPs, in the circuit, and no others.

        With ``edges=``, nodes are in where such edges enter and leave them; with ``nodes=``, edges where both ends are.
        Scores rank by their absolute value, or with ``signed=True`` as they are.

        Raises:
            ValueError: not one of the two, or fewer scores than asked for.
        """
        if (edges is None) == (nodes is None):
            raise ValueError("give one of edges= and nodes=.")
        if nodes is None:
            best = _best({edge: mark.score for edge, mark in self.edges.items()}, int(edges or 0), "edges", signed)
            kept = {edge: mark._replace(in_graph=edge in best) for edge, mark in self.edges.items()}
            chosen = replace(self, edges=kept)._connected()
            named = {**dict.fromkeys(chosen, NodeMark()), **self.nodes}
            marks = {name: mark._replace(in_graph=name in chosen) for name, mark in named.items()}
            return replace(self, edges=kept, nodes=marks)
        inner = {name: mark.score for name, mark in self.nodes.items() if node_of(name).kind in ("head", "mlp")}
        best = _best(inner, nodes, "heads and MLPs", signed)
        out = {name for name in self._names() if node_of(name).kind in ("head", "mlp") and name not in best}
        return replace(
            self,
            nodes={name: mark._replace(in_graph=name not in out) for name, mark in self.nodes.items()},
            edges={e: mark._replace(in_graph=not {e.source, e.target} & out) for e, mark in self.edges.items()},
        )

    def node_scores(self) -> dict[str, float | None]:
        """Score of every node that writes, by its component's label (``L0RESID`` is the input); None: no score.

        Raises:
            ValueError: no node has one.
        """
        marks = {node_of(name): mark.score for name, mark in self.flat().joined_embeddings().nodes.items()}
        if all(score is None for score in marks.values()):
            raise ValueError("the graph scores no node (edges have scores of their own): write node scores with it.")
        of = {"head": "L{0.layer}H{0.head}", "mlp": "L{0.layer}MLP", "input": "L0RESID"}
        return {of[node.kind].format(node): score for node, score in marks.items() if node.kind in of}

    def flat(self) -> CircuitGraph:
        """Without positions and without nodes that are no components.

        Of a node or edge at several positions the score of the largest absolute value stays, and it is in the circuit
        where it is at any position.
        """
        placed = sum(unplaced(name) != name for name in (*self.nodes, *(e.source for e in self.edges)))
        strange = {name: None for name in self._names() if node_of(name).kind == "other"}
        if not placed and not strange:
            return self
        nodes = _merged((unplaced(n), m) for n, m in self.nodes.items() if n not in strange)
        edges = _merged(
            (Edge(unplaced(e.source), unplaced(e.target), e.input), mark)
            for e, mark in self.edges.items()
            if e.source not in strange and e.target not in strange
        )
        some = ", ".join(list(strange)[:4]) + (" ..." if len(strange) > 4 else "")
        notes = counted(
            {
                "the positions of {} nodes and edges (the strongest stands for all)": placed,
                f"{{}} nodes that are no heads or MLPs ({some})": len(strange),
            }
        )
        groups = {r: tuple(unplaced(n) for n in names if not n.startswith("id:")) for r, names in self.groups.items()}
        return replace(self, nodes=nodes, edges=edges, groups=groups, left_out=(*self.left_out, *notes))

    def with_edges(self, score: float | None = None) -> CircuitGraph:
        """With flagged edges that a model has, for a format that needs them.

        Where no edge is flagged, one is in the circuit exactly when both its ends are; embeddings and logits always
        are. Where there are no edges at all, these are all edges of the model for which that holds. This is EAP-IG's
        reading of a circuit of nodes. ``score`` is that of edges that are made here.
        """
        if any(mark.in_graph is not None for mark in self.edges.values()):
            return self
        ends = {*(name for name in self.chosen if node_of(name).kind in ("head", "mlp")), *EMBEDDINGS, "logits"}
        if not self.edges:
            made = (e for e in self.shape.edges() if e.source in ends and e.target in ends)
            return replace(self, edges={e: Mark(score, True) for e in made})
        flags = {e: mark._replace(in_graph=e.source in ends and e.target in ends) for e, mark in self.edges.items()}
        return replace(self, edges=flags)

    def with_inputs(self) -> CircuitGraph:
        """With q, k and v told apart: an edge to a head as a whole becomes three, without its score.

        Edges that no model has (two heads of one layer, which a graph over positions may link) are left out.
        """
        edges: dict[Edge, Mark] = {}
        strange, whole = 0, 0
        for edge, mark in self.edges.items():
            vague = node_of(edge.target).kind == "head" and not edge.input
            whole += vague
            for letter in QKV if vague else (edge.input,):
                split = Edge(edge.source, edge.target, letter)
                if not is_edge(split):
                    strange += 1
                    break
                edges[split] = mark._replace(score=None) if vague else mark
        notes = counted(
            {
                "the weights of {} edges to heads as a whole (q, k and v are told apart)": whole,
                "{} edges between nodes that do not feed each other at one position": strange,
            }
        )
        return replace(self, edges=edges, left_out=(*self.left_out, *notes)) if notes else self

    def joined_embeddings(self) -> CircuitGraph:
        """With one node ``input`` for token and position embeddings."""
        if not any(node_of(name).kind in EMBEDDINGS[1:] for name in self._names()):
            return self

        def joined(name: str) -> str:
            return "input" if node_of(name).kind in EMBEDDINGS[1:] else name

        nodes = _merged((joined(name), mark) for name, mark in self.nodes.items())
        edges = _merged((Edge(joined(e.source), e.target, e.input), mark) for e, mark in self.edges.items())
        note = "the difference between token and position embeddings"
        return replace(self, nodes=nodes, edges=edges, left_out=(*self.left_out, note))

    def _names(self) -> dict[str, None]:
        return dict.fromkeys([*self.nodes, *(name for e in self.edges for name in (e.source, e.target))])

    def with_shape(self, shape: Shape | Any) -> CircuitGraph:
        """The same nodes and edges in the shape of a model (or one given), where a file does not tell it.

        Raises:
            ValueError: a node is outside it.
        """
        return replace(self, shape=shape if isinstance(shape, Shape) else self.shape.fits(shape))

    @classmethod
    def from_circuit(cls, circuit: Circuit, shape: Shape | Any = None) -> CircuitGraph:
        """The nodes of one of our circuits; see ``circuit_conversion.graph_of_circuit``."""
        from tl_multitrace.interop.circuit_conversion import graph_of_circuit

        return graph_of_circuit(circuit, shape)

    def to_circuit(self, model: Any = None) -> Circuit:
        """The chosen heads and MLPs as a circuit; see ``circuit_conversion.circuit_of_graph``."""
        from tl_multitrace.interop.circuit_conversion import circuit_of_graph

        return circuit_of_graph(self, model)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per edge: source, target, input (q, k, v), score, in_graph."""
        import pandas as pd

        rows = [(e.source, e.target, e.input, mark.score, mark.in_graph) for e, mark in self.edges.items()]
        return pd.DataFrame(rows, columns=["source", "target", "input", "score", "in_graph"])

    def __repr__(self) -> str:
        nodes = sum(bool(mark.in_graph) for mark in self.nodes.values())
        edges = sum(bool(mark.in_graph) for mark in self.edges.values())
        scored = sum(mark.score is not None for mark in self.edges.values())
        return (
            f"CircuitGraph({self.format or 'no format'}: {self.shape}; {nodes} of {len(self.nodes)} nodes and {edges} "
            f"of {len(self.edges)} edges in the circuit, {scored} edge scores)"
        )


def _best(scores: Mapping[Any, float | None], count: int, what: str, signed: bool) -> set[Any]:
    scored = {key: score for key, score in scores.items() if score is not None}
    if not 0 < count <= len(scored):
        raise ValueError(f"{count} {what} cannot be kept: {len(scored)} have a score.")
    return set(sorted(scored, key=lambda key: scored[key] if signed else abs(scored[key]), reverse=True)[:count])


def _merged(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Marks by key, where several share one: the largest score, and in the circuit where any is."""
    found: dict[Any, Any] = {}
    for key, mark in pairs:
        if key in found:
            other = found[key]
            flags = [m.in_graph for m in (other, mark) if m.in_graph is not None]
            scores = [m.score for m in (other, mark) if m.score is not None]
            mark = other._replace(in_graph=any(flags) if flags else None, score=max(scores, key=abs, default=None))
        found[key] = mark
    return found


def counted(counts: Mapping[str, int]) -> list[str]:
    """Notes such as ``"the scores of {} nodes"`` with their counts; none for what there is none of."""
    return [words.replace("{}", str(count), 1) for words, count in counts.items() if count]


def unheld(graph: CircuitGraph, holds: Sequence[str]) -> list[str]:
    """What of a graph a format cannot hold that holds of node scores, edge scores, dimensions and groups only these."""
    nodes, edges = graph.nodes.values(), graph.edges.values()
    dims = sum(m.dims is not None or m.dim_scores is not None for m in nodes)
    found = {
        "node scores": ("the scores of {} nodes", sum(m.score is not None for m in nodes)),
        "edge scores": ("the scores of {} edges", sum(m.score is not None for m in edges)),
        "dimensions": ("the chosen output dimensions of {} nodes", dims),
        "groups": ("the names of {} groups of nodes", len(graph.groups)),
    }
    return counted(dict(found[what] for what in found if what not in holds))


def say_left_out(notes: Iterable[str], holder: str) -> None:
    """Warn of what a format (or a circuit) cannot hold, once for all of it."""
    listed = list(dict.fromkeys(notes))
    if listed:
        warnings.warn(f"{holder} cannot hold: {'; '.join(listed)}.", LeftOut, stacklevel=4)
