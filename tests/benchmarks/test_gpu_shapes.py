"""Steps on models of real sizes against the device's own limits; on a machine without a GPU the harness alone runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_shapes import GPT2_XL, LLAMA_7B, SMALL, Shape, fits, forward_operations, make, pairs_of, steps, weight_bytes
from sides import show

import tl_multitrace as mt

DEVICE = "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: times of these shapes not taken")
@pytest.mark.parametrize("shape", [GPT2_XL, LLAMA_7B], ids=lambda shape: shape.name)
def test_steps_on_a_gpu(shape: Shape, capsys: Any) -> None:
    if not fits(shape, DEVICE):
        pytest.skip(
            f"{shape.name} has {weight_bytes(shape) / 2**30:.1f} GiB of weights: too large for what is free here"
        )
    for step in steps(shape, DEVICE):
        info = {
            "seconds": round(step.seconds, 4),
            "floor": round(step.floor, 4),
            "ratio": round(step.ratio, 2),
            "forward equivalents": round(step.equivalents, 2),
            "launches": step.launches,
            "peak_gib": round(torch.cuda.max_memory_allocated(DEVICE) / 2**30, 1),
        }
        show(capsys, f"{shape.name}, {torch.cuda.get_device_name()}: {step.name}", info)
        assert step.seconds >= 0.9 * step.floor  # else the floor is none


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
def test_the_harness_runs_anywhere(shape: Shape) -> None:
    found = steps(shape, "cpu", matrix=64, copy=1 << 12)
    effects, derivative = found
    assert effects.equivalents < 8 < 8 + derivative.equivalents
    assert derivative.equivalents > 1.5 and derivative.launches >= 1
    assert all(step.floor > 0 and step.ratio > 0 for step in found)


def test_the_sizes_are_those_of_the_models_they_stand_for() -> None:
    assert weight_bytes(GPT2_XL) / 2 == pytest.approx(1.5576e9, rel=0.01)
    assert weight_bytes(LLAMA_7B) / 2 == pytest.approx(7.24e9, rel=0.01)


def test_operations_are_counted_by_hand() -> None:
    shape = SMALL[1]
    model = make(shape, "cpu")
    tracer = mt.Tracer(model, pairs_of(shape), mt.heads(model))
    per_block = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32
    attention = 2 * 32 * 16  # scores and their use: every position with 32 others, width 16
    assert forward_operations(tracer) == 2 * 4 * (32 * 2 * (per_block + attention) + 64 * 16)
