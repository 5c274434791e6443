"""Models by name: from the hub, from a local folder, or the demo inside the package."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


def load_model(
    name_or_path: str, device: str | torch.device | None = None, dtype: torch.dtype | str | None = None
) -> Any:
    """Load a model by hub name, local Hugging Face folder, or ``"demo"`` (the model inside this package).

    TransformerLens 3 and 4 give a ``TransformerBridge``, 2.x a ``HookedTransformer`` with unprocessed weights, so that
    activations mean the same on both.

    Args:
        name_or_path: ``"demo"``, a folder with ``config.json``, or a name on the Hugging Face hub such as ``"gpt2"``.
        device: default: ``"cuda"`` where there is one, else ``"cpu"``.
        dtype: ``torch.float32`` (default), ``torch.bfloat16``, ... or its name.

    Raises:
        FileNotFoundError: a path was meant (it has a separator or starts with a dot) and no such folder exists.
        ValueError: unknown dtype name.
    """
    device = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = parse_dtype(dtype)
    began = time.perf_counter()
    model = _load(name_or_path, device, dtype)
    logger.info("%s loaded on %s as %s in %.1f s", name_or_path, device, dtype, time.perf_counter() - began)
    return model


def _load(name_or_path: str, device: str, dtype: torch.dtype) -> Any:
    if name_or_path == "demo":
        from tl_multitrace.demo import load_demo_model

        with torch.random.fork_rng(devices=[]):
            return load_demo_model(device=device, dtype=dtype)
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir() and name_or_path.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"no model folder {name_or_path!r}. Give a folder with config.json and weights, a Hugging Face name "
            "('gpt2'), or 'demo'."
        )
    name = str(folder) if folder.is_dir() else name_or_path
    # Making a model draws weights, which the loaded ones replace: the caller's generator must not notice.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", DeprecationWarning)
        return _boot(name, device, dtype).eval()


def _boot(name: str, device: str, dtype: torch.dtype) -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        return _boot_hooked(name, device, dtype)
    return TransformerBridge.boot_transformers(name, device=device, dtype=dtype)


def _boot_hooked(name: str, device: str, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer

    options: dict[str, Any] = {"device": device, "dtype": dtype}
    if Path(name).is_dir():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options["hf_model"] = AutoModelForCausalLM.from_pretrained(name, torch_dtype=dtype)
        options["tokenizer"] = AutoTokenizer.from_pretrained(name)
    return HookedTransformer.from_pretrained_no_processing(name, **options)


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """``"bfloat16"`` -> ``torch.bfloat16``; None -> ``torch.float32``.

    Raises:
        ValueError: not the name of a floating-point dtype.
    """
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"unknown dtype {dtype!r}: use 'float32', 'bfloat16', 'float16' or 'float64'.")
    return found
