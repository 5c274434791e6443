"""Each of the 270 heads of SmolLM2-135M alone, exactly, against a plain loop of patched runs of the same bridge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sides import Timed, figures, nothing, show

import tl_multitrace as mt

SHARED = "When Mary and John went to the store,"
TEXTS = {
    "a shared start": [f"{SHARED} {name} gave a drink to" for name in ("John", "Mary")],
    "other first words": ["John saw Mary, and John gave a drink to", "Mary saw John, and Mary gave a drink to"],
}


@pytest.fixture(scope="module")
def smollm2(real_models: Path) -> Any:
    return mt.load_model(str(real_models / "smollm2"))


def plain_sweep(model: Any, pairs: mt.PromptPairs) -> torch.Tensor:
    """Mean logit difference with one head's output from the source run, head by head: whole runs, all logits."""
    right, wrong = pairs.candidates[:, 0], pairs.candidates[:, 1]
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    found = []
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.source_tokens, names_filter=lambda name: name in names)
        for name in names:
            for head in range(model.cfg.n_heads):

                def patch(act: torch.Tensor, hook: Any, name: str = name, head: int = head) -> torch.Tensor:
                    act[:, :, head] = cache[name][:, :, head]
                    return act

                last = model.run_with_hooks(pairs.base_tokens, fwd_hooks=[(name, patch)])[:, -1]
                found.append((last.gather(1, right) - last.gather(1, wrong)).mean())
    return torch.stack(found)


@pytest.mark.real
@pytest.mark.parametrize("texts", TEXTS)
def test_head_sweep_of_a_real_model(benchmark: Any, capsys: Any, smollm2: Any, texts: str) -> None:
    base, source = TEXTS[texts]
    pairs = mt.PromptPairs.from_text(
        smollm2, [base, source], [source, base], [" Mary", " John"], [" John", " Mary"], prepend_bos=False
    )
    costs: list[float] = []

    def our_sweep() -> torch.Tensor:
        tracer = mt.Tracer(smollm2, pairs, mt.heads(smollm2), metric=mt.LogitDiff())  # base and source runs count too
        effects = tracer.effects(torch.eye(len(tracer.groups)))
        costs.append(tracer.cost.equivalents)
        return effects.mean(1) + tracer.base_metric.mean()

    theirs, ours = Timed(lambda: plain_sweep(smollm2, pairs), warm=True), Timed(our_sweep)
    ours()  # what a model allows is tried once
    benchmark.pedantic(ours, setup=nothing(theirs), rounds=1)
    torch.testing.assert_close(ours.result, theirs.result, atol=1e-4, rtol=1e-3)
    benchmark.extra_info.update(figures(theirs, ours), forward_equivalents=round(costs[-1], 2))
    show(capsys, f"exact sweep over 270 heads of SmolLM2, {texts}", benchmark.extra_info)
