"""What cannot be traced: models that are not one stack of blocks, each run once."""

from __future__ import annotations

from typing import Any


def architecture_of(model: Any) -> str:
    """The class of the model inside a bridge, such as ``GPT2LMHeadModel``; else the model's own."""
    return type(getattr(model, "original_model", model)).__name__


def refuse_other_shapes(model: Any) -> None:
    """Refuse models that are not one stack of blocks, each run once.

    Raises:
        ValueError: an encoder-decoder, or a model without ``blocks``.
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    if getattr(config, "is_encoder_decoder", False) or "EncoderDecoder" in type(model).__name__:
        name = getattr(model.cfg, "model_name", None) or type(model).__name__
        raise ValueError(
            f"{name} is an encoder-decoder ({architecture_of(model)}): base and source would need a prompt for either "
            "of its two stacks of blocks, and a layer number names neither. Use a decoder (GPT-2, Llama) or a masked "
            "language model (BERT)."
        )
    if not hasattr(model, "blocks"):
        stacks = [name for name, _ in model.named_children() if name.endswith("blocks")]
        raise ValueError(
            f"{architecture_of(model)} is not one stack of blocks that run once each (TransformerLens has "
            f"{' and '.join(stacks) or 'none'} instead of blocks), so that heads, neurons, mlps or residual states of "
            "a layer have no place of their own in a run. Use a model with one stack, such as gpt2."
        )
