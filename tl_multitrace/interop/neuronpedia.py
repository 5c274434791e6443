"""Graph JSON in the style of Neuronpedia and circuit-tracer, schema version 1.

Source: the graph models of circuit-tracer (github.com/safety-research/circuit-tracer), which Neuronpedia shows. Nodes
are at one token position; a head is written with its number as ``feature``, an MLP with the number of heads as
``feature``. Nodes that are no components (transcoder features, reconstruction errors, single logits) come as
``id:<node_id>`` and are written again as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop.circuits import as_graph
from tl_multitrace.interop.graph import CircuitGraph, Mark, NodeMark, say_left_out, unheld
from tl_multitrace.interop.names import Edge, Shape, head_name, mlp_name, node_of, placed
from tl_multitrace.interop.reading import listing, load_json, mapping, save_json, score, text, whole
from tl_multitrace.records.read import naming

FORMAT = "neuronpedia"
HEAD, MLP, EMBEDDING, LOGIT = "attention head", "mlp", "embedding", "logit"
EVERYWHERE = "all_positions"
KEYS = ("metadata", "qParams", "nodes", "links")
NO_TOKEN = -1
"""``feature`` of the logits as a whole, where a single logit has its token's number."""


def from_neuronpedia(path: str | Path, *, shape: Shape | Any = None) -> CircuitGraph:
    """Read a graph JSON.

    Args:
        path: of the file.
        shape: the model or a :class:`Shape`; default: the smallest that has the nodes.

    Returns:
        All nodes and links are in the circuit; a node's score is its ``influence``, an edge's its ``weight``. Links do
        not tell q, k and v apart. Supernodes are groups.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; the message names the place.

    Examples:
        >>> graph = mt.from_neuronpedia(mt.to_neuronpedia(circuit, "graph.json"), shape=model)
        >>> graph.chosen
        ('input', 'logits', 'a0.h1', 'a0.h3')
    """
    content = mapping(load_json(path), str(path))
    with naming(path):
        return _graph(content, shape)


def to_neuronpedia(
    item: Circuit | CircuitGraph,
    path: str | Path,
    *,
    shape: Shape | Any = None,
    prompt_tokens: Iterable[str] = (),
    slug: str = "circuit",
    scan: str = "unknown",
    overwrite: bool = False,
) -> Path:
    """Write a graph JSON of the nodes and edges in the circuit (of all, where none is flagged).

    Edges to the q, k and v of one head become one link, their scores added. Where no edge has a score, weights are 1. A
    node without a position is written at the last token, with ``"all_positions": true``.

    Args:
        item: a circuit, or a graph of any format.
        path: of the file.
        shape: the model or a :class:`Shape`, where the item does not tell it.
        prompt_tokens: the tokens that positions count; default: those of the file the graph was read from.
        slug: name of the graph.
        scan: name of the model.
        overwrite: replace the file.

    Raises:
        FileExistsError: the file exists.
        ValueError: a number is not finite.

    Warns:
        LeftOut: what the format cannot hold.

    Examples:
        >>> import json
        >>> file = mt.to_neuronpedia(circuit, "graph.json", slug="professions")
        >>> sorted(json.loads(file.read_text()))
        ['links', 'metadata', 'nodes', 'qParams']
    """
    graph = as_graph(item, shape).joined_embeddings()
    own = graph.extra if graph.format == FORMAT else {}
    tokens = list(prompt_tokens)
    metadata = own.get("metadata", _metadata(tokens, slug, scan))
    metadata = {**metadata, "prompt_tokens": tokens, "prompt": "".join(tokens)} if tokens else metadata
    last = max(len(metadata.get("prompt_tokens") or []) - 1, 0)
    links = _links(graph)
    raw = own.get("nodes", {})
    nodes = {name: _node_content(name, mark, raw.get(name), graph.shape, last) for name, mark in _listed(graph, links)}
    ids = {name: node["node_id"] for name, node in nodes.items()}
    content = {
        "metadata": metadata,
        "qParams": own.get("qParams", _q_params(graph, ids)),
        "nodes": list(nodes.values()),
        "links": [
            {**own.get("links", {}).get(e, {}), "source": ids[e[0]], "target": ids[e[1]], "weight": w}
            for e, w in links.items()
        ],
        **own.get("top", {}),
    }
    written = save_json(path, content, overwrite=overwrite)
    say_left_out([*graph.left_out, *unheld(graph, "node scores", "edge scores", "groups"), *_lost(graph)], FORMAT)
    return written


# ---------------------------------------------------------------------- reading


def _graph(content: dict[str, Any], shape: Any) -> CircuitGraph:
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise ValueError(f"this is no graph JSON: it has no {', '.join(missing)}.")
    metadata, q_params = mapping(content["metadata"], "metadata"), mapping(content["qParams"], "qParams")
    version = metadata.get("schema_version", 1)
    if version not in (1, None):
        raise ValueError(f"schema_version {str(version)[:40]} is not known; version 1 is read.")
    listing(metadata.get("prompt_tokens") or [], "prompt_tokens")
    names: dict[str, str] = {}
    raw: dict[str, dict[str, Any]] = {}
    for number, value in enumerate(listing(content["nodes"], "nodes")):
        node = mapping(value, f"node {number}")
        name, identity = _name(node, f"node {number}", raw), node["node_id"]
        if identity in names:
            raise ValueError(f"node {identity[:60]!r} stands twice.")
        names[identity], raw[name] = name, node
    edges, links = _edges(listing(content["links"], "links"), names)
    marks = {name: NodeMark(score(node.get("influence"), f"{name}.influence"), True) for name, node in raw.items()}
    extra = {"metadata": metadata, "qParams": q_params, "nodes": raw, "links": links}
    extra |= {"top": top} if (top := {k: v for k, v in content.items() if k not in KEYS}) else {}
    found = _shape(raw) if shape is None else Shape.given(shape, ())
    return CircuitGraph(found, marks, edges, _groups(q_params, names), FORMAT, extra)


def _name(node: Mapping[str, Any], place: str, taken: Mapping[str, Any]) -> str:
    identity, kind = (
        text(node.get("node_id"), f"{place}: node_id"),
        text(node.get("feature_type"), f"{place}: feature_type"),
    )
    position: int | None = whole(node.get("ctx_idx"), f"{place}: ctx_idx")
    position = None if node.get(EVERYWHERE) is True else position
    feature = node.get("feature")
    layer = str(node.get("layer"))
    name = f"id:{identity}"
    if kind == EMBEDDING:
        name = placed("input", position)
    elif kind == LOGIT and feature == NO_TOKEN:
        name = placed("logits", position)
    elif kind in (HEAD, MLP):
        number = whole(
            int(layer) if layer.isascii() and layer.isdigit() and len(layer) < 7 else None, f"{place}: layer"
        )
        head = whole(feature, f"{place}: feature")
        name = head_name(number, head, position) if kind == HEAD else mlp_name(number, position)
    return f"id:{identity}" if name in taken else name


def _edges(
    links: list[Any], names: Mapping[str, str]
) -> tuple[dict[Edge, Mark], dict[tuple[str, str], dict[str, Any]]]:
    edges: dict[Edge, Mark] = {}
    rest: dict[tuple[str, str], dict[str, Any]] = {}
    for number, value in enumerate(links):
        link = mapping(value, f"link {number}")
        ends = [text(link.get(end), f"link {number}: {end}") for end in ("source", "target")]
        unknown = [end for end in ends if end not in names]
        if unknown:
            raise ValueError(f"link {number}: there is no node {unknown[0][:60]!r}.")
        edge = Edge(names[ends[0]], names[ends[1]])
        if edge in edges:
            raise ValueError(f"link {number}: {ends[0][:60]!r} to {ends[1][:60]!r} stands twice.")
        weight = score(link.get("weight"), f"link {number}: weight")
        if weight is None:
            raise ValueError(f"link {number} has no weight.")
        edges[edge] = Mark(weight, True)
        if more := {k: v for k, v in link.items() if k not in ("source", "target", "weight")}:
            rest[edge.source, edge.target] = more
    return edges, rest


def _shape(raw: Mapping[str, Mapping[str, Any]]) -> Shape:
    """The smallest with these nodes; MLPs tell the number of heads."""
    layers = [str(node.get("layer")) for node in raw.values() if node.get("feature_type") not in (LOGIT, EMBEDDING)]
    numbers = [int(layer) for layer in layers if layer.isascii() and layer.isdigit() and len(layer) < 7]
    heads = [int(node_of(name).head or 0) + 1 for name in raw]
    heads += [node["feature"] for node in raw.values() if node.get("feature_type") == MLP]
    return Shape(max(numbers, default=0) + 1, max([*heads, 1]), exact=False)


def _groups(q_params: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Supernodes: lists of a label and node ids; ids that the graph does not have stay in the file's own words."""
    found = {}
    for number, value in enumerate(listing(q_params.get("supernodes") or [], "supernodes")):
        label, *ids = [text(v, f"supernode {number}") for v in listing(value, f"supernode {number}")] or [""]
        found[label] = tuple(names[i] for i in ids if i in names)
    return found


# ---------------------------------------------------------------------- writing


def _links(graph: CircuitGraph) -> dict[tuple[str, str], float]:
    """Weights by ends, of the edges in the circuit."""
    flagged = any(mark.in_graph is not None for mark in graph.edges.values())
    scored = any(mark.score is not None for mark in graph.edges.values())
    weights: dict[tuple[str, str], float] = {}
    for edge, mark in graph.edges.items():
        if mark.in_graph or not flagged:
            weight = (mark.score or 0.0) if scored else 1.0
            weights[edge.source, edge.target] = weights.get((edge.source, edge.target), 0.0) + weight
    return weights


def _listed(graph: CircuitGraph, links: Iterable[tuple[str, str]]) -> list[tuple[str, NodeMark]]:
    """The nodes to write: those in the circuit, and the ends of the links."""
    flagged = any(mark.in_graph is not None for mark in graph.nodes.values())
    names = [name for name, mark in graph.nodes.items() if mark.in_graph or not flagged]
    names += [end for link in links for end in link]
    return [(name, graph.nodes.get(name, NodeMark())) for name in dict.fromkeys(names)]


def _node_content(name: str, mark: NodeMark, raw: Mapping[str, Any] | None, shape: Shape, last: int) -> dict[str, Any]:
    if raw is not None:
        return {**raw, "influence": mark.score} if "influence" in raw or mark.score is not None else dict(raw)
    node = node_of(name)
    position = last if node.position is None else node.position
    kind, layer, feature = {
        "head": (HEAD, str(node.layer), node.head),
        "mlp": (MLP, str(node.layer), shape.n_heads),
        "input": (EMBEDDING, "E", position),
    }.get(node.kind, (LOGIT, str(shape.n_layers), NO_TOKEN))
    identity = f"{layer}_{feature}_{'all' if node.position is None else position}"
    content = {
        "node_id": identity,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": identity,
        "clerp": name,
        "influence": mark.score,
        "activation": None,
    }
    return content | ({EVERYWHERE: True} if node.position is None else {})


def _metadata(tokens: list[str], slug: str, scan: str) -> dict[str, Any]:
    return {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": "".join(tokens),
        "node_threshold": None,
        "schema_version": 1,
    }


def _q_params(graph: CircuitGraph, ids: Mapping[str, str]) -> dict[str, Any]:
    supernodes = [[role, *(ids[n] for n in names if n in ids)] for role, names in graph.groups.items()]
    return {"pinnedIds": [], "supernodes": supernodes, "linkType": "both", "clickedId": "", "sg_pos": ""}


def _lost(graph: CircuitGraph) -> list[str]:
    many = Counter((e.source, e.target) for e in graph.edges)
    together = sum(count > 1 for count in many.values())
    out = sum(m.in_graph is False for m in graph.nodes.values()) + sum(
        m.in_graph is False for m in graph.edges.values()
    )
    notes = [f"which of q, k and v {together} links enter (scores are added)"] if together else []
    return notes + ([f"{out} nodes and edges that are not in the circuit"] if out else [])
