"""Models that were placed by accelerate work untouched, as far as a CPU can tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import prompts

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, TL_MAJOR, bridge_from_hf, hf_model
from tl_multitrace.models.compat import ModelView
from tl_multitrace.models.offload import device_of, weights_of

pytestmark = [
    pytest.mark.lens,
    pytest.mark.skipif(not HAS_BRIDGE, reason="bridges only, which TransformerLens 2 does not have"),
]
CPU = torch.device("cpu")


def with_device_map(family: str, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    hf_model(family).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, attn_implementation="eager")


def dispatched(family: str, folder: Path) -> Any:
    from accelerate import dispatch_model

    model = hf_model(family)
    return dispatch_model(
        model, {name: "cpu" for name, _ in model.named_children()}, main_device="cpu", force_hooks=True
    )


def offloaded(family: str, folder: Path) -> Any:
    from accelerate import cpu_offload

    return cpu_offload(hf_model(family), execution_device=CPU)


def on_disk(family: str, folder: Path) -> Any:
    from accelerate import disk_offload

    return disk_offload(hf_model(family), str(folder), execution_device=CPU)


def offloading() -> None:
    if TL_MAJOR < 4:
        pytest.skip("bridges of TransformerLens 3 give modules biases of their own, which accelerate does not know")


def numbers(model: Any) -> dict[str, torch.Tensor]:
    tracer = mt.Tracer(model, prompts(), mt.heads(model) + mt.neurons(model, layers=[1]), mt.OddsRatio())
    eye = torch.eye(len(tracer.groups))[:6]
    near = (eye + eye[0]).clamp(max=1)
    return {
        "effects": tracer.effects(eye),
        "near": tracer.effects(near, reference=eye[0]),
        "gradient": tracer.gradient(0.5 * eye[0]),
        "predicted": tracer.predicted_changes(eye[1]),
    }


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("place", [with_device_map, dispatched, offloaded, on_disk], ids=lambda f: f.__name__)
def test_placed_models_give_the_same_bits(place: Callable[..., Any], family: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    if place in (offloaded, on_disk):
        offloading()
    plain, placed = bridge_from_hf(hf_model(family)), bridge_from_hf(place(family, tmp_path))
    expected, found = numbers(plain), numbers(placed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert ModelView(placed).digest() == ModelView(plain).digest() and ModelView(placed).device == CPU


def test_offloaded_weights_are_placeholders_before_and_after() -> None:
    pytest.importorskip("accelerate")
    offloading()
    model = bridge_from_hf(offloaded("llama", Path()))
    before = [p.is_meta for p in model.parameters()]
    numbers(model)
    assert any(before) and [p.is_meta for p in model.parameters()] == before


def test_weights_without_values_are_refused() -> None:
    empty = torch.nn.Linear(2, 2, device="meta")
    assert device_of(empty).type == "meta"
    with pytest.raises(ValueError, match=r"the weight weight has no values: .* Load the"):
        weights_of(empty)
