"""The engine: the same numbers however the work is cut up, in the caller's order, at the cost that it states."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Example, Plain, binary_mask, pairs_of, random_examples, soft_mask

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, MODEL_NAMES, build

pytestmark = pytest.mark.lens

NAMES = [MODEL_NAMES[0], *(["bridge-llama"] if HAS_BRIDGE else ["hooked-llama"])]
model_of = cache(lambda name, dtype=torch.float64: build(name, dtype))
EXAMPLES = random_examples(5, seed=3, right=2, wrong=1, tokens=3)
L = 3


def groups_of(model: Any) -> mt.HookGroups:
    return mt.heads(model) + mt.mlps(model, positions=[0, "last"]) + mt.residual(model, [2], positions="subject")


def some_masks(n: int) -> torch.Tensor:
    """Empty, early, late, one-hot, dense and soft masks."""
    masks = [torch.zeros(n), torch.eye(n)[0], torch.eye(n)[11], torch.eye(n)[n - 1], torch.ones(n)]
    late = binary_mask(n, 1) * (torch.arange(n) % 12 >= 8)
    return torch.stack([*[m.double() for m in masks], late, binary_mask(n, 2), soft_mask(n)])


@cache
def plain_effects(name: str) -> torch.Tensor:
    model = model_of(name)
    loop = Plain(model, EXAMPLES, groups_of(model).sites)
    return torch.stack([loop.effect(m, oracles.logit_diff) for m in some_masks(len(loop.groups))])


# -------------------------------------------------------------------------------------- however it is cut up
CUTS = [(None, None), (2, None), (1, 0), (3, 0), (None, 40_000), (2, 40_000)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("batch_size", "limit"), CUTS, ids=[f"by {n}, limit {limit}" for n, limit in CUTS])
def test_effects_are_the_plain_loops(name: str, batch_size: int | None, limit: int | None) -> None:
    model = model_of(name)
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups_of(model), batch_size=batch_size, memory_limit=limit)
    masks, wanted = some_masks(len(tracer.groups)), plain_effects(name)
    tolerance = {"rtol": 1e-8, "atol": 1e-9} if "gpt2" in name else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(tracer.effects(masks), wanted, **tolerance)
    for reference in (masks[6], masks[2], masks[7]):  # each change overwrites the stored block inputs
        torch.testing.assert_close(tracer.effects(masks, reference=reference), wanted, **tolerance)
    for several in (masks[[2, 6]], masks[[7, 0, 3]], masks[[5]]):  # fewer and more than are stored
        torch.testing.assert_close(tracer.effects(masks, reference=several), wanted, **tolerance)
    torch.testing.assert_close(tracer.effects(masks), wanted, **tolerance)
    for tile in (1, 10**6):  # tokens per forward up to which masks share a batch
        tracer.batches.restarts.tile = tile
        torch.testing.assert_close(tracer.effects(masks.flip(0)), wanted.flip(0), **tolerance)
    assert tracer.memory["source_kept"] == (limit is None)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 5),
    right=st.integers(1, 2),
    wrong=st.integers(1, 2),
    tokens=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    positions=st.sampled_from(["all", "last", "everywhere", "subject", -2]),
)
def test_any_prompts(seed: int, n: int, right: int, wrong: int, tokens: int, batch_size: int, positions: Any) -> None:
    model = model_of(NAMES[0])
    examples = random_examples(n, seed=seed, longest=6, right=right, wrong=wrong, tokens=tokens)
    groups = mt.heads(model, [1], positions=positions) + mt.mlps(model)
    mask = soft_mask(len(groups), seed)
    ours = mt.Tracer(model, pairs_of(examples), groups, batch_size=batch_size).effect(mask)
    theirs = Plain(model, examples, groups.sites).effect(mask, oracles.logit_diff)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_effects_follow_the_callers_order(batch_size: int | None) -> None:
    model = model_of(NAMES[0])
    order, mask = [3, 0, 4, 1, 2], soft_mask(19)
    plain = mt.Tracer(model, pairs_of(EXAMPLES), groups_of(model))
    turned = mt.Tracer(model, pairs_of(EXAMPLES)[order], groups_of(model), batch_size=batch_size)
    for ours, theirs in (
        (turned.effect(mask), plain.effect(mask)),
        (turned.gradient(mask), plain.gradient(mask)),
        (turned.log_effect(mask), plain.log_effect(mask)),
        (turned.base_metric, plain.base_metric),
    ):
        torch.testing.assert_close(ours, theirs[order], rtol=1e-9, atol=1e-10)
    effects, _ = turned.loss_gradient(mask, torch.mean, [2, 0, 3])
    torch.testing.assert_close(effects, plain.effect(mask)[[4, 3, 1]], rtol=1e-9, atol=1e-10)


def test_masks_in_every_form() -> None:
    model = model_of(NAMES[0])
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups_of(model))
    chosen = [2, 13]
    mask = torch.zeros(19)
    mask[chosen] = 1
    labels = [tracer.groups.labels[i] for i in chosen]
    forms = [
        mask,
        mask.bool(),
        mask.long(),
        mask.numpy(),
        mask.tolist(),
        labels,
        list(tracer.groups[chosen].components),
    ]
    effects = [tracer.effect(form) for form in forms]
    assert all(torch.equal(e, effects[0]) for e in effects)
    torch.testing.assert_close(tracer.effects(forms), torch.stack(effects), rtol=1e-10, atol=1e-10)  # one forward
    torch.testing.assert_close(tracer.effects(np.stack([mask.numpy()] * 2))[1], effects[0], rtol=1e-10, atol=1e-10)
    assert tracer.effects([]).shape == (0, 5)


def test_answers_may_be_read_inside_the_prompt() -> None:
    """What stands behind the answer's position cannot matter: the plain loop sees the prompt cut off there."""
    model, examples = model_of(NAMES[0]), random_examples(3, equal=True)
    cut = [Example(e.base[:5], e.source[:5], e.answers, e.wrong) for e in examples]
    groups = mt.heads(model)
    tracer = mt.Tracer(model, pairs_of(examples, answer_positions=[4, 4, 4]), groups)
    theirs = Plain(model, cut, groups.sites).effect(soft_mask(12), oracles.logit_diff)
    torch.testing.assert_close(tracer.effect(soft_mask(12)), theirs, rtol=1e-8, atol=1e-9)


# --------------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_gradients_of_single_entries(batch_size: int | None, limit: int | None) -> None:
    """One difference quotient per entry and example; nothing leaks between examples or rows."""
    model = model_of(NAMES[0])
    groups = mt.heads(model, [0, 2]) + mt.mlps(model, [1], positions=["last", "everywhere"])
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups, batch_size=batch_size, memory_limit=limit)
    mask = soft_mask(10)
    gradient = tracer.gradient(mask)
    steps = torch.cat([mask + k * 1e-4 * torch.eye(10) for k in (1, -1)])
    up, down = tracer.effects(steps).split(10)  # effects themselves are checked against plain loops above
    torch.testing.assert_close(gradient, (up - down).T / 2e-4, rtol=1e-5, atol=1e-7)


def test_loss_gradient() -> None:
    """The gradient of a mean of a bounded loss, over a minibatch, in one or several forwards."""
    model, mask = model_of(NAMES[0]), soft_mask(12)
    groups, chosen = mt.heads(model), [4, 1, 2]
    loop = Plain(model, [EXAMPLES[i] for i in chosen], groups.sites)
    direction = torch.linspace(-0.2, 0.2, 12, dtype=torch.float64)
    around = [torch.sigmoid(-loop.effect(mask + k * 1e-3 * direction, oracles.logit_diff)).mean() for k in (-1, 1)]
    for batch_size in (None, 2, 1):
        tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups, batch_size=batch_size)
        effects, gradient = tracer.loss_gradient(mask, lambda e: torch.sigmoid(-e).mean(), chosen)
        torch.testing.assert_close(effects, loop.effect(mask, oracles.logit_diff), rtol=1e-8, atol=1e-9)
        assert float(gradient @ direction) == pytest.approx(float(around[1] - around[0]) / 2e-3, rel=1e-4)
        everyone, whole = tracer.loss_gradient(mask, torch.mean)
        torch.testing.assert_close(whole, tracer.gradient(mask).mean(0), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(everyone, tracer.effect(mask), rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------- bfloat16 and others
def test_bfloat16_models_take_float32_masks() -> None:
    model, exact = model_of(NAMES[0], torch.bfloat16), model_of(NAMES[0])
    groups = mt.heads(model) + mt.mlps(model)
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups)
    assert tracer.dtype == torch.float32
    masks = torch.eye(15)
    ours, wanted = tracer.effects(masks), mt.Tracer(exact, pairs_of(EXAMPLES), groups).effects(masks)
    assert ours.dtype == torch.float32
    assert torch.equal(tracer.effect(torch.zeros(15)), torch.zeros(5))
    assert np.corrcoef(ours.flatten(), wanted.flatten())[0, 1] > 0.98
    gradient = tracer.gradient(torch.full((15,), 0.3))
    slope = mt.Tracer(exact, pairs_of(EXAMPLES), groups).gradient(torch.full((15,), 0.3))
    assert gradient.dtype == torch.float32
    assert np.corrcoef(gradient.flatten(), slope.flatten())[0, 1] > 0.95
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_sums_may_be_wider_than_the_model() -> None:
    model = model_of(NAMES[0], torch.float32)
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups_of(model), dtype=torch.float64)
    effect = tracer.effect(soft_mask(19))
    assert effect.dtype == torch.float64
    torch.testing.assert_close(effect, plain_effects(NAMES[0])[-1], rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- cost
def spent(tracer: mt.Tracer, work: Any) -> tuple[float, float]:
    before = tracer.cost.copy()
    work()
    cost = tracer.cost - before
    assert cost.equivalents == cost.forwards + cost.backwards
    assert cost.seconds >= 0
    return pytest.approx(cost.forwards, abs=1e-9), pytest.approx(cost.backwards, abs=1e-9)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_cost_of_effects(batch_size: int | None) -> None:
    model = model_of(NAMES[0])
    groups = mt.heads(model)
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups, batch_size=batch_size)
    assert (tracer.cost.forwards, tracer.cost.backwards) == (pytest.approx(2), 0)  # the base and the source run
    one_by_one = torch.eye(12)
    sweep = sum(4 * (L - layer) / L for layer in range(L))
    assert spent(tracer, lambda: tracer.effects(one_by_one)) == (sweep, 0)
    assert spent(tracer, lambda: tracer.effect(torch.zeros(12))) == (0, 0)
    late = one_by_one[8:] + one_by_one[0]
    assert spent(tracer, lambda: tracer.effects(late)) == (4, 0)
    # one run to store the reference's block inputs, then a third of a forward each; the reference is kept
    assert spent(tracer, lambda: tracer.effects(late, reference=one_by_one[0])) == (1 + 4 / L, 0)
    assert spent(tracer, lambda: tracer.effects(late[:2], reference=one_by_one[0])) == (2 / L, 0)
    assert spent(tracer, lambda: tracer.effects(one_by_one[4:8] + one_by_one[0], reference=one_by_one[0])) == (8 / L, 0)
    tracer.forget()  # and then it is not
    assert spent(tracer, lambda: tracer.effects(late[:2], reference=one_by_one[0])) == (1 + 2 / L, 0)
    # two runs are stored together, and each mask restarts from the one that it shares most with
    both = torch.cat([late, late + one_by_one[1]])
    assert spent(tracer, lambda: tracer.effects(both, reference=both[[0, 4]])) == (2 + 6 / L, 0)


def test_values_are_told_as_they_are_found() -> None:
    tracer = mt.Tracer(model_of(NAMES[0]), pairs_of(EXAMPLES), mt.heads(model_of(NAMES[0])), batch_size=2)
    told: list[int] = []
    tracer.effects(torch.eye(12), tick=told.append)
    assert len(told) > 1 and sum(told) == 12 * tracer.n


def test_cost_of_gradients() -> None:
    model = model_of(NAMES[0])
    whole = mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model))
    assert spent(whole, lambda: whole.gradient(soft_mask(12))) == (1, 1)
    late = mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model, [2]))
    assert spent(late, lambda: late.gradient(soft_mask(4))) == (1 / L, 1 / L)
    rows = [1, 2]  # a share of the rows, not of the examples: those differ in answers
    share = sum(int((whole.rows.order[whole.rows.example] == e).sum()) for e in rows) / len(whole.rows)
    assert spent(whole, lambda: whole.loss_gradient(soft_mask(12), torch.mean, rows)) == (share, share)


def test_cost_where_nothing_fits_into_memory() -> None:
    model = model_of(NAMES[0])
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model), memory_limit=0, batch_size=5)
    assert tracer.cost.forwards == pytest.approx(1)  # the source run is repeated when it is needed
    assert spent(tracer, lambda: tracer.effects(torch.eye(12))) == (12 + 1, 0)  # and no run restarts half-way
    small = mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model), memory_limit=0, batch_size=2)
    assert spent(small, lambda: small.effects(torch.eye(12)[:3])) == (3 + 1, 0)
    assert spent(small, lambda: small.gradient(soft_mask(12))) == (1 + 1, 1)


@pytest.mark.parametrize(
    ("intervention", "cost"), [(mt.ZeroAblation(), 1), (mt.MeanAblation(), 2), (mt.NoiseCorruption(), 2)]
)
def test_cost_of_setting_up(intervention: mt.Intervention, cost: int) -> None:
    model = model_of(NAMES[0])
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model), intervention=intervention)
    assert tracer.cost.forwards == pytest.approx(cost)


@pytest.mark.parametrize("site", ["z", "pattern"])
def test_memory_is_what_it_states(site: str) -> None:
    model = model_of(NAMES[0])
    groups = mt.heads(model, site=site) + mt.neurons(model, 1) + mt.mlps(model)
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups)
    stored = sum(t.numel() * t.element_size() for t in tracer.batches.runs.sources.kept.values())
    inputs = sum(t.numel() * t.element_size() for t in tracer.batches.origin.residuals.values())
    assert (tracer.memory["source_bytes"], tracer.memory["block_input_bytes"]) == (stored, inputs)
    assert tracer.memory["source_kept"]
    held = mt.Tracer(model, pairs_of(EXAMPLES), groups, memory_limit=stored - 1)
    assert not held.memory["source_kept"]
    assert not held.batches.runs.sources.kept


# ------------------------------------------------------------------------------------------------- side by side
def test_sessions_of_several_tracers_on_one_model() -> None:
    """A tracer that waits inside its session is silent: another one on the same model sees none of it."""
    model = model_of(NAMES[0])
    one = mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model))
    other = mt.Tracer(model, pairs_of(EXAMPLES[:3]), mt.mlps(model), metric=mt.OddsRatio())
    wanted = one.effect(soft_mask(12)), other.effect(soft_mask(3))
    with one.session(), other.session(), one.session():
        assert torch.equal(one.effect(soft_mask(12)), wanted[0])
        assert torch.equal(other.effect(soft_mask(3)), wanted[1])
        third = mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model), intervention=mt.NoiseCorruption(restore=True))
        third.effect(soft_mask(12))
        assert torch.equal(one.effect(soft_mask(12)), wanted[0])


def test_frozen_sites_keep_the_base_values() -> None:
    """``held=``: a restored state acts around MLPs that stay at what they were in the base run."""
    model, examples = model_of(NAMES[0]), random_examples(3, equal=True)
    states, frozen = mt.residual(model, positions=[2]), mt.mlps(model, [1, 2])
    tracer = mt.Tracer(model, pairs_of(examples), states, held=frozen)
    severed = tracer.effects(torch.eye(3), held=torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]))
    free = tracer.effects(torch.eye(3))
    held = [(1, 2), (2,), (1, 2)]
    with torch.no_grad():
        for k in range(3):
            for i, e in enumerate(examples):
                names = [f"blocks.{layer}.hook_mlp_out" for layer in held[k]]
                base = oracles.activations(model, e.base, names)
                loop = Plain(model, [e], states.sites)
                hooks = loop.hooks(0, e, [], torch.eye(3)[k].tolist())
                keep = [(n, lambda act, hook, n=n: base[n]) for n in names]  # noqa: B023
                logits = oracles.plain_logits(model, e.base, [*hooks, *keep])[-1]
                score = float(logits[e.answers[0][0]] - logits[e.wrong[0][0]])
                assert float(severed[k, i] + tracer.base_metric[i]) == pytest.approx(score, rel=1e-8)
    assert (severed[0] - free[0]).abs().max() > 1e-3


def test_repr() -> None:
    tracer = mt.Tracer(model_of(NAMES[0]), pairs_of(EXAMPLES), mt.heads(model_of(NAMES[0])))
    assert "5 pairs, HookGroups(12: 12 head), metric=logit_diff, intervention=interchange)" in repr(tracer)
    assert len(tracer) == tracer.n == 5


def test_a_tracer_on_other_prompts_keeps_what_is_not_given() -> None:
    model = model_of(NAMES[0])
    tracer = mt.Tracer(
        model,
        pairs_of(EXAMPLES),
        mt.heads(model),
        mt.AnswerProb(),
        mt.ZeroAblation(),
        dtype=torch.float32,
        memory_limit=7,
    )
    other = pairs_of(EXAMPLES[:2])
    held = tracer.on(other)
    assert held.pairs is other and len(held) == 2
    for name in ("model", "groups", "metric", "intervention", "dtype", "given_limit"):
        assert getattr(held, name) is getattr(tracer, name), name
    nats = tracer.on(metric=mt.LogitDiff(), groups=mt.mlps(model))
    assert nats.pairs is tracer.pairs and nats.metric.name == "logit_diff" and len(nats.groups) == L
    with pytest.raises(TypeError, match="metrics"):
        tracer.on(metrics=mt.LogitDiff())
