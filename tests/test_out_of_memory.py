"""Memory that runs out in the middle: half the batch, the same numbers, and a record of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples, soft_mask

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.engine import mask_runs
from tl_multitrace.engine.exhausted import is_out_of_memory
from tl_multitrace.engine.forward import Forward
from tl_multitrace.engine.mask_runs import MaskRuns

EXAMPLES = random_examples(7, seed=8, right=1, wrong=1, tokens=1)
model_of = cache(lambda name=MODEL_NAMES[0], dtype=torch.float64: build(name, dtype))
CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")
ERRORS = [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), CPU_ERROR, MemoryError()]


class Machine:
    """A machine on which forwards of more than so many rows run out of memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, self.error, self.failed = 10**9, ERRORS[0], 0
        run = mask_runs.run

        def limited(view: mt.ModelView, forward: Forward) -> Any:
            if len(forward.tokens) > self.rows:
                self.failed += 1
                raise self.error
            return run(view, forward)

        monkeypatch.setattr(mask_runs, "run", limited)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def traced(batch_size: int | None = None, **options: Any) -> mt.Tracer:
    return mt.Tracer(model_of(), pairs_of(EXAMPLES), mt.heads(model_of()), batch_size=batch_size, **options)


CALLS: dict[str, Callable[[mt.Tracer], Any]] = {
    "effects": lambda t: t.effects(torch.eye(12)[::3], reference=torch.eye(12)[4]),
    "log_effect": lambda t: t.log_effect(soft_mask(12)),
    "gradient": lambda t: t.gradient(soft_mask(12)),
    "loss_gradient": lambda t: torch.cat(t.loss_gradient(soft_mask(12), torch.mean, [6, 0, 3, 2, 5])),
    "base run and sources": lambda t: t.base_metric,
}


@pytest.mark.parametrize("error", ERRORS, ids=["GPU", "CPU", "Python"])
@pytest.mark.parametrize("what", CALLS)
def test_half_the_batch_gives_the_same_numbers(what: str, error: Exception, machine: Machine) -> None:
    wanted = CALLS[what](traced(batch_size=2))
    machine.error = error
    if what == "base run and sources":
        machine.rows = 2
        tracer = traced(batch_size=7)
    else:
        tracer = traced(batch_size=7)
        machine.rows = 2
    found = CALLS[what](tracer)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    assert machine.failed == 2 and tracer.halved == 2
    assert (tracer.memory["halved"], tracer.memory["batch_size"], tracer.batch_size) == (2, 2, 2)
    assert (
        [len(b.examples) for b in tracer.batches.parts] == [2, 2, 2, 1] == [len(a.right) for a in tracer.batches.base]
    )


@pytest.mark.parametrize("options", [{}, {"memory_limit": 0}], ids=["kept", "recomputed"])
def test_a_tracer_goes_on_after_it_was_halved(options: dict[str, Any], machine: Machine) -> None:
    tracer = traced(batch_size=7, **options)
    mask = soft_mask(12)
    before = [tracer.effect(mask), tracer.gradient(mask)]
    machine.rows = 4
    torch.testing.assert_close([tracer.effect(mask), tracer.gradient(mask)], before, rtol=1e-9, atol=1e-10)
    assert tracer.batch_size == 4
    machine.rows = 1
    torch.testing.assert_close(tracer.effects(torch.eye(12)), traced(batch_size=1).effects(torch.eye(12)))
    assert tracer.batch_size == 1 and tracer.halved >= 3


def test_finished_examples_are_not_run_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = traced(batch_size=4)
    ticks: list[int] = []
    calls, answers = [0], MaskRuns.answers

    def second_fails(engine: MaskRuns, batch: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise ERRORS[0]
        return answers(engine, batch, *args, **kwargs)

    monkeypatch.setattr(MaskRuns, "answers", second_fails)
    found = tracer.effects(torch.ones(1, 12), tick=ticks.append)
    # four examples in the first batch; then two batches that hold the other three
    assert calls[0] == 4 and sum(ticks) == 7 and tracer.halved == 1
    monkeypatch.setattr(MaskRuns, "answers", answers)
    torch.testing.assert_close(found, traced(batch_size=2).effects(torch.ones(1, 12)), rtol=1e-9, atol=1e-10)


def test_masks_are_split_before_a_single_prompt_fails(machine: Machine) -> None:
    tracer = traced(batch_size=1)
    wanted = tracer.effects(torch.eye(12))
    tracer.forget()
    machine.rows = 1
    torch.testing.assert_close(tracer.effects(torch.eye(12)), wanted, rtol=1e-9, atol=1e-10)
    assert tracer.batch_size == 1 and tracer.halved > 0


def test_a_single_prompt_that_does_not_fit(machine: Machine) -> None:
    tracer = traced(batch_size=7, memory_limit=1 << 30)
    machine.rows = 0
    with pytest.raises(
        MemoryError, match=r"one prompt pair of 8 tokens does not fit into the memory of cpu \(CUDA.*bf"
    ):
        tracer.effect(torch.ones(12))
    machine.rows = 10**9
    torch.testing.assert_close(tracer.effect(torch.ones(12)), traced(batch_size=1).effect(torch.ones(12)))


def test_other_errors_are_not_swallowed(machine: Machine) -> None:
    tracer = traced(batch_size=7)
    machine.rows, machine.error = 0, RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        tracer.effect(torch.ones(12))
    assert tracer.halved == 0
    assert not any(is_out_of_memory(e) for e in (RuntimeError("no"), ValueError("out of memory"), KeyError("x")))


def test_results_say_so(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    tracer = traced(batch_size=7)
    untouched = mt.select(tracer, 2, mt.TopK()).provenance
    machine.rows = 4
    with caplog.at_level(logging.WARNING):
        halved = mt.select(tracer, 2, mt.TopK()).provenance
    assert "out_of_memory" not in untouched
    assert halved["out_of_memory"] == {"halved": 1, "batch_size": 4}
    assert "memory ran out (CUDA out of memory" in caplog.text and "4 prompt pairs per forward" in caplog.text


def test_edges_too(machine: Machine) -> None:
    circuit = mt.select(traced(batch_size=7), 3, mt.TopK())[3]
    graphs = []
    for rows in (10**9, 5):
        tracer = traced(batch_size=7)
        machine.rows = rows
        graphs.append(mt.information_flow(circuit, tracer, progress=False))
    assert machine.failed
    wanted, found = ({(a, b, w): d["effect"] for a, b, w, d in g.edges(keys=True, data=True)} for g in graphs)
    assert wanted and found == pytest.approx(wanted, rel=1e-8, abs=1e-10)
