"""Circuits of ACDC: a ``.pth`` dictionary that says of every edge whether it is there.

Source: ``TLACDCExperiment.save_subgraph`` and ``load_subgraph`` (github.com/ArthurConmy/Automatic-Circuit-Discovery,
bc99ace; Conmy et al. 2023, arXiv:2304.14997). A key is ``(receiver hook, receiver index, sender hook, sender index)``;
an index is ``(None, None, head)`` or ``(None,)``. Edges inside a node (query to head, MLP input to output) stand there
too; the tool reads a file only if it has every edge of its own graph, and no other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop.circuits import as_graph
from tl_multitrace.interop.graph import CircuitGraph, Mark, say_left_out, unheld
from tl_multitrace.interop.hooks import hook, what_is
from tl_multitrace.interop.names import EMBEDDINGS, QKV, Edge, Shape, checked, head_name, mlp_name, node_of
from tl_multitrace.interop.reading import flag, load_tensors, save_tensors
from tl_multitrace.records.read import naming

FORMAT = "acdc"
Index = tuple[None, None, int] | tuple[None]
Key = tuple[str, Index, str, Index]


def from_acdc(path: str | Path, *, shape: Shape | Any = None) -> CircuitGraph:
    """Read an ACDC edge dictionary.

    Args:
        path: of the ``.pth`` file. (ACDC's pickled edge lists hold objects of its own classes and are refused.)
        shape: the model or a :class:`Shape`; default: the shape of the edges, which are all there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file. Nothing in it is run.

    Examples:
        >>> graph = mt.from_acdc(mt.to_acdc(circuit, "edges.pth"), shape=model)
        >>> graph.to_circuit(model).labels
        ['L0H1', 'L0H3']
    """
    content = load_tensors(path)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} is not an ACDC edge dictionary: it holds {type(content).__name__}.")
    with naming(path):
        edges, inner = _edges(content)
        guessed = Shape.around(name for e in edges for name in (e.source, e.target))
        only = not any(node_of(e.source).kind == "mlp" for e in edges)
        found = Shape(guessed.n_layers, guessed.n_heads, attn_only=only)
        old = any(hook("old_mlp_input", layer) in {key[0] for key in content} for layer in range(found.n_layers))
        extra = {"inner": inner, "mlp input": "old_mlp_input" if old else "mlp_input"}
        graph = CircuitGraph(found, edges=edges, format=FORMAT, extra=extra)
        return graph if shape is None else graph.with_shape(shape)


def to_acdc(
    item: Circuit | CircuitGraph, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False
) -> Path:
    """Write an ACDC edge dictionary: every edge of the model, True where it is in the circuit.

    A circuit of components has no edges: an edge is there when both its ends are. Edges inside a node are True where
    the node is in the circuit, as they were where the graph came from such a file.

    Args:
        item: a circuit, or a graph of any format.
        path: of the ``.pth`` file.
        shape: the model or a :class:`Shape`, where the item does not tell it.
        overwrite: replace the file.

    Raises:
        FileExistsError: the file exists.
        ValueError: nothing is in the circuit.

    Warns:
        LeftOut: what the format cannot hold.

    Examples:
        >>> file = mt.to_acdc(circuit, "edges.pth")
        >>> len(mt.from_acdc(file, shape=model).to_dataframe().query("in_graph"))
        9
    """
    graph = as_graph(item, shape).flat().with_inputs().with_edges()
    if graph.shape.parallel_attn_mlp:
        raise ValueError("ACDC's graph lets an MLP read its own layer's heads, which this model's MLPs do not.")
    chosen = set(graph.chosen)
    extra = graph.extra if graph.format == FORMAT else {}
    mlp_input = extra.get("mlp input", "mlp_input")
    content: OrderedDict[Key, bool] = OrderedDict()
    for edge in _all_edges(graph):
        content[_key(edge, graph.shape, mlp_input)] = bool(graph.edges.get(edge, Mark()).in_graph)
    for key, node in _inner_edges(graph.shape, mlp_input):
        content[key] = node in chosen
    content.update(extra.get("inner", {}))
    written = save_tensors(path, content, overwrite=overwrite)
    say_left_out([*graph.left_out, *unheld(graph)], FORMAT)
    return written


# ---------------------------------------------------------------------- reading


def _edges(content: Mapping[Any, Any]) -> tuple[dict[Edge, Mark], dict[Key, bool]]:
    """Edges between nodes, and edges inside one."""
    edges: dict[Edge, Mark] = {}
    inner: dict[Key, bool] = {}
    for key, value in content.items():
        receiver, sender = _ends(key)
        there = flag(value, f"edge {str(key)[:120]}")
        if receiver[0] in ("head", "mlp", *QKV):
            inner[key] = there
            continue
        name, letter = _input_name(*receiver)
        edges[checked(Edge(_source_name(*sender), name, letter))] = Mark(in_graph=there)
    return edges, inner


def _ends(key: Any) -> tuple[tuple[str, int | None, int | None], tuple[str, int | None, int | None]]:
    """``(what, layer, head)`` of receiver and sender."""
    if not isinstance(key, tuple) or len(key) != 4 or not isinstance(key[0], str) or not isinstance(key[2], str):
        raise ValueError(f"{str(key)[:120]} is no edge: (receiver hook, index, sender hook, index).")
    return (*what_is(key[0]), _head(key[1])), (*what_is(key[2]), _head(key[3]))


def _head(index: Any) -> int | None:
    if index == (None,):
        return None
    if isinstance(index, tuple) and len(index) == 3 and index[:2] == (None, None) and type(index[2]) is int:
        return index[2]
    raise ValueError(f"unknown index {str(index)[:60]}: it is (None,) or (None, None, head).")


def _input_name(what: str, layer: int | None, head: int | None) -> tuple[str, str]:
    if what in ("mlp_input", "old_mlp_input") and head is None:
        return mlp_name(int(layer or 0)), ""
    if what == "logits" and head is None:
        return "logits", ""
    if what[0] in QKV and what.endswith("_input") and head is not None:
        return head_name(int(layer or 0), head), what[0]
    raise ValueError(f"{what} at head {head} receives no edge.")


def _source_name(what: str, layer: int | None, head: int | None) -> str:
    if what == "head" and head is not None:
        return head_name(int(layer or 0), head)
    if what == "mlp" and head is None:
        return mlp_name(int(layer or 0))
    if what in EMBEDDINGS and head is None:
        return what
    raise ValueError(f"{what} at head {head} sends no edge.")


# ---------------------------------------------------------------------- writing


def _all_edges(graph: CircuitGraph) -> Iterator[Edge]:
    """All edges of the model; from both embeddings where the graph tells them apart."""
    split = [name for name in EMBEDDINGS[1:] if any(e.source == name for e in graph.edges)]
    for edge in graph.shape.edges():
        yield from (
            Edge(name, edge.target, edge.input)
            for name in (split if edge.source == "input" and split else [edge.source])
        )


def _key(edge: Edge, shape: Shape, mlp_input: str) -> Key:
    source, target = node_of(edge.source), node_of(edge.target)
    if target.kind == "logits":
        receiver, index = hook("logits", shape.n_layers - 1), _index(None)
    else:
        receiver, index = hook(f"{edge.input}_input" if edge.input else mlp_input, target.layer), _index(target.head)
    return receiver, index, hook(source.kind, source.layer), _index(source.head)


def _index(head: int | None) -> Index:
    return (None,) if head is None else (None, None, head)


def _inner_edges(shape: Shape, mlp_input: str) -> Iterator[tuple[Key, str]]:
    """The edges inside every node, and the node."""
    for layer in range(shape.n_layers):
        for head in range(shape.n_heads):
            at, name = _index(head), head_name(layer, head)
            for x in QKV:
                yield (hook("head", layer), at, hook(x, layer), at), name
                yield (hook(x, layer), at, hook(f"{x}_input", layer), at), name
        if not shape.attn_only:
            yield (hook("mlp", layer), (None,), hook(mlp_input, layer), (None,)), mlp_name(layer)
