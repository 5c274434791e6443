"""Names of the nodes and edges of a circuit graph, and of the hook points that stand for them in ACDC and auto-circuit.

The names are those of EAP-IG: ``input``, ``a3.h2`` (head 2 of layer 3), ``m3`` (the MLP of layer 3), ``logits``. A node
of one token position is ``a3.h2@5``. ``tok_embeds`` and ``pos_embeds`` are the two halves of ``input`` where a format
tells them apart; ``id:...`` is a node of another tool that is no component here, such as a transcoder feature.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

from tl_multitrace.models.compat import GRAPH_HOOKS

QKV = ("q", "k", "v")
EMBEDDINGS = ("input", "tok_embeds", "pos_embeds")

_NAME = re.compile(r"(?:a(\d{1,6})\.h(\d{1,6})|m(\d{1,6})|(input|tok_embeds|pos_embeds|logits))(?:@(\d{1,9}))?\Z", re.A)


class Node(NamedTuple):
    """A node taken apart: ``kind`` is head, mlp, input, tok_embeds, pos_embeds, logits or other."""

    kind: str
    layer: int | None = None
    head: int | None = None
    position: int | None = None

    @property
    def when(self) -> float:
        """Where the node stands in the forward pass; the heads of a layer side by side, before its MLP."""
        if self.layer is None:
            return -1.0 if self.kind in EMBEDDINGS else float("inf")
        return self.layer + (0.0 if self.kind == "head" else 0.5)


class Edge(NamedTuple):
    """An edge by the names of its ends.

    Attributes:
        source: name of the node that writes.
        target: name of the node that reads.
        input: ``"q"``, ``"k"`` or ``"v"`` exactly where the target is a head, else empty.

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
    """The parts of a node's name; raises ValueError where it is none."""
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
    """An edge from ``m0->a3.h2<q>``; raises ValueError for other text, or an edge that cannot be."""
    source, arrow, target = text.partition("->")
    target, bracket, rest = target.partition("<")
    letter = rest[:-1] if rest.endswith(">") else rest
    if not arrow or bool(bracket) != rest.endswith(">"):
        raise ValueError(f"unknown edge {text[:80]!r}: edges read like 'm0->a1.h0<q>' or 'a1.h0->logits'.")
    return checked(Edge(source, target, letter))


def checked(edge: Edge) -> Edge:
    """The edge itself.

    Raises:
        ValueError: an unknown end, q, k or v in the wrong place, or a source that does not come before its target.
    """
    source, target = node_of(edge.source), node_of(edge.target)
    if "other" in (source.kind, target.kind):
        return edge
    if (target.kind == "head") != (edge.input in QKV) or (edge.input and edge.input not in QKV):
        raise ValueError(f"edge {edge.name[:80]!r}: q, k or v stands exactly where the target is a head.")
    if source.when >= target.when:
        raise ValueError(f"edge {edge.name[:80]!r}: the source does not come before the target.")
    return edge


def is_edge(edge: Edge) -> bool:
    """Whether such an edge can be; see :func:`checked`."""
    try:
        return checked(edge) is edge
    except ValueError:
        return False


def hook(what: str, layer: int | None = None) -> str:
    """The hook point of ``"head"``, ``"mlp"``, ``"q_input"``, ``"mlp_input"`` ... in a layer."""
    return GRAPH_HOOKS[what].format(layer=layer)


@cache
def what_is(name: str) -> tuple[str, int | None]:
    """What a hook point stands for, and its layer; raises ValueError where that is nothing in a circuit."""
    for what, pattern in GRAPH_HOOKS.items():
        found = re.fullmatch(re.escape(pattern).replace(re.escape("{layer}"), r"(\d{1,6})"), name, re.ASCII)
        if found:
            return what, int(found[1]) if found.groups() else None
    raise ValueError(f"unknown hook point {name[:60]!r}: it is no node or input of a circuit.")
