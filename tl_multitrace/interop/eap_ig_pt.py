"""The ``.pt`` form of an EAP-IG circuit: a dictionary of tensors over all sources and all inputs.

``edges_scores`` and ``edges_in_graph`` are ``[sources, inputs]`` in the order of :meth:`Shape.sources` and
:meth:`Shape.inputs`; entries that are no edge of the model are 0.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.interop import eap_ig
from tl_multitrace.interop.graph import CircuitGraph, Mark, NodeMark
from tl_multitrace.interop.names import Edge, Shape
from tl_multitrace.interop.reading import listing, load_tensors, mapping, numbers, save_tensors, tensor
from tl_multitrace.records.read import naming

REQUIRED = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")
OPTIONAL = ("nodes_scores", "neurons_in_graph", "neurons_scores")


def read(path: str | Path) -> CircuitGraph:
    """Read it; see :func:`tl_multitrace.interop.eap_ig.from_eap_ig`."""
    content = mapping(load_tensors(path), str(path))
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise ValueError(f"{path} is not an EAP-IG circuit: it has no {', '.join(missing)}.")
    with naming(path):
        return _graph(content)


def _graph(content: dict[str, Any]) -> CircuitGraph:
    cfg = mapping(content["cfg"], "cfg")
    shape = eap_ig.shape_of_cfg(cfg)
    for key, names in (("src_nodes", shape.sources()), ("dst_nodes", _inputs(shape))):
        if listing(content[key], key) != names:
            raise ValueError(f"{key} must be the {len(names)} names of a model of {shape}, in order.")
    extra = {"cfg": rest} if (rest := {k: v for k, v in cfg.items() if k not in eap_ig.CFG}) else {}
    return CircuitGraph(shape, _nodes(content, shape), _edges(content, shape), format=eap_ig.FORMAT, extra=extra)


def _inputs(shape: Shape) -> list[str]:
    return [name + (f"<{x}>" if x else "") for name, x in shape.inputs()]


def _nodes(content: dict[str, Any], shape: Shape) -> dict[str, NodeMark]:
    n, width = shape.n_sources, int(shape.d_model or 0)
    flags = tensor(content["nodes_in_graph"], "nodes_in_graph", (n,), boolean=True).tolist()
    scores: list[Any] = [None] * n
    if "nodes_scores" in content:
        scores = numbers(tensor(content["nodes_scores"], "nodes_scores", (n,)))
    dims: list[Any] = [None] * n
    if "neurons_in_graph" in content:
        found = tensor(content["neurons_in_graph"], "neurons_in_graph", (n, width), boolean=True)
        dims = [tuple(row) for row in found.tolist()]
    dim_scores: list[Any] = [None] * n
    if "neurons_scores" in content:
        rows = numbers(tensor(content["neurons_scores"], "neurons_scores", (n, width)))
        dim_scores = [None if all(s is None for s in row) else tuple(row) for row in rows]
    marks = map(NodeMark, scores, flags, dims, dim_scores)
    return {**dict(zip(shape.sources(), marks, strict=True)), "logits": NodeMark(in_graph=True)}


def _edges(content: dict[str, Any], shape: Shape) -> dict[Edge, Mark]:
    size = (shape.n_sources, shape.n_inputs)
    scores = numbers(tensor(content["edges_scores"], "edges_scores", size))
    flags = tensor(content["edges_in_graph"], "edges_in_graph", size, boolean=True).tolist()
    row, column = _places(shape)
    return {
        e: Mark(scores[row[e.source]][column[e.target, e.input]], flags[row[e.source]][column[e.target, e.input]])
        for e in shape.edges()
    }


def _places(shape: Shape) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Row of every source, column of every input."""
    return {s: i for i, s in enumerate(shape.sources())}, {d: i for i, d in enumerate(shape.inputs())}


# ---------------------------------------------------------------------- writing


def write(graph: CircuitGraph, path: str | Path, *, overwrite: bool) -> Path:
    """Write a graph that has edges and no positions."""
    shape = graph.shape
    marks = eap_ig.marks(graph)
    per_source = [marks.get(name, NodeMark(in_graph=False)) for name in shape.sources()]
    scores, flags = _edge_tensors(graph)
    content: dict[str, Any] = {
        "cfg": eap_ig.cfg_of(graph),
        "src_nodes": shape.sources(),
        "dst_nodes": _inputs(shape),
        "edges_scores": compact(scores),
        "edges_in_graph": flags,
        "nodes_in_graph": torch.tensor([bool(m.in_graph) for m in per_source]),
    }
    width = int(shape.d_model or 0)
    if any(m.score is not None for m in per_source):
        content["nodes_scores"] = compact(torch.tensor([_nan(m.score) for m in per_source], dtype=torch.float64))
    if any(m.dims is not None for m in per_source):
        content["neurons_in_graph"] = torch.tensor([m.dims or (False,) * width for m in per_source])
    if any(m.dim_scores is not None for m in per_source):
        rows = [[_nan(s) for s in m.dim_scores or (None,) * width] for m in per_source]
        content["neurons_scores"] = compact(torch.tensor(rows, dtype=torch.float64))
    return save_tensors(path, content, overwrite=overwrite)


def _edge_tensors(graph: CircuitGraph) -> tuple[Float[Tensor, "sources inputs"], Tensor]:
    row, column = _places(graph.shape)
    scores = torch.zeros(len(row), len(column), dtype=torch.float64)
    flags = torch.zeros(len(row), len(column), dtype=torch.bool)
    if graph.edges:
        rows = torch.tensor([row[e.source] for e in graph.edges])
        columns = torch.tensor([column[e.target, e.input] for e in graph.edges])
        scores[rows, columns] = torch.tensor([_nan(m.score) for m in graph.edges.values()], dtype=torch.float64)
        flags[rows, columns] = torch.tensor([bool(m.in_graph) for m in graph.edges.values()])
    return scores, flags


def compact(values: Tensor) -> Tensor:
    """As float32, which the other tools compute in, where that changes no number."""
    single = values.float()
    return single if bool(((single.double() == values) | values.isnan()).all()) else values


def _nan(score: float | None) -> float:
    return math.nan if score is None else score
