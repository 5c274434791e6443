"""Circuits of EAP-IG and of the MIB circuit-localisation track, as JSON or ``.pt``.

Source: ``Graph.to_json``, ``from_json``, ``to_pt`` and ``from_pt`` of EAP-IG (github.com/hannamw/EAP-IG, 795f560; Hanna
et al. 2024, arXiv:2403.17806), which MIB (arXiv:2504.13151) reads. Every node that writes to the residual stream and
every edge has a flag and may have a score; the "neurons" of a node are the ``d_model`` dimensions of its output.

The ``.pt`` form holds the same as tensors over all sources and all inputs: ``edges_scores`` and ``edges_in_graph`` are
``[sources, inputs]`` in the order of :meth:`Shape.sources` and :meth:`Shape.inputs`, 0 where the model has no edge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tl_multitrace.interop.circuit_graph import CircuitGraph, Mark, NodeMark, counted
from tl_multitrace.interop.driver import Form, Format, Item
from tl_multitrace.interop.fields import flag, keys, listing, mapping, numbers, score, scores_tensor, tensor, whole
from tl_multitrace.interop.node_names import Edge, edge_of, node_of
from tl_multitrace.interop.shape import Shape

NAME = "eap-ig"
CFG = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")
KEYS = ("cfg", "nodes", "edges")
TENSOR_KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")
IT = "the file is not an EAP-IG circuit: it"


def from_eap_ig(path: str | Path) -> CircuitGraph:
    """Read an EAP-IG or MIB circuit: ``.pt``, or JSON under any other name; nothing in it is run.

    Returns all nodes and edges that the file speaks of; NaN scores come as None, "not scored". Raises
    FileNotFoundError, and ValueError where it is no such file.

    Examples:
        >>> graph = mt.from_eap_ig(mt.to_eap_ig(circuit, "circuit.json"))
        >>> graph.chosen
        ('input', 'logits', 'a0.h1', 'a0.h3')
    """
    return FORMAT.read(path)


def to_eap_ig(item: Item, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False) -> Path:
    """Write a circuit as EAP-IG and MIB read it: ``.pt``, or JSON under any other name.

    A circuit of components has no edges: an edge is in the graph when both its ends are, with score 0. Node scores are
    the components' marginal effects. MLP output dimensions are written as "neurons" of their MLP, with which every
    other chosen node gets all of its own. What the format cannot hold is a :class:`LeftOut` warning.

    Raises FileExistsError unless ``overwrite``, and ValueError where nothing is chosen, or the model's layers, heads
    and width are known neither from the item nor from ``shape``.

    Examples:
        >>> import json
        >>> file = mt.to_eap_ig(circuit, "circuit.json")
        >>> json.loads(file.read_text())["nodes"]["a0.h3"]["in_graph"]
        True
    """
    return FORMAT.write(item, path, shape=shape, overwrite=overwrite)


def _shape_of(cfg: Any) -> tuple[Shape, dict[str, Any]]:
    """The shape that a file's ``cfg`` states, and what else stands in it."""
    found = keys(cfg, CFG, "cfg")
    layers, heads, width = (whole(found[key], f"cfg.{key}") for key in ("n_layers", "n_heads", "d_model"))
    shape = Shape(layers, heads, width, flag(found["parallel_attn_mlp"], "cfg.parallel_attn_mlp"))
    return shape, {k: v for k, v in found.items() if k not in CFG}


def _parse_json(content: Any) -> CircuitGraph:
    found = keys(content, KEYS, IT)
    shape, rest = _shape_of(found["cfg"])
    nodes = {_plain(n): _node(n, mapping(v, n), shape) for n, v in mapping(found["nodes"], "nodes").items()}
    if any(mark.dims is not None for mark in nodes.values()):
        # EAP-IG's own reader starts from no dimension at all as soon as one node lists its own
        nodes = {n: _with_dims(n, mark, shape, False) for n, mark in nodes.items()}
    edges = {_edge(name): _edge_mark(name, value) for name, value in mapping(found["edges"], "edges").items()}
    extra = {"cfg": rest, "top": {k: v for k, v in found.items() if k not in KEYS}}
    return CircuitGraph(shape, nodes, edges, format=NAME, extra={k: v for k, v in extra.items() if v})


def _plain(name: str) -> str:
    """A node of this format, which has no positions and one ``input``."""
    node = node_of(name)
    if node.position is not None or node.kind not in ("input", "head", "mlp", "logits"):
        raise ValueError(f"unknown node {name[:60]!r}: nodes are input, a0.h0, m0 and logits.")
    return name


def _edge(name: str) -> Edge:
    edge = edge_of(name)
    _plain(edge.source), _plain(edge.target)
    return edge


def _node(name: str, value: dict[str, Any], shape: Shape) -> NodeMark:
    def vector(key: str, of: Any) -> tuple[Any, ...] | None:
        if key not in value:
            return None
        found = listing(value[key], f"{name}.{key}")
        if len(found) != shape.d_model:
            raise ValueError(f"{name}.{key} has {len(found)} entries, and d_model is {shape.d_model}.")
        return tuple(of(v, f"{name}.{key}") for v in found)

    keys(value, ("in_graph",), f"node {name}")
    points, there = score(value.get("score"), f"{name}.score"), flag(value["in_graph"], f"{name}.in_graph")
    return NodeMark(points, there, vector("neurons", flag), vector("neurons_scores", score))


def _with_dims(name: str, mark: NodeMark, shape: Shape, on: bool) -> NodeMark:
    """The mark with its dimensions, all ``on`` or off where it has none; logits never have any."""
    return mark._replace(dims=(on,) * int(shape.d_model or 0)) if mark.dims is None and name != "logits" else mark


def _edge_mark(name: str, value: Any) -> Mark:
    keys(mapping(value, name), ("in_graph",), f"edge {name}")
    return Mark(score(value.get("score"), f"{name}.score"), flag(value["in_graph"], f"{name}.in_graph"))


def _parse_tensors(content: Any) -> CircuitGraph:
    found = keys(content, TENSOR_KEYS, IT)
    shape, rest = _shape_of(found["cfg"])
    sources, inputs = shape.sources(), shape.inputs()
    for key, names in (("src_nodes", sources), ("dst_nodes", _written(shape))):
        if listing(found[key], key) != names:
            raise ValueError(f"{key} must be the {len(names)} names of a model of {shape}, in order.")

    def values(key: str, size: tuple[int, ...], *, boolean: bool = False) -> list[Any]:
        if key not in found:
            return [None] * shape.n_sources
        held = tensor(found[key], key, size, boolean=boolean)
        return held.tolist() if boolean else numbers(held)

    one, wide, edges = (len(sources),), (len(sources), int(shape.d_model or 0)), (len(sources), len(inputs))
    flags, scores = values("nodes_in_graph", one, boolean=True), values("nodes_scores", one)
    dims = [row and tuple(row) for row in values("neurons_in_graph", wide, boolean=True)]
    rows = values("neurons_scores", wide)
    dim_scores = [None if row is None or all(s is None for s in row) else tuple(row) for row in rows]
    nodes = dict(zip(sources, map(NodeMark, scores, flags, dims, dim_scores), strict=True))
    points, there = values("edges_scores", edges), values("edges_in_graph", edges, boolean=True)
    places = _places(shape, list(shape.edges()))
    marks = {e: Mark(points[row][column], there[row][column]) for e, (row, column) in places.items()}
    extra = {"cfg": rest} if rest else {}
    return CircuitGraph(shape, {**nodes, "logits": NodeMark(in_graph=True)}, marks, format=NAME, extra=extra)


def _written(shape: Shape) -> list[str]:
    return [name + (f"<{x}>" if x else "") for name, x in shape.inputs()]


def _places(shape: Shape, edges: list[Edge]) -> dict[Edge, tuple[int, int]]:
    """Row and column of every edge."""
    row = {s: i for i, s in enumerate(shape.sources())}
    column = {d: i for i, d in enumerate(shape.inputs())}
    return {e: (row[e.source], column[e.target, e.input]) for e in edges}


def _with_all_edges(graph: CircuitGraph) -> CircuitGraph:
    if graph.shape.d_model is None:
        raise ValueError(
            f"EAP-IG's format needs the model's d_model, which {graph.format or 'the item'} does not tell: pass shape=."
        )
    if graph.shape.attn_only:
        raise ValueError("EAP-IG's format has an MLP in every layer, and this model has none.")
    return graph.with_edges(score=0.0)


def _marks(graph: CircuitGraph) -> dict[str, NodeMark]:
    """The nodes as this format wants them: each with a flag, and all with dimensions where one has them."""
    names = graph.nodes or dict.fromkeys([*graph.shape.sources(), "logits"])
    chosen = set(graph.chosen)
    found = {name: graph.nodes.get(name, NodeMark())._replace(in_graph=name in chosen) for name in names}
    if not any(mark.dims is not None for mark in found.values()):
        return found
    return {name: _with_dims(name, mark, graph.shape, bool(mark.in_graph)) for name, mark in found.items()}


def _cfg(graph: CircuitGraph) -> dict[str, Any]:
    return {**{name: getattr(graph.shape, name) for name in CFG}, **graph.kept_by(NAME).get("cfg", {})}


def _json(graph: CircuitGraph) -> tuple[Any, list[str]]:
    nodes: dict[str, dict[str, Any]] = {}
    for name, mark in _marks(graph).items():
        nodes[name] = {"in_graph": bool(mark.in_graph)}
        nodes[name] |= {} if mark.score is None else {"score": mark.score}
        nodes[name] |= {} if mark.dims is None else {"neurons": list(mark.dims)}
        nodes[name] |= {} if mark.dim_scores is None else {"neurons_scores": [s or 0.0 for s in mark.dim_scores]}
    edges = {e.name: {"score": m.score or 0.0, "in_graph": bool(m.in_graph)} for e, m in graph.edges.items()}
    # JSON has no NaN, and this format no other word for "not scored" inside a list or at an edge
    dims = sum(s is None for mark in graph.nodes.values() for s in mark.dim_scores or ())
    unscored = {"edges": sum(mark.score is None for mark in graph.edges.values()), "output dimensions": dims}
    lost = counted({f"that {{}} {what} have no score (0 is written)": count for what, count in unscored.items()})
    return {"cfg": _cfg(graph), "nodes": nodes, "edges": edges, **graph.kept_by(NAME).get("top", {})}, lost


def _tensors(graph: CircuitGraph) -> tuple[Any, list[str]]:
    shape, marks = graph.shape, _marks(graph)
    nodes = [marks.get(name, NodeMark(in_graph=False)) for name in shape.sources()]
    width, size = int(shape.d_model or 0), (shape.n_sources, shape.n_inputs)
    scores, flags = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool)
    if places := list(_places(shape, list(graph.edges)).values()):
        at = tuple(torch.tensor(places).T)
        scores[at] = scores_tensor([m.score for m in graph.edges.values()]).double()
        flags[at] = torch.tensor([bool(m.in_graph) for m in graph.edges.values()])
    content: dict[str, Any] = {
        "cfg": _cfg(graph),
        "src_nodes": shape.sources(),
        "dst_nodes": _written(shape),
        "edges_scores": scores_tensor(scores),
        "edges_in_graph": flags,
        "nodes_in_graph": torch.tensor([bool(m.in_graph) for m in nodes]),
    }
    if any(m.score is not None for m in nodes):
        content["nodes_scores"] = scores_tensor([m.score for m in nodes])
    if any(m.dims is not None for m in nodes):
        content["neurons_in_graph"] = torch.tensor([m.dims or (False,) * width for m in nodes])
    if any(m.dim_scores is not None for m in nodes):
        content["neurons_scores"] = scores_tensor([m.dim_scores or (None,) * width for m in nodes])
    return content, []


FORMAT = Format(
    NAME,
    {"json": Form(_parse_json, _json), "tensors": Form(_parse_tensors, _tensors)},
    prepare=(CircuitGraph.flat, CircuitGraph.joined_embeddings, CircuitGraph.with_inputs, _with_all_edges),
    holds=("node scores", "edge scores", "dimensions"),
)
