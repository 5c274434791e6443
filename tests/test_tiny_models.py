"""The models that every other test stands on: they build offline, their hook points fire, padding changes nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from tiny_models import (
    D_HEAD,
    D_MLP,
    D_MODEL,
    D_VOCAB,
    FAMILIES,
    HAS_BRIDGE,
    HAS_HOOKED,
    MODEL_NAMES,
    N_HEADS,
    N_LAYERS,
    build,
    build_pair,
    few,
    float64_is_exact,
    random_gpt2,
    word_tokenizer,
)
from tiny_tokenizer import BOS, PAD, UNK

pytestmark = pytest.mark.lens

N_POS = 9
some_models = pytest.mark.parametrize("name", few("native", "attn-only"))


def random_tokens(rows: int, seed: int = 1, d_vocab: int = D_VOCAB) -> torch.Tensor:
    return torch.randint(3, d_vocab, (rows, N_POS), generator=torch.Generator().manual_seed(seed))


def expected_shapes(name: str, rows: int) -> dict[str, tuple[int, ...]]:
    """Every hook point that hook groups may stand on, with the shape it should carry."""
    parallel, attn_only = "neox" in name, "attn-only" in name
    sites = {"hook_resid_pre": (D_MODEL,), "hook_resid_post": (D_MODEL,), "hook_attn_out": (D_MODEL,)}
    sites["attn.hook_z"] = (N_HEADS, D_HEAD)
    if not attn_only:
        sites |= {"mlp.hook_post": (D_MLP,), "hook_mlp_out": (D_MODEL,)}
    if not (parallel or attn_only):
        sites["hook_resid_mid"] = (D_MODEL,)
    shapes: dict[str, tuple[int, ...]] = {"hook_embed": (rows, N_POS, D_MODEL)}
    for layer in range(N_LAYERS):
        shapes |= {f"blocks.{layer}.{site}": (rows, N_POS, *tail) for site, tail in sites.items()}
        shapes[f"blocks.{layer}.attn.hook_pattern"] = (rows, N_HEADS, N_POS, N_POS)
    return shapes


@some_models
def test_builds_in_eval_mode_with_finite_uneven_logits(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        logits = model(random_tokens(2))
    assert not model.training
    assert logits.shape == (2, N_POS, D_VOCAB)
    assert logits.isfinite().all()
    assert logits.std(dim=-1).min() > 0.5


@some_models
def test_every_site_fires_once_with_its_shape(name: str) -> None:
    model = build(name)
    shapes: dict[str, list[tuple[int, ...]]] = {site: [] for site in expected_shapes(name, 2)}
    for site, seen in shapes.items():
        model.hook_dict[site].add_hook(lambda value, hook, seen=seen: seen.append(tuple(value.shape)))
    with torch.no_grad():
        model(random_tokens(2))
    assert shapes == {site: [shape] for site, shape in expected_shapes(name, 2).items()}


@some_models
@pytest.mark.parametrize("side", ["right", "left"])
def test_masked_padding_leaves_logits_as_they_are(name: str, side: str) -> None:
    model, tokens = build(name), random_tokens(2)
    pads = torch.ones(2, 4, dtype=torch.long)
    parts = [tokens, pads] if side == "right" else [pads, tokens]
    real = [torch.ones_like(tokens), torch.zeros_like(pads)][:: 1 if side == "right" else -1]
    with torch.no_grad():
        padded = model(torch.cat(parts, 1), attention_mask=torch.cat(real, 1))
        plain = model(tokens)
    kept = padded[:, :N_POS] if side == "right" else padded[:, 4:]
    torch.testing.assert_close(kept, plain, rtol=0, atol=2e-4)


@some_models
def test_float64_is_the_same_model(name: str) -> None:
    with torch.no_grad():
        double, single = build(name, torch.float64)(random_tokens(2)), build(name)(random_tokens(2))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)


def logit_with_shifted_heads(model: Any, tokens: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """A logit, after the head outputs of the first layer moved by ``size`` in a fixed direction."""
    direction = torch.linspace(-1, 1, D_HEAD, dtype=torch.float64)
    hook = ("blocks.0.attn.hook_z", lambda value, hook: value + size * direction)
    return model.run_with_hooks(tokens, fwd_hooks=[hook])[:, -1, 5].sum()


@some_models
def test_float64_gradients_match_differences_as_far_as_declared(name: str) -> None:
    model, tokens, step = build(name, torch.float64), random_tokens(2), 1e-3
    size = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(logit_with_shifted_heads(model, tokens, size), size)
    with torch.no_grad():
        around = [logit_with_shifted_heads(model, tokens, size + k * step) for k in (-2, -1, 1, 2)]
    slope = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * step)
    assert slope.item() == pytest.approx(gradient.item(), abs=1e-7 if float64_is_exact(name) else 3e-3)


@pytest.mark.parametrize("name", MODEL_NAMES[:1] + MODEL_NAMES[-1:])
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    with torch.no_grad():
        first, again, other = (build(name, seed=seed)(random_tokens(1)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


@pytest.mark.parametrize("name", few("native", "attn-only"))
def test_building_leaves_global_random_states_alone(name: str) -> None:
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    build(name, tokenizer=word_tokenizer())
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@some_models
def test_a_tokenizer_changes_no_logit_and_reads_text(name: str) -> None:
    model = build(name, tokenizer=word_tokenizer())
    text = "The doctor said that he"
    tokens = model.to_tokens(text, prepend_bos=False)
    assert model.to_string(tokens[0]) == text
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), build(name)(tokens))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError, match="hooked-mamba"):
        build("hooked-mamba")


@pytest.mark.skipif(not (HAS_HOOKED and HAS_BRIDGE), reason="needs a TransformerLens with both model classes (3.x)")
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_share_their_weights(family: str) -> None:
    hooked, bridge = build_pair(family)
    assert type(hooked).__name__ == "HookedTransformer"
    assert type(bridge).__name__ == "TransformerBridge"
    with torch.no_grad():
        torch.testing.assert_close(hooked(random_tokens(2)), bridge(random_tokens(2)), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------ random GPT-2
apis = pytest.mark.parametrize("api", ["hooked"] * HAS_HOOKED + ["bridge"] * HAS_BRIDGE)


@apis
def test_random_gpt2_has_the_asked_shape(api: str) -> None:
    model = random_gpt2(2, 3, 24, 50, 16, seed=1, api=api)
    asked = {"n_layers": 2, "n_heads": 3, "d_model": 24, "d_head": 8, "d_vocab": 50, "n_ctx": 16}
    assert {name: getattr(model.cfg, name) for name in asked} == asked
    assert model(random_tokens(2, d_vocab=50)).shape == (2, N_POS, 50)


@apis
def test_boost_makes_heads_matter(api: str) -> None:
    def change_without_heads(boost: float) -> float:
        model = random_gpt2(2, 4, 64, 50, 16, boost=boost, api=api)
        hooks = [(f"blocks.{layer}.attn.hook_z", lambda value, hook: value * 0) for layer in range(2)]
        with torch.no_grad():
            whole = model(random_tokens(4, d_vocab=50)).log_softmax(-1)
            without = model.run_with_hooks(random_tokens(4, d_vocab=50), fwd_hooks=hooks).log_softmax(-1)
        return (whole - without).abs().mean().item()

    assert change_without_heads(8.0) > 5 * change_without_heads(1.0)


@pytest.mark.skipif(not (HAS_HOOKED and HAS_BRIDGE), reason="needs a TransformerLens with both model classes (3.x)")
def test_random_gpt2_is_the_same_model_on_both_apis() -> None:
    models = [random_gpt2(2, 4, 32, 50, 16, seed=7, api=api) for api in ("hooked", "bridge")]
    with torch.no_grad():
        torch.testing.assert_close(*(m(random_tokens(2, d_vocab=50)) for m in models), rtol=0, atol=1e-4)


# --------------------------------------------------------------------------------------------------- tokenizer
def test_offsets_point_at_the_words() -> None:
    text = "The old doctor said that he"
    encoded = word_tokenizer()(text, return_offsets_mapping=True)
    assert [text[start:end] for start, end in encoded["offset_mapping"]] == text.split()


def test_leading_space_makes_another_token() -> None:
    split, joined = word_tokenizer(leading_space=True), word_tokenizer()
    assert split("he").input_ids != split(" he").input_ids
    assert joined("he").input_ids == joined(" he").input_ids
    assert max(split(" he , she").input_ids) < D_VOCAB


def test_leading_space_tokenizer_gives_back_the_text() -> None:
    tokenizer = word_tokenizer(leading_space=True)
    text = "When John and Mary went to the shop, John gave"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens() -> None:
    tokenizer = word_tokenizer(add_bos=True, padding_side="left")
    assert tokenizer.convert_ids_to_tokens(tokenizer("he xylophone").input_ids) == [BOS, "he", UNK]
    padded = tokenizer(["he", "he was"], padding=True)
    assert tokenizer.convert_ids_to_tokens(padded.input_ids[0]) == [PAD, BOS, "he"]
