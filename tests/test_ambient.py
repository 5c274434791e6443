"""What the caller's process has switched on, and other threads, move no number and leave nothing behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples
from torch import Tensor

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build

NAME = "bridge-gpt2" if HAS_BRIDGE else "hooked-gpt2"


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


AMBIENT: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": lambda: _default_dtype(torch.float64),
    "bfloat16 by default": lambda: _default_dtype(torch.bfloat16),
    "the meta device by default": lambda: _default_device("meta"),
}


def prompts() -> mt.PromptPairs:
    return pairs_of(random_examples(3, seed=1, right=1, wrong=1))


def everything(model: Any, pairs: mt.PromptPairs, tracer: mt.Tracer | None = None) -> dict[str, Any]:
    """Every kind of number, as lists."""
    tracer = tracer or mt.Tracer(model, pairs, mt.heads(model), mt.OddsRatio())
    soft = [0.5] * len(tracer.groups)
    path = mt.select(tracer, [1, 2], mt.Greedy())
    adam = mt.select(tracer, [2], mt.PGBCT(epochs=2))
    return {
        "effect": tracer.effect(["L0H1"]).tolist(),
        "gradient": tracer.gradient(soft).tolist(),
        "log effect": tracer.log_effect(soft).tolist(),
        "changes": tracer.predicted_changes(["L1H1"]).tolist(),
        "loss": tracer.loss_gradient(soft, lambda e: torch.sigmoid(-e).mean())[1].tolist(),
        "path": [path[2].labels, path[2].effect, list(path[2].marginals)],
        "adam": [adam[2].labels, adam[2].effect],
    }


@cache
def expected() -> dict[str, Any]:
    return everything(build(NAME), prompts())


@pytest.mark.parametrize("what", AMBIENT)
def test_a_mode_of_the_caller_moves_nothing(what: str) -> None:
    found = expected()
    model, pairs = build(NAME), prompts()
    with AMBIENT[what]():
        assert everything(model, pairs) == found


@pytest.mark.parametrize("made", ["model", "prompts", "tracer", "model and prompts"])
def test_what_was_made_in_inference_mode_works_outside(made: str) -> None:
    found = expected()
    with torch.inference_mode("model" in made):
        model = build(NAME)
    with torch.inference_mode("prompts" in made):
        pairs = prompts()
    with torch.inference_mode(made == "tracer"):
        tracer = mt.Tracer(model, pairs, mt.heads(model), mt.OddsRatio())
    assert any(weight.is_inference() for weight in model.parameters()) == ("model" in made)
    before = [(id(weight), weight.requires_grad) for weight in model.parameters()]
    assert everything(model, pairs, tracer) == found
    assert [(id(weight), weight.requires_grad) for weight in model.parameters()] == before
    with torch.inference_mode():
        assert everything(model, pairs, tracer) == found


def test_gradients_that_are_off_for_good_are_on_where_they_are_needed() -> None:
    found = expected()
    torch.set_grad_enabled(False)
    try:
        assert everything(build(NAME), prompts()) == found and not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


# ------------------------------------------------------------------------------------------------------------- threads
def test_threads_take_turns_on_a_model() -> None:
    model, pairs = build(NAME), prompts()
    shared = mt.Tracer(model, pairs, mt.heads(model), mt.OddsRatio())
    effect, slope = expected()["effect"], expected()["gradient"]
    flags = [weight.requires_grad for weight in model.parameters()]

    def one(number: int) -> bool:
        if number % 3 == 0:
            return shared.effect(["L0H1"]).tolist() == effect
        own = mt.Tracer(model, pairs, mt.heads(model), mt.OddsRatio())
        if number % 3 == 1:
            return bool(own.effect(["L0H1"]).tolist() == effect)
        return bool(torch.allclose(own.gradient([0.5] * 12), torch.tensor(slope)))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(36)))
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_another_thread_waits_for_a_session_to_end() -> None:
    model, pairs = build(NAME), prompts()
    tracer = mt.Tracer(model, pairs, mt.heads(model), mt.OddsRatio())
    with ThreadPoolExecutor(1) as pool:
        with tracer.session():
            waiting = pool.submit(lambda: tracer.effect(["L0H1"]).tolist())
            assert tracer.effect(["L0H1"]).tolist() == expected()["effect"] and not waiting.done()
        assert waiting.result(60) == expected()["effect"]


def test_an_error_in_one_thread_lets_the_next_go_on() -> None:
    model, pairs = build(NAME), prompts()
    tracer = mt.Tracer(model, pairs, mt.heads(model), mt.OddsRatio())

    def fail() -> None:
        with tracer.session():
            raise ArithmeticError

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ArithmeticError):
            pool.submit(fail).result(60)
        assert tracer.effect(["L0H1"]).tolist() == expected()["effect"]


# --------------------------------------------------------------------------------------------------------------- hooks
def test_hooks_that_are_reset_in_a_session_are_put_on_anew_for_every_run() -> None:
    model, pairs = build(NAME), prompts()
    tracer = mt.Tracer(model, pairs, mt.heads(model), mt.OddsRatio())
    with tracer.session():
        model.reset_hooks()
        assert tracer.effect(["L0H1"]).tolist() == expected()["effect"]
    assert tracer.effect(["L0H1"]).tolist() == expected()["effect"]


# ------------------------------------------------------------------------------------------------------------- pickles
def test_results_and_prompts_are_pickled_without_the_model() -> None:
    model, pairs = build(NAME), prompts()
    tracer = mt.Tracer(model, pairs, mt.heads(model), mt.OddsRatio())
    path = mt.select(tracer, [1, 2], mt.Greedy())
    labels, frame = path[2].labels, path.to_dataframe()
    for made in (path, path[2], pairs, tracer.groups):
        content = pickle.dumps(made)
        assert len(content) < 60_000
        back = pickle.loads(content)
        assert repr(back) == repr(made)
    back = pickle.loads(pickle.dumps(path))
    assert back[2].labels == labels and back[2].marginals == path[2].marginals and back.to_dataframe().equals(frame)
    assert pickle.loads(pickle.dumps(pairs)).digest() == pairs.digest()


# -------------------------------------------------------------------------------------------------------------- metrics
def _diff(out: Any) -> Tensor:
    right, wrong = out.grouped()
    return right - wrong


def _edits(out: Any, base: Any) -> Tensor:
    out.token_logp.sub_(base.token_logp)
    return _diff(out)


def _edits_base(out: Any, base: Any) -> Tensor:
    base.last.mul_(2)
    return _diff(out)


class Noisy:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, out: Any, base: Any) -> Tensor:
        return _diff(out) + torch.rand(len(out.right), generator=self.generator)


BAD: dict[str, tuple[Callable[..., Any], str]] = {
    "edits its input": (_edits, r"changes token_logp of the answers .*out.token_logp.clone\(\)"),
    "scales the base run": (_edits_base, "changes last of the answers"),
    "centres": (lambda o, b: _diff(o) - _diff(o).mean(), "mixes examples: example 0 gives"),
    "normalises": (lambda o, b: _diff(o).softmax(0), "mixes examples"),
    "accumulates": (lambda o, b: _diff(o).cumsum(0), "mixes examples"),
    "is complex": (lambda o, b: _diff(o) * 1j, r"returns torch.complex64 numbers.*values.real"),
    "sums over examples": (lambda o, b: _diff(o).sum(), r"must return a tensor of shape \(3,\)"),
    "is random": (Noisy(), "other numbers when it is called again"),
    "knows its examples": (lambda o, b: _diff(o) * torch.tensor([1.0, 2.0, 3.0]), "fails on one example alone"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_metric_that_would_give_wrong_numbers_is_refused_at_the_start(what: str) -> None:
    metric, message = BAD[what]
    model = build(NAME)
    with pytest.raises((ValueError, TypeError), match=message):
        mt.Tracer(model, prompts(), mt.heads(model), metric)


GOOD: dict[str, Callable[..., Any]] = {
    "a difference": lambda o, b: _diff(o) - _diff(b),
    "the whole distribution": lambda o, b: (o.last.exp() * (o.last - b.last)).sum(-1),
    "a count": lambda o, b: (o.last > -4).sum(-1),
    "a yes": lambda o, b: _diff(o) > 0,
    "the token ids": lambda o, b: (o.token_logp * (o.token_ids > 30)).flatten(1).sum(1),
    "a rank": lambda o, b: o.last.argsort(-1)[:, 0].double(),
}


@pytest.mark.parametrize("what", GOOD)
def test_a_metric_of_each_example_is_taken(what: str) -> None:
    model = build(NAME)
    tracer = mt.Tracer(model, prompts(), mt.heads(model), GOOD[what])
    both = tracer.effects([["L0H1"], ["L1H0"]])
    assert both.is_floating_point()
    for j in range(3):
        alone = mt.Tracer(model, prompts()[j : j + 1], mt.heads(model), GOOD[what])
        assert torch.allclose(both[:, j : j + 1], alone.effects([["L0H1"], ["L1H0"]]), atol=1e-3)


def test_a_metric_that_mixes_is_found_on_a_single_pair_too() -> None:
    model = build(NAME)
    with pytest.raises(ValueError, match="mixes examples"):
        mt.Tracer(model, prompts()[:1], mt.heads(model), lambda o, b: _diff(o) - _diff(o).mean() + _diff(o)[0])
