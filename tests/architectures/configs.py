"""Every text decoder that TransformerLens' architecture factory knows, as a tiny model with random weights.

An entry of ``ARCHITECTURES`` is one configuration: the name by which TransformerLens knows the architecture, the class
of transformers that computes it, and the fields of its configuration that differ from ``SIZES``, which every
configuration takes as far as it has such fields. Variants of one architecture bear a suffix: ``Falcon-new``.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from tiny_models import forked_rng, randomise

D_MODEL, D_MLP, D_HEAD, N_HEADS, N_KV, N_LAYERS, N_CTX, D_VOCAB = 32, 48, 8, 4, 2, 3, 32, 64

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "lru_width"), D_MODEL),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), D_MLP),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), N_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), N_HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), N_KV),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), N_CTX),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(
        ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "residual_dropout"), 0.0
    ),
    "vocab_size": D_VOCAB,
    "head_dim": D_HEAD,
    "sliding_window": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
"""What every configuration gets, as far as it has such fields. A window of 4 is shorter than the prompts."""


@dataclass(frozen=True)
class Architecture:
    """One configuration of one architecture.

    Attributes:
        name: as TransformerLens' factory calls it.
        hf: the class in transformers, where it is called differently.
        fields: of the configuration, in place of those of ``SIZES``.
        dtype: of the weights; float32 where transformers' code does not run in float64.
        tolerance: largest error, as a share of the largest logit difference (or of 1). Most models take norms,
            softmax or rotations in float32 whatever the dtype of the weights.
    """

    name: str
    hf: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-5

    def config(self) -> Any:
        """Its configuration."""
        import transformers

        kind = getattr(transformers, self.hf or self.name).config_class
        known = {f.name for f in dataclasses.fields(kind)}
        sizes = {name: value for name, value in SIZES.items() if name in known}
        return kind(**{**sizes, **self.fields}, attn_implementation="eager", experts_implementation="eager")

    def hf_model(self, seed: int = 0) -> Any:
        """The model of transformers, in eval mode."""
        import transformers

        logging.getLogger("transformers").setLevel(logging.ERROR)
        with forked_rng(seed):
            model = getattr(transformers, self.hf or self.name)(self.config())
        randomise(model, seed)
        return model.to(self.dtype).eval()

    def build(self, seed: int = 0) -> Any:
        """The model as a bridge of TransformerLens."""
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        hf = self.hf_model(seed)
        with forked_rng(seed):  # layers that split joint weights are first filled at random
            return build_bridge_from_module(hf, self.name, hf_config=hf.config).eval()


MLA = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
"""Multi-head latent attention: queries, keys and values through narrow projections."""

_HYBRID = ["linear_attention", "full_attention", "linear_attention"]
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": _HYBRID,
}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}

_FIELDS: dict[str, dict[str, Any]] = {
    "AfmoeForCausalLM": {"layer_types": _WINDOWS},
    "BambaForCausalLM": {**_MAMBA2, "attn_layer_indices": [1]},
    "FlexOlmoForCausalLM": {},
    "JetMoeForCausalLM": {"kv_channels": D_HEAD},
    "LagunaForCausalLM": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "VaultGemmaForCausalLM": {"layer_types": _WINDOWS, "query_pre_attn_scalar": D_HEAD},
    "YoutuForCausalLM": {**MLA, "num_key_value_heads": N_HEADS},
    "RwkvForCausalLM": {"attention_hidden_size": D_MODEL},
    "Cohere2ForCausalLM": {"layer_types": _WINDOWS},
    "DeepseekV2ForCausalLM": {**MLA, "num_key_value_heads": N_HEADS, "first_k_dense_replace": 1, "head_dim": 4},
    "DeepseekV3ForCausalLM": {**MLA, "num_key_value_heads": N_HEADS, "first_k_dense_replace": 1, "head_dim": 4},
    "Ernie4_5_MoeForCausalLM": {"moe_layer_end_index": 2},
    "Exaone4ForCausalLM": {"layer_types": _WINDOWS},
    "FalconForCausalLM": {},
    "FalconH1ForCausalLM": {**_MAMBA2, "mamba_d_ssm": 64},
    "FalconMambaForCausalLM": {"state_size": 4, "time_step_rank": 4, "intermediate_size": 64},
    "MambaForCausalLM": {"state_size": 4, "time_step_rank": 4, "intermediate_size": 64},
    "Mamba2ForCausalLM": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "Gemma2ForCausalLM": {"layer_types": _WINDOWS, "query_pre_attn_scalar": D_HEAD},
    "Gemma3ForCausalLM": {"layer_types": _WINDOWS, "query_pre_attn_scalar": D_HEAD},
    "Gemma4ForCausalLM": {
        "layer_types": _WINDOWS,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": D_VOCAB,
        "global_head_dim": 16,
    },
    "GraniteMoeHybridForCausalLM": {**_MAMBA2, "layer_types": _HYBRID, "position_embedding_type": "rope"},
    "GlmMoeDsaForCausalLM": {
        **MLA,
        "num_key_value_heads": N_HEADS,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "index_topk": 4,
        "index_head_dim": 8,
        "index_n_heads": 8,  # few give ties, which padding breaks another way
    },
    "Glm4MoeLiteForCausalLM": {**MLA, "num_key_value_heads": N_HEADS, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "GptOssForCausalLM": {"layer_types": _WINDOWS},
    "HrmTextForCausalLM": {},
    "JambaForCausalLM": {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "Llama4ForCausalLM": {
        "intermediate_size_mlp": D_MLP,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 4,
        "no_rope_layers": [1, 0, 1],
    },
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "NemotronHForCausalLM": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 24,
        "use_mamba_kernels": False,
    },
    "Olmo3ForCausalLM": {"layer_types": _WINDOWS},
    "OlmoHybridForCausalLM": _DELTA,
    "OPTForCausalLM": {"ffn_dim": 4 * D_MODEL, "word_embed_proj_dim": D_MODEL},
    "Qwen2MoeForCausalLM": {},
    "Qwen3NextForCausalLM": _DELTA,
    "Qwen3_5ForCausalLM": _DELTA,
    "Qwen3_5MoeForCausalLM": _DELTA,
    "RecurrentGemmaForCausalLM": {"block_types": ["recurrent", "attention"], "attention_window_size": 4},
    "Zamba2ForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "chunk_size": 8,
        "adapter_rank": 4,
        "use_mamba_kernels": False,
    },
    "DeepseekV4ForCausalLM": {},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 4},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "CodeGenForCausalLM": {"rotary_dim": 4},
    "MptForCausalLM": {},
    "XGLMForCausalLM": {},
}

_PLAIN = """
Apertus Arcee Jais2 Ministral3 ModernBertDecoder NanoChat BitNet Bloom Cohere Ernie4_5 Gemma Granite
GraniteMoe Glm Glm4 Glm4Moe GPTBigCode HunYuanDenseV1 Llama MiniMaxM2 Nemotron Mixtral Mistral Olmo Olmo2
Olmoe Phi Phi3 Qwen2 Qwen3 Qwen3Moe SeedOss SmolLM3 StableLm Starcoder2 GPTNeoX
""".split()

_ALIASES = {
    "Gemma1ForCausalLM": "GemmaForCausalLM",
    "GPT2LMHeadCustomModel": "GPT2LMHeadModel",
    "JetMoEForCausalLM": "JetMoeForCausalLM",
    "MPTForCausalLM": "MptForCausalLM",
    "NeoForCausalLM": "GPTNeoForCausalLM",
    "NeoXForCausalLM": "GPTNeoXForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
}
"""Names of the factory for classes that transformers calls differently."""

_VARIANTS: dict[str, dict[str, Any]] = {
    "OPTForCausalLM-projected": {"word_embed_proj_dim": 16, "ffn_dim": D_MLP, "do_layer_norm_before": False},
    "OPTForCausalLM-narrow": {"ffn_dim": D_MLP, "word_embed_proj_dim": D_MODEL},
    "FalconForCausalLM-new": {"new_decoder_architecture": True, "num_kv_heads": N_KV, "multi_query": False},
    "FalconForCausalLM-alibi": {
        "alibi": True,
        "multi_query": False,
        "num_kv_heads": N_HEADS,
        "parallel_attn": False,
        "bias": True,
    },
    "GPTNeoXForCausalLM-serial": {"use_parallel_residual": False},
    "GPT2LMHeadModel-untied": {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True},
    "LlamaForCausalLM-tied": {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 1},
    "Qwen2ForCausalLM-windows": {"use_sliding_window": True, "layer_types": _WINDOWS},
    "Qwen3MoeForCausalLM-mixed": {"mlp_only_layers": [1]},
    "StableLmForCausalLM-parallel": {"use_parallel_residual": True, "qk_layernorm": True},
    "DeepseekV3ForCausalLM-even": {
        **_FIELDS["DeepseekV3ForCausalLM"],
        **{"qk_rope_head_dim": D_HEAD, "qk_nope_head_dim": D_HEAD, "v_head_dim": D_HEAD, "head_dim": D_HEAD},
    },
    "Gemma4ForCausalLM-shared": {
        **_FIELDS["Gemma4ForCausalLM"],
        "num_kv_shared_layers": 1,
        "use_double_wide_mlp": True,
    },
    "Gemma4ForCausalLM-moe": {**_FIELDS["Gemma4ForCausalLM"], "enable_moe_block": True},
    "GptOssForCausalLM-square": {**_FIELDS["GptOssForCausalLM"], "intermediate_size": D_MODEL},
    "GraniteMoeHybridForCausalLM-dense": {**_FIELDS["GraniteMoeHybridForCausalLM"], "num_local_experts": 0},
    "LagunaForCausalLM-heads": {**_FIELDS["LagunaForCausalLM"], "num_attention_heads_per_layer": [4, 2, 4]},
}
"""Other configurations of an architecture."""

_EXACTNESS: dict[str, dict[str, Any]] = {
    "XGLMForCausalLM": {"dtype": torch.float32, "tolerance": 1e-4},
    "BloomForCausalLM": {"tolerance": 1e-4},
    "Zamba2ForCausalLM": {"tolerance": 1e-3},  # of a gradient through a state space layer in float32
}


def _all() -> dict[str, Architecture]:
    names = {
        *_FIELDS,
        *(f"{short}ForCausalLM" for short in _PLAIN),
        "GPT2LMHeadModel",
        "OpenAIGPTLMHeadModel",
        "BloomModel",
    }
    made = {name: Architecture(name, fields=_FIELDS.get(name, {}), **_EXACTNESS.get(name, {})) for name in names}
    made |= {name: Architecture(name, hf, _FIELDS.get(hf, {})) for name, hf in _ALIASES.items()}
    made |= {name: Architecture(name.split("-")[0], fields=fields) for name, fields in _VARIANTS.items()}
    return dict(sorted(made.items()))


ARCHITECTURES: dict[str, Architecture] = _all()
"""By name; variants have a suffix."""

BROKEN = {
    "BloomModel": "TransformerLens looks for a part that it has not",
    "CodeGenForCausalLM": "TransformerLens looks for a part that it has not",
}
"""What TransformerLens itself cannot build or run."""
