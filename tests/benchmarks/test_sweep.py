"""Each of the 144 heads alone, exactly, against TransformerLens' own sweep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sides import Timed, figures, nothing, pairs, show

import tl_multitrace as mt


def their_sweep(model: Any, p: mt.PromptPairs) -> Callable[[], torch.Tensor]:
    """``get_act_patch_attn_head_out_all_pos`` with the mean logit difference."""
    from transformer_lens.patching import get_act_patch_attn_head_out_all_pos

    right, wrong = p.candidates[:, 0], p.candidates[:, 1]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, -1].gather(1, right) - logits[:, -1].gather(1, wrong)).mean()

    def sweep() -> torch.Tensor:
        with torch.no_grad():
            _, cache = model.run_with_cache(p.source_tokens, names_filter=lambda name: name.endswith("hook_z"))
            found: torch.Tensor = get_act_patch_attn_head_out_all_pos(model, p.base_tokens, cache, metric)
        return found.flatten()

    return sweep


@pytest.mark.parametrize(("n", "rounds"), [(8, 3), (32, 1)], ids=["8-pairs", "32-pairs"])
def test_head_sweep(benchmark: Any, capsys: Any, gpt2: Any, n: int, rounds: int) -> None:
    p = pairs(n)
    costs = []

    def our_sweep() -> torch.Tensor:
        tracer = mt.Tracer(gpt2, p, mt.heads(gpt2), metric=mt.LogitDiff())  # base and source runs count too
        effects = tracer.effects(torch.eye(len(tracer.groups)))
        costs.append(tracer.cost.equivalents)
        return effects.mean(1) + tracer.base_metric.mean()

    theirs, ours = Timed(their_sweep(gpt2, p), warm=True), Timed(our_sweep, warm=True)
    benchmark.pedantic(ours, setup=nothing(theirs), rounds=rounds)
    torch.testing.assert_close(ours.result, theirs.result, atol=1e-5, rtol=1e-4)
    benchmark.extra_info.update(figures(theirs, ours), forward_equivalents=round(costs[-1], 2))
    show(capsys, f"exact sweep over 144 heads, {n} pairs", benchmark.extra_info)
