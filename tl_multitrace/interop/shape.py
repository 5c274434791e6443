"""Which nodes and edges a transformer has: decided by its layers, its heads, and where its MLPs read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tl_multitrace.interop.node_names import QKV, Edge, head_name, mlp_name, node_of
from tl_multitrace.models.compat import ModelView

LIMITS = {"n_layers": 1 << 10, "n_heads": 1 << 10, "d_model": 1 << 20}
MAX_PAIRS = 1 << 26


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
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if name == "d_model" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise ValueError(f"{name} must be a whole number from 1 to {limit}, got {str(value)[:40]}.")
        if self.n_sources * self.n_inputs > MAX_PAIRS:
            raise ValueError(f"{self.n_layers} layers of {self.n_heads} heads give too many edges to hold.")

    @classmethod
    def of(cls, model: Any) -> Shape:
        """The shape of a TransformerLens model."""
        view = ModelView(model)
        return cls(view.n_layers, view.n_heads, view.d_model, view.parallel_attn_mlp, not view.d_mlp)

    @classmethod
    def around(cls, names: Iterable[str]) -> Shape:
        """The smallest that has the nodes of these names.

        Raises:
            ValueError: there are none with a layer.
        """
        nodes = [(node.layer, node) for node in map(node_of, names) if node.layer is not None]
        if not nodes:
            raise ValueError("the file names no head and no MLP, so the model's shape is unknown: pass shape=.")
        heads = max((n.head + 1 for _, n in nodes if n.head is not None), default=1)
        return cls(max(layer for layer, _ in nodes) + 1, heads, exact=False)

    @classmethod
    def given(cls, shape: Shape | Any, names: Iterable[str]) -> Shape:
        """The shape that a caller gives (itself or a model), else the smallest around the nodes of these names."""
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

    def heads(self, layer: int) -> list[str]:
        """Names of a layer's heads."""
        return [head_name(layer, h) for h in range(self.n_heads)]

    def sources(self) -> list[str]:
        """Names of the nodes that write to the residual stream, in the order of the forward pass."""
        layers = [[*self.heads(i), *([] if self.attn_only else [mlp_name(i)])] for i in range(self.n_layers)]
        return ["input", *(name for names in layers for name in names)]

    def inputs(self) -> list[tuple[str, str]]:
        """``(target, q k v or nothing)`` of every input, in EAP-IG's order: per layer all q, all k, all v, the MLP."""
        found: list[tuple[str, str]] = []
        for layer in range(self.n_layers):
            found += [(head, x) for x in QKV for head in self.heads(layer)]
            found += [] if self.attn_only else [(mlp_name(layer), "")]
        return [*found, ("logits", "")]

    def before(self, target: str) -> int:
        """How many of :meth:`sources` feed the node of this name: always the first ones."""
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
            heads, mlp = self.heads(layer), mlp_name(layer)
            beside = self.parallel_attn_mlp and not self.attn_only  # then the MLP's edge follows those of the heads
            for source in sources[: self.before(heads[0])]:
                yield from (Edge(source, head, x) for head in heads for x in QKV)
                if beside:
                    yield Edge(source, mlp)
            if not beside and not self.attn_only:
                yield from (Edge(source, mlp) for source in sources[: self.before(mlp)])
        yield from (Edge(source, "logits") for source in sources)

    def holds(self, name: str) -> bool:
        """Whether a model of this shape has the node of this name."""
        node = node_of(name)
        if node.kind == "mlp" and self.attn_only:
            return False
        return (node.layer or 0) < self.n_layers and (node.head or 0) < self.n_heads

    def has_edge(self, edge: Edge) -> bool:
        """Whether a model of this shape has the (known) edge; not where the MLP runs beside its layer's heads."""
        source, target = node_of(edge.source), node_of(edge.target)
        beside = self.parallel_attn_mlp and target.kind == "mlp" and source.layer == target.layer
        return self.holds(edge.source) and self.holds(edge.target) and not beside

    def fits(self, model: Any) -> Shape:
        """The own shape of a TransformerLens model.

        Raises:
            ValueError: it is another shape, or (where this one was guessed) a smaller one.
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
