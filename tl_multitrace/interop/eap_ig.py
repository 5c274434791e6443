"""Circuits of EAP-IG and of the MIB circuit-localisation track, as JSON or ``.pt``.

Source: ``Graph.to_json``, ``from_json``, ``to_pt`` and ``from_pt`` of EAP-IG (github.com/hannamw/EAP-IG, 795f560; Hanna
et al. 2024, arXiv:2403.17806), which MIB (arXiv:2504.13151) reads. Every node that writes to the residual stream and
every edge has a flag and may have a score; the "neurons" of a node are the ``d_model`` dimensions of its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop.circuits import as_graph
from tl_multitrace.interop.graph import CircuitGraph, Mark, NodeMark, say_left_out, unheld
from tl_multitrace.interop.names import Edge, Shape, edge_of, node_of
from tl_multitrace.interop.reading import flag, listing, load_json, mapping, save_json, score, whole
from tl_multitrace.records.read import naming

FORMAT = "eap-ig"
CFG = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")
KEYS = ("cfg", "nodes", "edges")
HOLDS = ("node scores", "edge scores", "dimensions")


def from_eap_ig(path: str | Path) -> CircuitGraph:
    """Read an EAP-IG or MIB circuit: ``.pt``, or JSON under any other name.

    Args:
        path: of the file.

    Returns:
        All nodes and edges that the file speaks of. NaN scores come as None, "not scored".

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; the message names the place. Nothing in it is run.

    Examples:
        >>> graph = mt.from_eap_ig(mt.to_eap_ig(circuit, "circuit.json"))
        >>> graph.chosen
        ('input', 'logits', 'a0.h1', 'a0.h3')
    """
    if Path(path).suffix in (".pt", ".pth"):
        from tl_multitrace.interop import eap_ig_pt

        return eap_ig_pt.read(path)
    content = mapping(load_json(path), str(path))
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise ValueError(f"{path} is not an EAP-IG circuit: it has no {', '.join(missing)}.")
    with naming(path):
        return _graph(content)


def to_eap_ig(
    item: Circuit | CircuitGraph, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False
) -> Path:
    """Write a circuit as EAP-IG and MIB read it: ``.pt``, or JSON under any other name.

    A circuit of components has no edges: an edge is in the graph when both its ends are, with score 0. Node scores are
    the components' marginal effects. MLP output dimensions are written as "neurons" of their MLP, with which every
    other chosen node gets all of its own.

    Args:
        item: a circuit, or a graph of any format.
        path: of the file.
        shape: the model or a :class:`Shape`, where the item does not tell the model's layers, heads and width.
        overwrite: replace the file.

    Raises:
        FileExistsError: the file exists.
        ValueError: the width of the model is unknown, or nothing is chosen.

    Warns:
        LeftOut: what the format cannot hold.

    Examples:
        >>> import json
        >>> file = mt.to_eap_ig(circuit, "circuit.json")
        >>> json.loads(file.read_text())["nodes"]["a0.h3"]["in_graph"]
        True
    """
    graph = as_graph(item, shape).flat().joined_embeddings().with_inputs().with_edges(score=0.0)
    if graph.shape.d_model is None:
        raise ValueError(
            f"EAP-IG's format needs the model's d_model, which {graph.format or 'the item'} does not tell: pass shape=."
        )
    if graph.shape.attn_only:
        raise ValueError("EAP-IG's format has an MLP in every layer, and this model has none.")
    if Path(path).suffix in (".pt", ".pth"):
        from tl_multitrace.interop import eap_ig_pt

        written = eap_ig_pt.write(graph, path, overwrite=overwrite)
        notes = []
    else:
        written = save_json(path, _content(graph), overwrite=overwrite)
        notes = _unscored(graph)
    say_left_out([*graph.left_out, *unheld(graph, *HOLDS), *notes], FORMAT)
    return written


def shape_of_cfg(cfg: Mapping[str, Any]) -> Shape:
    """The shape that a file's ``cfg`` states."""
    missing = [key for key in CFG if key not in cfg]
    if missing:
        raise ValueError(f"cfg has no {', '.join(missing)}.")
    layers, heads, width = (whole(cfg[key], f"cfg.{key}") for key in ("n_layers", "n_heads", "d_model"))
    return Shape(layers, heads, width, flag(cfg["parallel_attn_mlp"], "cfg.parallel_attn_mlp"))


def cfg_of(graph: CircuitGraph) -> dict[str, Any]:
    """A file's ``cfg``."""
    values = {name: getattr(graph.shape, name) for name in CFG}
    return values | dict(graph.extra.get("cfg", {}) if graph.format == FORMAT else {})


def _graph(content: dict[str, Any]) -> CircuitGraph:
    cfg = mapping(content["cfg"], "cfg")
    shape = shape_of_cfg(cfg)
    nodes = {n: _node(n, mapping(v, n), shape) for n, v in mapping(content["nodes"], "nodes").items()}
    if any(mark.dims is not None for mark in nodes.values()):
        nodes = {n: _with_dims(n, mark, shape) for n, mark in nodes.items()}
    edges = {plain_edge(name): _edge(name, value) for name, value in mapping(content["edges"], "edges").items()}
    extra = {
        "cfg": {k: v for k, v in cfg.items() if k not in CFG},
        "top": {k: v for k, v in content.items() if k not in KEYS},
    }
    return CircuitGraph(shape, nodes, edges, format=FORMAT, extra={k: v for k, v in extra.items() if v})


def plain_edge(name: str) -> Edge:
    """An edge between nodes of this format, which has no positions and one ``input``."""
    edge = edge_of(name)
    for end in (edge.source, edge.target):
        plain_node(end)
    return edge


def plain_node(name: str) -> str:
    """A node of this format."""
    node = node_of(name)
    if node.position is not None or node.kind not in ("input", "head", "mlp", "logits"):
        raise ValueError(f"unknown node {name[:60]!r}: nodes are input, a0.h0, m0 and logits.")
    return name


def _node(name: str, value: dict[str, Any], shape: Shape) -> NodeMark:
    plain_node(name)
    if "in_graph" not in value:
        raise ValueError(f"node {name} has no in_graph.")
    dims = None if "neurons" not in value else _vector(value["neurons"], f"{name}.neurons", shape)
    scores = (
        None if "neurons_scores" not in value else _vector(value["neurons_scores"], f"{name}.neurons_scores", shape)
    )
    return NodeMark(
        score(value["score"], f"{name}.score") if "score" in value else None,
        flag(value["in_graph"], f"{name}.in_graph"),
        None if dims is None else tuple(flag(v, f"{name}.neurons") for v in dims),
        None if scores is None else tuple(score(v, f"{name}.neurons_scores") for v in scores),
    )


def _vector(value: Any, place: str, shape: Shape) -> list[Any]:
    found = listing(value, place)
    if len(found) != shape.d_model:
        raise ValueError(f"{place} has {len(found)} entries, and d_model is {shape.d_model}.")
    return found


def _with_dims(name: str, mark: NodeMark, shape: Shape) -> NodeMark:
    # EAP-IG's own reader starts from no dimension at all as soon as one node lists its own
    if mark.dims is not None or name == "logits":
        return mark
    return mark._replace(dims=(False,) * int(shape.d_model or 0))


def _edge(name: str, value: Any) -> Mark:
    found = mapping(value, name)
    if "in_graph" not in found:
        raise ValueError(f"edge {name} has no in_graph.")
    points = score(found["score"], f"{name}.score") if "score" in found else None
    return Mark(points, flag(found["in_graph"], f"{name}.in_graph"))


# ---------------------------------------------------------------------- writing


def marks(graph: CircuitGraph) -> dict[str, NodeMark]:
    """The nodes as this format wants them: each with a flag, and all with dimensions where one has them."""
    names = graph.nodes or dict.fromkeys([*graph.shape.sources(), "logits"])
    chosen = set(graph.chosen)
    found = {name: graph.nodes.get(name, NodeMark())._replace(in_graph=name in chosen) for name in names}
    if not any(mark.dims is not None for mark in found.values()):
        return found
    width = int(graph.shape.d_model or 0)
    return {
        name: mark._replace(dims=(bool(mark.in_graph),) * width) if mark.dims is None and name != "logits" else mark
        for name, mark in found.items()
    }


def _content(graph: CircuitGraph) -> dict[str, Any]:
    nodes = {name: _node_content(mark) for name, mark in marks(graph).items()}
    edges = {e.name: {"score": m.score or 0.0, "in_graph": bool(m.in_graph)} for e, m in graph.edges.items()}
    top = dict(graph.extra.get("top", {}) if graph.format == FORMAT else {})
    return {"cfg": cfg_of(graph), "nodes": nodes, "edges": edges, **top}


def _node_content(mark: NodeMark) -> dict[str, Any]:
    content: dict[str, Any] = {"in_graph": bool(mark.in_graph)}
    if mark.score is not None:
        content["score"] = mark.score
    if mark.dims is not None:
        content["neurons"] = list(mark.dims)
    if mark.dim_scores is not None:
        content["neurons_scores"] = [0.0 if s is None else s for s in mark.dim_scores]
    return content


def _unscored(graph: CircuitGraph) -> list[str]:
    """JSON has no NaN, and this format no other word for "not scored" inside a list or at an edge."""
    edges = sum(mark.score is None for mark in graph.edges.values())
    dims = sum(s is None for mark in graph.nodes.values() for s in mark.dim_scores or ())
    notes = [f"that {edges} edges have no score (0 is written)"] if edges else []
    return notes + ([f"that {dims} output dimensions have no score (0 is written)"] if dims else [])
