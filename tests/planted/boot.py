"""Make a TransformerLens model of a blueprint's weights, on every generation of TransformerLens."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor

from .blueprint import Weights

Backend = Literal["hooked", "bridge"]


def default_backend(pattern: bool) -> Backend:
    """``bridge`` where there is one, except for pattern edits on 3.x, which its native bridge ignores."""
    major = int(version("transformer_lens").split(".")[0])
    return "hooked" if major < 3 or (major == 3 and pattern) else "bridge"


def boot(weights: Weights, backend: Backend, dtype: torch.dtype = torch.float32) -> Any:
    """A model with these weights, no normalisation and no biases.

    Args:
        weights: from ``Blueprint.weights``.
        backend: ``hooked`` for ``HookedTransformer`` (up to 3.x), ``bridge`` for ``TransformerBridge`` (3.x and up).
        dtype: of the model's parameters.

    Returns:
        The model on the CPU, in eval mode.
    """
    config = dict(
        n_layers=weights.shape.n_layers,
        n_heads=weights.shape.n_heads,
        d_model=weights.W_E.shape[1],
        d_head=weights.shape.d_head,
        d_mlp=weights.shape.d_mlp,
        n_ctx=weights.shape.n_ctx,
        d_vocab=weights.W_E.shape[0],
        act_fn=weights.shape.act_fn,
        normalization_type=None,
    )
    # Both classes draw initial weights. No seed in the config: HookedTransformer would seed numpy and random with it.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = _boot_hooked(config, weights, dtype) if backend == "hooked" else _boot_bridge(config, weights, dtype)
    return model.eval()


def _boot_hooked(config: dict[str, Any], weights: Weights, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = HookedTransformer(HookedTransformerConfig(**config, device="cpu", dtype=dtype))
    model.embed.W_E.copy_(weights.W_E)
    model.pos_embed.W_pos.copy_(weights.W_pos)
    model.unembed.W_U.copy_(weights.W_U)
    for layer, block in enumerate(model.blocks):
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            getattr(block.attn, name).copy_(getattr(weights, name)[layer])
        block.mlp.W_in.copy_(weights.W_in[layer])
        block.mlp.W_out.copy_(weights.W_out[layer])
    return model


def _boot_bridge(config: dict[str, Any], weights: Weights, dtype: torch.dtype) -> Any:
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_native(TransformerBridgeConfig(**config, dtype=dtype), device="cpu", dtype=dtype)
    _fill(model.embed, weights.W_E)
    _fill(model.pos_embed, weights.W_pos)
    _fill(model.unembed, weights.W_U.T)
    for layer, block in enumerate(model.blocks):
        for name, part in (("W_Q", block.attn.q), ("W_K", block.attn.k), ("W_V", block.attn.v)):
            _fill(part, getattr(weights, name)[layer].transpose(1, 2).flatten(0, 1))
        _fill(block.attn.o, weights.W_O[layer].flatten(0, 1).T)
        _fill(getattr(block.mlp, "in"), weights.W_in[layer].T)
        _fill(block.mlp.out, weights.W_out[layer].T)
    return model


def _fill(part: Any, values: Tensor) -> None:
    """Set the weight of the embedding or linear layer that a bridge component wraps (biases start at zero)."""
    part.original_component.weight.copy_(values)
