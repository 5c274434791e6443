"""Rows that hold several continuations change no number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_multitrace as mt
from tiny_models import D_VOCAB, MODEL_NAMES, TL_MAJOR, build, few
from tl_multitrace.engine import prepare
from tl_multitrace.packing import Packing

pytestmark = pytest.mark.lens

WINDOWED = ("bridge-gemma2", "bridge-gemma2-compat")
SITES = ("pattern", "z")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # bridges keep a float32 RMS norm in float64 models


def some_pairs(n: int = 5) -> mt.PromptPairs:
    """Prompts of unequal length; answers of one to three tokens that share nothing, a prefix, or all but the end."""
    draw = torch.Generator().manual_seed(3)
    base, source = (torch.randint(3, D_VOCAB, (n, 8), generator=draw) for _ in range(2))
    answers = [[[10, 11, 12]], [[10, 11]], [[10, 11, 12]], [[10]], [[10, 11, 12], [13, 14]]]
    wrong = [[[20, 21, 22]], [[20, 21, 22]], [[10, 11, 13]], [[20]], [[20, 21, 22]]]
    return mt.PromptPairs.from_tokens(base, source, answers, wrong, lengths=torch.tensor([8, 6, 7, 8, 5]))


def one_row_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "can_pack", lambda view, pairs, trials: False)


def test_attention_of_a_packed_row() -> None:
    mask, position = Packing.of([[[7, 8], [9]]]).attention(slice(None), torch.tensor([5]), 6)
    assert position.tolist() == [[0, 1, 2, 3, 2, 5]]
    seen = [[c for c in range(6) if mask[0, 0, d, c]] for d in range(5)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]


@pytest.mark.parametrize("name", few("attn-only"))
def test_packed_only_where_the_model_is_right(name: str) -> None:
    tracer = mt.Tracer(build(name), some_pairs(), mt.heads(build(name)))
    packed = name.startswith("bridge-") and name not in WINDOWED
    assert (tracer.rows.packing is not None) == packed
    assert len(tracer.rows) == (5 if packed else 9)


@pytest.mark.parametrize("name", [n for n in few() if n.startswith("bridge-")])
@pytest.mark.parametrize("site", SITES)
def test_same_effects_and_gradients(name: str, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if site == "pattern" and TL_MAJOR == 3 and any(kind in name for kind in ("native", "attn-only")):
        pytest.skip("TransformerLens 3 ignores edits of attention weights here")
    model = build(name, dtype=torch.float64)
    groups = mt.heads(model, site=site) + mt.residual(model, layers=[1], positions="everywhere")
    packed = mt.Tracer(model, some_pairs(), groups, metric=mt.OddsRatio())
    one_row_each(monkeypatch)
    alone = mt.Tracer(model, some_pairs(), groups, metric=mt.OddsRatio())
    masks = torch.bernoulli(torch.full((6, len(groups)), 0.3), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed.base_metric, alone.base_metric, **TOLERANCE)
    torch.testing.assert_close(packed.effects(masks), alone.effects(masks), **TOLERANCE)
    half = torch.full((len(groups),), 0.5)
    torch.testing.assert_close(packed.gradient(half), alone.gradient(half), **TOLERANCE)


@pytest.mark.parametrize(
    "intervention", [mt.ResampleAblation(reference=None), mt.NoiseCorruption(), mt.MeanAblation(), mt.ZeroAblation()]
)
def test_same_effects_under_other_interventions(intervention: mt.Intervention, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next((n for n in MODEL_NAMES if n == "bridge-gpt2"), None)
    if name is None:
        pytest.skip("rows are packed on bridges only")
    model = build(name, dtype=torch.float64)
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, D_VOCAB, (3, 8), generator=draw)
    pairs = mt.PromptPairs.from_tokens(tokens, tokens.flip(0), [[[10, 11]]] * 3, [[[20, 21]]] * 3)
    packed = mt.Tracer(model, pairs, mt.mlps(model), intervention=intervention)
    one_row_each(monkeypatch)
    alone = mt.Tracer(model, pairs, mt.mlps(model), intervention=intervention)
    mask = torch.ones(len(packed.groups))
    torch.testing.assert_close(packed.effect(mask), alone.effect(mask), **TOLERANCE)
