"""What views and hooks show is what the tracer measures, whatever the intervention; one mean for every ablation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_multitrace as mt
from tl_multitrace.render.capture import make_views

pytestmark = pytest.mark.lens

INTERVENTIONS: dict[str, Any] = {
    "interchange": lambda pairs: mt.Interchange(),
    "zero": lambda pairs: mt.ZeroAblation(),
    "mean": lambda pairs: mt.MeanAblation(),
    "mean per position": lambda pairs: mt.MeanAblation(per_position=True),
    "mean of others": lambda pairs: mt.MeanAblation(reference=pairs[3:9]),
    "resample": lambda pairs: mt.ResampleAblation(seed=3),
    "noise": lambda pairs: mt.NoiseCorruption(at=1, seed=1),
    "noise restored": lambda pairs: mt.NoiseCorruption(at=1, seed=1, restore=True),
    "uniform": lambda pairs: mt.NoiseCorruption(at=1, kind="uniform", restore=True),
    "fixed": lambda pairs: mt.NoiseCorruption(at=1, kind="fixed", value=0.2),
    "fixed restored": lambda pairs: mt.NoiseCorruption(at=1, kind="fixed", value="mean", restore=True),
}


WAYS = [(name, False) for name in INTERVENTIONS] + [(name, True) for name in ("interchange", "mean of others", "noise")]


@pytest.mark.parametrize(("name", "little"), WAYS, ids=[f"{n}, {'recomputed' if r else 'kept'}" for n, r in WAYS])
def test_a_view_shows_the_tracers_own_numbers(name: str, little: bool) -> None:
    model = mt.load_model("demo")
    pairs = mt.task("professions", model, n=12).pairs
    # the probability of the first right answer alone, which is what the first bar of a view shows
    first = mt.PromptPairs.from_tokens(
        pairs.base_tokens, pairs.source_tokens, pairs.candidates[:, 0, 0], lengths=pairs.lengths
    )
    groups = mt.heads(model, layers=[1, 3]) + mt.mlps(model, layers=[0, 2])
    memory = {"memory_limit": 0} if little else {}
    tracer = mt.Tracer(model, first, groups, mt.AnswerProb(), INTERVENTIONS[name](first), **memory)
    circuit = mt.select(tracer, 3, mt.TopK())[3]
    views = make_views(circuit, tracer, examples=[0, 5, 11])
    effect = tracer.effect(circuit.mask)
    for shown in views.examples:
        base = shown.runs["base"].answers[shown.read][0]
        patched = shown.runs["patched"].answers[shown.read][0]
        wanted = float(tracer.base_metric[shown.pair])
        assert base == pytest.approx(wanted, abs=1e-5, rel=1e-3)  # views keep four digits
        assert patched == pytest.approx(wanted + float(effect[shown.pair]), abs=1e-5, rel=1e-3)


@pytest.mark.parametrize("kind", ["mlps", "heads", "neurons"])
def test_a_mean_ablation_is_one_thing_in_a_search_and_in_a_users_run(kind: str) -> None:
    """With a reference of its own: the same means from the tracer's intervention and from ``circuit.ablate``."""
    model = mt.load_model("demo")
    task = mt.task("professions", model, n=12)
    others = mt.task("professions", model, n=30).pairs[12:]
    groups = getattr(mt, kind)(model, layers=[1, 2])
    everywhere = groups.at("everywhere")
    tracer = mt.Tracer(model, task.pairs, everywhere, mt.LogitDiff(), mt.MeanAblation(reference=others))
    circuit = mt.select(tracer, 2, mt.TopK())[2]
    with circuit.ablate(model, reference=others) as off, torch.no_grad():
        plain = mt.Tracer(off, task.pairs, mt.residual(model, [0]), mt.LogitDiff())
        found = plain.base_metric
    torch.testing.assert_close(found, tracer.base_metric + tracer.effect(circuit.mask), atol=1e-4, rtol=1e-4)
    swapped = mt.Tracer(model, task.pairs, everywhere, mt.LogitDiff(), mt.MeanAblation(reference=others.swap()))
    assert not torch.allclose(swapped.effect(circuit.mask), tracer.effect(circuit.mask), atol=1e-4)
