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

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop.circuits import as_graph
from tl_multitrace.interop.graph import CircuitGraph, Mark, say_left_out, unheld
from tl_multitrace.interop.names import Edge, Shape, checked, node_of
from tl_multitrace.interop.reading import listing, load_json, save_json, text
from tl_multitrace.records.read import naming

FORMAT = "edge-pruning"
LOGITS = "resid_post"
_INSIDE = re.compile(r"(a\d{1,6}\.h\d{1,6})\.[qkv]\Z", re.ASCII)


def from_edge_pruning(path: str | Path, *, shape: Shape | Any = None) -> CircuitGraph:
    """Read an ``edges.json``.

    Args:
        path: of the file.
        shape: the model or a :class:`Shape`, since the file lists only what was kept; default: the smallest that has
            the nodes named.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or no node tells the shape.

    Examples:
        >>> graph = mt.from_edge_pruning(mt.to_edge_pruning(circuit, "edges.json"), shape=model)
        >>> graph.to_circuit(model).labels
        ['L0H1', 'L0H3']
    """
    pairs = listing(load_json(path), str(path))
    with naming(path):
        edges, inner = _edges(pairs)
        found = Shape.given(shape, (name for e in edges for name in (e.source, e.target)))
        return CircuitGraph(found, edges=edges, format=FORMAT, extra={"inner": inner} if inner else {})


def to_edge_pruning(
    item: Circuit | CircuitGraph, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False
) -> Path:
    """Write an ``edges.json`` of the edges in the circuit.

    A circuit of components has no edges: an edge is there when both its ends are. ``input`` is written as both
    ``tok_embeds`` and ``pos_embeds``.

    Args:
        item: a circuit, or a graph of any format.
        path: of the file.
        shape: the model or a :class:`Shape`, where the item does not tell it.
        overwrite: replace the file.

    Raises:
        FileExistsError: the file exists.
        ValueError: edges have scores but none is in the circuit.

    Warns:
        LeftOut: what the format cannot hold.

    Examples:
        >>> import json
        >>> file = mt.to_edge_pruning(circuit, "edges.json")
        >>> len(json.loads(file.read_text()))
        16
    """
    graph = as_graph(item, shape).flat().with_inputs().with_edges()
    kept = [edge for edge, mark in graph.edges.items() if mark.in_graph]
    pairs = [[writer, _reader(edge)] for edge in kept for writer in _writers(edge.source)]
    pairs += graph.extra.get("inner", []) if graph.format == FORMAT else []
    written = save_json(path, pairs, overwrite=overwrite)
    absent = len(graph.edges) - len(kept)
    notes = [f"which {absent} edges were looked at and are not in the circuit"] if absent else []
    say_left_out([*graph.left_out, *unheld(graph), *notes], FORMAT)
    return written


def _edges(pairs: list[Any]) -> tuple[dict[Edge, Mark], list[list[str]]]:
    """Edges between nodes, and the steps inside a head."""
    edges: dict[Edge, Mark] = {}
    inner: list[list[str]] = []
    for number, pair in enumerate(pairs):
        ends = [text(end, f"edge {number}") for end in listing(pair, f"edge {number}")]
        if len(ends) != 2:
            raise ValueError(f"edge {number} must be [writer, reader], got {len(ends)} entries.")
        inside = _INSIDE.match(ends[0])
        if inside and inside[1] == ends[1]:
            inner.append(ends)
            continue
        edges[_edge(*ends)] = Mark(in_graph=True)
    return edges, inner


def _edge(writer: str, reader: str) -> Edge:
    source = node_of(writer)
    if source.kind not in ("tok_embeds", "pos_embeds", "head", "mlp") or source.position is not None:
        raise ValueError(f"unknown writer {writer[:60]!r}: writers are tok_embeds, pos_embeds, a0.h0 and m0.")
    head, _, letter = reader.rpartition(".")
    if _INSIDE.match(reader):
        return checked(Edge(writer, head, letter))
    if reader == LOGITS:
        return Edge(writer, "logits")
    target = node_of(reader)
    if target.kind != "mlp" or target.position is not None:
        raise ValueError(f"unknown reader {reader[:60]!r}: readers are a0.h0.q (.k, .v), m0 and {LOGITS}.")
    return checked(Edge(writer, reader))


def _writers(source: str) -> list[str]:
    return ["tok_embeds", "pos_embeds"] if source == "input" else [source]


def _reader(edge: Edge) -> str:
    return LOGITS if edge.target == "logits" else edge.target + (f".{edge.input}" if edge.input else "")
