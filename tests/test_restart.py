"""Restarting at a later token gives what the whole run gives, and is not done where tokens act on earlier ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, MODEL_NAMES, build, few, forked_rng, randomise

pytestmark = [pytest.mark.lens, pytest.mark.costs]

GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randint(3, 60, (5, 9), generator=GENERATOR)
SOURCE = torch.randint(3, 60, (5, 9), generator=GENERATOR)
LENGTHS = torch.tensor([9, 7, 8, 9, 6])
ANSWERS = torch.randint(3, 60, (5,), generator=GENERATOR)


def pairs(lengths: Any = LENGTHS) -> mt.PromptPairs:
    return mt.PromptPairs.from_tokens(BASE, SOURCE, ANSWERS, (ANSWERS + 5) % 60, lengths=lengths)


def both(model: Any, groups: mt.HookGroups, masks: torch.Tensor, **options: Any) -> tuple[mt.Tracer, mt.Tracer]:
    """A tracer as it is, and one that runs every token; their effects agree."""
    free, whole = (mt.Tracer(model, pairs(), groups, **options) for _ in range(2))
    whole.batches.restarts.limit = 0
    torch.testing.assert_close(free.effects(masks), whole.effects(masks), atol=2e-5, rtol=1e-4)
    return free, whole


@pytest.mark.parametrize("name", few("native"))
def test_later_tokens_alone_give_the_whole_runs_effects(name: str) -> None:
    model = build(name)
    groups = mt.residual(model, site="post", positions=[0, 2, 5, "last"]) + mt.heads(model, [1], positions=[3, (2, 5)])
    masks = torch.cat([torch.eye(len(groups)), torch.bernoulli(torch.full((4, len(groups)), 0.3), generator=GENERATOR)])
    free, whole = both(model, groups, masks)
    takes_keys = not name.startswith("bridge-native") and not name.startswith("bridge-attn-only")
    assert free.causal == takes_keys
    assert (free.cost.forwards < whole.cost.forwards) == takes_keys


@pytest.mark.parametrize("restore", [False, True])
def test_under_noise_and_with_little_memory(restore: bool) -> None:
    model = build(MODEL_NAMES[0])
    groups = mt.mlps(model, positions=[1, 4]) + mt.residual(model, [0], site="pre", positions=[2, 5])
    noise = mt.NoiseCorruption(at=(1, 4), restore=restore)
    both(model, groups, torch.eye(len(groups)), intervention=noise)
    _, tight = both(model, groups, torch.eye(len(groups)), intervention=noise, memory_limit=0)
    assert not tight.causal


def test_attention_weights_run_every_token() -> None:
    model = build(MODEL_NAMES[0])
    tracer = mt.Tracer(model, pairs(), mt.heads(model, site="pattern", positions=[(2, 6)]))
    assert not tracer.causal


def test_few_masks_are_not_worth_it() -> None:
    model = build(MODEL_NAMES[0])
    tracer = mt.Tracer(model, pairs(), mt.residual(model, [1], positions=[4]))
    before = tracer.cost.forwards
    tracer.effects(torch.ones(1, 1))
    assert tracer.cost.forwards - before <= 1
    assert tracer.batches.restarts.stored_bytes == 0


@pytest.mark.skipif(not HAS_BRIDGE, reason="encoders come through TransformerBridge")
def test_an_encoder_runs_every_token() -> None:
    import transformers
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    config = transformers.BertConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    with forked_rng(0):
        hf = transformers.BertForMaskedLM(config)
        randomise(hf, 0)
        model = build_bridge_from_module(hf.eval(), "BertForMaskedLM", hf_config=config, tokenizer=None).eval()
    groups = mt.residual(model, site="post", positions=[0, 2, 5])
    tracer, _ = both(model, groups, torch.eye(len(groups)))
    assert not tracer.causal
