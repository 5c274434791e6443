"""Between a :class:`CircuitGraph` and our own :class:`~tl_multitrace.circuit.Circuit`.

Heads are heads at ``z``, MLPs are whole MLP outputs, single output dimensions of an MLP are ``mlp_dims``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.groups import Component, HookGroups
from tl_multitrace.interop.circuit_graph import CircuitGraph, NodeMark, counted, say_left_out
from tl_multitrace.interop.node_names import head_name, mlp_name, node_of
from tl_multitrace.interop.shape import Shape
from tl_multitrace.models.compat import ModelView


def circuit_of_graph(graph: CircuitGraph, model: Any = None) -> Circuit:
    """The chosen heads and MLPs of a graph as a circuit over all heads and MLPs of the model, unmeasured.

    The mask runs over all heads, then all MLPs (then all output dimensions of the MLPs of which only some are chosen).
    Node scores, as the other tool gave them, stand in ``provenance["imported"]["scores"]``. Without a model, the shape
    is what the file tells.

    Raises:
        ValueError: the file is of another model, or nothing in it is chosen.
    """
    shape = graph.shape if model is None else graph.shape.fits(model)
    chosen = [c for name in graph.chosen for c in _components(name, graph.nodes.get(name, NodeMark()))]
    pool = list(_pool(shape, graph, chosen))
    place = {component: i for i, component in enumerate(pool)}
    groups = _groups(shape, sorted(set(chosen), key=place.__getitem__), model)
    say_left_out(_not_components(graph), "a Circuit")
    return Circuit(
        groups=groups,
        indices=tuple(place[c] for c in groups.components),
        n_groups=len(pool),
        effect=math.nan,
        certificate=f"imported from {graph.format or 'a graph'}, not searched here",
        provenance={"model": _model_facts(shape, model), "imported": _imported(graph)},
    )


def _components(name: str, mark: NodeMark) -> list[Component]:
    node = node_of(name)
    if node.layer is None:
        return []
    if node.kind == "head":
        return [Component("head", node.layer, node.head, node.position)]
    if mark.dims is None or all(mark.dims):
        return [Component("mlp", node.layer, None, node.position)]
    return [Component("mlp_dim", node.layer, i, node.position) for i, on in enumerate(mark.dims) if on]


def _pool(shape: Shape, graph: CircuitGraph, chosen: Iterable[Component]) -> Iterator[Component]:
    """Everything the circuit could have been chosen from, in mask order."""
    positions = dict.fromkeys(node_of(n).position for n in graph.nodes) | dict.fromkeys(c.position for c in chosen)
    ordered = sorted(positions, key=lambda p: -1 if p is None else p) or [None]
    for at in ordered:
        yield from (Component("head", i, h, at) for i in range(shape.n_layers) for h in range(shape.n_heads))
        if not shape.attn_only:
            yield from (Component("mlp", i, None, at) for i in range(shape.n_layers))
    split = dict.fromkeys((c.layer, c.position) for c in chosen if c.kind == "mlp_dim")
    for layer, at in split:
        yield from (Component("mlp_dim", layer, i, at) for i in range(shape.d_model or 0))


def _groups(shape: Shape, chosen: list[Component], model: Any) -> HookGroups:
    if model is not None:
        return HookGroups.of(model, chosen)
    lengths = {"head": shape.n_heads, "mlp_dim": shape.d_model or 1, "mlp": 1}
    sizes = {(c.kind, c.site): lengths[c.kind] for c in chosen}
    return HookGroups(tuple(chosen), tuple((c,) for c in chosen), sizes)


def _model_facts(shape: Shape, model: Any) -> dict[str, Any]:
    if model is not None:
        return ModelView(model).describe()
    facts: dict[str, Any] = {"name": "unknown", "parallel_attn_mlp": shape.parallel_attn_mlp}
    if shape.exact:
        facts |= {"n_layers": shape.n_layers, "n_heads": shape.n_heads}
        facts |= {} if shape.d_model is None else {"d_model": shape.d_model}
        facts |= {"d_mlp": 0} if shape.attn_only else {}
    return facts


def _imported(graph: CircuitGraph) -> dict[str, Any]:
    scores: dict[str, float] = {}
    for name, mark in graph.nodes.items():
        node = node_of(name)
        if node.layer is None:
            continue
        if mark.score is not None:
            scores[_components(name, NodeMark())[0].label] = mark.score
        if node.kind == "mlp":
            dims = [(i, s) for i, s in enumerate(mark.dim_scores or ()) if s is not None]
            scores |= {Component("mlp_dim", node.layer, i, node.position).label: s for i, s in dims}
    roles = {
        role: [c.label for name in names for c in _components(name, NodeMark())] for role, names in graph.groups.items()
    }
    return {"format": graph.format, "scores": scores, "groups": roles}


def _not_components(graph: CircuitGraph) -> list[str]:
    flagged = sum(bool(m.in_graph) for m in graph.edges.values())
    others = [(node_of(n).kind, m) for n, m in graph.nodes.items() if node_of(n).kind != "mlp"]
    parts = sum(bool(m.in_graph) and m.dims is not None and not all(m.dims) for _, m in others)
    counts = {
        f"edges ({{}}, {flagged} of them in the circuit)": 0 if _by_nodes(graph) else len(graph.edges),
        "{} nodes that are no heads or MLPs": sum(kind == "other" for kind, _ in others),
        "output dimensions of {} heads or embeddings (whole heads are taken)": parts,
        "scores of the output dimensions of {} nodes": sum(m.dim_scores is not None for _, m in others),
    }
    return [*graph.left_out, *counted(counts)]


def _by_nodes(graph: CircuitGraph) -> bool:
    """Whether the edges say no more than the nodes do: unscored, and in the circuit exactly where both ends are."""
    if not graph.edges or any(mark.score for mark in graph.edges.values()):
        return not graph.edges
    joined = graph.joined_embeddings()
    kept = {edge for edge, mark in joined.edges.items() if mark.in_graph}
    nodes = {name: NodeMark(in_graph=True) for name in joined.chosen}
    return kept == set(CircuitGraph(graph.shape, nodes).with_edges().edges)


def as_graph(item: Circuit | CircuitGraph, shape: Shape | Any = None) -> CircuitGraph:
    """What is to be written, as a graph; in another shape where one is given."""
    if isinstance(item, Circuit):
        return graph_of_circuit(item, shape)
    if not isinstance(item, CircuitGraph):
        raise TypeError(f"expected a Circuit or a CircuitGraph, got {type(item).__name__}.")
    return item if shape is None else item.with_shape(shape)


def graph_of_circuit(circuit: Circuit, shape: Shape | Any = None) -> CircuitGraph:
    """The nodes that a circuit's components are, or are parts of.

    Heads and MLPs are nodes, an attention layer is all its heads, single MLP output dimensions are dimensions of the
    MLP's node. A neuron stands for its MLP. Single token positions stay, other positions and residual states have no
    node. The score of a node is the component's marginal effect where that was measured. The shape is by default what
    the circuit's provenance tells; ``left_out`` of the graph lists what has no place in it.

    Raises:
        ValueError: the shape is unknown, or too small.
    """
    facts = dict(circuit.provenance.get("model") or {})
    known = shape if isinstance(shape, Shape) else Shape.of(shape) if shape is not None else _shape_of(circuit, facts)
    scores = dict(zip(circuit.labels, circuit.marginals, strict=False)) or _imported_scores(circuit)
    nodes = {"input": NodeMark(in_graph=True), "logits": NodeMark(in_graph=True)}
    for component, sites in zip(circuit.components, circuit.groups.sites, strict=True):
        score = scores.get(component.label) if len(sites) == 1 else None
        for site in sites:
            for name, mark in _marks(site, score, known):
                nodes[name] = _joined(nodes.get(name), mark)
    return CircuitGraph(known, nodes, left_out=tuple(_without_node(circuit, known)))


def _shape_of(circuit: Circuit, facts: Mapping[str, Any]) -> Shape:
    """From the provenance; without one, the smallest that has the components."""
    model = getattr(circuit.tracer, "model", None)
    if model is not None:
        return Shape.of(model)
    sites = [s for group in circuit.groups.sites for s in group]
    heads = [s.index + 1 for s in sites if s.kind == "head" and s.index is not None]
    n_layers = facts.get("n_layers") or max((s.layer + 1 for s in sites), default=0)
    if not n_layers:
        raise ValueError("an empty circuit of an unknown model has no shape: pass shape= or the model.")
    n_heads, exact = facts.get("n_heads") or max(heads, default=1), "n_layers" in facts and "n_heads" in facts
    parallel, only = bool(facts.get("parallel_attn_mlp", False)), facts.get("d_mlp") == 0
    return Shape(int(n_layers), int(n_heads), facts.get("d_model"), parallel, only, exact)


def _imported_scores(circuit: Circuit) -> dict[str, float]:
    imported = circuit.provenance.get("imported")
    scores = imported.get("scores") if isinstance(imported, Mapping) else None
    found = scores if isinstance(scores, Mapping) else {}
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float) and math.isfinite(v)}


def _marks(site: Component, score: float | None, shape: Shape) -> Iterator[tuple[str, NodeMark]]:
    at = site.position if isinstance(site.position, int) and site.position >= 0 else None
    if site.kind == "head" and site.index is not None:
        yield head_name(site.layer, site.index, at), NodeMark(score, True)
    elif site.kind == "attn":
        yield from ((head_name(site.layer, h, at), NodeMark(None, True)) for h in range(shape.n_heads))
    elif site.kind == "mlp":
        yield mlp_name(site.layer, at), NodeMark(score, True)
    elif site.kind == "neuron" or (site.kind == "mlp_dim" and shape.d_model is None):
        yield mlp_name(site.layer, at), NodeMark(None, True)
    elif site.kind == "mlp_dim":
        dims = tuple(i == site.index for i in range(shape.d_model or 0))
        scores = None if score is None else tuple(score if on else None for on in dims)
        yield mlp_name(site.layer, at), NodeMark(None, True, dims, scores)


def _joined(old: NodeMark | None, new: NodeMark) -> NodeMark:
    """Both marks of one node: dimensions add up, a whole node swallows them, the strongest score stays."""
    if old is None:
        return new
    dims = dim_scores = None
    if old.dims is not None and new.dims is not None:
        dims = tuple(a or b for a, b in zip(old.dims, new.dims, strict=True))
        empty = (None,) * len(dims)
        pairs = zip(old.dim_scores or empty, new.dim_scores or empty, strict=True)
        dim_scores = tuple(a if b is None else b for a, b in pairs) if old.dim_scores or new.dim_scores else None
    score = max((m.score for m in (old, new) if m.score is not None), key=abs, default=None)
    return NodeMark(score, True, dims, dim_scores)


def _without_node(circuit: Circuit, shape: Shape) -> Iterator[str]:
    """What of the circuit has no place in a graph, in words."""
    groups = list(zip(circuit.components, circuit.groups.sites, strict=True))
    sites = [site for _, group in groups for site in group]
    covered = {s.layer for s in sites if s.kind in ("mlp", "neuron")}

    def kind(name: str) -> list[Component]:
        return [s for s in sites if s.kind == name]

    lists = {
        "neurons (their MLP stands for them)": kind("neuron"),
        "MLP output dimensions beside a whole MLP or neurons": [s for s in kind("mlp_dim") if s.layer in covered],
        "MLP output dimensions (the width of the model is not known: pass shape=)": (
            kind("mlp_dim") if shape.d_model is None else []
        ),
        "attention layers as one (all their heads stand for them)": kind("attn"),
        "residual states": kind("resid"),
        "positions other than single ones": [
            s
            for s in sites
            if s.position is not None and not (isinstance(s.position, int) and s.position >= 0) and s.kind != "resid"
        ],
        "that only the attention pattern is patched": [s for s in sites if s.site == "pattern"],
        "which sites are switched together": [c for c, group in groups if len(group) > 1],
    }
    for what, parts in lists.items():
        if parts:
            more = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
            yield f"{what}: {', '.join(part.label for part in parts[:6])}{more}"
