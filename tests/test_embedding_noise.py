"""Noise acts on the token embedding itself, and is sized by it: bare hooks on the module are the truth."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from masked_models import NO_BRIDGE
from torch import Tensor

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, HAS_HOOKED, NATIVE, TL_MAJOR, forked_rng, randomise
from tl_multitrace.causal_trace import TokenReplacement, causal_trace
from tl_multitrace.models.embeddings import embedding_moments

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
BLOOM = {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
OPT = {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_dim": 128, "word_embed_proj_dim": 16}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertForMaskedLM", SIZES),  # a norm behind the embedding
    "Bloom": ("BloomForCausalLM", BLOOM),
    "ModernBertDecoder": ("ModernBertDecoderForCausalLM", SIZES),
    "Roberta": ("RobertaForMaskedLM", SIZES),
    "Gemma2": ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 8}),  # a factor inside of the module
    "Granite": ("GraniteForCausalLM", {**GROUPED, "embedding_multiplier": 12.0}),  # a factor behind it
    "OPT": ("OPTForCausalLM", OPT),  # embeddings of another width
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}),
}
IDS, SPAN, READ = [7, 31, 5, 88, 40, 12], (1, 3), 4
bridges = pytest.mark.skipif(not HAS_BRIDGE, reason=NO_BRIDGE)
kinds = pytest.mark.parametrize("kind", [k for k in KINDS if k != "Roberta" or TL_MAJOR >= 4])


def hf_of(kind: str) -> Any:
    import transformers

    name, sizes = KINDS[kind]
    with forked_rng(3):
        hf = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**sizes))
    randomise(hf, 3)
    return hf.eval()


@cache
def bridge_of(kind: str) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = hf_of(kind)
    with forked_rng(0):  # the layers that split joint q, k and v are first filled at random
        return build_bridge_from_module(hf, KINDS[kind][0], hf_config=hf.config, tokenizer=None).eval()


@cache
def answer_of(kind: str) -> int:
    with torch.no_grad():
        return int(hf_of(kind)(torch.tensor([IDS])).logits[0, READ].argmax())


def bare(kind: str, change: Any) -> tuple[float, Tensor]:
    """Probability of the answer where ``change`` edits what the embedding module gives, and what it gives."""
    hf, seen = hf_of(kind), []
    module = hf.get_input_embeddings()
    handle = module.register_forward_hook(lambda m, args, out: seen.append(out.clone()) or change(out.clone()))
    with torch.no_grad():
        logits = hf(torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS), dtype=torch.long)).logits
    handle.remove()
    return float(logits[0, READ].softmax(-1)[answer_of(kind)]), seen[0][0]


def noised(kind: str, size: float, seed: int) -> tuple[float, float]:
    """The answer's probability under Gaussian noise by hand, and the standard deviation that it was in units of."""
    embeddings = bare(kind, lambda out: out)[1]
    std = float(embeddings[slice(*SPAN)].std())
    draw = torch.randn(len(IDS), embeddings.shape[1], generator=torch.Generator().manual_seed(seed))
    draw[: SPAN[0]], draw[SPAN[1] :] = 0, 0
    return bare(kind, lambda out: out + size * std * draw)[0], std


def pairs(answer: int) -> mt.PromptPairs:
    tokens = torch.tensor([IDS])
    made = mt.PromptPairs.from_tokens(tokens, tokens, [answer], lengths=[len(IDS)], answer_positions=[READ])
    object.__setattr__(made, "spans", {"subject": torch.tensor([SPAN])})
    return made


@bridges
@kinds
def test_noise_is_that_of_a_bare_hook_on_the_embedding(kind: str) -> None:
    model = bridge_of(kind)
    expected = noised(kind, 3.0, 5)[0]
    clean = bare(kind, lambda out: out)[0]
    assert abs(expected - clean) > 1e-4  # the corruption does something here
    for restore in (False, True):
        noise = mt.NoiseCorruption(3.0, at="subject", seed=5, restore=restore)
        tracer = mt.Tracer(model, pairs(answer_of(kind)), mt.residual(model, [1]), mt.AnswerProb(), noise)
        base, whole = (expected, clean) if restore else (clean, expected)
        assert float(tracer.base_metric) == pytest.approx(base, abs=2e-6)
        assert float(tracer.effect(torch.ones(len(tracer.groups)))) == pytest.approx(whole - base, abs=2e-6)


@bridges
@kinds
def test_a_trace_and_its_unit_are_those_of_the_embedding(kind: str) -> None:
    options: dict[str, Any] = {"subject": SPAN, "answer": answer_of(kind), "answer_position": READ, "restore": "resid"}
    noise = mt.NoiseCorruption(2.0, std="prompts", seed=4)
    grid = causal_trace(bridge_of(kind), IDS, samples=1, corruption=noise, **options)
    expected, _ = noised(kind, 2.0, 4)
    assert float(grid.corrupted[0]) == pytest.approx(expected, abs=2e-6)


@bridges
@kinds
def test_a_fixed_value_stands_in_the_embedding(kind: str) -> None:
    def change(out: Tensor) -> Tensor:
        out[0, slice(*SPAN)] = 0.0
        return out

    fixed = mt.NoiseCorruption(at="subject", kind="fixed", restore=True)
    model = bridge_of(kind)
    tracer = mt.Tracer(model, pairs(answer_of(kind)), mt.residual(model, [1]), mt.AnswerProb(), fixed)
    assert float(tracer.base_metric) == pytest.approx(bare(kind, change)[0], abs=2e-6)


@bridges
@kinds
def test_the_matrix_is_measured_where_it_is_hooked(kind: str) -> None:
    view, module = mt.ModelView(bridge_of(kind)), hf_of(kind).get_input_embeddings()
    with torch.no_grad():
        raw = module(torch.arange(128))
    factor = float(view.embed(torch.tensor([7])).norm() / raw[7].norm())  # 12 where a hook sees Granite's factor
    mean, std = embedding_moments(view)
    assert std == pytest.approx(float(raw.std()) * factor, rel=1e-4)
    assert torch.allclose(mean.float(), raw.mean(0) * factor, atol=1e-5)


@pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
def test_a_norm_that_no_hook_precedes_is_refused() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(**{**NATIVE["native"], "post_embedding_ln": True}, device="cpu")
    with forked_rng(0):
        model = HookedTransformer(config).eval()
    with pytest.raises(ValueError, match=r"token embeddings of .* cannot be corrupted"):
        mt.Tracer(model, pairs(9), mt.heads(model), mt.AnswerProb(), mt.NoiseCorruption(at="subject", restore=True))
    replaced = TokenReplacement([[7, 30, 6, 88, 40, 12]])
    grid = causal_trace(model, IDS, subject=SPAN, answer=9, samples=1, restore="mlp", corruption=replaced)
    assert grid.restored.isfinite().all()
