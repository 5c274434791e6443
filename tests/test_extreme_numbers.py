"""Odds are taken in log space, whatever the logits; half precision rounds activations and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracles import unchecked
from test_finite import NAME, ON, SOURCE, refused, trace

import tl_multitrace as mt
from tiny_models import build


# ----------------------------------------------------------------------------------------------------------- log space
def answers(right: float, wrong: float, dtype: torch.dtype = torch.float32) -> mt.Answers:
    logp = torch.tensor([[[right], [wrong]]], dtype=dtype)
    return mt.Answers(logp, torch.ones(1, 2, 1, dtype=torch.bool), torch.tensor([[True, False]]))


@pytest.mark.parametrize(
    ("before", "after", "log_odds"),
    [
        ((-92.0, -95.0), (-91.0, -97.0), 3.0),  # probabilities of 1e-40
        ((-0.0, -1000.0), (-0.0, -1010.0), 10.0),  # p(other) is 0 in any floating-point type
        ((-1000.0, -0.0), (-1003.0, -0.0), -3.0),
        ((-1e6, -1e6 - 1), (-1e6, -1e6 - 1), 0.0),
    ],
)
def test_odds_of_vanishing_probabilities(
    before: tuple[float, float], after: tuple[float, float], log_odds: float
) -> None:
    base, out = answers(*before), answers(*after)
    assert float(mt.LogOddsRatio()(out, base)) == log_odds
    assert float(mt.OddsRatio()(out, base)) == pytest.approx(math.expm1(log_odds), rel=1e-6)
    assert 0 <= float(mt.ChoiceProb()(out, base)) <= 1
    assert math.isfinite(float(mt.ProbDiff()(out, base)))


def test_odds_that_fall_to_nothing_are_minus_one() -> None:
    assert float(mt.OddsRatio()(answers(-1000.0, -0.0), answers(-0.0, -1000.0))) == -1.0


@contextmanager
def scaled(model: Any, factor: float) -> Iterator[None]:
    handle = model.unembed.register_forward_hook(lambda module, args, output: output * factor)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(dtype: torch.dtype) -> None:
    """Log-odds of thousands of nats stay numbers; their ratio does not, and says so."""
    extreme = build(NAME, dtype=dtype)
    plain = trace(extreme, metric=mt.LogOddsRatio()).effect(ON)
    with scaled(extreme, 4096.0):  # a power of two: exact in every type
        tracer = trace(extreme, metric=mt.LogOddsRatio())
        found = tracer.effect(ON)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, 4096 * plain, rtol=1e-4, atol=1.0)
        assert float(found.abs().max()) > 1000
        assert bool(tracer.gradient(0.5 * ON).isfinite().all())
        path = mt.select(tracer, [1, 2, 3])
        assert all(math.isfinite(effect) for effect in path.effects)
        assert float(found.max()) > 100
        ratio = trace(extreme, metric=mt.OddsRatio())
        with refused(r"the metric is not finite in batch 0, first in example \d: .*LogOddsRatio, LogitDiff"):
            ratio.effect(ON)
        assert torch.allclose(ratio.log_effect(ON), found)


# ------------------------------------------------------------------------------------------------------ half precision
METRICS = [
    mt.LogitDiff(), mt.OddsRatio(), mt.LogOddsRatio(), mt.AnswerProb(), mt.AnswerLogProb(), mt.ProbDiff(),
    mt.ChoiceProb(), mt.Accuracy(), mt.KLDivergence(), mt.Perplexity(), mt.WeightedSum(((0.5, mt.LogitDiff()),)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_but_activations_is_float32(dtype: torch.dtype) -> None:
    half, seen = build(NAME, dtype=dtype), []

    def read(out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        seen.extend([out.token_logp.dtype, base.token_logp.dtype, out.last.dtype])  # type: ignore[union-attr]
        return out.token_logp[:, 0, 0] - out.token_logp[:, 1, 0]

    for metric in (*METRICS, read):
        tracer = trace(half, metric=metric)
        effect, gradient = tracer.effect_and_gradient(0.3 * ON)
        parts, total = tracer.loss_gradient(0.3 * ON, torch.mean)
        found = [tracer.base_metric, tracer.effect(ON), tracer.log_effect(ON), effect, gradient, parts, total]
        assert {f.dtype for f in found} == {torch.float32}
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_are_taken_in_float64_and_rounded_once(dtype: torch.dtype) -> None:
    half = build(NAME, dtype=dtype)
    tracer = trace(half, groups=mt.mlps(half), intervention=mt.MeanAblation())
    name = tracer.groups.sites[0][0].hook_name
    seen: list[torch.Tensor] = []
    with torch.no_grad(), mt.ModelView(half).attached([(name, lambda act, hook: seen.append(act.clone()))]):
        half(SOURCE)
    wanted = seen[0].double().mean((0, 1)).to(dtype)
    assert torch.equal(tracer.batches.runs.sources.kept[name][0, 0], wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_half_precision_loses(dtype: torch.dtype) -> None:
    """Rounded activations: effects are off by a few units of the type's precision, and soft masks are not rounded."""
    exact, half = build(NAME), build(NAME, dtype=dtype)
    masks = torch.eye(12)
    wanted, found = trace(exact).effects(masks), trace(half).effects(masks)
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert 0 < error < 16 * torch.finfo(dtype).eps
    fine = [trace(half).effect((0.5 + step) * ON) for step in (0.0, 1e-3)]  # 0.501 is 0.5 in bfloat16
    assert not torch.equal(*fine)


def test_float16_that_overflows_says_what_to_do() -> None:
    half = build(NAME, dtype=torch.float16)
    with (
        unchecked(),
        scaled(half, 60000.0),
        refused(r"the base run .* a float16 model may overflow \(load it with dtype"),
    ):
        trace(half)
