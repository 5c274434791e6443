"""Tokens that base and source prompts have in common at the start need not run again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build, few

pytestmark = [pytest.mark.lens, pytest.mark.costs]

GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randint(3, 60, (5, 9), generator=GENERATOR)
SOURCE = torch.randint(3, 60, (5, 9), generator=GENERATOR)
LENGTHS = torch.tensor([9, 7, 8, 9, 6])
ANSWERS = torch.randint(3, 60, (5,), generator=GENERATOR)


@pytest.mark.parametrize("name", few("native"))
def test_tokens_in_common_at_the_start_are_left_alone(name: str) -> None:
    model = build(name)
    source = torch.cat([BASE[:, :4], SOURCE[:, 4:]], 1)
    alike = mt.PromptPairs.from_tokens(BASE, source, ANSWERS, (ANSWERS + 5) % 60, lengths=LENGTHS)
    masks = torch.eye(len(mt.heads(model)))
    free, whole = (mt.Tracer(model, alike, mt.heads(model)) for _ in range(2))
    whole.batches.restarts.limit = 0
    torch.testing.assert_close(free.effects(masks), whole.effects(masks), atol=2e-5, rtol=1e-4)
    takes_keys = not name.startswith("bridge-native") and not name.startswith("bridge-attn-only")
    assert (free.cost.forwards < whole.cost.forwards) == takes_keys


def test_what_source_and_base_have_in_common() -> None:
    model = build(MODEL_NAMES[0])

    def found(source: torch.Tensor, **options: Any) -> list[int]:
        alike = mt.PromptPairs.from_tokens(BASE, source, ANSWERS, (ANSWERS + 5) % 60)
        tracer = mt.Tracer(model, alike, mt.mlps(model), **options)
        return tracer.batches.runs.sources.first_difference(tracer.batches.runs).tolist()

    later = BASE.clone()
    later[:, 3] += 1
    later[0, 1] += 1
    assert found(later) == [1, 3, 3, 3, 3]
    assert found(BASE) == [9] * 5
    assert found(BASE, intervention=mt.NoiseCorruption(at=(4, 6))) == [4] * 5
    assert found(BASE, intervention=mt.MeanAblation()) == [0] * 5


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", few("native"))
def test_gradients_leave_them_alone_too(name: str, dtype: torch.dtype | None) -> None:
    """The derivative, the block inputs stored with it, and a minibatch's loss: as over the whole rows, for less."""
    model = build(name).to(torch.float32)
    source = torch.cat([BASE[:, :4], SOURCE[:, 4:]], 1)
    alike = mt.PromptPairs.from_tokens(BASE, source, ANSWERS, (ANSWERS + 5) % 60, lengths=LENGTHS)
    masks = torch.eye(len(mt.heads(model)))
    free, whole = (mt.Tracer(model, alike, mt.heads(model), batch_size=3) for _ in range(2))
    whole.batches.restarts.limit = 0
    soft, near = masks[:4].sum(0) * 0.5, (masks + masks[0]).clamp(max=1)
    free.effects(masks), whole.effects(masks)
    spent = [t.cost.copy() for t in (free, whole)]
    for one, other in zip(*(t.effect_and_gradient(soft, dtype=dtype) for t in (free, whole)), strict=True):
        if dtype is None:
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        else:  # rounded to three digits in every layer, in another order
            assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.98
    for t in (free, whole):
        t.effect_and_gradient(masks[0], as_reference=True)
    torch.testing.assert_close(free.effects(near, masks[0]), whole.effects(near, masks[0]), atol=2e-5, rtol=1e-4)
    losses = [t.loss_gradient(soft, lambda e: e.square().mean(), [4, 0, 2]) for t in (free, whole)]
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    now, before = (t.cost - s for t, s in zip((free, whole), spent, strict=True))
    takes_keys = not name.startswith("bridge-native") and not name.startswith("bridge-attn-only")
    assert (now.backwards < before.backwards) == takes_keys and (now.forwards < before.forwards) == takes_keys
