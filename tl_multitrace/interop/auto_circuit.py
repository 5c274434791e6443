"""Scores of auto-circuit: ``PruneScores``, a tensor of edge scores per destination, in a ``.pt`` or ``.pkl`` file.

Source: ``PruneScores`` and the factorized graph of auto-circuit (github.com/UFO-101/auto-circuit, 98db58c; Miller et
al. 2024, arXiv:2407.08734), saved by ``torch.save({task: {algorithm: scores}})``. A score tensor is
``[heads, sources]`` at the q, k and v inputs of a layer and ``[sources]`` at MLPs and at the end; with token positions,
``[pos, ...]``. Sources are the residual start, then per layer the heads and the MLP, as far as they come before the
destination.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_multitrace.interop.circuit_graph import CircuitGraph, Mark, counted
from tl_multitrace.interop.driver import Form, Format, Item
from tl_multitrace.interop.fields import mapping, numbers, scores_tensor, tensor
from tl_multitrace.interop.node_names import QKV, Edge, hook, mlp_name, node_of, placed, what_is
from tl_multitrace.interop.shape import MAX_PAIRS, Shape

Targets = list[tuple[str, str]]
"""``(target, q k v or nothing)`` of the edges that end in one module: every head of a layer, or one other node."""


def from_auto_circuit(path: str | Path, *, task: str | None = None, algorithm: str | None = None) -> CircuitGraph:
    """Read auto-circuit prune scores: ``{task: {algorithm: scores}}``, or the scores of one; nothing in it is run.

    Returns a score on every edge, at every position where the scores have positions. Nothing is chosen yet:
    ``graph.keep(edges=200)`` chooses. Raises FileNotFoundError, and ValueError where it is no such file, or holds
    several tasks or algorithms and none is named.

    Examples:
        >>> file = mt.to_auto_circuit(circuit, "scores.json")
        >>> graph = mt.from_auto_circuit(file).keep(edges=9)
        >>> graph.to_circuit(model).labels
        ['L0H1', 'L0H3']
    """
    return FORMAT.read(path, task=task, algorithm=algorithm)


def to_auto_circuit(item: Item, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False) -> Path:
    """Write prune scores.

    Where no edge has a score, edges in the circuit get 1 and others 0. A circuit of components has no edges: an edge is
    in it when both its ends are. What the format cannot hold is a :class:`LeftOut` warning. Raises FileExistsError
    unless ``overwrite``, and ValueError where there are neither scores nor anything in the circuit.

    Examples:
        >>> file = mt.to_auto_circuit(circuit, "scores.json")
        >>> round(mt.from_auto_circuit(file).to_dataframe()["score"].sum())
        9
    """
    return FORMAT.write(item, path, shape=shape, overwrite=overwrite)


def _parse(content: Any, task: str | None = None, algorithm: str | None = None) -> CircuitGraph:
    found, extra = mapping(content, "the file"), dict[str, Any]()
    if not any(isinstance(value, Tensor) for value in found.values()):
        for what, name in {"task": task, "algorithm": algorithm}.items():
            extra[what], inside = _one(found, name, what)
            found = mapping(inside, extra[what])
    shape, length = _shape(found)
    expected = _destinations(shape)
    strange, missing = found.keys() - expected.keys(), expected.keys() - found.keys()
    if strange or missing:
        name = sorted(strange or missing)[0]
        raise ValueError(f"destination {name[:60]!r} is {'unknown' if strange else 'missing'}.")
    if max(length or 1, 1) * shape.n_sources * shape.n_inputs > MAX_PAIRS:
        raise ValueError(f"{length} positions of {shape} give too many edges to hold.")
    edges: dict[Edge, Mark] = {}
    sources = shape.sources()
    for name, targets in expected.items():
        values = numbers(tensor(found[name], name, _size(shape, targets, length)))
        for position, at in [(None, values)] if length is None else list(enumerate(values)):
            rows = at if node_of(targets[0][0]).kind == "head" else [at]
            for (target, x), row in zip(targets, rows, strict=True):
                for source, score in zip(sources, row, strict=False):  # the first ones, as many as precede the target
                    edges[Edge(placed(source, position), placed(target, position), x)] = Mark(score)
    return CircuitGraph(shape, edges=edges, format=FORMAT.name, extra={**extra, "positions": length})


def _one(content: dict[str, Any], name: str | None, what: str) -> tuple[str, Any]:
    if name is None and len(content) == 1:
        return next(iter(content.items()))
    if name not in content:
        listed = ", ".join(sorted(content)[:12])[:300] or "none"
        raise ValueError(f"name one {what} with {what}=: the file has {listed}.")
    return str(name), content[str(name)]


def _shape(content: Mapping[str, Any]) -> tuple[Shape, int | None]:
    """The model's shape and the number of positions, from the names and the sizes."""
    last = [layer for what, layer in map(what_is, content) if what == "logits"]
    first, end = content.get(hook("q_input", 0)), None if not last else content[hook("logits", last[0])]
    if len(last) != 1 or not isinstance(first, Tensor) or not isinstance(end, Tensor):
        raise ValueError("these are no prune scores over separate q, k and v inputs of the factorized graph.")
    if end.ndim not in (1, 2) or first.ndim != end.ndim + 1:
        raise ValueError(f"scores have {first.ndim} axes at heads and {end.ndim} at the end; they are one apart.")
    mlp = content.get(hook("mlp_input", 0))
    parallel = isinstance(mlp, Tensor) and mlp.ndim > 0 and mlp.shape[-1] == 1
    shape = Shape(int(last[0] or 0) + 1, int(first.shape[-2]), None, parallel, mlp is None)
    return shape, int(end.shape[0]) if end.ndim == 2 else None


def _destinations(shape: Shape) -> dict[str, Targets]:
    """The destination modules, and where the edges into each end."""
    found: dict[str, Targets] = {}
    for layer in range(shape.n_layers):
        found |= {hook(f"{x}_input", layer): [(head, x) for head in shape.heads(layer)] for x in QKV}
        found |= {} if shape.attn_only else {hook("mlp_input", layer): [(mlp_name(layer), "")]}
    return {**found, hook("logits", shape.n_layers - 1): [("logits", "")]}


def _size(shape: Shape, targets: Targets, length: int | None) -> tuple[int, ...]:
    """``[(positions,) (heads,) sources]`` of the scores of one destination."""
    heads = [len(targets)] if node_of(targets[0][0]).kind == "head" else []
    return (*([] if length is None else [length]), *heads, shape.before(targets[0][0]))


def _prepared(graph: CircuitGraph) -> CircuitGraph:
    """With one node for the input, and without positions unless every edge stays at one."""
    joined = graph.joined_embeddings()
    placed_graph = joined if _length(joined) else joined.flat().with_inputs()
    return placed_graph if _scored(placed_graph) else placed_graph.with_edges()


def _scored(graph: CircuitGraph) -> bool:
    return any(mark.score is not None for mark in graph.edges.values())


def _length(graph: CircuitGraph) -> int | None:
    """Number of positions where every edge stays at one, else None."""
    if graph.format == FORMAT.name:
        length: int | None = graph.extra.get("positions")
        return length
    ends = {(node_of(e.source).position, node_of(e.target).position) for e in graph.edges}
    vague = any(not e.input and node_of(e.target).kind == "head" for e in graph.edges)
    if not ends or vague or any(a is None or a != b for a, b in ends):
        return None
    return max(int(a or 0) for a, _ in ends) + 1


def _content(graph: CircuitGraph) -> tuple[Any, list[str]]:
    own = graph.format == FORMAT.name
    length, scored, shape = _length(graph), _scored(graph), graph.shape
    scores = {e: m.score if scored else float(bool(m.in_graph)) for e, m in graph.edges.items()}
    # NaN is what such a file had where a score came as None; another format's missing score is auto-circuit's default
    missing = math.nan if own else 0.0
    sources = shape.sources()
    tensors = {}
    for name, targets in _destinations(shape).items():
        rows = [
            [scores.get(Edge(placed(s, at), placed(t, at), x), 0.0) for s in sources[: shape.before(t)]]
            for at in ([None] if length is None else range(length))
            for t, x in targets
        ]
        tensors[name] = scores_tensor(rows, missing=missing).reshape(_size(shape, targets, length))
    extra = graph.extra if own else {"task": "circuit", "algorithm": "tl_multitrace"}
    content = {extra["task"]: {extra["algorithm"]: tensors}} if "task" in extra else tensors
    flagged = sum(bool(m.in_graph) for m in graph.edges.values()) if scored else 0
    return content, counted({"which {} edges are in the circuit": flagged})


FORMAT = Format("auto-circuit", {"tensors": Form(_parse, _content)}, prepare=(_prepared,), holds=("edge scores",))
