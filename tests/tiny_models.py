"""Small random models, built without a network on every supported TransformerLens.

The registry is ``MODEL_NAMES``: one string per model that the installed TransformerLens can build, read as
``<api>-<family>[-compat]``:

* api: ``hooked`` (``HookedTransformer``, 2.x and 3.x) or ``bridge`` (``TransformerBridge``, 3.x and 4.x);
* family: a Hugging Face architecture (``gpt2``, ``llama``, ``qwen2``, ``qwen3``, ``neox``, ``gemma2``) or one of
  TransformerLens' own (``native``, ``native-gqa``, ``attn-only``);
* ``-compat``: the bridge after ``enable_compatibility_mode()``, that is with folded and centred weights.

Weights are large on purpose. At the usual initialisation (std 0.02) a three-layer model is almost linear, and a patch
that goes wrong changes its logits by less than a tolerance.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import importlib
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from tiny_tokenizer import word_tokenizer as word_tokenizer  # part of this module's names

TL_MAJOR = int(version("transformer_lens").split(".")[0])
HAS_HOOKED = TL_MAJOR < 4
HAS_BRIDGE = TL_MAJOR >= 3

N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD, D_MODEL, D_MLP, N_CTX, D_VOCAB = 3, 4, 2, 8, 32, 64, 32, 128


# ------------------------------------------------------------------------------------------------ random state
@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generator for the block, then give torch, numpy and Python theirs back as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def randomise(module: nn.Module, seed: int) -> None:
    """Fill a module in place: matrices N(0, 0.35), biases N(0, 0.1), norm scales N(0, 0.2) around their own value.

    Drawn in float64 and rounded, so that one seed gives the same model in every dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("b", "bias") or leaf.lstrip("_").startswith("b_"):
                parameter.copy_(0.1 * draw)
            elif parameter.ndim == 1:
                parameter.add_((0.2 * draw).to(parameter.dtype))
            else:
                parameter.copy_(0.35 * draw)


# ------------------------------------------------------------------------------------- Hugging Face architectures
@dataclass(frozen=True)
class Family:
    """What it takes to build one Hugging Face architecture as a model of either API."""

    prefix: str
    config: Callable[[], dict[str, Any]]
    hooked: Callable[[Any], dict[str, Any]]
    converter: str


def _sizes(**extra: Any) -> dict[str, Any]:
    return {
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": N_CTX,
        **extra,
    }


def _grouped(**extra: Any) -> dict[str, Any]:
    return _sizes(num_key_value_heads=N_KV_HEADS, **extra)


def _gpt2_sizes() -> dict[str, Any]:
    return {"n_embd": D_MODEL, "n_inner": D_MLP, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": N_CTX}


def _rotary(config: Any, **extra: Any) -> dict[str, Any]:
    """The ``HookedTransformerConfig`` fields that Llama and its relatives share."""
    return {
        "act_fn": "silu",
        "normalization_type": "RMS",
        "eps": config.rms_norm_eps,
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": D_HEAD,
        "rotary_adjacent_pairs": False,
        "n_key_value_heads": N_KV_HEADS,
        **extra,
    }


def _neox_fields(config: Any) -> dict[str, Any]:
    return {
        "act_fn": "gelu",
        "normalization_type": "LN",
        "eps": config.layer_norm_eps,
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": D_HEAD // 4,
        "rotary_adjacent_pairs": False,
    }


def _gemma2_fields(config: Any) -> dict[str, Any]:
    return _rotary(
        config,
        act_fn="gelu_pytorch_tanh",
        attn_scale=D_HEAD**0.5,
        use_normalization_before_and_after=True,
        attn_scores_soft_cap=config.attn_logit_softcapping,
        output_logits_soft_cap=config.final_logit_softcapping,
        use_local_attn=True,
        window_size=config.sliding_window,
        attn_types=["local", "global", "local"],
    )


def _gpt2_fields(config: Any) -> dict[str, Any]:
    return {"act_fn": "gelu_new", "normalization_type": "LN", "eps": config.layer_norm_epsilon}


# Gemma-2's window is shorter than the longest test prompt, so that local and global layers differ.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2", _gpt2_sizes, _gpt2_fields, "convert_gpt2_weights"),
    "llama": Family("Llama", lambda: _grouped(head_dim=D_HEAD), _rotary, "convert_llama_weights"),
    "qwen2": Family("Qwen2", _grouped, _rotary, "convert_qwen2_weights"),
    "qwen3": Family(
        "Qwen3", lambda: _grouped(head_dim=D_HEAD), lambda c: _rotary(c, use_qk_norm=True), "convert_qwen3_weights"
    ),
    "neox": Family("GPTNeoX", _sizes, _neox_fields, "convert_neox_weights"),
    "gemma2": Family(
        "Gemma2",
        lambda: _grouped(head_dim=D_HEAD, query_pre_attn_scalar=D_HEAD, sliding_window=6),
        _gemma2_fields,
        "convert_gemma_weights",
    ),
}


def hf_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A tiny Hugging Face model with random weights, in eval mode."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    prefix = FAMILIES[family].prefix
    config_class = getattr(transformers, f"{prefix}Config")
    model_class = getattr(transformers, f"{prefix}LMHeadModel" if family == "gpt2" else f"{prefix}ForCausalLM")
    fields = {"vocab_size": D_VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = config_class(**{**fields, **FAMILIES[family].config(), **overrides}, attn_implementation="eager")
    with forked_rng(seed):
        model = model_class(config)
    randomise(model, seed)
    return model.to(dtype).eval()


# -------------------------------------------------------------------------------------------- HookedTransformer
def _hooked(fields: dict[str, Any], dtype: torch.dtype, seed: int, tokenizer: Any) -> Any:
    """A HookedTransformer with this config. No ``seed`` in the config: it would reseed every global generator."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(**fields, device="cpu", dtype=dtype)
    with forked_rng(seed):
        return HookedTransformer(config, tokenizer=tokenizer).eval()


def hooked_from_hf(hf: Any, family: str, tokenizer: Any = None) -> Any:
    """A HookedTransformer with the weights of a Hugging Face model, unprocessed.

    ``from_pretrained_no_processing(name, hf_model=...)`` asks the hub for the config of most families; config and
    weight conversion by hand do not.
    """
    conversions = importlib.import_module("transformer_lens.pretrained.weight_conversions")
    config = hf.config
    fields = {
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "d_model": config.hidden_size,
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "d_mlp": config.n_inner if family == "gpt2" else config.intermediate_size,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "original_architecture": type(hf).__name__,
        **FAMILIES[family].hooked(config),
    }
    model = _hooked(fields, hf.dtype, 0, tokenizer)
    weights = getattr(conversions, FAMILIES[family].converter)(hf, model.cfg)
    model.load_and_process_state_dict(
        {name: weight.detach().clone() for name, weight in weights.items()},
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


# -------------------------------------------------------------------------------------------- TransformerBridge
def bridge_from_hf(hf: Any, tokenizer: Any = None) -> Any:
    """A bridge around a Hugging Face model, which it changes in place.

    With a tokenizer it is booted as a user would; without one by the builder below that, since
    ``boot_transformers`` looks for a tokenizer on the hub.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    with forked_rng(0):  # the layers that split joint q, k and v are first filled at random
        if tokenizer is None:
            return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config).eval()
        name = f"local/tiny-{hf.config.model_type}"
        return TransformerBridge.boot_transformers(
            name, hf_model=hf, tokenizer=tokenizer, device="cpu", dtype=hf.dtype
        ).eval()


def _bridge_native(fields: dict[str, Any], dtype: torch.dtype, seed: int, tokenizer: Any) -> Any:
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = TransformerBridgeConfig(**fields, dtype=dtype)
    with forked_rng(seed):
        return TransformerBridge.boot_native(config, tokenizer=tokenizer, device="cpu", dtype=dtype).eval()


# --------------------------------------------------------------------------------- TransformerLens' own families
def _native_fields(**extra: Any) -> dict[str, Any]:
    sizes = {"n_layers": N_LAYERS, "n_heads": N_HEADS, "d_model": D_MODEL, "d_head": D_HEAD, "d_mlp": D_MLP}
    return {
        **sizes,
        "n_ctx": N_CTX,
        "d_vocab": D_VOCAB,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        **extra,
    }


NATIVE: dict[str, dict[str, Any]] = {
    "native": _native_fields(),
    "native-gqa": _native_fields(
        n_key_value_heads=N_KV_HEADS,
        positional_embedding_type="rotary",
        rotary_dim=D_HEAD,
        gated_mlp=True,
        act_fn="silu",
        normalization_type="RMS",
        final_rms=True,
    ),
    "attn-only": _native_fields(attn_only=True),
}


# ------------------------------------------------------------------------------------------------- the registry
MODEL_NAMES: list[str] = [
    *(f"hooked-{family}" for family in (*FAMILIES, *NATIVE) if HAS_HOOKED),
    *(f"bridge-{family}{mode}" for family in (*FAMILIES, *NATIVE) for mode in ("", "-compat") if HAS_BRIDGE),
]


API = "bridge" if HAS_BRIDGE else "hooked"


def few(*more: str) -> list[str]:
    """Four models that differ where a trace could go wrong, and those of ``more`` that can be built here.

    GPT-2 (the plain case), Llama (grouped keys and values, RMS norms, rotary), NeoX (attention beside the MLP) and
    Gemma-2 (windows, soft caps, norms on both sides), all of the newest API; where both APIs are, GPT-2 of the older
    one too. Two tests of ``test_models.py`` go through the whole registry; every other one needs no more than these.

    Args:
        more: Families of the registry, such as ``"native"`` or ``"gpt2-compat"``.
    """
    names = [f"{API}-{family}" for family in ("gpt2", "llama", "neox", "gemma2", *more)]
    return [name for name in MODEL_NAMES if name in (*names, "hooked-gpt2")]


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, tokenizer: Any = None) -> Any:
    """Build one model of the registry, in eval mode on the CPU.

    Args:
        name: An entry of ``MODEL_NAMES``.
        dtype: Of all weights. The weights of one seed are the same numbers in every dtype, up to rounding.
        seed: Weights are a function of name and seed alone.
        tokenizer: Given to the model; its vocabulary must fit ``D_VOCAB``.
    """
    if name not in MODEL_NAMES:
        raise KeyError(f"{name!r} can't be built on TransformerLens {version('transformer_lens')}: {MODEL_NAMES}")
    api, family = name.removesuffix("-compat").split("-", 1)
    if family in NATIVE:
        make = _hooked if api == "hooked" else _bridge_native
        model = make(NATIVE[family], dtype, seed, tokenizer)
        randomise(model, seed)
    elif api == "hooked":
        model = hooked_from_hf(hf_model(family, dtype, seed), family, tokenizer)
    else:
        model = bridge_from_hf(hf_model(family, dtype, seed), tokenizer)
    if name.endswith("-compat"):
        model.enable_compatibility_mode(disable_warnings=True)
        model.original_model.to(dtype)  # 3.x folds Qwen2's value biases into new float32 ones
    return model


def float64_is_exact(name: str) -> bool:
    """Whether a float64 model computes in float64 throughout.

    Bridges keep the float32 RMS norm of the Hugging Face code (and of ``boot_native``), whatever the dtype: there the
    noise in a logit is about 1e-7, so a central difference with a step of 1e-3 is right to about 1e-3.
    """
    rms = ("llama", "qwen2", "qwen3", "gemma2", "native-gqa")
    return name.startswith("hooked-") or name.removeprefix("bridge-").removesuffix("-compat") not in rms


def build_pair(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, tokenizer: Any = None) -> Any:
    """The same Hugging Face weights as ``(HookedTransformer, TransformerBridge)``; TransformerLens 3.x only."""
    names = (f"hooked-{family}", f"bridge-{family}")
    return tuple(build(name, dtype, seed, tokenizer) for name in names)


def random_gpt2(
    n_layers: int = 12,
    n_heads: int = 12,
    d_model: int = 768,
    d_vocab: int = 50257,
    n_ctx: int = 1024,
    *,
    seed: int = 0,
    boost: float = 3.0,
    api: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A GPT-2 of any size whose random weights are ``boost`` times Hugging Face's initialisation.

    At the plain initialisation every component's effect is close to zero and close to additive. Boosted ones give
    diffuse, strongly interacting effects: a hard and honest subject for solvers and for timing.

    Args:
        n_layers: Number of blocks; likewise ``n_heads``, ``d_model``, ``d_vocab`` and ``n_ctx``.
        seed: Weights are a function of the shape, seed and boost alone, whatever the api.
        boost: Factor on every weight matrix, embeddings included.
        api: ``"hooked"`` or ``"bridge"``; by default the bridge where the installed TransformerLens has one.
        dtype: Of all weights.
    """
    import transformers

    api = api or ("bridge" if HAS_BRIDGE else "hooked")
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"n_layer": n_layers, "n_head": n_heads, "n_embd": d_model, "vocab_size": d_vocab, "n_positions": n_ctx}
    config = transformers.GPT2Config(**shape, **dropout, n_inner=4 * d_model, attn_implementation="eager")
    with forked_rng(seed):
        hf = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.mul_(boost)
    hf = hf.to(dtype).eval()
    return hooked_from_hf(hf, "gpt2") if api == "hooked" else bridge_from_hf(hf)
