"""Models by name: from the hub, from a local folder, or the demo inside the package."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tl_multitrace.distributed import local_device
from tl_multitrace.models.compat import ModelView, installed_version
from tl_multitrace.models.renamed import pass_on_cache
from tl_multitrace.models.stacks import refuse_other_shapes
from tl_multitrace.tokens import Encoder

logger = logging.getLogger(__name__)


def load_model(
    name_or_path: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Any:
    """Load a model by hub name, local Hugging Face folder, or ``"demo"`` (the model inside this package).

    TransformerLens 3 and 4 give a ``TransformerBridge``, 2.x a ``HookedTransformer`` with unprocessed weights, so that
    activations mean the same on both.

    Args:
        name_or_path: ``"demo"``, a folder with ``config.json``, or a name on the Hugging Face hub such as ``"gpt2"``.
        device: default: ``"cuda"`` where there is one (under ``torchrun`` each process its own), else ``"cpu"``.
        dtype: ``torch.float32`` (default), ``torch.bfloat16``, ... or its name.
        trust_remote_code: run Python code that comes with the model, where it needs some. Such code can do anything on
            this machine: only for authors you trust.

    Raises:
        FileNotFoundError: a path was meant (it has a separator or starts with a dot) and no such folder exists.
        ValueError: unknown dtype or device, a GPU that is not there, an encoder-decoder, a folder that TransformerLens
            2 converts wrongly; or the model brings code of its own and ``trust_remote_code`` is False: nothing of it
            was run.

    Examples:
        >>> model.cfg.n_layers, model.cfg.n_heads
        (4, 8)
    """
    device = checked_device(device or local_device())
    dtype = parse_dtype(dtype)
    began = time.perf_counter()
    model = _load(name_or_path, device, dtype, trust_remote_code)
    pass_on_cache(model)  # for good: text that the user generates later is to be right too
    refuse_other_shapes(model)
    logger.info("%s loaded on %s as %s in %.1f s", name_or_path, device, dtype, time.perf_counter() - began)
    return model


def _load(name_or_path: str, device: str, dtype: torch.dtype, trust_remote_code: bool) -> Any:
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
        with _own_code(name, trust_remote_code):
            return _boot(name, device, dtype, trust_remote_code).eval()


def _boot(name: str, device: str, dtype: torch.dtype, trust: bool) -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        return _boot_hooked(name, device, dtype, trust)
    return TransformerBridge.boot_transformers(name, device=device, dtype=dtype, trust_remote_code=trust)


def _boot_hooked(name: str, device: str, dtype: torch.dtype, trust: bool) -> Any:
    from transformer_lens import HookedTransformer

    if Path(name).is_dir():
        return _hooked_from_folder(Path(name), device, dtype, trust)
    if not trust:
        _check_trusted_by_lens(name)
    return HookedTransformer.from_pretrained_no_processing(name, trust_remote_code=trust, device=device, dtype=dtype)


def _hooked_from_folder(folder: Path, device: str, dtype: torch.dtype, trust: bool) -> Any:
    """A ``HookedTransformer`` of a folder; TransformerLens 2 goes to the hub for models by name alone."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens import loading_from_pretrained as lens
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype, trust_remote_code=trust).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    config = HookedTransformerConfig.from_dict({**_lens_config(hf.config), "model_name": folder.name, "dtype": dtype})
    model = HookedTransformer(config, tokenizer, move_to_device=False)
    weights = lens.get_pretrained_state_dict(str(folder), config, hf, dtype)
    off = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    model.load_and_process_state_dict(weights, **dict.fromkeys(off, False))
    _check_same_logits(model.eval(), hf, folder)
    return model.to(device)


def _lens_config(config: Any) -> dict[str, Any]:
    """TransformerLens' own conversion of a Hugging Face config, with the sizes that it takes for granted."""
    from transformer_lens import loading_from_pretrained as lens

    if not hasattr(config, "n_ctx"):
        config.n_ctx = config.max_position_embeddings
    with tempfile.TemporaryDirectory(prefix="config-") as plain:  # it takes the architecture from the folder's name
        config.save_pretrained(plain)
        made = lens.convert_hf_model_config(plain)
    d_head = made["d_head"]
    made["d_head"] = getattr(config, "head_dim", None) or d_head
    made["d_mlp"] = getattr(config, "n_inner", None) or made["d_mlp"]
    if made.get("rotary_dim") == d_head:
        made["rotary_dim"] = made["d_head"]
    if made.get("positional_embedding_type") == "rotary":
        made["rotary_base"] = getattr(config, "rope_theta", None) or made.get("rotary_base", 10000)
    made |= {"init_weights": False, "device": "cpu", "n_devices": 1, "from_checkpoint": False, "tokenizer_name": None}
    return {"default_prepend_bos": True, **made}


def _check_same_logits(model: Any, hf: Any, folder: Path) -> None:
    """Refuse a conversion that computes something else than the model that it is of."""
    tokens = torch.arange(1, 1 + min(8, model.cfg.n_ctx, model.cfg.d_vocab - 1))[None]
    with torch.no_grad():
        wanted, found = hf(tokens).logits.float(), model(tokens, attention_mask=torch.ones_like(tokens)).float()
    apart, scale = float((wanted - found).abs().max()), float(wanted.abs().max())
    if not apart <= scale * (1e-3 if model.cfg.dtype in (torch.float32, torch.float64) else 0.1):
        raise ValueError(
            f"TransformerLens {installed_version()} computes other logits for {folder} than transformers does (by "
            f"{apart:.3g}): its conversion of {type(hf).__name__} misses something of this model. Use TransformerLens "
            "3 or later, whose bridge runs the model itself."
        )


def _check_trusted_by_lens(name: str) -> None:
    """TransformerLens 2 runs the code of some publishers without being told to; raises ValueError for those."""
    from transformer_lens import loading_from_pretrained as lens

    if lens.get_official_model_name(name).startswith(tuple(getattr(lens, "NEED_REMOTE_CODE_MODELS", ()))):
        raise _untrusted(name)


@contextmanager
def _own_code(name: str, trust: bool) -> Iterator[None]:
    """Say what to type where a model brings code; transformers would ask on the terminal and wait for an answer."""
    from transformers import dynamic_module_utils as dynamic

    patience = getattr(dynamic, "TIME_OUT_REMOTE_CODE", 0)
    try:
        dynamic.TIME_OUT_REMOTE_CODE = patience if trust else 0
        yield
    except (ValueError, ImportError, OSError) as error:
        if trust or "trust_remote_code" not in str(error) or isinstance(error, _UntrustedError):
            raise
        raise _untrusted(name) from error
    finally:
        dynamic.TIME_OUT_REMOTE_CODE = patience


class _UntrustedError(ValueError):
    """A model whose own code was not run."""


def _untrusted(name: str) -> ValueError:
    return _UntrustedError(
        f"{name} brings Python code of its own, which would run on this machine and was not run. If you trust its "
        f"authors: load_model({name!r}, trust_remote_code=True), or --trust-remote-code on the command line."
    )


def checked_device(device: str | torch.device) -> str:
    """The device's name.

    Raises:
        ValueError: no such device on this machine, or not a device at all.
    """
    try:
        made = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {str(device)!r}: use 'cpu', 'cuda', 'cuda:1' or 'mps'.") from None
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(made.type, True)
    if not there:
        raise ValueError(
            f"device {str(device)!r} was asked for, but torch {torch.__version__} finds no such device here: "
            "use device='cpu', or install a torch that is built for it."
        )
    if made.type == "cuda" and (made.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} was asked for, but torch sees {torch.cuda.device_count()} GPUs.")
    return str(made)


def set_bos(model: Any, bos: bool | None) -> Any:
    """The model, told to begin prompts with a BOS token or not; None leaves it as it is.

    Raises:
        ValueError: BOS was asked for, and the tokenizer or kind of model has none.
    """
    if bos is not None:
        Encoder.of(ModelView(model), bos)
        model.cfg.default_prepend_bos = bos
    return model


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
