"""Models from local folders equal transformers on every TransformerLens; devices that are not there are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tl_multitrace as mt
from tiny_models import D_HEAD, HAS_BRIDGE, forked_rng, hf_model, word_tokenizer
from tl_multitrace.demo import load_demo_model
from tl_multitrace.loading import checked_device, set_bos

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-thin-mlp": ("gpt2", {"n_inner": 48}),
    "llama": ("llama", {}),
    "llama-wide-heads": ("llama", {"head_dim": 2 * D_HEAD}),
    "llama-slow-rotary": ("llama", {"rope_theta": 500.0}),
    "qwen2": ("qwen2", {}),
    "neox": ("neox", {}),
}


def folder_of(kind: str, where: Path) -> tuple[Path, Any]:
    """A folder as ``save_pretrained`` writes it, whose path names another architecture, and the model in it."""
    family, changes = SHAPES[kind]
    hf, folder = hf_model(family, **changes), where / "not-a-llama-nor-gemma-2" / kind
    hf.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder, hf


@pytest.mark.parametrize("kind", SHAPES)
def test_a_folder_gives_the_logits_of_transformers(kind: str, tmp_path: Path) -> None:
    folder, hf = folder_of(kind, tmp_path)
    with forked_rng(0):
        model = mt.load_model(str(folder), "cpu")
    tokens = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        wanted, found = hf(tokens, attention_mask=mask).logits, model(tokens, attention_mask=mask)
    assert float((wanted - found).abs().max()) < 1e-4 < float(wanted.std())
    assert not model.training and str(model.cfg.device) == "cpu" == str(next(model.parameters()).device)
    assert mt.ModelView(model).n_heads == hf.config.num_attention_heads
    pairs = mt.PromptPairs.from_tokens(tokens[:1], tokens[1:], [7])
    assert tuple(mt.Tracer(model, pairs, mt.heads(model), mt.AnswerProb()).effects(torch.eye(12)).shape) == (12, 1)


@pytest.mark.skipif(HAS_BRIDGE, reason="a bridge runs the model itself: there is no conversion that could differ")
def test_a_conversion_that_misses_something_is_refused(tmp_path: Path) -> None:
    hf = hf_model("llama", rope_scaling={"rope_type": "linear", "factor": 8.0})
    hf.save_pretrained(tmp_path / "scaled")
    word_tokenizer().save_pretrained(tmp_path / "scaled")
    with pytest.raises(ValueError, match="computes other logits"):
        mt.load_model(str(tmp_path / "scaled"), "cpu")


# ------------------------------------------------------------------------------------------------------ devices
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda")])
def test_a_gpu_that_is_not_there_is_refused(device: Any, tmp_path: Path) -> None:
    for load in (
        lambda: mt.load_model("demo", device),
        lambda: load_demo_model(device=device),
        lambda: mt.load_model(str(tmp_path), device),
        lambda: mt.reproduce("ioi", model="demo", quick=True, n=4, device=str(device)),
    ):
        with pytest.raises(ValueError, match=r"device 'cuda.*finds no such device here: use device='cpu'"):
            load()


def test_devices_are_named() -> None:
    with pytest.raises(ValueError, match="unknown device 'gpu': use 'cpu', 'cuda'"):
        mt.load_model("demo", "gpu")
    assert (checked_device("cpu"), checked_device(torch.device("meta"))) == ("cpu", "meta")
    model = mt.load_model("demo", "cpu")
    assert str(model.cfg.device) == str(mt.ModelView(model).device) == "cpu"


# ----------------------------------------------------------------------------------------------- other refusals
@pytest.mark.skipif(not HAS_BRIDGE, reason="needs TransformerBridge")
@pytest.mark.parametrize("kind", ["T5", "Bart", "MBart"])
def test_encoder_decoders_are_refused_by_name(kind: str) -> None:
    import transformers
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    sizes = (
        {"d_kv": 8, "num_heads": 4} if kind == "T5" else {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    )
    config = getattr(transformers, f"{kind}Config")(vocab_size=64, d_model=32, **sizes)
    with forked_rng(0):
        hf = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        model = build_bridge_from_module(hf, type(hf).__name__, hf_config=config, tokenizer=word_tokenizer())
    for use in (
        lambda: mt.causal_trace(model, "The doctor said that", subject="doctor"),
        lambda: mt.PromptPairs.from_text(model, ["The doctor"], ["The nurse"], [" said"]),
        lambda: mt.task("professions", model),
        lambda: mt.heads(model),
        lambda: set_bos(model, True),
    ):
        with pytest.raises(ValueError, match=rf"is an encoder-decoder \({kind}ForConditionalGeneration\)"):
            use()
