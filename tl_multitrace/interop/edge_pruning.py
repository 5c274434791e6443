"""Circuits of Edge Pruning: ``edges.json``, a list of the edges that were kept.

Source: ``get_edges`` of the pruned models (github.com/princeton-nlp/Edge-Pruning, a918efd; Bhaskar et al. 2024,
arXiv:2406.16778). An edge is ``[writer, reader]``; writers are ``tok_embeds``, ``pos_embeds``, ``a0.h0`` and ``m0``,
readers ``a0.h0.q`` (``.k``, ``.v``), ``m0`` and ``resid_post``. The step from a head's q, k and v to the head itself is
never pruned; where a file lists it, it is kept and written again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tl_multitrace.interop.circuit_graph import CircuitGraph, Mark, counted
from tl_multitrace.interop.driver import Form, Format, Item
from tl_multitrace.interop.fields import listing, text
from tl_multitrace.interop.node_names import Edge, checked, node_of
from tl_multitrace.interop.shape import Shape

LOGITS = "resid_post"
_INSIDE = re.compile(r"(a\d{1,6}\.h\d{1,6})\.[qkv]\Z", re.ASCII)


def from_edge_pruning(path: str | Path, *, shape: Shape | Any = None) -> CircuitGraph:
    """Read an ``edges.json``, of a model or :class:`Shape`; default the smallest that has the nodes named.

    Raises FileNotFoundError, and ValueError where it is no such file, or no node tells the shape.

    Examples:
        >>> graph = mt.from_edge_pruning(mt.to_edge_pruning(circuit, "edges.json"), shape=model)
        >>> graph.to_circuit(model).labels
        ['L0H1', 'L0H3']
    """
    return FORMAT.read(path, shape=shape)


def to_edge_pruning(item: Item, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False) -> Path:
    """Write an ``edges.json`` of the edges in the circuit; those of ``input`` as both embeddings'.

    A circuit of components has no edges: an edge is there when both its ends are. What the format cannot hold is a
    :class:`LeftOut` warning. Raises FileExistsError unless ``overwrite``, and ValueError where edges have scores but
    none is in the circuit.

    Examples:
        >>> import json
        >>> file = mt.to_edge_pruning(circuit, "edges.json")
        >>> len(json.loads(file.read_text()))
        16
    """
    return FORMAT.write(item, path, shape=shape, overwrite=overwrite)


def _parse(content: Any, shape: Any = None) -> CircuitGraph:
    edges: dict[Edge, Mark] = {}
    inner: list[list[str]] = []
    for number, pair in enumerate(listing(content, "the file")):
        ends = [text(end, f"edge {number}") for end in listing(pair, f"edge {number}")]
        if len(ends) != 2:
            raise ValueError(f"edge {number} must be [writer, reader], got {len(ends)} entries.")
        inside = _INSIDE.match(ends[0])
        if inside and inside[1] == ends[1]:
            inner.append(ends)
        else:
            edges[_edge(*ends)] = Mark(in_graph=True)
    found = Shape.given(shape, (name for e in edges for name in (e.source, e.target)))
    return CircuitGraph(found, edges=edges, format=FORMAT.name, extra={"inner": inner} if inner else {})


def _edge(writer: str, reader: str) -> Edge:
    source = node_of(writer)
    if source.kind not in ("tok_embeds", "pos_embeds", "head", "mlp") or source.position is not None:
        raise ValueError(f"unknown writer {writer[:60]!r}: writers are tok_embeds, pos_embeds, a0.h0 and m0.")
    if reader == LOGITS:
        return Edge(writer, "logits")
    head, _, letter = reader.rpartition(".")
    if _INSIDE.match(reader):
        return checked(Edge(writer, head, letter))
    target = node_of(reader)
    if target.kind != "mlp" or target.position is not None:
        raise ValueError(f"unknown reader {reader[:60]!r}: readers are a0.h0.q (.k, .v), m0 and {LOGITS}.")
    return checked(Edge(writer, reader))


def _content(graph: CircuitGraph) -> tuple[Any, list[str]]:
    kept = [edge for edge, mark in graph.edges.items() if mark.in_graph]
    pairs = []
    for edge in kept:
        reader = LOGITS if edge.target == "logits" else edge.target + (f".{edge.input}" if edge.input else "")
        writers = ["tok_embeds", "pos_embeds"] if edge.source == "input" else [edge.source]
        pairs += [[writer, reader] for writer in writers]
    lost = counted({"which {} edges were looked at and are not in the circuit": len(graph.edges) - len(kept)})
    return pairs + graph.kept_by(FORMAT.name).get("inner", []), lost


STEPS = (CircuitGraph.flat, CircuitGraph.with_inputs, CircuitGraph.with_edges)
FORMAT = Format("edge-pruning", {"json": Form(_parse, _content)}, prepare=STEPS, tells_shape=False)
