"""What a trace costs, in forwards over its prompts, and what generated text says: on whatever pip resolves today.

An upstream release that renames a keyword may leave every number right and make runs many times dearer, or leave costs
and spoil generated text. Both are counted here, with nothing timed.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch

import tl_multitrace as mt
from tiny_models import random_gpt2
from tl_multitrace.models.renamed import pass_on_cache, passes_on_cache

pytestmark = [pytest.mark.costs, pytest.mark.lens]

LAYERS, HEADS, TOKENS = 12, 12, 12


@pytest.fixture(scope="module")
def twelve_layers() -> Any:
    """Costs depend on layers and tokens, not on widths."""
    return random_gpt2(LAYERS, HEADS, 48, d_vocab=512, n_ctx=32)


def test_the_quickstart() -> None:
    model = mt.load_model("demo")
    task = mt.task("professions", model)
    train, held_out = task.pairs.split(0.7, seed=0)
    tracer = mt.Tracer(model, train, mt.heads(model) + mt.neurons(model), metric=task.metric)
    path = mt.select(tracer, budgets=range(1, 9), held_out=held_out)
    assert path.cost["equivalents"] <= 80
    assert tracer.cost.off == ()


@pytest.mark.filterwarnings("ignore:the model does not predict", "ignore:the corruption")
@pytest.mark.parametrize(("restore", "most"), [("resid", 38), ("mlp", 48), ("attn", 48)])
def test_a_causal_trace(twelve_layers: Any, restore: str, most: float) -> None:
    prompt = torch.randint(1, 500, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    noise = mt.NoiseCorruption(noise=3.0, std=0.1, seed=0)
    options = {"subject": (1, 4), "answer": 262, "samples": 10, "corruption": noise}
    grid = mt.causal_trace(twelve_layers, prompt, restore=restore, **options)
    assert grid.provenance["cost"]["equivalents"] <= most  # 144 cells


def test_a_sweep_over_all_heads(twelve_layers: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.randint(1, 500, (8, 15), generator=draw)
    source = base.clone()
    source[:, 3:7] = torch.randint(1, 500, (8, 4), generator=draw)
    answers = torch.randint(1, 500, (8,), generator=draw)
    pairs = mt.PromptPairs.from_tokens(base, source, answers, (answers + 1) % 500)
    tracer = mt.Tracer(twelve_layers, pairs, mt.heads(twelve_layers), metric=mt.LogitDiff())
    tracer.effects(torch.eye(LAYERS * HEADS))
    assert tracer.cost.equivalents <= 66


def greedy(model: Any, tokens: torch.Tensor, new: int) -> torch.Tensor:
    """Greedy text by whole forwards, one token at a time."""
    with torch.no_grad():
        for _ in range(new):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


@pytest.mark.parametrize("prompt", ["The nurse said that", "The Falcon Tower is in the city of"])
def test_text_generated_under_an_ablation_is_that_of_whole_forwards(prompt: str) -> None:
    model = mt.load_model("demo")
    task = mt.task("professions", model, n=16)
    circuit = mt.select(mt.Tracer(model, task.pairs, mt.heads(model), task.metric), 2, mt.Greedy())[2]
    tokens = model.to_tokens(prompt)
    options = {"max_new_tokens": 8, "do_sample": False, "stop_at_eos": False, "verbose": False}
    plain = model.generate(tokens, **options)
    assert torch.equal(plain, greedy(model, tokens, 8))
    with circuit.ablate(model) as off:
        assert torch.equal(off.generate(tokens, **options), greedy(off, tokens, 8))
    assert torch.equal(model.generate(tokens, **options), plain)


def test_doctor_finds_text_that_stored_keys_and_values_spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mt.load_model("demo")
    assert {c.name: c.status for c in mt.doctor(model).checks}["generation"] == "ok"
    write = model.generate

    def spoilt(tokens: torch.Tensor, use_past_kv_cache: bool = True, **options: Any) -> torch.Tensor:
        found = write(tokens, use_past_kv_cache=use_past_kv_cache, **options)
        return found + 1 if use_past_kv_cache else found

    monkeypatch.setattr(model, "generate", spoilt, raising=False)
    check = {c.name: c for c in mt.doctor(model).checks}["generation"]
    assert check.status == "failed" and "what model.generate() writes is wrong" in check.found


def test_what_is_off_says_why(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose attention ignores the cache that it is given costs more, is right, and says so."""
    model = random_gpt2(4, 4, 16, d_vocab=64, n_ctx=32)
    attention = model.blocks[2].attn
    own = attention.forward

    def forgets(*args: Any, **kwargs: Any) -> Any:
        return own(
            *args, **{k: v for k, v in kwargs.items() if k not in ("cache", "past_key_values", "past_kv_cache_entry")}
        )

    monkeypatch.setitem(attention.__dict__, "forward", forgets)
    tokens = torch.randint(1, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    pairs = mt.PromptPairs.from_tokens(tokens, tokens.flip(0), tokens[:, 0], tokens[:, 1])
    with caplog.at_level(logging.WARNING):
        tracer = mt.Tracer(model, pairs, mt.mlps(model).at("last"))
        tracer.effects(torch.eye(4))
        mt.Tracer(model, pairs, mt.mlps(model).at("last")).effects(torch.eye(4))
    said = [r.getMessage() for r in caplog.records if "token restarts are off, because" in r.getMessage()]
    assert len(said) == 1 and tracer.cost.off[0].startswith("token restarts: off, because ")


def test_a_module_that_was_replaced_is_found_again() -> None:
    """Where the names differ, what attention reads is handed on in every forward, also after somebody's surgery."""
    model = random_gpt2(4, 4, 16, d_vocab=64, n_ctx=32)
    if not (handles := pass_on_cache(model)):
        pytest.skip("this transformers and this TransformerLens agree on the name")
    for handle in handles:
        handle.remove()
    model.blocks[1].attn = own = copy.deepcopy(model.blocks[1].attn)
    assert not passes_on_cache(model) and not own._forward_pre_hooks
    pass_on_cache(model)
    assert passes_on_cache(model) and own._forward_pre_hooks
