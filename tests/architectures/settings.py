"""Every setting of ``HookedTransformerConfig`` that changes what a forward computes, as a tiny model (2.x and 3.x)."""

from __future__ import annotations

from typing import Any

import torch
from configs import D_HEAD, D_MLP, D_MODEL, D_VOCAB, N_CTX, N_HEADS, N_KV, N_LAYERS

from tiny_models import forked_rng, randomise

PLAIN: dict[str, Any] = {
    "n_layers": N_LAYERS,
    "n_heads": N_HEADS,
    "d_model": D_MODEL,
    "d_head": D_HEAD,
    "d_mlp": D_MLP,
    "n_ctx": N_CTX,
    "d_vocab": D_VOCAB,
    "act_fn": "gelu_new",
    "normalization_type": "LN",
}

_ROTARY = {"positional_embedding_type": "rotary"}
_EXPERTS = {"num_experts": 4, "experts_per_token": 2}

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": _ROTARY,
    "rotary in part": {**_ROTARY, "rotary_dim": 4, "rotary_adjacent_pairs": True},
    "rotary by parts": {**_ROTARY, "use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 8},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "alibi": {"positional_embedding_type": "alibi"},
    "grouped queries": {"n_key_value_heads": N_KV},
    "grouped queries, rotary": {"n_key_value_heads": N_KV, **_ROTARY},
    "grouped queries, ungrouped": {"n_key_value_heads": N_KV, "ungroup_grouped_query_attention": True},
    "parallel": {"parallel_attn_mlp": True},
    "attention only": {"attn_only": True},
    "gated MLP": {"gated_mlp": True, "act_fn": "silu"},
    "SoLU": {"act_fn": "solu_ln"},
    "experts": _EXPERTS,
    "gated experts": {**_EXPERTS, "gated_mlp": True, "act_fn": "silu"},
    "LNPre": {"normalization_type": "LNPre"},
    "RMS": {"normalization_type": "RMS", "final_rms": True},
    "RMSPre": {"normalization_type": "RMSPre", "final_rms": True},
    "no norms": {"normalization_type": None},
    "norms before and after": {"normalization_type": "RMS", "use_normalization_before_and_after": True},
    "norm after the embedding": {"post_embedding_ln": True},
    "cap on scores": {"attn_scores_soft_cap": 2.0},
    "cap on logits": {"output_logits_soft_cap": 3.0},
    "attention scale": {"attn_scale": 2.0},
    "no attention scale": {"use_attn_scale": False},
    "scale by layer": {"scale_attn_by_inverse_layer_idx": True},
    "local attention": {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global", "local"]},
    "norms of queries and keys": {"use_qk_norm": True, "normalization_type": "RMS"},
    "use_attn_result": {"use_attn_result": True},
    "use_split_qkv_input": {"use_split_qkv_input": True},
    "use_split_qkv_input, grouped": {"use_split_qkv_input": True, "n_key_value_heads": N_KV},
    "use_attn_in": {"use_attn_in": True},
    "use_hook_mlp_in": {"use_hook_mlp_in": True},
    "use_hook_tokens": {"use_hook_tokens": True},
    "more output ids": {"d_vocab_out": D_VOCAB + 16},
    "both directions": {"attention_dir": "bidirectional"},
}
"""What differs from ``PLAIN``."""


def dtype_of(name: str) -> torch.dtype:
    """Float64, but for experts, which TransformerLens computes in float32."""
    return torch.float32 if "num_experts" in SETTINGS[name] else torch.float64


def build(name: str, seed: int = 0) -> Any:
    """A HookedTransformer with one setting and random weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with forked_rng(seed):
        model = HookedTransformer(
            HookedTransformerConfig(**{**PLAIN, **SETTINGS[name]}, device="cpu", dtype=dtype_of(name))
        )
    randomise(model, seed)
    if model.cfg.normalization_type is None:
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.4)  # nothing else keeps the residual stream in bounds
    return model.eval()
