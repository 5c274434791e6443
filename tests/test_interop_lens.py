"""TransformerLens' own results, computed by it and by us: the same numbers, there and back."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import oracles
import pytest
import torch
from oracles import Plain, generator, pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import N_HEADS, N_LAYERS, TL_MAJOR, build
from tl_multitrace.interop import Edge, Shape, scores_of_graph

pytestmark = pytest.mark.lens


def has(module: str, name: str) -> bool:
    """Whether the installed TransformerLens has this."""
    try:
        return hasattr(importlib.import_module(f"transformer_lens.{module}"), name)
    except ImportError:
        return False


HAS_SWEEPS = has("patching", "PatchingResult")  # from 4.0
HAS_ATTRIBUTION = has("tools.analysis.attribution_patching", "AttributionResult")  # from 3.9
needs_sweeps = pytest.mark.skipif(not HAS_SWEEPS, reason="this TransformerLens has no PatchingResult")
needs_attribution = pytest.mark.skipif(not HAS_ATTRIBUTION, reason="this TransformerLens has no attribution_patch")
EXAMPLES = random_examples(3, seed=2, longest=5, equal=True)
BASE, SOURCE = (torch.tensor([getattr(e, side) for e in EXAMPLES]) for side in ("base", "source"))
SINGLE = 1e-4  # TransformerLens keeps its sweeps in float32, whatever the model's type
ANSWERS = [(e.answers[0][0], e.wrong[0][0]) for e in EXAMPLES]
model_of = cache(lambda: build("bridge-gpt2" if TL_MAJOR >= 3 else "hooked-gpt2", torch.float64))


def difference(logits: torch.Tensor) -> torch.Tensor:
    """Logit difference per prompt."""
    right, wrong = (torch.tensor(column) for column in zip(*ANSWERS, strict=True))
    rows = torch.arange(len(logits))
    return logits[rows, -1, right] - logits[rows, -1, wrong]


def tracer(groups: mt.HookGroups) -> mt.Tracer:
    return mt.Tracer(model_of(), pairs_of(EXAMPLES), groups)


def sweep(name: str, metric: Any = difference, **options: Any) -> Any:
    from transformer_lens import patching

    _, clean = model_of().run_with_cache(SOURCE)
    return getattr(patching, f"get_act_patch_{name}")(model_of(), BASE, clean, metric, **options)


POSITIONS = list(range(5))
SWEEPS = {
    "attn_head_out_all_pos": ("head", lambda m: mt.heads(m)),
    "attn_head_out_by_pos": ("head", lambda m: mt.heads(m, positions=POSITIONS)),
    "attn_head_pattern_all_pos": ("head:pattern", lambda m: mt.heads(m, site="pattern")),
    "mlp_out": ("mlp", lambda m: mt.mlps(m, positions=POSITIONS)),
    "attn_out": ("attn", lambda m: mt.attn_layers(m, positions=POSITIONS)),
    "resid_pre": ("resid:pre", lambda m: mt.residual(m, positions=POSITIONS)),
    "resid_mid": ("resid:mid", lambda m: mt.residual(m, site="mid", positions=POSITIONS)),
}


# --------------------------------------------------------------------------------------------- activation patching
@needs_sweeps
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_the_effect_of_single_components(name: str) -> None:
    what, groups = SWEEPS[name]
    scores = mt.from_patching_result(sweep(name, reduce="none", baseline=True), model_of(), what)
    ours = mt.ComponentScores.of(tracer(groups(model_of())))
    assert set(scores.groups.components) == set(ours.groups.components)
    assert {c.site for c in scores.groups} == {c.site for c in ours.groups}
    order = [ours.groups.index(c) for c in scores.groups]
    assert torch.allclose(scores.values.double(), ours.values[:, order], atol=SINGLE)
    assert float(scores.values.abs().max()) > 0.1
    again = mt.to_patching_result(scores)
    theirs = sweep(name, reduce="none", baseline=True)
    axes = [{"head_index": "head"}.get(axis, axis) for axis in theirs.axis_names]
    assert again.axis_names == axes and torch.equal(again.effect(), theirs.effect())
    back = mt.from_patching_result(again, model_of(), what)
    assert back.groups.components == scores.groups.components and torch.equal(back.values, scores.values)


@needs_sweeps
def test_parts_of_stacked_sweeps_metrics_and_means() -> None:
    metrics = {"difference": difference, "double": lambda logits: 2 * difference(logits)}
    stacked = sweep("block_every", metrics, reduce="none", baseline=True)
    with pytest.raises(ValueError, match=r"name one metric with metric=: the result has difference, double"):
        mt.from_patching_result(stacked, model_of(), "mlp")
    twice = mt.from_patching_result(stacked, model_of(), "mlp", metric="double")
    ours = mt.ComponentScores.of(tracer(mt.mlps(model_of(), positions=POSITIONS)))
    assert torch.allclose(twice.values.double(), 2 * ours.values, atol=SINGLE)
    with pytest.raises(ValueError, match=r"the stacked sweep has no resid:mid: it has resid_pre, attn_out, mlp_out"):
        mt.from_patching_result(stacked, model_of(), "resid:mid", metric="double")
    mean = mt.from_patching_result(sweep("mlp_out", reduce="mean", baseline=True), model_of(), "mlp")
    assert torch.allclose(mean.values.double(), ours.mean[None], atol=SINGLE)


@needs_sweeps
def test_what_is_no_sweep_of_components() -> None:
    plain = sweep("attn_head_q_all_pos", reduce="none")
    with pytest.raises(ValueError, match=r"unknown sweep 'q'.*Sweeps of q, k or v are no components here"):
        mt.from_patching_result(plain, model_of(), "q")
    with pytest.raises(ValueError, match=r"no baseline.*run the sweep with baseline=True"):
        mt.from_patching_result(plain, model_of(), "head")
    with pytest.raises(
        ValueError, match=r"a sweep of mlp has the axes \['layer', 'pos'\], this one has \['layer', 'head'\]"
    ):
        mt.from_patching_result(sweep("attn_head_out_all_pos", reduce="none", baseline=True), model_of(), "mlp")
    with pytest.raises(ValueError, match=r"a sweep of head:pattern has the axes"):
        entries = sweep("attn_head_pattern_dest_src_pos", reduce="none", baseline=True)
        mt.from_patching_result(entries, model_of(), "head:pattern")


@needs_sweeps
def test_scores_that_fill_no_grid_are_flat() -> None:
    scores = mt.ComponentScores.of(tracer(mt.heads(model_of())[[0, 5, 7]]))
    result = mt.to_patching_result(scores, baseline=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert result.axis_names == [] and result.index_df.to_dict("list") == {"layer": [0, 1, 1], "head": [0, 1, 3]}
    assert torch.allclose(result.values, scores.values.T + torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(mt.from_patching_result(result, model_of(), "head").values, scores.values)
    both = mt.ComponentScores.of(tracer(mt.heads(model_of()) + mt.mlps(model_of())))
    last = mt.ComponentScores.of(tracer(mt.mlps(model_of(), positions="last")))
    for wrong, message in (
        (both, "a sweep is of one of head, head:pattern"),
        (last, "L0MLP@last is no cell of a sweep"),
        (mt.ComponentScores(both.groups, both.values, "attribution"), "these are estimates"),
    ):
        with pytest.raises(ValueError, match=message):
            mt.to_patching_result(wrong)
    with pytest.raises(ValueError, match=r"baseline must be \[3\]"):
        mt.to_patching_result(scores, baseline=torch.zeros(2))


# -------------------------------------------------------------------------------------------- attribution patching
def attribution(granularity: str) -> Any:
    """TransformerLens takes one prompt at a time; all of them are asked the same answers here."""
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

    if granularity == "edge" and TL_MAJOR < 4:
        pytest.skip("this TransformerLens attributes to nodes only")
    right, wrong = ANSWERS[0]
    config = EdgeAttributionConfig(granularity=granularity)  # type: ignore[arg-type]
    return attribution_patch(model_of(), SOURCE, BASE, lambda z: z[0, -1, right] - z[0, -1, wrong], config)


def same_answers() -> mt.PromptPairs:
    right, wrong = ANSWERS[0]
    return mt.PromptPairs.from_tokens(BASE, SOURCE, [right] * 3, [wrong] * 3)


@needs_attribution
def test_attribution_is_the_derivative_at_the_empty_mask() -> None:
    graph = mt.from_attribution_result(attribution("node"), model_of())
    scores = scores_of_graph(graph, model_of())
    groups = mt.heads(model_of(), positions=POSITIONS) + mt.mlps(model_of(), positions=POSITIONS)
    ours = mt.ComponentScores.of(mt.Tracer(model_of(), same_answers(), groups), "attribution")
    assert set(scores.groups.components) == set(groups.components)
    order = [groups.index(c) for c in scores.groups]
    assert torch.allclose(scores.values[0], ours.mean[order].double(), atol=1e-7)
    assert float(scores.values.abs().max()) > 0.1
    assert {f"input@{p}" for p in POSITIONS} <= set(graph.nodes)


@needs_attribution
@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_attribution_results_come_back(granularity: str) -> None:
    result = attribution(granularity)
    graph = mt.from_attribution_result(result, model_of())
    again = mt.to_attribution_result(graph)
    assert again.node_scores == result.node_scores and again.edge_scores == result.edge_scores
    assert len(graph.edges) == (0 if granularity == "node" else 5 * sum(1 for _ in Shape.of(model_of()).edges()))
    with pytest.raises(ValueError, match="'m0' has no position"):
        mt.to_attribution_result(mt.CircuitGraph(Shape(1, 1), {"m0": mt.interop.NodeMark(1.0)}))


@needs_attribution
def test_attributed_edges_are_prune_scores(tmp_path: Any) -> None:
    graph = mt.from_attribution_result(attribution("edge"), model_of())
    with pytest.warns(mt.LeftOut, match="auto-circuit cannot hold: the scores of"):
        mt.to_auto_circuit(graph, tmp_path / "a.pt")
    again = mt.from_auto_circuit(tmp_path / "a.pt")
    assert again.edges == graph.edges
    chosen = again.keep(edges=20)
    assert sum(bool(mark.in_graph) for mark in chosen.edges.values()) == 20


# ------------------------------------------------------------------------------------------------- on every version
def test_scores_of_components_are_effects_and_derivatives() -> None:
    groups = mt.heads(model_of())
    scores = mt.ComponentScores.of(tracer(groups))
    loop = Plain(model_of(), EXAMPLES, groups.sites)
    for i in (0, 5, N_LAYERS * N_HEADS - 1):
        one = torch.zeros(len(groups))
        one[i] = 1.0
        assert torch.allclose(scores.values[:, i], loop.effect(one, oracles.logit_diff), atol=1e-8)
    assert scores.score("L1H1").mean == pytest.approx(float(scores.mean[5]))
    assert scores.to_dataframe().loc[5, ["component", "mean"]].tolist() == ["L1H1", float(scores.mean[5])]
    gradient = mt.ComponentScores.of(tracer(groups), "attribution")
    small = torch.full((len(groups),), 1e-4)
    assert torch.allclose(tracer(groups).effect(small) / 1e-4, gradient.values.sum(1), rtol=1e-2, atol=1e-3)
    assert repr(gradient) == "ComponentScores(attribution of 12 components, 3 rows)"


def test_impossible_scores() -> None:
    groups = mt.heads(model_of())
    with oracles.unchecked():
        with pytest.raises(ValueError, match=r"values must be \[n, 12\], got \[3, 2\]"):
            mt.ComponentScores(groups, torch.zeros(3, 2))
        with pytest.raises(ValueError, match="kind must be one of effect, attribution, got 'x'"):
            mt.ComponentScores(groups, torch.zeros(3, 12), "x")
        with pytest.raises(ValueError, match="a score is not finite"):
            mt.ComponentScores(groups, torch.full((3, 12), float("nan")))
    graph = mt.CircuitGraph(Shape(1, 1), edges={Edge("input", "m0"): mt.interop.Mark(1.0)})
    with pytest.raises(ValueError, match="no head or MLP of the graph has a score"):
        scores_of_graph(graph, model_of())


@pytest.mark.skipif(HAS_SWEEPS, reason="this TransformerLens has these results")
def test_older_versions_say_what_is_missing() -> None:
    scores = mt.ComponentScores(mt.heads(model_of()), torch.rand(2, 12, generator=generator()))
    with pytest.raises(ImportError, match="PatchingResult is not there: this needs TransformerLens 4"):
        mt.to_patching_result(scores)
    if not HAS_ATTRIBUTION:
        with pytest.raises(ImportError, match="AttributionResult is not there: this needs TransformerLens 4"):
            mt.to_attribution_result(mt.CircuitGraph(Shape(1, 1), {"m0@0": mt.interop.NodeMark(1.0)}))
