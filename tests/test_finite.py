"""NaN and infinity are refused wherever they come in, with batch, hook and example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build
from tl_multitrace.causal_trace import causal_trace
from tl_multitrace.engine.finite import checked

pytestmark = pytest.mark.lens

NAME = "bridge-native" if HAS_BRIDGE else "hooked-native"
BROKEN = 99
"""A token whose embedding is NaN in the broken model."""

BASE = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25], [31, 32, 33, 34, 35], [41, 42, 43, 44, 45]])
SOURCE = BASE + 5
ON = torch.ones(12)


def pairs(base: torch.Tensor = BASE, source: torch.Tensor = SOURCE, **options: Any) -> mt.PromptPairs:
    return mt.PromptPairs.from_tokens(base, source, [5, 6, 7, 8], [9, 9, 9, 9], **options)


def with_broken(tokens: torch.Tensor, row: int = 2) -> torch.Tensor:
    changed = tokens.clone()
    changed[row, 2] = BROKEN
    return changed


@pytest.fixture(scope="module")
def model() -> Any:
    return build(NAME)


@pytest.fixture(scope="module")
def broken() -> Any:
    made = build(NAME)
    with torch.no_grad():
        next(p for n, p in made.named_parameters() if "embed" in n and p.ndim > 1)[BROKEN] = torch.nan
    return made


def trace(model: Any, given: mt.PromptPairs | None = None, **options: Any) -> mt.Tracer:
    return mt.Tracer(model, given or pairs(), options.pop("groups", None) or mt.heads(model), **options)


def refused(match: str) -> Any:
    return pytest.raises(mt.NonFiniteError, match=match)


# ---------------------------------------------------------------------------------------------------- where it enters
def test_the_base_run(broken: Any) -> None:
    with refused(r"the base run is not finite in batch 1: first at blocks\.0\.attn\.hook_z, example 2"):
        trace(broken, pairs(with_broken(BASE)), batch_size=2)


@pytest.mark.parametrize("metric", [mt.LogitDiff(), mt.Accuracy(), mt.ProbDiff(), mt.KLDivergence()])
@pytest.mark.parametrize("limit", [None, 0])
def test_the_source_run_whatever_the_metric_makes_of_it(broken: Any, metric: mt.Metric, limit: int | None) -> None:
    tracer = trace(broken, pairs(source=with_broken(SOURCE)), metric=metric, batch_size=2, memory_limit=limit)
    match = r"in batch 1: first in the source run at blocks\.0\.attn\.hook_z, example 2"
    with refused(match):
        tracer.effect(ON)
    with refused(match):
        tracer.gradient(0.5 * ON)
    with refused(match):
        tracer.effects(torch.stack([ON, 0 * ON]), reference=ON)


def test_an_accuracy_of_broken_logits_is_no_number(broken: Any) -> None:
    """Comparisons with NaN are False, so that the metric alone would look finite."""
    tracer = trace(broken, pairs(source=with_broken(SOURCE)), metric=mt.Accuracy())
    logp = torch.full((4, 2, 1), torch.nan)
    with refused("the metric is not finite in batch 0"):
        parts = tracer.batches.parts
        checked(tracer.batches.runs, parts, torch.zeros(4), parts[0], ON[None, None], "the metric", logp)


def test_the_prompts_that_means_are_taken_of(broken: Any) -> None:
    reference = pairs(source=with_broken(SOURCE, row=1))
    for per_position in (False, True):
        with refused(r"the run that means are taken of is not finite at blocks\.0\.attn\.hook_z, prompt 1"):
            trace(broken, intervention=mt.MeanAblation(reference, per_position))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_made_by_hand(model: Any, value: float) -> None:
    groups = mt.mlps(model)
    names = dict.fromkeys(s.hook_name for sites in groups.sites for s in sites)
    values = {name: torch.zeros(mt.ModelView(model).d_model) for name in names}
    values[list(names)[1]][3] = value
    with refused(rf"the values given for {list(names)[1]} are not finite"):
        trace(model, groups=groups, intervention=given(values))


def given(values: dict[str, torch.Tensor]) -> mt.Intervention:
    from tl_multitrace.interventions import GivenAblation

    return GivenAblation(values)


def test_values_made_by_hand_that_half_precision_cannot_hold() -> None:
    half = build(NAME, dtype=torch.float16)
    groups = mt.mlps(half)
    values = {s.hook_name: torch.full((mt.ModelView(half).d_model,), 1e5) for sites in groups.sites for s in sites}
    with refused("are not finite in torch.float16"):
        trace(half, groups=groups, intervention=given(values))


@pytest.mark.parametrize("options", [{"std": math.nan}, {"std": math.inf}, {"kind": "fixed", "value": -math.inf}])
def test_noise_of_no_size(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(std|value) must be finite, got"):
        mt.NoiseCorruption(**options)


def test_noise_beyond_all_numbers(model: Any) -> None:
    huge = mt.NoiseCorruption(noise=3.0, std=3e38)
    with refused("the metric is not finite in batch 0: first in the source run at"):
        trace(model, intervention=huge).effect(ON)
    restored = mt.NoiseCorruption(noise=3.0, std=3e38, restore=True)
    with refused("the base run is not finite in batch 0: first at"):
        trace(model, intervention=restored)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_masks(model: Any, value: float) -> None:
    tracer, mask = trace(model), ON.clone()
    mask[3] = value
    for use in (tracer.effect, tracer.gradient, tracer.log_effect, lambda m: tracer.loss_gradient(m, torch.mean)):
        with pytest.raises(ValueError, match=r"mask values must lie in \[0, 1\]"):
            use(mask)


@contextmanager
def unlikely(model: Any, token: int, logit: float) -> Iterator[None]:
    """The unembedding gives one token a logit of our own."""

    def change(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[..., token] = logit
        return changed

    handle = model.unembed.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def test_an_answer_without_any_probability(model: Any) -> None:
    with (
        unlikely(model, 7, -math.inf),
        refused(r"the base run is not finite in batch 0: first at the logits, example 2"),
    ):
        trace(model)


def test_a_vocabulary_that_is_masked_in_part(model: Any) -> None:
    """Probability 0 before and after is no divergence; and it has a derivative."""
    wanted = trace(model, metric=mt.KLDivergence())
    with unlikely(model, 60, -1e4):
        near = trace(model, metric=mt.KLDivergence()).effect(ON)
    with unlikely(model, 60, -math.inf):
        tracer = trace(model, metric=mt.KLDivergence())
        assert torch.allclose(tracer.effect(ON), near, atol=1e-6)
        assert bool(tracer.gradient(0.5 * ON).isfinite().all())
    assert wanted.effect(ON).shape == near.shape


# ------------------------------------------------------------------------------------------------------------- metrics
def only_when_masked(value: float, row: int = 2) -> Callable[..., torch.Tensor]:
    def metric(out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        found = out.token_logp[:, 0, 0].clone()
        moved = ~torch.isclose(out.token_logp, base.token_logp).flatten(1).all(1)
        chosen = torch.isclose(base.token_logp[:, 0, 0], BASE_LOGP[row], atol=1e-4) & moved
        return torch.where(chosen, found + value, found)

    return metric


BASE_LOGP: dict[int, torch.Tensor] = {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_of_ones_own(model: Any, value: float) -> None:
    BASE_LOGP[2] = trace(model, metric=mt.AnswerLogProb()).base_metric[2]
    tracer = trace(model, metric=only_when_masked(value), batch_size=2)
    match = r"the metric is not finite in batch 1, first in example 2: the log probabilities are finite"
    for use in (tracer.effect, tracer.gradient, lambda m: tracer.loss_gradient(m, torch.mean, [2, 3])):
        with refused(match if use == tracer.effect else r"first in example 2: the log prob"):
            use(0.7 * ON)
    with refused("first in example 2"):
        mt.select(tracer, 2)


def test_a_metric_that_is_broken_from_the_start(model: Any) -> None:
    with refused(r"the metric of the base run is not finite in batch 0, first in example 0: the log probabilities are"):
        trace(model, metric=lambda out, base: torch.full((len(out.right),), torch.nan))


@dataclass(frozen=True)
class Root(mt.Metric):
    """Finite, with an infinite derivative at the base run."""

    name: ClassVar[str] = "root"

    def inner(self, out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        return (out.token_logp[:, 0, 0] - base.token_logp[:, 0, 0]).abs().sqrt()


def test_a_derivative(model: Any) -> None:
    tracer = trace(model, metric=Root())
    assert torch.equal(tracer.effect(0 * ON), torch.zeros(4))
    with refused(r"the gradient is not finite in batch 0, first in example 0: the log probabilities are finite"):
        tracer.gradient(0 * ON)


@dataclass(frozen=True)
class BrokenInside(mt.OddsRatio):
    """A finite metric whose inner quantity is not."""

    def inner(self, out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        return torch.where(super().inner(out, base) == 0, 0.0, torch.nan)

    def outer(self, inner: torch.Tensor) -> torch.Tensor:
        return inner.nan_to_num(0.5)


def test_the_inner_quantity(model: Any) -> None:
    tracer = trace(model, metric=BrokenInside())
    assert torch.equal(tracer.effect(ON), torch.full((4,), 0.5))
    with refused("the metric's inner quantity is not finite in batch 0"):
        tracer.log_effect(ON)


def test_a_constraint(model: Any) -> None:
    BASE_LOGP[2] = trace(model, metric=mt.AnswerLogProb()).base_metric[2]
    bound = mt.Constraint("kept", trace(model, metric=only_when_masked(math.nan)), at_most=0.1)
    objective = mt.Objective([mt.Goal("aim", trace(model))], [bound])
    for solver in (mt.Greedy(), mt.ScreenedSearch(), mt.PGBCT()):
        with refused("the metric is not finite in batch 0, first in example 2"):
            mt.select(objective, 2, solver)


# ------------------------------------------------------------------------------------------------------------- results
def test_evaluation_and_its_kin(broken: Any) -> None:
    path = mt.select(trace(broken), 2, mt.TopK())
    bad = pairs(source=with_broken(SOURCE))
    with refused(r"first in the source run at .*, example 2"):
        mt.evaluate(path[2], bad, draws=4)
    with refused(r"first in the source run at .*, example 2"):
        mt.information_flow(path[2], trace(broken), pairs=bad)
    with refused("the base run is not finite"):
        mt.side_effects(path[2], {"other": (pairs(with_broken(BASE)), mt.LogitDiff())}, side="base")
    with refused(r"the run that means are taken of is not finite at .*, prompt \d"):
        mt.side_effects(path[2], {"other": (pairs(), mt.LogitDiff())}, reference=bad)
    with (
        refused(r"the run that means are taken of is not finite at .*, prompt \d"),
        path[2].steer(broken, 0.5, reference=bad),
    ):
        pass
    with refused("the base run is not finite"):
        mt.select(trace(broken), 2, mt.TopK(), held_out=pairs(with_broken(BASE)))


@pytest.mark.filterwarnings("ignore:window 10 is larger")
def test_causal_traces(broken: Any) -> None:
    ids = [11, 12, BROKEN, 14, 15]
    with refused("the standard deviation of the embeddings of the whole embedding matrix is nan"):
        causal_trace(broken, ids, subject=(0, 2), answer=9, samples=2)
    for restore in ("resid", "mlp"):
        with refused("is not finite in batch 0: first at"):
            given = mt.NoiseCorruption(std=0.5)
            causal_trace(broken, ids, subject=(0, 2), answer=9, samples=2, restore=restore, corruption=given)


def test_the_model_is_left_as_it_was(broken: Any) -> None:
    tracer = trace(broken, pairs(source=with_broken(SOURCE)))
    for use in (tracer.effect, tracer.gradient):
        with refused("example 2"):
            use(ON)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in broken.hook_dict.values())
    assert torch.equal(tracer.effect(0 * ON), torch.zeros(4))  # and it goes on working
