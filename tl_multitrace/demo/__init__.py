"""The demo model: a small trained transformer with known behaviour, shipped with the package.

Four layers of eight heads, trained on the text of ``tl_multitrace.demo.grammar``. It loads in about a second, without
network, in every supported TransformerLens.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tl_multitrace.loading import checked_device
from tl_multitrace.records.read import load_json

__all__ = ["DEMO_FOLDER", "demo_card", "load_demo_model", "load_hf_model"]

DEMO_FOLDER = Path(__file__).parent
"""Where the demo model's weights, configuration and tokenizer are.

Examples:
    >>> from tl_multitrace.demo import DEMO_FOLDER
    >>> (DEMO_FOLDER / "model.safetensors").is_file()
    True
"""


def demo_card() -> dict[str, Any]:
    """Return the model card: architecture, grammar version, seed, command and measured accuracies.

    Examples:
        >>> from tl_multitrace.demo import demo_card
        >>> demo_card()["name"], demo_card()["parameters"]
        ('tl-multitrace-demo', 881280)
    """
    card: dict[str, Any] = load_json(DEMO_FOLDER / "metrics.json")
    return card


def load_hf_model(folder: Path = DEMO_FOLDER) -> Any:
    """Load the weights as Hugging Face's ``GPT2LMHeadModel``, on CPU in eval mode.

    Args:
        folder: Where ``config.json`` and ``model.safetensors`` are.

    Raises:
        RuntimeError: If the weights do not fit the configuration.

    Examples:
        >>> from tl_multitrace.demo import load_hf_model
        >>> sum(weights.numel() for weights in load_hf_model().parameters())
        881280
    """
    from safetensors.torch import load_file
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config.from_dict(load_json(folder / "config.json"))
    # Fused attention has no attention weights to look at or to patch.
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):  # making the model draws weights that are overwritten below
        model = GPT2LMHeadModel(config)
    weights = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    return model.eval()


def load_demo_model(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, api: str = "auto") -> Any:
    """Load the demo model with its tokenizer; no network.

    Args:
        device: Where to put the weights.
        dtype: Type of the weights; stored in ``torch.float32``.
        api: ``"bridge"`` for a ``TransformerBridge`` (TransformerLens 3 and later), ``"hooked"`` for a
            ``HookedTransformer`` (before 4), ``"auto"`` for the bridge where there is one.

    Returns:
        The model in eval mode, weights unprocessed (no folding of layer norms), BOS prepended by default. Both classes
        give the same logits.

    Raises:
        ValueError: For an unknown ``api``, or a device that is not there.
        ImportError: If the installed TransformerLens does not have the class asked for.

    Examples:
        >>> from tl_multitrace.demo import load_demo_model
        >>> model = load_demo_model()
        >>> model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model
        (4, 8, 128)
        >>> model.to_string(model("The Falcon Tower is in the city of")[0, -1].argmax())
        'Rome'
    """
    if api not in ("auto", "bridge", "hooked"):
        raise ValueError(f"unknown api {api!r}; pass 'auto', 'bridge' or 'hooked'")
    if api == "auto":
        api = "bridge" if _has_bridge() else "hooked"
    boot = _boot_bridge if api == "bridge" else _boot_hooked
    with torch.random.fork_rng(devices=[]):  # TransformerLens draws weights that are overwritten
        model = boot(torch.device(checked_device(device)), dtype)
    model.cfg.default_prepend_bos = True
    return model.eval()


def _has_bridge() -> bool:
    """Whether the installed TransformerLens has ``TransformerBridge``; looks without importing it."""
    spec = find_spec("transformer_lens")
    folders = spec.submodule_search_locations if spec is not None else None
    return any((Path(folder) / "model_bridge").is_dir() for folder in folders or ())


def _boot_bridge(device: torch.device, dtype: torch.dtype) -> Any:
    from .tokenizer import NAME, load_tokenizer

    if not _has_bridge():
        raise ImportError("TransformerBridge needs TransformerLens 3 or later; pass api='hooked', or upgrade")
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        NAME, hf_model=load_hf_model().to(dtype), tokenizer=load_tokenizer(DEMO_FOLDER), device=device, dtype=dtype
    )


def _boot_hooked(device: torch.device, dtype: torch.dtype) -> Any:
    from .tokenizer import NAME, load_tokenizer

    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    except ImportError as error:
        raise ImportError("HookedTransformer left TransformerLens in version 4; pass api='bridge'") from error

    source = load_hf_model().to(dtype)
    shape = source.config
    config = HookedTransformerConfig(
        model_name=NAME,
        n_layers=shape.n_layer,
        n_heads=shape.n_head,
        d_model=shape.n_embd,
        d_head=shape.n_embd // shape.n_head,
        d_mlp=shape.n_inner,
        n_ctx=shape.n_positions,
        d_vocab=shape.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=shape.layer_norm_epsilon,
        original_architecture="GPT2LMHeadModel",
        device=str(device),
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):
        model = HookedTransformer(config, tokenizer=load_tokenizer(DEMO_FOLDER))
        model.load_and_process_state_dict(
            convert_gpt2_weights(source, config),
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
    return model
