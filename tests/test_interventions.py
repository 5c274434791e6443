"""Where replaced activations come from: each intervention against a plain computation of the source."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import oracles
import pytest
import torch
from oracles import Example, Plain, activations, binary_mask, pairs_of, random_examples, soft_mask, unequal_pairs

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.interventions import intervention_by_name

pytestmark = pytest.mark.lens

model_of = cache(lambda: build(MODEL_NAMES[0], torch.float64))
EXAMPLES = random_examples(4, seed=2, tokens=2)
PATTERN = "blocks.1.attn.hook_pattern"


def all_sites(*, pattern: bool = False, positions: Any = "all") -> mt.HookGroups:
    model = model_of()
    if pattern:
        return mt.heads(model, 1, site="pattern", positions=positions) + mt.neurons(model, 0, positions=positions)[:9]
    return mt.heads(model, positions=positions) + mt.mlps(model, positions=positions)


def check(intervention: mt.Intervention, groups: mt.HookGroups, **plain: Any) -> torch.Tensor:
    """Effects under a binary and a soft mask equal the plain loop's; returns the soft one's."""
    tracer = mt.Tracer(model_of(), pairs_of(EXAMPLES), groups, intervention=intervention)
    loop = Plain(model_of(), EXAMPLES, groups.sites, **plain)
    for mask in (binary_mask(len(groups), 1), soft_mask(len(groups))):
        effect = tracer.effect(mask)
        torch.testing.assert_close(effect, loop.effect(mask, oracles.logit_diff), rtol=1e-8, atol=1e-9)
    return effect


# ----------------------------------------------------------------------------------------------------------- zero
@pytest.mark.parametrize("pattern", [False, True])
def test_zero(pattern: bool) -> None:
    def zeros(i: int, e: Example, prefix: list[int], names: list[str]) -> dict[str, torch.Tensor]:
        running = activations(model_of(), e.base + prefix, names)
        return {name: torch.zeros_like(value) for name, value in running.items()}

    assert check(mt.ZeroAblation(), all_sites(pattern=pattern), source=zeros).abs().min() > 1e-6


# ----------------------------------------------------------------------------------------------------------- mean
def average(prompts: Sequence[list[int]], name: str, per_position: bool) -> torch.Tensor:
    """Mean over the prompts' own tokens: per position, or over all; ``[pos, ...]`` or ``[dest, src]`` per head."""
    values = [activations(model_of(), tokens, [name])[name][0] for tokens in prompts]
    if name.endswith("pattern"):
        width = max(v.shape[-1] for v in values)
        total, count = torch.zeros(4, width, width, dtype=torch.float64), torch.zeros(width, width)
        for v in values:
            k = v.shape[-1]
            total[:, :k, :k] += v
            count[:k, :k] += 1
        return total / count.clamp_min(1)
    if not per_position:
        return torch.cat(values).mean(0)
    width = max(map(len, values))
    return torch.stack([torch.stack([v[p] for v in values if len(v) > p]).mean(0) for p in range(width)])


def means(prompts: Sequence[list[int]], per_position: bool) -> Any:
    averages: dict[str, torch.Tensor] = {}

    def source(i: int, e: Example, prefix: list[int], names: list[str]) -> dict[str, torch.Tensor]:
        found, length = {}, len(e.base + prefix)
        for name in names:
            if name not in averages:
                averages[name] = average(prompts, name, per_position)
            value = averages[name]
            if name.endswith("pattern"):
                whole = torch.zeros(4, length, length, dtype=torch.float64)
                k = min(length, value.shape[-1])
                whole[:, :k, :k] = value[:, :k, :k]
                found[name] = whole[None]
            elif per_position:
                missing = value.new_zeros(max(0, length - len(value)), *value.shape[1:])
                found[name] = torch.cat([value, missing])[:length][None]
            else:
                found[name] = value.expand(length, *value.shape)[None]
        return found

    return source


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("pattern", [False, True])
@pytest.mark.parametrize("own", [True, False], ids=["source", "reference"])
def test_mean(per_position: bool, pattern: bool, own: bool) -> None:
    """The mean is over prompt tokens, each prompt once: neither answers nor a second candidate's row count."""
    others = random_examples(5, seed=9)
    prompts = [e.source for e in (EXAMPLES if own else others)]
    reference = None if own else pairs_of(others)
    intervention = mt.MeanAblation(reference, per_position=per_position)
    effect = check(intervention, all_sites(pattern=pattern), source=means(prompts, per_position))
    assert effect.abs().min() > 1e-6


def test_mean_over_too_short_a_reference() -> None:
    short = pairs_of(random_examples(3, longest=5, equal=True))
    with pytest.raises(ValueError, match=r"reference prompts have at most 5 tokens, the prompts 8: no mean for the"):
        mt.Tracer(model_of(), pairs_of(EXAMPLES), all_sites(), intervention=mt.MeanAblation(short, per_position=True))
    mt.Tracer(model_of(), pairs_of(EXAMPLES), all_sites(), intervention=mt.MeanAblation(short))


def test_mean_everywhere_needs_a_mean_for_answers() -> None:
    with pytest.raises(ValueError, match=r"the prompts with their answers"):
        mt.Tracer(
            model_of(),
            pairs_of(EXAMPLES),
            all_sites(positions="everywhere"),
            intervention=mt.MeanAblation(per_position=True),
        )


# ------------------------------------------------------------------------------------------------------- resample
def twins(seed: int = 6) -> list[Example]:
    """Six prompts of two lengths, two of them equal, so that a draw could hit the prompt itself."""
    made = random_examples(6, seed=seed, equal=True)
    short = [Example(e.base[:5], e.source[:5], e.answers, e.wrong) for e in made[3:]]
    again = Example(made[0].base, made[1].source, made[1].answers, made[1].wrong)
    return [*made[:3], again, *short]


def drawn_sources(examples: list[Example], pool: list[list[int]], **options: Any) -> list[list[int]]:
    """Which pool prompt each example got, recognised by the effect of patching its whole last residual state."""
    groups = mt.residual(model_of(), [2], site="post")
    tracer = mt.Tracer(
        model_of(), pairs_of(examples), groups, intervention=mt.ResampleAblation(**options), batch_size=2
    )
    effects = tracer.effect([1.0]).tolist()
    found = []
    for i, e in enumerate(examples):
        scores = {}
        for other in pool:
            if len(other) == len(e.base):
                swapped = Plain(model_of(), [Example(other, other, e.answers, e.wrong)], [])
                with torch.no_grad():
                    readings = swapped.read(0), Plain(model_of(), [e], []).read(0)
                scores[tuple(other)] = float(oracles.logit_diff(readings[0], readings[0])) - float(
                    oracles.logit_diff(readings[1], readings[1])
                )
        fitting = [other for other, score in scores.items() if abs(score - effects[i]) < 1e-9]
        assert len(fitting) == 1
        found.append(list(fitting[0]))
    return found


def test_resample_never_draws_the_prompt_itself() -> None:
    examples = twins()
    pool = [e.base for e in examples]
    draws = [drawn_sources(examples, pool, seed=seed) for seed in range(4)]
    for found in draws:
        assert all(other != e.base for other, e in zip(found, examples, strict=True))
    assert draws[0] == drawn_sources(examples, pool, seed=0)
    assert len({str(d) for d in draws}) > 1


def test_resample_from_a_reference() -> None:
    reference = random_examples(5, seed=20, equal=True)
    examples = random_examples(3, seed=21, equal=True)
    found = drawn_sources(examples, [e.base for e in reference], reference=pairs_of(reference))
    assert all(other in [e.base for e in reference] for other in found)


def test_resample_with_nothing_to_draw_from() -> None:
    examples = random_examples(2)  # 8 and 7 tokens
    with pytest.raises(ValueError, match=r"pair [01]: no other prompt of [78] tokens to resample from.*reference="):
        mt.Tracer(model_of(), pairs_of(examples), all_sites(), intervention=mt.ResampleAblation())


# ---------------------------------------------------------------------------------------------------------- noise
def embedding_of(tokens: Sequence[int]) -> torch.Tensor:
    return activations(model_of(), tokens, ["hook_embed"])["hook_embed"][0]


def noise_of(examples: list[Example], *, noise: float, at: str, seed: int, std: float | None, shared: bool) -> Any:
    """The draws, written out: one ``[width, d_model]`` block per example in the given order, scaled, at the places."""
    generator = oracles.generator(seed)
    width = max(len(e.base) for e in examples)
    places = [range(*e.span) if at == "subject" else range(len(e.base)) for e in examples]
    if std is None:
        embedded = [embedding_of(e.base)[list(p)] for e, p in zip(examples, places, strict=True)]
        std = float(torch.cat(embedded).std())
    first = torch.randn(width, 32, generator=generator)
    found = []
    for i, p in enumerate(places):
        draw = first if shared or i == 0 else torch.randn(width, 32, generator=generator)
        kept = torch.zeros(width + 9, 32)  # answers are never noised
        kept[list(p)] = draw[list(p)] * (noise * std)
        found.append(kept)
    return found


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("at", ["all", "subject"])
@pytest.mark.parametrize(("std", "shared"), [(0.7, False), (0.2, True)])
def test_noise(restore: bool, at: str, std: float, shared: bool) -> None:
    draws = noise_of(EXAMPLES, noise=3.0, at=at, seed=5, std=std, shared=shared)
    groups = all_sites()
    intervention = mt.NoiseCorruption(3.0, at, restore, std, shared, 5)

    def noised(i: int, e: Example, prefix: list[int], names: list[str]) -> dict[str, torch.Tensor]:
        tokens = e.base + prefix
        return activations(model_of(), tokens, names, None if restore else draws[i][: len(tokens)])

    plain = {"source": noised, "base_noise": draws if restore else None}
    for _ in range(2):  # the same draw for every mask and every tracer
        assert check(intervention, groups, **plain).abs().min() > 1e-6


@pytest.mark.parametrize("at", ["all", "subject"])
def test_noise_in_units_of_the_prompts_embeddings(at: str) -> None:
    examples = random_examples(4, seed=2)  # single tokens: each prompt is one row
    draws = noise_of(examples, noise=2.0, at=at, seed=0, std=None, shared=False)
    groups = mt.residual(model_of(), [0])
    tracer = mt.Tracer(model_of(), pairs_of(examples), groups, intervention=mt.NoiseCorruption(2.0, at), batch_size=3)
    with torch.no_grad():
        for i, e in enumerate(examples):
            noised = Plain(model_of(), [e], [], base_noise=[draws[i]]).read(0), Plain(model_of(), [e], []).read(0)
            change = oracles.logit_diff(noised[0], noised[0]) - oracles.logit_diff(noised[1], noised[1])
            assert float(tracer.effect([1.0])[i]) == pytest.approx(float(change), rel=1e-5, abs=1e-6)


def test_noise_in_units_of_the_embedding_matrix() -> None:
    matrix = torch.cat([embedding_of(range(start, start + 32)) for start in range(0, 128, 32)])
    tracers = [
        mt.Tracer(model_of(), pairs_of(EXAMPLES), all_sites(), intervention=mt.NoiseCorruption(std=std))
        for std in ("embedding", float(matrix.std()))
    ]
    torch.testing.assert_close(
        tracers[0].effect(torch.ones(15)), tracers[1].effect(torch.ones(15)), rtol=1e-5, atol=1e-6
    )


def test_noise_draws_by_seed_and_prompt() -> None:
    def effect(pairs: mt.PromptPairs, seed: int) -> torch.Tensor:
        tracer = mt.Tracer(model_of(), pairs, all_sites(), intervention=mt.NoiseCorruption(std=0.5, seed=seed))
        return tracer.effect(torch.ones(15))

    pairs = pairs_of(EXAMPLES)
    assert torch.equal(effect(pairs, 0), effect(pairs, 0))
    assert (effect(pairs, 0) - effect(pairs, 1)).abs().min() > 1e-6


@pytest.mark.parametrize("noise", [-1.0, float("nan"), float("inf")])
def test_impossible_noise(noise: float) -> None:
    with pytest.raises(ValueError, match="noise must be a finite number from 0"):
        mt.NoiseCorruption(noise)


# ------------------------------------------------------------------------------------------------------ alignment
@pytest.mark.parametrize("align", ["right", "left"])
@pytest.mark.parametrize("pattern", [False, True])
@pytest.mark.parametrize("limit", [None, 0])
def test_interchange_of_unequal_lengths(align: str, pattern: bool, limit: int | None) -> None:
    """Tokens line up at the chosen end; those without a partner keep running, whatever stands at their place."""
    drawn = random_examples(4, seed=11, tokens=1)
    cut = [(0, 2), (3, 0), (0, 0), (1, 2)]
    examples = [
        Example(e.base[a:], e.source[b:], e.answers, e.wrong, (1, 3), (a - b) if align == "right" else 0)
        for e, (a, b) in zip(drawn, cut, strict=True)
    ]
    pairs = unequal_pairs(examples, align)
    groups = all_sites(pattern=pattern)
    tracer = mt.Tracer(model_of(), pairs, groups, batch_size=3, memory_limit=limit)
    loop = Plain(model_of(), examples, groups.sites)
    for mask in (torch.ones(len(groups)).double(), soft_mask(len(groups))):
        torch.testing.assert_close(tracer.effect(mask), loop.effect(mask, oracles.logit_diff), rtol=1e-8, atol=1e-9)


def test_right_alignment_follows_the_answer_too() -> None:
    examples = [Example(e.base[2:], e.source, e.answers, e.wrong, None, 2) for e in random_examples(3, tokens=3)]
    pairs = unequal_pairs(examples, "right")
    groups = all_sites(positions="everywhere")
    ours = mt.Tracer(model_of(), pairs, groups).effect(soft_mask(15))
    theirs = Plain(model_of(), examples, groups.sites).effect(soft_mask(15), oracles.logit_diff)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- names
def test_interventions_by_name() -> None:
    for kind in (mt.Interchange, mt.ZeroAblation, mt.MeanAblation, mt.ResampleAblation, mt.NoiseCorruption):
        assert intervention_by_name(kind.name) == kind()
        assert kind().describe()["name"] == kind.name
    assert intervention_by_name("noise", noise=1.0).describe()["noise"] == 1.0
    with pytest.raises(ValueError, match="unknown intervention 'shuffle': use one of interchange, zero, mean"):
        intervention_by_name("shuffle")
