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

from tl_multitrace.interop.circuit_graph import CircuitGraph, Mark
from tl_multitrace.interop.driver import Form, Format, Item
from tl_multitrace.interop.fields import flag
from tl_multitrace.interop.node_names import EMBEDDINGS, QKV, Edge, checked, head_name, hook, mlp_name, node_of, what_is
from tl_multitrace.interop.shape import Shape

Index = tuple[None, None, int] | tuple[None]
Key = tuple[str, Index, str, Index]


def from_acdc(path: str | Path, *, shape: Shape | Any = None) -> CircuitGraph:
    """Read an ACDC edge dictionary; nothing in it is run, and pickled edge lists of ACDC's own classes are refused.

    The shape (or model) is by default that of the edges, which are all there. Raises FileNotFoundError, and ValueError
    where it is no such file.

    Examples:
        >>> graph = mt.from_acdc(mt.to_acdc(circuit, "edges.pth"), shape=model)
        >>> graph.to_circuit(model).labels
        ['L0H1', 'L0H3']
    """
    return FORMAT.read(path, shape=shape)


def to_acdc(item: Item, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False) -> Path:
    """Write an ACDC edge dictionary: every edge of the model, True where it is in the circuit.

    A circuit of components has no edges: an edge is there when both its ends are. Edges inside a node are True where
    the node is in the circuit, as they were where the graph came from such a file. What the format cannot hold is a
    :class:`LeftOut` warning. Raises FileExistsError unless ``overwrite``, and ValueError where nothing is in the
    circuit.

    Examples:
        >>> file = mt.to_acdc(circuit, "edges.pth")
        >>> len(mt.from_acdc(file, shape=model).to_dataframe().query("in_graph"))
        9
    """
    return FORMAT.write(item, path, shape=shape, overwrite=overwrite)


def _parse(content: Any, shape: Any = None) -> CircuitGraph:
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"the file is not an ACDC edge dictionary: it holds {type(content).__name__}.")
    edges: dict[Edge, Mark] = {}
    inner: dict[Key, bool] = {}  # edges inside a node
    for key, value in content.items():
        receiver, sender = _ends(key)
        there = flag(value, f"edge {str(key)[:120]}")
        if receiver[0] in ("head", "mlp", *QKV):
            inner[key] = there
        else:
            target, letter = _target(*receiver)
            edges[checked(Edge(_source(*sender), target, letter))] = Mark(in_graph=there)
    guessed = Shape.around(name for e in edges for name in (e.source, e.target))
    only = not any(node_of(e.source).kind == "mlp" for e in edges)
    hooks = {key[0] for key in content}
    old = any(hook("old_mlp_input", layer) in hooks for layer in range(guessed.n_layers))
    extra = {"inner": inner, "mlp input": "old_mlp_input" if old else "mlp_input"}
    found = Shape(guessed.n_layers, guessed.n_heads, attn_only=only)
    graph = CircuitGraph(found, edges=edges, format=FORMAT.name, extra=extra)
    return graph if shape is None else graph.with_shape(shape)


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


def _target(what: str, layer: int | None, head: int | None) -> tuple[str, str]:
    """The node that receives, and its input q, k or v."""
    if head is not None and what in [f"{x}_input" for x in QKV]:
        return head_name(int(layer or 0), head), what[0]
    if head is None and what in ("mlp_input", "old_mlp_input", "logits"):
        return "logits" if what == "logits" else mlp_name(int(layer or 0)), ""
    raise ValueError(f"{what} at head {head} receives no edge.")


def _source(what: str, layer: int | None, head: int | None) -> str:
    """The node that sends."""
    if head is not None and what == "head":
        return head_name(int(layer or 0), head)
    if head is None and what in ("mlp", *EMBEDDINGS):
        return mlp_name(int(layer or 0)) if what == "mlp" else what
    raise ValueError(f"{what} at head {head} sends no edge.")


def _content(graph: CircuitGraph) -> tuple[Any, list[str]]:
    if graph.shape.parallel_attn_mlp:
        raise ValueError("ACDC's graph lets an MLP read its own layer's heads, which this model's MLPs do not.")
    chosen, own = set(graph.chosen), graph.kept_by(FORMAT.name)
    mlp_input = own.get("mlp input", "mlp_input")
    # from both embeddings where the graph tells them apart
    inputs = [name for name in EMBEDDINGS[1:] if any(e.source == name for e in graph.edges)] or ["input"]
    content: OrderedDict[Key, bool] = OrderedDict()
    for edge in graph.shape.edges():
        for source in inputs if edge.source == "input" else [edge.source]:
            split = Edge(source, edge.target, edge.input)
            content[_key(split, graph.shape, mlp_input)] = bool(graph.edges.get(split, Mark()).in_graph)
    for key, node in _inner_edges(graph.shape, mlp_input):
        content[key] = node in chosen
    content.update(own.get("inner", {}))
    return content, []


def _key(edge: Edge, shape: Shape, mlp_input: str) -> Key:
    source, target = node_of(edge.source), node_of(edge.target)
    if target.kind == "logits":
        receiver = hook("logits", shape.n_layers - 1)
    else:
        receiver = hook(f"{edge.input}_input" if edge.input else mlp_input, target.layer)
    return receiver, _index(target.head), hook(source.kind, source.layer), _index(source.head)


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


STEPS = (CircuitGraph.flat, CircuitGraph.with_inputs, CircuitGraph.with_edges)
FORMAT = Format("acdc", {"tensors": Form(_parse, _content)}, prepare=STEPS)
