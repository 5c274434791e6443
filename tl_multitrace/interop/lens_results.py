"""TransformerLens' own results (4.x): ``PatchingResult`` and the result of ``attribution_patch``.

Both patch from the clean run into the corrupted one. That is this package's mask with base = corrupted and source =
clean, so a cell of a patching sweep is the effect of one component's mask, and a node of an attribution is the
derivative at the empty mask. What has no such meaning is refused: sweeps of q, k or v alone, and single pattern
entries, are no components here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.groups import Component, HookGroups
from tl_multitrace.interop.circuit_graph import CircuitGraph, Mark, NodeMark
from tl_multitrace.interop.component_scores import ComponentScores
from tl_multitrace.interop.node_names import QKV, Edge, head_name, mlp_name, node_of, placed
from tl_multitrace.interop.shape import Shape

if TYPE_CHECKING:
    import pandas as pd

WHAT = {
    "head": ("head", "z"),
    "head:pattern": ("head", "pattern"),
    "mlp": ("mlp", "out"),
    "attn": ("attn", "out"),
    "resid:pre": ("resid", "pre"),
    "resid:mid": ("resid", "mid"),
}
"""What a sweep patched, and the component that is the same here."""

_STACKED = {"head": "out", "head:pattern": "pattern", "resid:pre": "resid_pre", "attn": "attn_out", "mlp": "mlp_out"}
_COLUMNS = {"layer": "layer", "head": "head", "head_index": "head", "pos": "pos", "dest_pos": "pos"}


def _lens(module: str, name: str) -> Any:
    """A module of TransformerLens 4, which has this name."""
    try:
        found = importlib.import_module(f"transformer_lens.{module}")
    except ImportError:
        found = None
    if not hasattr(found, name):
        raise ImportError(f"transformer_lens.{module}.{name} is not there: this needs TransformerLens 4.")
    return found


def from_patching_result(result: Any, model: Any, what: str, *, metric: str | None = None) -> ComponentScores:
    """A TransformerLens patching sweep as effects of single components.

    These are patched minus unpatched metric per prompt, ``[n, groups]``; one row where the sweep kept only means.

    Args:
        result: a ``PatchingResult`` with a baseline: ``get_act_patch_...(..., reduce="none", baseline=True)``.
        model: the model it ran on.
        what: which activation was swept, a key of ``WHAT``, since the result does not tell; of a stacked sweep
            (``get_act_patch_..._every``) that part is taken.
        metric: which, where there are several.

    Raises:
        ValueError: no baseline, several metrics and none named, or cells that are no such component.

    Examples:
        >>> result = mt.to_patching_result(mt.ComponentScores.of(tracer))
        >>> scores = mt.from_patching_result(result, model, "head")
        >>> scores.to_dataframe().nlargest(1, "mean")["component"].item()
        'L0H3'
    """
    if what not in WHAT:
        raise ValueError(f"unknown sweep {what!r}: use {', '.join(WHAT)}. Sweeps of q, k or v are no components here.")
    if len(result.metric_names) > 1 and metric is None:
        raise ValueError(f"name one metric with metric=: the result has {', '.join(result.metric_names)}.")
    one = result[metric or result.metric_names[0]]
    if one.baseline is None:
        raise ValueError("the result has no baseline, so its effects are not known: run the sweep with baseline=True.")
    cells = len(one.index_df)
    effects: Tensor = one.effect().detach().cpu().reshape(cells, -1)
    rows = _rows(one, what)
    components = [_component(one.index_df.iloc[i], what) for i in rows]
    return ComponentScores(HookGroups.of(model, components), effects[rows].T.contiguous(), "effect")


def to_patching_result(scores: ComponentScores, *, baseline: Float[Tensor, " n"] | None = None) -> Any:
    """Effects of single components of one kind as a TransformerLens ``PatchingResult``.

    Its ``effect()``, intervals and p-values are of these scores; its axes are those of the sweep where the components
    fill a grid (layer, then position, then head), else one flat axis. The baseline is the unpatched metric per prompt;
    by default 0, so that the result's values are the effects themselves.

    Raises:
        ValueError: estimates instead of effects, several kinds of components, or positions that are no numbers.
        ImportError: TransformerLens is older than 4.

    Examples:
        >>> result = mt.to_patching_result(mt.ComponentScores.of(tracer))
        >>> tuple(result.effect().shape)
        (4, 8, 16)
    """
    import pandas as pd

    patching = _lens("patching", "PatchingResult")
    if scores.kind != "effect":
        raise ValueError(
            "a PatchingResult holds effects, and these are estimates (attribution): see attribution_patch."
        )
    cells = _cells(scores.groups)
    names, frame = list(cells), pd.DataFrame(cells)
    sizes = [int(frame[name].max()) + 1 for name in names]
    grid = len(frame) == torch.Size(sizes).numel() and frame.equals(frame.sort_values(names, ignore_index=True))
    n = len(scores.values)
    base = torch.zeros(n, dtype=scores.values.dtype) if baseline is None else torch.as_tensor(baseline)
    if base.shape != (n,):
        raise ValueError(f"baseline must be [{n}], one number per prompt, got {list(base.shape)}.")
    values = scores.values.T + base
    return patching.PatchingResult(
        values=values.reshape(*sizes, n) if grid else values,
        axis_names=names if grid else [],
        index_df=frame,
        metric_names=["metric"],
        reduced=False,
        baseline=base,
    )


def _rows(result: Any, what: str) -> list[int]:
    """The rows of the sweep that are of this activation."""
    columns = [name for name in result.index_df.columns if name != "patch_type"]
    wanted = {"layer", "head"} if WHAT[what][0] == "head" else {"layer", "pos"}
    found = {_COLUMNS.get(name, name) for name in columns}
    if found not in (wanted, wanted | {"pos"}):
        raise ValueError(f"a sweep of {what} has the axes {sorted(wanted)}, this one has {columns}.")
    if "patch_type" not in result.index_df:
        return list(range(len(result.index_df)))
    types = list(result.patch_type_names or [])
    if _STACKED.get(what) not in types:
        raise ValueError(f"the stacked sweep has no {what}: it has {', '.join(types)}.")
    number = types.index(_STACKED[what])
    return [i for i, kind in enumerate(result.index_df["patch_type"]) if kind == number]


def _component(row: pd.Series[Any], what: str) -> Component:
    cell = {_COLUMNS.get(str(name), str(name)): int(value) for name, value in row.items()}
    kind, site = WHAT[what]
    return Component(kind, cell["layer"], cell.get("head"), cell.get("pos"), site)


def _cells(groups: HookGroups) -> dict[str, list[Any]]:
    """The numbers of the components on each axis."""
    kinds = {(c.kind, c.site) for c in groups.components}
    everywhere = {c.position is None for c in groups.components}
    if len(kinds) != 1 or next(iter(kinds)) not in WHAT.values() or len(everywhere) != 1:
        raise ValueError(f"a sweep is of one of {', '.join(WHAT)}, all at positions or all without, got {groups!r}.")
    for c, sites in zip(groups.components, groups.sites, strict=True):
        if sites != (c,) or not (c.position is None or (isinstance(c.position, int) and c.position >= 0)):
            raise ValueError(f"{c.label} is no cell of a sweep: cells are single components at single positions.")
    columns: dict[str, list[Any]] = {"layer": [c.layer for c in groups.components]}
    if not everywhere.pop():
        columns["pos"] = [c.position for c in groups.components]
    if groups.components[0].kind == "head":
        columns["head"] = [c.index for c in groups.components]
    return columns


def from_attribution_result(result: Any, model: Any = None) -> CircuitGraph:
    """The result of TransformerLens' ``attribution_patch`` as a graph of scored nodes and edges, per position.

    Node scores equal the mean derivative at the empty mask (``ComponentScores.of(tracer, "attribution")``) with the
    corrupted prompts as base. Nothing is chosen yet: ``graph.keep(edges=200)`` chooses. Without the model it
    ran on, the shape is the smallest that has the nodes.

    Examples:
        >>> from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch
        >>> he, she = (model.to_single_token(word) for word in (" he", " she"))
        >>> result = attribution_patch(
        ...     model,
        ...     task.pairs.source_tokens[:1],
        ...     task.pairs.base_tokens[:1],
        ...     lambda logits: logits[0, -1, he] - logits[0, -1, she],
        ...     EdgeAttributionConfig(granularity="node"),
        ... )
        >>> graph = mt.from_attribution_result(result, model)
        >>> graph.keep(nodes=1).chosen
        ('input@0', 'input@1', 'input@2', 'input@3', 'input@4', 'input@5', 'm0@4')
    """
    nodes = {_ours(node)[0]: NodeMark(float(score)) for node, score in result.node_scores.items()}
    pairs = {(_ours(a), _ours(b, reads=True)): float(x) for (a, b), x in (result.edge_scores or {}).items()}
    edges = {Edge(source, *target): Mark(score) for ((source, _), target), score in pairs.items()}
    names = [*nodes, *(name for e in edges for name in (e.source, e.target))]
    return CircuitGraph(Shape.given(model, names), nodes, edges, format="transformer-lens")


def to_attribution_result(graph: CircuitGraph) -> Any:
    """A graph of scored nodes and edges at positions as TransformerLens' ``AttributionResult``.

    Raises:
        ValueError: a node without a position, or one that TransformerLens has no name for.
        ImportError: TransformerLens is older than 4.

    Examples:
        >>> from tl_multitrace.interop import NodeMark, Shape
        >>> graph = mt.CircuitGraph(Shape(1, 1), {"a0.h0@2": NodeMark(score=0.4)})
        >>> list(mt.to_attribution_result(graph).node_scores.values())
        [0.4]
    """
    lens = _lens("tools.analysis.attribution_patching", "AttributionResult")
    last = graph.shape.n_layers - 1
    scored = {edge: mark.score for edge, mark in graph.edges.items() if mark.score is not None}
    return lens.AttributionResult(
        node_scores={_theirs(lens, n): m.score for n, m in graph.nodes.items() if m.score is not None},
        edge_scores={(_theirs(lens, e.source), _theirs(lens, e.target, e, last)): x for e, x in scored.items()},
    )


def scores_of_graph(graph: CircuitGraph, model: Any) -> ComponentScores:
    """The node scores of an attribution as scores of components, one row; heads at ``z`` and whole MLPs.

    Raises:
        ValueError: no head or MLP has a score.

    Examples:
        >>> from tl_multitrace.interop import scores_of_graph
        >>> graph = mt.CircuitGraph.from_circuit(circuit)
        >>> scores = scores_of_graph(graph, model)
        >>> scores.groups.labels, scores.values.round().tolist()
        (['L0H1', 'L0H3'], [[76.0, 415.0]])
    """
    marks = [(node_of(name), mark.score) for name, mark in graph.nodes.items() if mark.score is not None]
    scored = {Component(n.kind, n.layer, n.head, n.position): score for n, score in marks if n.layer is not None}
    if not scored:
        raise ValueError("no head or MLP of the graph has a score.")
    components, values = list(scored), torch.tensor([list(scored.values())], dtype=torch.float64)
    return ComponentScores(HookGroups.of(model, components), values, "attribution")


_WRITERS = {"embed": "input", "attn_head_out": "head", "mlp_out": "mlp"}
_READERS = {"logits": "logits", "mlp_in": "mlp", **{f"{x}_input": "head" for x in QKV}}


def _ours(node: Any, *, reads: bool = False) -> tuple[str, str]:
    """The name of a node, and where it reads at a head q, k or v."""
    kind = (_READERS if reads else _WRITERS).get(node.kind)
    if kind is None:
        what = "does not read from" if reads else "is no writer to"
        raise ValueError(f"{node.kind} {what} the residual stream.")
    if kind in ("input", "logits"):
        return placed(kind, node.position), ""
    name = head_name(node.layer, node.head) if kind == "head" else mlp_name(node.layer)
    return placed(name, node.position), node.kind[0] if reads and kind == "head" else ""


def _theirs(lens: Any, name: str, edge: Edge | None = None, last: int | None = None) -> Any:
    """The writer of a name, or where an edge is given what reads at its end; logits stand in the last layer."""
    node = node_of(name)
    if node.position is None:
        raise ValueError(f"{name!r} has no position, and every node of TransformerLens' attribution has one.")
    input = "" if edge is None else edge.input
    kinds = _WRITERS if edge is None else {k: v for k, v in _READERS.items() if v != "head" or k[0] == input}
    kind = next((theirs for theirs, ours in kinds.items() if ours == node.kind), None)
    if kind is None:
        raise ValueError(f"TransformerLens has no {'writer' if edge is None else 'reader'} for {name!r}.")
    return lens.Node(kind=kind, position=node.position, layer=last if kind == "logits" else node.layer, head=node.head)
