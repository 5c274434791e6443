"""SmolLM2-135M-Instruct: what it answers, and its strongest heads against plain hooks on the Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tl_multitrace as mt

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.moves_rng]  # loading draws weights first

STRONGEST = {"L23H3", "L20H0", "L17H4", "L29H1", "L19H2"}
"""Heads that move IOI most when each is patched alone, of all 270."""


@pytest.fixture(scope="module")
def model(real_models: Path) -> Any:
    return mt.load_model(str(real_models / "smollm2"))


@pytest.fixture(scope="module")
def plain(real_models: Path) -> Any:
    """The same weights in Hugging Face's own class, which our code never touches."""
    return transformers.AutoModelForCausalLM.from_pretrained(real_models / "smollm2", dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("prompt", "answer", "probability"),
    [
        ("When Mary and John went to the store, John gave a drink to", " Mary", 0.92),
        ("The capital of Japan is", " Tokyo", 0.70),
        ("The Eiffel Tower is in the city of", " Paris", 0.66),
    ],
)
def test_it_knows_the_answers(model: Any, prompt: str, answer: str, probability: float) -> None:
    pairs = mt.PromptPairs.from_text(model, [prompt], [prompt], [answer], prepend_bos=False)
    tracer = mt.Tracer(model, pairs, mt.heads(model, layers=[29]), metric=mt.AnswerProb())
    assert tracer.base_metric.item() == pytest.approx(probability, abs=0.006)


def answer_logits(plain: Any, pairs: mt.PromptPairs) -> torch.Tensor:
    """Logit of the right answer less that of the wrong one, per prompt; all prompts are of one length."""
    final = plain(pairs.base_tokens).logits[:, -1]
    right, wrong = pairs.candidates[:, 0, 0], pairs.candidates[:, 1, 0]
    rows = torch.arange(len(final))
    return final[rows, right] - final[rows, wrong]


@torch.no_grad()
def plain_effects(plain: Any, pairs: mt.PromptPairs, heads: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Mean change of the logit difference with one head's output taken from the source run, by module hooks."""
    stored: dict[int, torch.Tensor] = {}
    projections = {layer: plain.model.layers[layer].self_attn.o_proj for layer, _ in heads}
    keep = [p.register_forward_pre_hook(lambda m, x, i=i: stored.update({i: x[0]})) for i, p in projections.items()]
    plain(pairs.source_tokens)
    for handle in keep:
        handle.remove()
    base, effects = answer_logits(plain, pairs), []
    for layer, head in heads:

        def swap(module: Any, inputs: Any, layer: int = layer, head: int = head) -> Any:
            width = plain.config.hidden_size // plain.config.num_attention_heads
            mixed = inputs[0].clone()
            mixed[..., head * width : (head + 1) * width] = stored[layer][..., head * width : (head + 1) * width]
            return (mixed, *inputs[1:])

        handle = projections[layer].register_forward_pre_hook(swap)
        effects.append((answer_logits(plain, pairs) - base).mean())
        handle.remove()
    return torch.stack(effects)


def test_the_strongest_heads_of_ioi_are_those_of_plain_hooks(model: Any, plain: Any) -> None:
    task = mt.task("ioi", model, n=16, seed=0)
    groups = mt.heads(model, layers=range(17, 30))
    tracer = mt.Tracer(model, task.pairs, groups, metric=task.metric)
    alone = tracer.effects(torch.eye(len(groups))).mean(1)
    order = alone.argsort(descending=True)
    assert {groups.labels[i] for i in order[:5]} == STRONGEST
    compared = [*order[:5].tolist(), *order[-3:].tolist()]
    heads = [(groups.components[i].layer, groups.components[i].index) for i in compared]
    torch.testing.assert_close(alone[compared], plain_effects(plain, task.pairs, heads), atol=1e-4, rtol=1e-4)
    assert alone[order[-3:]].max() < -0.1  # heads that work against the answer are compared too
