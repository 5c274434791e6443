"""Names of the nodes and edges of a circuit graph, and which edges a transformer has.

The names are those of EAP-IG: ``input``, ``a3.h2`` (head 2 of layer 3), ``m3`` (the MLP of layer 3), ``logits``. A node
of one token position is ``a3.h2@5``. ``tok_embeds`` and ``pos_embeds`` are the two halves of ``input`` where a format
tells them apart; ``id:...`` is a node of another tool that is no component here, such as a transcoder feature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from tl_multitrace.models.compat import ModelView

QKV = ("q", "k", "v")
EMBEDDINGS = ("input", "tok_embeds", "pos_embeds")
MAX_LAYERS, MAX_HEADS, MAX_WIDTH, MAX_PAIRS = 1 << 10, 1 << 10, 1 << 20, 1 << 26

_NAME = re.compile(r"(?:a(\d{1,6})\.h(\d{1,6})|m(\d{1,6})|(input|tok_embeds|pos_embeds|logits))(?:@(\d{1,9}))?\Z", re.A)


class Node(NamedTuple):
    """A node taken apart: ``kind`` is head, mlp, input, tok_embeds, pos_embeds, logits or other."""

    kind: str
    layer: int | None = None
    head: int | None = None
    position: int | None = None


class Edge(NamedTuple):
    """An edge by the names of its ends; ``input`` is q, k or v exactly where the target is a head.

    Attributes:
        source: name of the node that writes.
        target: name of the node that reads.
        input: ``"q"``, ``"k"`` or ``"v"`` of a head, else empty.

    Examples:
        >>> from tl_multitrace.interop import Edge
        >>> Edge("m0", "a3.h2", "q").name
        'm0->a3.h2<q>'
    """

    source: str
    target: str
    input: str = ""

    @property
    def name(self) -> str:
        """The edge in text, such as ``m0->a3.h2<q>``."""
        return f"{self.source}->{self.target}" + (f"<{self.input}>" if self.input else "")


@lru_cache(maxsize=1 << 16)
def node_of(name: str) -> Node:
    """The parts of a node's name.

    Raises:
        ValueError: no such name.
    """
    if name.startswith("id:"):
        return Node("other")
    found = _NAME.match(name)
    if found is None:
        raise ValueError(f"unknown node {name[:60]!r}: nodes are input, a0.h0, m0 or logits.")
    layer, head, mlp, other, at = found.groups()
    position = None if at is None else int(at)
    if layer is not None:
        return Node("head", int(layer), int(head), position)
    return Node("mlp", int(mlp), None, position) if mlp is not None else Node(other, position=position)


def head_name(layer: int, head: int, position: int | None = None) -> str:
    """``a3.h2``, or ``a3.h2@5``."""
    return placed(f"a{layer}.h{head}", position)


def mlp_name(layer: int, position: int | None = None) -> str:
    """``m3``, or ``m3@5``."""
    return placed(f"m{layer}", position)


def placed(name: str, position: int | None) -> str:
    """A node's name at a position, if there is one."""
    return name if position is None else f"{name}@{position}"


def unplaced(name: str) -> str:
    """A node's name without its position."""
    return name if name.startswith("id:") else name.partition("@")[0]


def edge_of(text: str) -> Edge:
    """An edge from ``m0->a3.h2<q>``.

    Raises:
        ValueError: not such text, or q, k or v missing at a head or given elsewhere.
    """
    source, arrow, target = text.partition("->")
    target, bracket, rest = target.partition("<")
    letter = rest[:-1] if rest.endswith(">") else rest
    if not arrow or bool(bracket) != rest.endswith(">"):
        raise ValueError(f"unknown edge {text[:80]!r}: edges read like 'm0->a1.h0<q>' or 'a1.h0->logits'.")
    return checked(Edge(source, target, letter))


def checked(edge: Edge) -> Edge:
    """The edge, if such an edge can be.

    Raises:
        ValueError: an unknown end, q, k or v in the wrong place, or a source that comes after its target.
    """
    source, target = node_of(edge.source), node_of(edge.target)
    if "other" in (source.kind, target.kind):
        return edge
    if (target.kind == "head") != (edge.input in QKV) or (edge.input and edge.input not in QKV):
        raise ValueError(f"edge {edge.name[:80]!r}: q, k or v stands exactly where the target is a head.")
    if source.kind == "logits" or target.kind in EMBEDDINGS or _place(source) >= _place(target):
        raise ValueError(f"edge {edge.name[:80]!r}: the source does not come before the target.")
    return edge


def is_edge(edge: Edge) -> bool:
    """Whether such an edge can be; see :func:`checked`."""
    try:
        return checked(edge) is edge
    except ValueError:
        return False


def _place(node: Node) -> tuple[int, int]:
    """Where a node stands in the forward pass; the heads of a layer side by side."""
    if node.kind in EMBEDDINGS:
        return (-1, 0)
    if node.layer is None:
        return (MAX_LAYERS * 1000, 0)
    return (node.layer, 0 if node.kind == "head" else 1)


@dataclass(frozen=True)
class Shape:
    """What of a model decides which nodes and edges there are.

    Attributes:
        n_layers: blocks.
        n_heads: query heads per block.
        d_model: width of the residual stream, where known.
        parallel_attn_mlp: the MLP reads the block's input, so not its own layer's heads.
        attn_only: there are no MLPs.
        exact: False where it was guessed from the nodes that a file names, so that the model may be larger.

    Raises:
        ValueError: numbers that no model has.

    Examples:
        >>> from tl_multitrace.interop import Edge, Shape
        >>> shape = Shape(n_layers=2, n_heads=2)
        >>> shape.sources()
        ['input', 'a0.h0', 'a0.h1', 'm0', 'a1.h0', 'a1.h1', 'm1']
        >>> shape.n_sources, shape.n_inputs, sum(1 for edge in shape.edges())
        (7, 15, 46)
        >>> shape.has_edge(Edge("a0.h1", "m1"))
        True
    """

    n_layers: int
    n_heads: int
    d_model: int | None = None
    parallel_attn_mlp: bool = False
    attn_only: bool = False
    exact: bool = True

    def __post_init__(self) -> None:
        limits = {"n_layers": MAX_LAYERS, "n_heads": MAX_HEADS, "d_model": MAX_WIDTH}
        for name, limit in limits.items():
            value = getattr(self, name)
            if name == "d_model" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise ValueError(f"{name} must be a whole number from 1 to {limit}, got {str(value)[:40]}.")
        if self.n_sources * self.n_inputs > MAX_PAIRS:
            raise ValueError(f"{self.n_layers} layers of {self.n_heads} heads give too many edges to hold.")

    @classmethod
    def of(cls, model: Any) -> Shape:
        """Of a TransformerLens model.

        Args:
            model: a TransformerLens model.
        """
        view = ModelView(model)
        return cls(view.n_layers, view.n_heads, view.d_model, view.parallel_attn_mlp, not view.d_mlp)

    @classmethod
    def around(cls, names: Iterable[str]) -> Shape:
        """The smallest that has these nodes.

        Args:
            names: of nodes.

        Raises:
            ValueError: there are none with a layer.
        """
        nodes = [node for node in map(node_of, names) if node.layer is not None]
        if not nodes:
            raise ValueError("the file names no head and no MLP, so the model's shape is unknown: pass shape=.")
        heads = max((n.head + 1 for n in nodes if n.head is not None), default=1)
        return cls(max(n.layer for n in nodes if n.layer is not None) + 1, heads, exact=False)

    @classmethod
    def given(cls, shape: Shape | Any, names: Iterable[str]) -> Shape:
        """The shape that a caller gives (itself or a model), else the smallest around the nodes.

        Args:
            shape: a shape, a model, or None.
            names: of the nodes that there are.
        """
        if shape is None:
            return cls.around(names)
        return shape if isinstance(shape, Shape) else cls.of(shape)

    @property
    def n_sources(self) -> int:
        """Nodes that write to the residual stream (EAP-IG's F)."""
        return 1 + self.n_layers * (self.n_heads + (not self.attn_only))

    @property
    def n_inputs(self) -> int:
        """Inputs that read from it (EAP-IG's B)."""
        return 1 + self.n_layers * (3 * self.n_heads + (not self.attn_only))

    def sources(self) -> list[str]:
        """Names of the nodes that write to the residual stream, in the order of the forward pass."""
        layers = [
            [*(head_name(i, h) for h in range(self.n_heads)), *([] if self.attn_only else [mlp_name(i)])]
            for i in range(self.n_layers)
        ]
        return ["input", *(name for names in layers for name in names)]

    def inputs(self) -> list[tuple[str, str]]:
        """``(target, q k v or nothing)`` of every input, in EAP-IG's order: per layer all q, all k, all v, the MLP."""
        found: list[tuple[str, str]] = []
        for layer in range(self.n_layers):
            found += [(head_name(layer, h), x) for x in QKV for h in range(self.n_heads)]
            found += [] if self.attn_only else [(mlp_name(layer), "")]
        return [*found, ("logits", "")]

    def before(self, target: str) -> int:
        """How many of :meth:`sources` feed a target: always the first ones.

        Args:
            target: name of a node.
        """
        node = node_of(target)
        if node.kind == "logits":
            return self.n_sources
        per_layer = self.n_heads + (not self.attn_only)
        own_heads = self.n_heads if node.kind == "mlp" and not self.parallel_attn_mlp else 0
        return 1 + int(node.layer or 0) * per_layer + own_heads

    def edges(self) -> Iterator[Edge]:
        """Every edge, in EAP-IG's order: layer by layer, source by source, head by head, q k v."""
        sources = self.sources()
        for layer in range(self.n_layers):
            heads = [head_name(layer, h) for h in range(self.n_heads)]
            mlp = mlp_name(layer)
            if self.parallel_attn_mlp and not self.attn_only:
                for source in sources[: self.before(mlp)]:
                    yield from (Edge(source, head, x) for head in heads for x in QKV)
                    yield Edge(source, mlp)
                continue
            for source in sources[: self.before(heads[0])]:
                yield from (Edge(source, head, x) for head in heads for x in QKV)
            if not self.attn_only:
                yield from (Edge(source, mlp) for source in sources[: self.before(mlp)])
        yield from (Edge(source, "logits") for source in sources)

    def holds(self, name: str) -> bool:
        """Whether a model of this shape has the node.

        Args:
            name: of a node.
        """
        node = node_of(name)
        if node.kind == "mlp" and self.attn_only:
            return False
        return (node.layer or 0) < self.n_layers and (node.head or 0) < self.n_heads

    def has_edge(self, edge: Edge) -> bool:
        """Whether a model of this shape has the (known) edge; not where the MLP runs beside its layer's heads.

        Args:
            edge: by the names of its ends.
        """
        source, target = node_of(edge.source), node_of(edge.target)
        beside = self.parallel_attn_mlp and target.kind == "mlp" and source.layer == target.layer
        return self.holds(edge.source) and self.holds(edge.target) and not beside

    def fits(self, model: Any) -> Shape:
        """The model's own shape.

        Args:
            model: a TransformerLens model.

        Raises:
            ValueError: it is not the shape of this model, or (where guessed) larger.
        """
        real = Shape.of(model)
        same = replace(real, d_model=self.d_model and real.d_model) == replace(self, exact=True)
        within = self.n_layers <= real.n_layers and self.n_heads <= real.n_heads
        if not (same if self.exact else within):
            raise ValueError(f"the circuit is of a model of {self}, not of {ModelView(model).name} ({real}).")
        return real

    def __str__(self) -> str:
        kind = " without MLPs" if self.attn_only else " beside their MLP" if self.parallel_attn_mlp else ""
        width = "" if self.d_model is None else f", d_model {self.d_model}"
        return f"{'' if self.exact else 'at least '}{self.n_layers} layers of {self.n_heads} heads{kind}{width}"
