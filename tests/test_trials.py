"""What a model allows beyond a whole run is tried once; where a trial fails, runs are whole and numbers stay right."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from oracles import Plain, pairs_of, random_examples
from torch import Tensor

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build

NAME = next((n for n in MODEL_NAMES if n == "bridge-gpt2"), MODEL_NAMES[0])
EXAMPLES = random_examples(4, seed=3)
EQUAL = random_examples(3, seed=4, equal=True)
needs_bridge = pytest.mark.skipif(not NAME.startswith("bridge"), reason="the blocks of a bridge are called one by one")


def traced(model: Any, examples: Any = EXAMPLES, **options: Any) -> mt.Tracer:
    return mt.Tracer(model, pairs_of(examples), mt.heads(model).at("last"), **options)


def whole(model: Any, examples: Any, masks: Tensor) -> Tensor:
    """The effects by plain loops: one prompt at a time, from the first token of the first block on."""
    loop = Plain(model, examples, mt.heads(model).at("last").sites)
    return torch.stack([loop.effect(m, oracles.logit_diff) for m in masks])


def check(model: Any, examples: Any = EXAMPLES) -> dict[str, str]:
    """The effects of a tracer are those of plain loops, restarts and all; what was tried on the way."""
    tracer, eye = traced(model, examples), torch.eye(12, dtype=torch.float64)
    near = (eye + eye[5]).clamp(max=1)
    for _ in range(2):
        torch.testing.assert_close(tracer.effects(eye), whole(model, examples, eye), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(tracer.effects(near, eye[5]), whole(model, examples, near), rtol=1e-7, atol=1e-8)
    assert tracer.causal == tracer.optimisations["token restarts"].startswith("on")
    return tracer.optimisations


# ------------------------------------------------------------------------------------------------ models as they are
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_what_the_tiny_models_allow(name: str, caplog: pytest.LogCaptureFixture) -> None:
    tracer = traced(build(name))
    tracer.effects(torch.eye(12)), tracer.causal
    no_keys = name.startswith(("bridge-native", "bridge-attn-only"))
    found = {what: text.partition(" ")[0].rstrip(",") for what, text in tracer.optimisations.items()}
    tokens = "off" if no_keys else "on"
    assert found == {"block restarts": "on", "padded batches": "on", "token restarts": tokens}
    assert caplog.text.count("are off") == no_keys


def test_trials_are_made_once_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    count, run = [0], mt.ModelView.run

    def counted(self: mt.ModelView, *args: Any, **options: Any) -> Any:
        count[0] += 1
        return run(self, *args, **options)

    monkeypatch.setattr(mt.ModelView, "run", counted)
    model, spent, costs = build(NAME), [], []
    for _ in range(3):
        before, tracer = count[0], traced(model)
        tracer.effects(torch.eye(12))
        spent.append(count[0] - before)
        costs.append(tracer.cost.forwards)
    assert spent[0] > spent[1] == spent[2]
    assert costs[0] == costs[1]  # what trials cost is not counted
    assert traced(model).batches.runs.trials is traced(model, EQUAL).batches.runs.trials


def test_trials_do_not_keep_a_model_alive() -> None:
    model = build(NAME)
    traced(model).effects(torch.eye(12))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ------------------------------------------------------------------------------------------------ models that are not
Change = Callable[[Any, int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def changed(change: Change) -> Any:
    """A model whose blocks run as ``change`` says, given their number, their own forward and its arguments."""
    model = build(NAME, torch.float64)
    model.original_model.config.use_cache = False
    for number, block in enumerate(model.blocks):
        kind = type(block)

        def forward(self: Any, *args: Any, _number: int = number, _kind: Any = kind, **options: Any) -> Any:
            return change(self, _number, lambda *a, **o: _kind.forward(self, *a, **o), args, options)

        block.__class__ = type(f"Changed{kind.__name__}", (kind,), {"forward": forward})
    return model


def hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def like(output: Any, value: Tensor) -> Any:
    return value if isinstance(output, Tensor) else type(output)([value, *output[1:]])


@needs_bridge
@pytest.mark.parametrize("kind", [list, tuple])
def test_blocks_that_give_more_than_a_tensor(kind: Any) -> None:
    def more(block: Any, number: int, forward: Any, args: Any, options: Any) -> Any:
        output = forward(hidden(args[0]), *args[1:], **options)
        return output if number == 2 else kind([hidden(output), None, None])

    found = check(changed(more))
    assert found["block restarts"].startswith("on") and found["padded batches"].startswith("on")


@needs_bridge
@pytest.mark.parametrize("stale", [False, True], ids=["gone", "of an earlier run"])
def test_a_block_that_needs_what_an_earlier_one_left(stale: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A run from a later block does not find it, or finds that of another run."""
    left: dict[str, Tensor] = {}

    def shared(block: Any, number: int, forward: Any, args: Any, options: Any) -> Any:
        output = forward(*args, **options)
        if number == 0:
            left["output"] = hidden(output)
        if number == 2:
            value = left["output"] if stale else left.pop("output")
            if value.shape != hidden(output).shape:
                raise RuntimeError("keys of another shape")
            return like(output, hidden(output) + 0.3 * value)
        return output

    found = check(changed(shared))
    assert found["block restarts"].startswith("off, because")
    assert caplog.text.count("block restarts are off") == 1


@needs_bridge
def test_tokens_that_act_on_earlier_ones(caplog: pytest.LogCaptureFixture) -> None:
    def looks_ahead(block: Any, number: int, forward: Any, args: Any, options: Any) -> Any:
        output = forward(*args, **options)
        value = hidden(output)
        return like(output, value + 0.3 * torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1))

    found = check(changed(looks_ahead), EQUAL)
    assert found["token restarts"].startswith("off, because") and found["padded batches"].startswith("off, because")
    assert found["block restarts"].startswith("on")
    assert caplog.text.count("token restarts are off") == 1


@needs_bridge
@pytest.mark.parametrize("how", ["forgotten", "refused"])
def test_a_cache_that_is_not_used(how: str, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import Cache

    def without(block: Any, number: int, forward: Any, args: Any, options: Any) -> Any:
        if how == "refused" and any(isinstance(a, Cache) for a in (*args, *options.values())):
            raise KeyError(f"layer {number}")
        drop = {k: None if isinstance(v, Cache) else v for k, v in options.items()}
        return forward(*[None if isinstance(a, Cache) else a for a in args], **drop)

    found = check(changed(without))
    assert found["token restarts"].startswith("off, because") and found["block restarts"].startswith("on")
    assert caplog.text.count("token restarts are off") == 1


@needs_bridge
def test_padding_that_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    """What a token is depends on how many there are, padding among them: then every prompt runs alone."""

    def wide(block: Any, number: int, forward: Any, args: Any, options: Any) -> Any:
        output = forward(*args, **options)
        return like(output, hidden(output) + 0.05 * hidden(output).shape[1] * torch.linspace(-1, 1, 32))

    model = changed(wide)
    found = check(model)
    assert found["padded batches"].startswith("off, because") and traced(model).batch_size == 1
    assert caplog.text.count("padded batches are off") == 1
    long = random_examples(3, seed=2, tokens=3, wrong=2)
    with pytest.raises(ValueError, match="does not run batches of prompts of different lengths right"):
        traced(model, long)


@needs_bridge
def test_a_block_that_works_is_started_at_though_another_is_not(caplog: pytest.LogCaptureFixture) -> None:
    def counted(block: Any, number: int, forward: Any, args: Any, options: Any) -> Any:
        block.__dict__["seen"] = hidden(args[0]) if args else options["hidden_states"]
        output = forward(*args, **options)
        return like(output, hidden(output) + 0.2 * block.__dict__["seen"]) if number == 1 else output

    assert check(changed(counted))["block restarts"].startswith("on")  # a state of a block's own does no harm
    assert "block restarts" not in caplog.text
