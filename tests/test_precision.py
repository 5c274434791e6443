"""Answer logits in float32 from models of lower precision: the model's own, without the steps of its rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples
from torch import Tensor

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, MODEL_NAMES, build
from tl_multitrace.engine.precision import float32_unembed, rounding_step

NAME = "bridge-gpt2" if HAS_BRIDGE else "hooked-gpt2"
HALVES = [torch.bfloat16, torch.float16]
PAIRS = pairs_of(random_examples(6, seed=1, right=1, wrong=1))
TOKENS = torch.tensor([[3, 4, 5, 6, 7]])


def ends(model: Any) -> tuple[Tensor, Tensor]:
    """What goes into the unembedding, and the logits."""
    seen: list[Tensor] = []
    name = mt.ModelView(model).unembed_input
    logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda act, hook: seen.append(act.detach().clone()))])
    return seen[-1], logits.detach()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_it_is_the_models_own_unembedding_up_to_its_rounding(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    act, logits = ends(model)
    unembed = float32_unembed(mt.ModelView(model))
    assert unembed is not None and unembed.tried(act, logits)
    found = unembed(act)
    assert found.dtype == torch.float32 and (found - logits.float()).abs().max() <= 4 * rounding_step(logits)
    weight, bias = model.W_U.detach().double(), model.b_U.detach().double()
    exact = act.double() @ weight + bias
    cap = 30.0 if "gemma2" in name else None
    exact = cap * torch.tanh(exact / cap) if cap else exact
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_needs_none(dtype: torch.dtype) -> None:
    assert float32_unembed(mt.ModelView(build(NAME, dtype))) is None


def test_logits_that_a_model_changes_further_stay_its_own_and_it_says_so(caplog: Any) -> None:
    model = build(NAME, torch.bfloat16)
    act, logits = ends(model)
    for other in (2 * logits, logits + 3, logits.flip(-1), logits[..., :5]):
        unembed = float32_unembed(mt.ModelView(model))
        assert unembed is not None and not unembed.tried(act, other) and not unembed.on
    assert caplog.text.count("answer logits stay in bfloat16") == 4 and "come in steps of about" in caplog.text


def test_large_vocabularies_are_unembedded_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_multitrace.engine import precision

    model = build(NAME, torch.bfloat16)
    act, _ = ends(model)
    whole = float32_unembed(mt.ModelView(model))
    monkeypatch.setattr(precision, "KEPT", 0)
    monkeypatch.setattr(precision, "PART", 7)
    parts = float32_unembed(mt.ModelView(model))
    assert whole is not None and parts is not None
    assert torch.allclose(whole(act), parts(act), atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_effects_do_not_come_in_the_steps_of_the_logits(dtype: torch.dtype) -> None:
    model = build(NAME, dtype)
    masks = [["L0H1"], ["L1H2"], ["L2H0", "L2H3"]]
    tracer = mt.Tracer(model, PAIRS, mt.heads(model))
    found = torch.cat([tracer.effects(masks), tracer.base_metric[None]])
    step = torch.finfo(dtype).eps  # of logits between 1 and 2; larger ones have larger steps
    off_grid = (found / step - (found / step).round()).abs() > 0.02
    assert off_grid.float().mean() > 0.2
    exact = mt.Tracer(build(NAME), PAIRS, mt.heads(model)).effects(masks)
    assert (found[:-1] - exact).abs().max() < (0.3 if dtype is torch.bfloat16 else 0.05)


def test_gradients_pass_the_float32_unembedding() -> None:
    half, plain = build(NAME, torch.bfloat16), build(NAME)
    slopes = [mt.Tracer(model, PAIRS, mt.heads(model)).gradient([0.5] * 12) for model in (half, plain)]
    assert torch.allclose(slopes[0], slopes[1], atol=0.05 * float(slopes[1].abs().max()))
