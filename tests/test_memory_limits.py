"""Memory limits: what they are read as, where activations go under them, that they are kept, and that numbers stay."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples, soft_mask

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.engine import budget
from tl_multitrace.engine.budget import Limits, Room, bytes_from, measured_limit, power_of_two
from tl_multitrace.engine.step_bytes import count_step
from tl_multitrace.models.compat import ModelView
from tl_multitrace.rows import Rows

pytestmark = pytest.mark.lens

GIB = 1 << 30
EXAMPLES = random_examples(6, seed=5, right=1, wrong=1, tokens=1)
model_of = cache(lambda name=MODEL_NAMES[0], dtype=torch.float64: build(name, dtype))


# ------------------------------------------------------------------------------------------------------ amounts
@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 * GIB),
        ("6 gib", 6 * GIB),
        ("1.5g", 1_500_000_000),
        ("512MB", 512_000_000),
        ("10KiB", 10_240),
        ("1 TiB", 1 << 40),
        ("17", 17),
        ("0", 0),
        (12, 12),
        (2e9, 2_000_000_000),
    ],
)
def test_amounts(text: Any, size: int) -> None:
    assert bytes_from(text) == size


@pytest.mark.parametrize("text", ["", "6 gallons", "-1", -1, "GiB", "6iB", True, "1e9", "nan", float("nan")])
def test_what_is_no_amount(text: Any) -> None:
    with pytest.raises(ValueError, match=r'no number of bytes: write one such as 6_000_000_000, or "6GiB"'):
        bytes_from(text)


def test_a_limit_that_cannot_be_read_stops_a_tracer_before_it_runs() -> None:
    with pytest.raises(ValueError, match="'lots' is no number of bytes"):
        mt.Tracer(model_of(), pairs_of(EXAMPLES), mt.heads(model_of()), memory_limit="lots")


def test_the_measured_limit_is_a_power_of_two_that_many_free_amounts_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_free(free: float, processes: str = "") -> int:
        monkeypatch.setattr(budget, "available", lambda device: int(free * GIB))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        return measured_limit("cpu")

    assert [with_free(f) for f in (14, 20, 26)] == [8 * GIB] * 3
    assert with_free(13) == 4 * GIB
    assert with_free(20, processes="4") == 2 * GIB  # 12 GiB for four processes
    assert with_free(0) == 0
    assert [power_of_two(x) for x in (0.0, 0.5, 1.0, 1023.0, 1024.0)] == [0, 0, 1, 512, 1024]


def test_places_are_given_out_fastest_first() -> None:
    room = Room(Limits(device=100, host=60))
    assert [room.take(size) for size in (70, 50, 20, 20, 10, 10)] == [
        "device",
        "host",
        "device",
        "none",
        "device",
        "host",
    ]
    assert (room.device, room.host) == (0, 0)


def test_small_traces_get_the_same_batches_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(free: int) -> Any:
        monkeypatch.setattr(budget, "available", lambda device: free)
        tracer = mt.Tracer(model_of(), pairs_of(EXAMPLES), mt.heads(model_of()))
        kept = ("batch_size", "source_place", "block_input_place", "keys_values_place")
        return [tracer.memory[name] for name in kept]

    assert plan(GIB) == plan(30 * GIB) == plan(500 * GIB) == [6, "device", "device", "device"]


# ------------------------------------------------------------------------------------- the same numbers anywhere
def groups_of(model: Any) -> mt.HookGroups:
    return mt.heads(model) + mt.neurons(model, [1]) + mt.residual(model, [2], positions=[-1])


def numbers(tracer: mt.Tracer) -> list[torch.Tensor]:
    mask, n = soft_mask(len(tracer.groups)), len(tracer.groups)
    single = tracer.effects(torch.eye(n)[::7], reference=torch.eye(n)[3])
    loss = tracer.loss_gradient(mask, torch.mean, [4, 1, 2])
    return [single, *tracer.effect_and_gradient(mask), *loss, tracer.effects(torch.eye(n)[[0, n - 1]])]


def agree(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def traced(**options: Any) -> mt.Tracer:
    return mt.Tracer(model_of(), pairs_of(EXAMPLES), groups_of(model_of()), batch_size=2, **options)


def test_numbers_do_not_depend_on_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = traced()
    wanted, needed = numbers(kept), kept.memory_estimate().needed
    none = traced(memory_limit=0)
    agree(numbers(none), wanted)
    assert (none.memory["source_place"], none.memory["block_input_bytes"]) == ("recomputed", 0)
    monkeypatch.setattr(Limits, "of", classmethod(lambda cls, *args: cls(device=0, host=2 * needed)))
    host = traced()
    agree(numbers(host), wanted)
    memory = host.memory
    assert {memory[f"{item}_place"] for item in ("source", "block_input", "keys_values")} == {"host"}
    assert {t.device.type for found in stored(host).values() for t in found} == {"cpu"}


def test_there_is_room_for_the_base_run_alone() -> None:
    kept = traced()
    estimate = kept.memory_estimate()
    short = traced(memory_limit=estimate.needed - estimate.keys_values - estimate.bytes_per_run)
    assert short.batches.plan.stored_runs == 1 and short.memory["block_input_bytes"] == estimate.bytes_per_run
    agree(numbers(short), numbers(kept))
    assert not short.batches.restarts.references


def test_half_precision_is_stored_as_it_is_and_summed_in_float32() -> None:
    model = model_of(MODEL_NAMES[0], torch.bfloat16)
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups_of(model))
    assert {t.dtype for found in stored(tracer).values() for t in found} == {torch.bfloat16}
    effects, gradient = tracer.effect_and_gradient(soft_mask(len(tracer.groups)).float())
    assert effects.dtype == gradient.dtype == tracer.base_metric.dtype == torch.float32
    assert tracer.batches.base[0].token_logp.dtype == torch.float32
    assert tracer.mean_gradient(soft_mask(len(tracer.groups)).float()).dtype == torch.float64


# ---------------------------------------------------------------------------------------------------- estimates
def test_the_estimate_is_what_is_stored() -> None:
    model, pairs = model_of(), pairs_of(EXAMPLES)
    groups = mt.heads(model).at("last") + mt.neurons(model, [1]).at("last") + mt.residual(model, [2], positions=[-1])
    before = mt.memory_estimate(model, pairs, groups)
    tracer = mt.Tracer(model, pairs, groups)
    numbers(tracer)
    assert tracer.causal
    assert tracer.memory_estimate() == before
    sizes = {name: sum(t.numel() * t.element_size() for t in found) for name, found in stored(tracer).items()}
    assert before.source_activations == sizes["sources"]
    assert before.block_inputs == 2 * sizes["inputs"] and before.keys_values == tracer.memory["keys_values_bytes"]
    block = 4 * 32 * 32 + 2 * 32 * 64 + 4 * 32 + 64 + 32 + 4 * 32
    weights = 8 * (128 * 32 + 32 * 32 + 3 * block + 2 * 32)  # GPT-2's own; views of them take nothing
    assert weights <= before.weights <= 1.5 * weights
    assert before.masks == 2 * 6 * len(groups) * 8
    assert before.peak == before.needed - before.backward + before.weights + max(before.forward, before.backward)


def stored(tracer: mt.Tracer) -> dict[str, list[torch.Tensor]]:
    return {
        "sources": [*tracer.batches.runs.sources.kept.values()],
        "inputs": [*tracer.batches.origin.residuals.values()],
    }


def test_the_estimate_reads_as_a_table() -> None:
    text = repr(mt.memory_estimate(model_of(), pairs_of(EXAMPLES), mt.heads(model_of()), memory_limit="1MiB"))
    assert re.match(
        r"MemoryEstimate\(cpu, [23] pairs per batch, limit 1\.0 MiB, [\d.]+ KiB to keep everything there\)", text
    )
    for item in (
        "weights",
        "source activations",
        "block inputs",
        "keys values",
        "forward",
        "backward",
        "masks",
        "peak",
    ):
        assert f"\n  {item} " in text
    assert "on the model's device" in text or "recomputed per batch" in text


def test_nothing_but_one_prompt_pair_runs_for_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = ModelView.run
    monkeypatch.setattr(
        ModelView, "run", lambda self, tokens, *a, **k: seen.append(len(tokens)) or run(self, tokens, *a, **k)
    )
    mt.memory_estimate(build(MODEL_NAMES[0]), pairs_of(EXAMPLES), mt.heads(model_of()))
    assert 1 in seen and max(seen) == 2  # beside the pair, a prompt and a shorter one, to try what the model allows


@pytest.mark.parametrize("name", [n for n in MODEL_NAMES if "compat" not in n and n.split("-")[1] in ("gpt2", "llama")])
def test_counted_steps_grow_with_what_is_kept(name: str) -> None:
    model = build(name, torch.float32)
    view, rows = ModelView(model), Rows.of(pairs_of(random_examples(2, seed=1)))
    few, many = (count_step(view, rows, g, torch.float32) for g in (mt.heads(model, [2]), groups_of(model)))
    assert few.counted and 0 < few.forward < few.backward < many.backward
    assert count_step(view, rows, mt.heads(model, [2]), torch.float32) is few  # once per model and shape


def test_counted_bytes_are_those_of_tensors_that_live() -> None:
    from tl_multitrace.engine.step_bytes import LiveBytes

    weight = torch.ones(1000)
    with LiveBytes() as live:
        a = weight * 2
        assert live.now == 4000
        b = a.view(10, 100)  # no memory of its own
        assert live.now == 4000
        del a
        assert live.now == 4000
        del b
        assert live.now == 0
        torch.ones(500).sum()
    assert live.peak == 4000 and live.now <= 4


# ------------------------------------------------------------------------------------------- limits that are kept
RSS = """
import json, sys, torch
torch.set_num_threads(1)
import tl_multitrace as mt
from tiny_models import random_gpt2
from pathlib import Path
def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) << 10
def pairs(n):
    draw = torch.Generator().manual_seed(0)
    base, source = torch.randint(1, 500, (2, n, 12), generator=draw)
    return mt.PromptPairs.from_tokens(base, source, [[1]] * n, [[2]] * n)
model = random_gpt2(4, 8, 512, d_vocab=512, n_ctx=32)
groups = mt.heads(model) + mt.neurons(model)
def work(tracer):
    tracer.gradient(torch.zeros(len(groups))).sum()
    tracer.effects([["L0H0"], ["L2H1"]])
work(mt.Tracer(model, pairs(2), groups))  # libraries take memory of their own in their first run
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
tracer = mt.Tracer(model, pairs(400), groups, memory_limit=sys.argv[1])
work(tracer)
estimate = tracer.memory_estimate()
kept = (tracer.batches.runs.sources.kept, tracer.batches.origin.residuals)
held = sum(t.nbytes for one in kept for t in one.values())
found = {"rise": kib("VmHWM") - before, "masks": estimate.masks, "estimate": estimate.peak - estimate.weights}
print(json.dumps({**found, "held": held, "places": dict(estimate.places), "limit": tracer.memory["limit"]}))
"""


RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Freed blocks of more than 64 KiB go back to the system: what is resident is then what is in use."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux gives it")
@pytest.mark.slow
@pytest.mark.parametrize("limit", ["400MiB", "120MiB"])
def test_a_limit_is_kept(limit: str) -> None:
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", RSS, limit],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **RETURNED, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    slack = 32 << 20
    assert found["places"]["source_activations"] == ("device" if limit == "400MiB" else "recomputed")
    assert found["held"] <= found["limit"]
    assert found["rise"] <= found["limit"] + found["masks"] + slack
    assert found["rise"] <= 1.25 * (found["estimate"] + found["masks"]) + slack
    assert found["estimate"] <= 1.5 * found["rise"] + slack
