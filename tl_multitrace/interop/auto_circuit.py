"""Scores of auto-circuit: ``PruneScores``, a tensor of edge scores per destination, in a ``.pt`` or ``.pkl`` file.

Source: ``PruneScores`` and the factorized graph of auto-circuit (github.com/UFO-101/auto-circuit, 98db58c; Miller et
al. 2024, arXiv:2407.08734), saved by ``torch.save({task: {algorithm: scores}})``. A score tensor is
``[heads, sources]`` at the q, k and v inputs of a layer and ``[sources]`` at MLPs and at the end; with token positions,
``[pos, ...]``. Sources are the residual start, then per layer the heads and the MLP, as far as they come before the
destination.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop.circuits import as_graph
from tl_multitrace.interop.eap_ig_pt import compact
from tl_multitrace.interop.graph import CircuitGraph, Mark, say_left_out, unheld
from tl_multitrace.interop.hooks import hook, what_is
from tl_multitrace.interop.names import MAX_PAIRS, QKV, Edge, Shape, head_name, mlp_name, node_of, placed
from tl_multitrace.interop.reading import load_tensors, mapping, numbers, save_tensors, tensor
from tl_multitrace.records.read import naming

FORMAT = "auto-circuit"
TASK, ALGORITHM = "circuit", "tl_multitrace"


def from_auto_circuit(path: str | Path, *, task: str | None = None, algorithm: str | None = None) -> CircuitGraph:
    """Read auto-circuit prune scores.

    Args:
        path: of the file: ``{task: {algorithm: scores}}``, or the scores of one.
        task: which, where there are several.
        algorithm: which, where there are several.

    Returns:
        A score on every edge, at every position where the scores have positions. Nothing is chosen yet:
        ``graph.keep(edges=200)`` chooses.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or several tasks or algorithms and none named. Nothing in it is run.

    Examples:
        >>> file = mt.to_auto_circuit(circuit, "scores.json")
        >>> graph = mt.from_auto_circuit(file).keep(edges=9)
        >>> graph.to_circuit(model).labels
        ['L0H1', 'L0H3']
    """
    content = mapping(load_tensors(path), str(path))
    extra: dict[str, Any] = {}
    with naming(path):
        if not any(isinstance(value, Tensor) for value in content.values()):
            extra["task"], found = _one(content, task, "task")
            extra["algorithm"], found = _one(mapping(found, extra["task"]), algorithm, "algorithm")
            content = mapping(found, extra["algorithm"])
        return _graph(content, extra)


def to_auto_circuit(
    item: Circuit | CircuitGraph, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False
) -> Path:
    """Write prune scores.

    Where no edge has a score, edges in the circuit get 1 and others 0. A circuit of components has no edges: an edge is
    in it when both its ends are.

    Args:
        item: a circuit, or a graph of any format.
        path: of the file.
        shape: the model or a :class:`Shape`, where the item does not tell it.
        overwrite: replace the file.

    Raises:
        FileExistsError: the file exists.
        ValueError: neither scores nor anything in the circuit.

    Warns:
        LeftOut: what the format cannot hold.

    Examples:
        >>> file = mt.to_auto_circuit(circuit, "scores.json")
        >>> round(mt.from_auto_circuit(file).to_dataframe()["score"].sum())
        9
    """
    graph = as_graph(item, shape).joined_embeddings()
    length = _length(graph)
    graph = graph if length else graph.flat().with_inputs()
    scored = any(mark.score is not None for mark in graph.edges.values())
    graph = graph if scored else graph.with_edges()
    scores = {e: m.score if scored else float(bool(m.in_graph)) for e, m in graph.edges.items()}
    extra = graph.extra if graph.format == FORMAT else {"task": TASK, "algorithm": ALGORITHM}
    # NaN is what such a file had where a score came as None; another format's missing score is auto-circuit's default
    content: Any = _tensors(graph.shape, length, scores, math.nan if graph.format == FORMAT else 0.0)
    if "task" in extra:
        content = {extra["task"]: {extra["algorithm"]: content}}
    written = save_tensors(path, content, overwrite=overwrite)
    flagged = sum(bool(m.in_graph) for m in graph.edges.values()) if scored else 0
    notes = [f"which {flagged} edges are in the circuit"] if flagged else []
    say_left_out([*graph.left_out, *unheld(graph, "edge scores"), *notes], FORMAT)
    return written


# ---------------------------------------------------------------------- reading


def _one(content: dict[str, Any], name: str | None, what: str) -> tuple[str, Any]:
    if name is None and len(content) == 1:
        return next(iter(content.items()))
    if name not in content:
        listed = ", ".join(sorted(content)[:12])[:300] or "none"
        raise ValueError(f"name one {what} with {what}=: the file has {listed}.")
    return str(name), content[str(name)]


def _graph(content: dict[str, Any], extra: dict[str, Any]) -> CircuitGraph:
    shape, length = _shape(content)
    expected = dict(_destinations(shape))
    strange, missing = content.keys() - expected.keys(), expected.keys() - content.keys()
    if strange or missing:
        name = sorted(strange or missing)[0]
        raise ValueError(f"destination {name[:60]!r} is {'unknown' if strange else 'missing'}.")
    if max(length or 1, 1) * shape.n_sources * shape.n_inputs > MAX_PAIRS:
        raise ValueError(f"{length} positions of {shape} give too many edges to hold.")
    edges: dict[Edge, Mark] = {}
    for name, targets in expected.items():
        size = (*([] if length is None else [length]), *_size(shape, targets))
        values = numbers(tensor(content[name], name, size))
        for position, at in [(None, values)] if length is None else list(enumerate(values)):
            edges |= dict(_placed(shape, targets, at, position))
    return CircuitGraph(shape, edges=edges, format=FORMAT, extra={**extra, "positions": length})


def _shape(content: Mapping[str, Any]) -> tuple[Shape, int | None]:
    """The model's shape and the number of positions, from the names and the sizes."""
    kinds = {name: what_is(name) for name in content}
    last = [layer for what, layer in kinds.values() if what == "logits"]
    first, end = content.get(hook("q_input", 0)), None if not last else content[hook("logits", last[0])]
    if len(last) != 1 or not isinstance(first, Tensor) or not isinstance(end, Tensor):
        raise ValueError("these are no prune scores over separate q, k and v inputs of the factorized graph.")
    if end.ndim not in (1, 2) or first.ndim != end.ndim + 1:
        raise ValueError(f"scores have {first.ndim} axes at heads and {end.ndim} at the end; they are one apart.")
    mlp = content.get(hook("mlp_input", 0))
    parallel = isinstance(mlp, Tensor) and mlp.ndim > 0 and mlp.shape[-1] == 1
    shape = Shape(int(last[0] or 0) + 1, int(first.shape[-2]), None, parallel, mlp is None)
    return shape, int(end.shape[0]) if end.ndim == 2 else None


def _destinations(shape: Shape) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Per destination module: the ends of its edges, ``(target, q k v or nothing)``, one per head at heads."""
    for layer in range(shape.n_layers):
        for x in QKV:
            yield hook(f"{x}_input", layer), [(head_name(layer, h), x) for h in range(shape.n_heads)]
        if not shape.attn_only:
            yield hook("mlp_input", layer), [(mlp_name(layer), "")]
    yield hook("logits", shape.n_layers - 1), [("logits", "")]


def _size(shape: Shape, targets: list[tuple[str, str]]) -> tuple[int, ...]:
    sources = shape.before(targets[0][0])
    return (len(targets), sources) if node_of(targets[0][0]).kind == "head" else (sources,)


def _placed(
    shape: Shape, targets: list[tuple[str, str]], values: list[Any], position: int | None
) -> Iterator[tuple[Edge, Mark]]:
    sources = shape.sources()
    rows = values if node_of(targets[0][0]).kind == "head" else [values]
    for (target, letter), row in zip(targets, rows, strict=True):
        for source, score in zip(sources, row, strict=False):  # the first ones, as many as come before the target
            yield Edge(placed(source, position), placed(target, position), letter), Mark(score)


# ---------------------------------------------------------------------- writing


def _length(graph: CircuitGraph) -> int | None:
    """Number of positions where every edge stays at one, else None."""
    if graph.format == FORMAT:
        length: int | None = graph.extra.get("positions")
        return length
    ends = {(node_of(e.source).position, node_of(e.target).position) for e in graph.edges}
    if (
        not ends
        or any(a is None or a != b for a, b in ends)
        or any(not e.input and node_of(e.target).kind == "head" for e in graph.edges)
    ):
        return None
    return max(int(a or 0) for a, _ in ends) + 1


def _tensors(
    shape: Shape, length: int | None, scores: Mapping[Edge, float | None], missing: float
) -> dict[str, Tensor]:
    found = {}
    sources = shape.sources()
    for name, targets in _destinations(shape):
        rows = [
            [
                [
                    _number(scores.get(Edge(placed(s, at), placed(t, at), x), 0.0), missing)
                    for s in sources[: shape.before(t)]
                ]
                for t, x in targets
            ]
            for at in ([None] if length is None else range(length))
        ]
        size = (*([] if length is None else [length]), *_size(shape, targets))
        found[name] = compact(torch.tensor(rows, dtype=torch.float64).reshape(size))
    return found


def _number(score: float | None, missing: float) -> float:
    return missing if score is None else score
