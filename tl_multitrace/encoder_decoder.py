"""What cannot be traced: a model of two stacks."""

from __future__ import annotations

from typing import Any


def refuse_encoder_decoder(model: Any) -> None:
    """Refuse models that read a prompt with an encoder and answer with a decoder (T5, BART).

    Raises:
        ValueError: ``model`` is one; the message names it.
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    if bool(getattr(config, "is_encoder_decoder", False)) or type(model).__name__ == "HookedEncoderDecoder":
        name = getattr(model.cfg, "model_name", None) or type(model).__name__
        raise ValueError(
            f"{name} is an encoder-decoder ({type(getattr(model, 'original_model', model)).__name__}), which has two "
            "stacks of blocks, with a prompt each: it cannot be traced here. Use a decoder (GPT-2, Llama) or a masked "
            "language model (BERT)."
        )
