"""One identity of a computation: whatever changes a number is told apart, by caches, live tracers, runs and ranks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples
from torch import Tensor, nn

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, bridge_from_hf, build, hf_model
from tl_multitrace.engine.identity import ModelChangedError
from tl_multitrace.runs.checkpoint import Checkpoint

NAME = "bridge-gpt2" if HAS_BRIDGE else "hooked-gpt2"
PAIRS = pairs_of(random_examples(3, seed=1, right=1, wrong=1))
EMBEDDED = "hook_embed"


def model_of() -> Any:
    return build(NAME)


def effect(model: Any, folder: Path | None = None, metric: Any = None) -> Tensor:
    """Effects of a new tracer, base metric in front."""
    tracer = mt.Tracer(model, PAIRS, mt.heads(model), metric, cache_dir=folder)
    found = tracer.effects([["L0H1"], ["L1H0", "L2H3"]])
    tracer.flush()
    return torch.cat([tracer.base_metric[None], found])


# ------------------------------------------------------------------------------------------------- changes to a model
def _mlp(model: Any) -> Any:
    """The first MLP, of whatever class."""
    return model.blocks[0].mlp


class Table(nn.Module):
    """An activation whose numbers are integers: no floating-point weight says what it computes."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor([steps], dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.steps


class Adapter(nn.Module):
    """Several low-rank changes of a layer, of which one is active, or none: as PEFT's layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.active, self.disabled = ["one"], False
        self.scales = {"one": 1.0, "two": -3.0}

    def __call__(self, act: Tensor, hook: Any = None) -> Tensor:
        return act if self.disabled else act * self.scales[self.active[0]]


@contextmanager
def _embedded(model: Any, hook: Callable[..., Any]) -> Iterator[None]:
    with model.hooks(fwd_hooks=[(EMBEDDED, hook)]):
        yield


def _doubled(act: Tensor, hook: Any) -> Tensor:
    return 2 * act


def _scaled_by(factor: float) -> Callable[..., Tensor]:
    def hook(act: Tensor, hook: Any) -> Tensor:
        return factor * act

    return hook


@contextmanager
def _weight(model: Any, edit: Callable[[Tensor], None]) -> Iterator[None]:
    weight = next(p for p in model.parameters() if p.ndim == 2)
    before = weight.detach().clone()
    with torch.no_grad():
        edit(weight)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def _by_data(weight: Tensor) -> None:
    weight.data[:, 3] *= 1.5


@contextmanager
def _permanent(model: Any) -> Iterator[None]:
    point = model.hook_dict[EMBEDDED]
    point.add_perma_hook(_doubled)
    try:
        yield
    finally:
        point.remove_hooks("fwd", including_permanent=True)


@contextmanager
def _module_hook(model: Any) -> Iterator[None]:
    handle = _mlp(model).register_forward_hook(lambda module, args, out: out * 0.5)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _patched_forward(model: Any) -> Iterator[None]:
    mlp = _mlp(model)
    plain = mlp.forward
    vars(mlp)["forward"] = lambda *args, **kwargs: plain(*args, **kwargs) * 2
    try:
        yield
    finally:
        del vars(mlp)["forward"]


@contextmanager
def _patched_class(model: Any) -> Iterator[None]:
    kind = type(_mlp(model))
    plain = kind.forward
    kind.forward = lambda self, *args, **kwargs: plain(self, *args, **kwargs) * 2
    try:
        yield
    finally:
        kind.forward = plain


@contextmanager
def _adapter(model: Any, **state: Any) -> Iterator[None]:
    adapter = Adapter()
    vars(adapter).update(state)
    with _embedded(model, adapter):
        yield


@contextmanager
def _table(model: Any, steps: int) -> Iterator[None]:
    table = Table(steps)
    handle = _mlp(model).register_forward_hook(lambda module, args, out: table(out))
    try:
        yield
    finally:
        handle.remove()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a weight edited in place": lambda m: _weight(m, lambda w: w.mul_(1.1)),
    "one column of a weight": lambda m: _weight(m, lambda w: w[3:60, 4].add_(0.5)),
    "a weight edited through data": lambda m: _weight(m, _by_data),
    "a permanent hook": _permanent,
    "a hook for a while": lambda m: _embedded(m, _doubled),
    "a hook that closes over a number": lambda m: _embedded(m, _scaled_by(0.5)),
    "the same hook with another number": lambda m: _embedded(m, _scaled_by(0.25)),
    "a hook that closes over a tensor": lambda m: _embedded(m, functools.partial(_plus, torch.arange(32.0) / 8)),
    "a module's own hook": _module_hook,
    "another forward": _patched_forward,
    "another forward of the class": _patched_class,
    "an adapter": lambda m: _adapter(m),
    "another adapter": lambda m: _adapter(m, active=["two"]),
    "no adapter": lambda m: _adapter(m, disabled=True),
    "integers": lambda m: _table(m, 2),
    "other integers": lambda m: _table(m, 3),
}
SAME = ("an adapter", "no adapter")
"""Changes that leave every number as it was: here they need only not mislead."""


def _plus(vector: Tensor, act: Tensor, hook: Any) -> Tensor:
    return act + vector


@pytest.fixture(scope="module")
def one_model() -> Any:
    return model_of()


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, one_model: Any) -> Path:
    """A cache of the model as it is, and of every change."""
    folder = tmp_path_factory.mktemp("cache")
    effect(one_model, folder)
    for change in CHANGES.values():
        with change(one_model):
            effect(one_model, folder)
    return folder


@pytest.mark.parametrize("what", ["as it is", *CHANGES])
def test_a_cache_gives_what_the_model_at_hand_gives(what: str, one_model: Any, shared_folder: Path) -> None:
    with CHANGES[what](one_model) if what in CHANGES else contextmanager(lambda: (yield))():
        assert torch.equal(effect(one_model, shared_folder), effect(one_model))
    if what not in ("as it is", *SAME):
        with CHANGES[what](one_model):
            changed = effect(one_model)
        assert (changed - effect(one_model)).abs().max() > 1e-3


@pytest.mark.parametrize("what", CHANGES)
def test_a_live_tracer_notices_a_change_and_goes_on_when_it_is_undone(what: str, one_model: Any) -> None:
    tracer = mt.Tracer(one_model, PAIRS, mt.heads(one_model))
    before = tracer.effect(["L0H1"])
    with CHANGES[what](one_model):
        with pytest.raises(ModelChangedError, match=r"has changed since this tracer was made .*Make a new Tracer"):
            tracer.effect(["L0H1"])
        with pytest.raises(ModelChangedError):
            tracer.gradient([0.5] * 12)
    assert torch.equal(tracer.effect(["L0H1"]), before)


def test_a_tracer_made_under_a_hook_does_not_answer_without_it(one_model: Any) -> None:
    with _embedded(one_model, _doubled):
        tracer = mt.Tracer(one_model, PAIRS, mt.heads(one_model))
        within = tracer.effect(["L0H1"])
        assert torch.equal(mt.Tracer(one_model, PAIRS, mt.heads(one_model)).effect(["L0H1"]), within)
    with pytest.raises(ModelChangedError, match=r"hooks at hook_embed|hooks at embed"):
        tracer.effect(["L0H1"])


def test_what_a_hook_reads_may_change_in_place(one_model: Any) -> None:
    numbers, vector = [1.5], torch.ones(1)
    for change in (lambda: numbers.__setitem__(0, 2.0), lambda: vector.mul_(2)):
        with _embedded(one_model, lambda act, hook: act * numbers[0] + vector):
            tracer = mt.Tracer(one_model, PAIRS, mt.heads(one_model))
            change()
            with pytest.raises(ModelChangedError):
                tracer.effect(["L0H1"])


SEEN: dict[str, Any] = {}
CALLS = 0


def _keeps(act: torch.Tensor, hook: Any) -> None:
    """As one cell of a notebook has it: everything it writes to is global."""
    SEEN[hook.name] = act.detach().clone()


def _counts(act: torch.Tensor, hook: Any) -> None:
    global CALLS
    CALLS += 1


def _counting() -> Any:
    calls = 0

    def counts(act: torch.Tensor, hook: Any) -> None:
        nonlocal calls
        calls += 1

    return counts


@pytest.mark.parametrize("hook", [_keeps, _counts, _counting()], ids=["keeps", "counts", "counts in a closure"])
def test_what_a_hook_notes_is_no_change(hook: Any, one_model: Any) -> None:
    expected = effect(one_model)
    with _embedded(one_model, hook):
        tracer = mt.Tracer(one_model, PAIRS, mt.heads(one_model))
        for _ in range(3):
            assert torch.equal(tracer.effects([["L0H1"], ["L1H0", "L2H3"]]), expected[1:])
    assert hook is not _keeps or SEEN
    assert hook is not _counts or CALLS


def test_a_weight_that_the_first_runs_move_is_a_change() -> None:
    """Unlike what a module notes about itself: the base run is of the model as it was."""
    model = model_of()
    weight = next(iter(model.parameters()))

    def moves(out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        weight.data.view(-1)[0] += 0.5
        return out.scores()[:, 0]

    tracer = mt.Tracer(model, PAIRS, mt.heads(model), moves)
    with pytest.raises(ModelChangedError, match="weights of"):
        tracer.effect(["L0H1"])


def test_a_changed_configuration_is_another_model(tmp_path: Path) -> None:
    """As when ``config.json`` of a model's folder is edited between a run and its continuation."""
    if not HAS_BRIDGE:
        pytest.skip("a HookedTransformer has its own configuration, changed below")
    as_it_was, edited = (bridge_from_hf(hf_model("gpt2", activation_function=name)) for name in ("gelu_new", "relu"))
    expected = effect(as_it_was, tmp_path)
    assert torch.equal(effect(edited, tmp_path), effect(edited)) and not torch.equal(effect(edited), expected)
    checkpoint = Checkpoint(tmp_path / "run", {})
    checkpoint.place.mkdir(parents=True)
    checkpoint.start()
    checkpoint.claim(mt.ModelView(as_it_was).describe())
    checkpoint.claim(mt.ModelView(bridge_from_hf(hf_model("gpt2"))).describe())
    with pytest.raises(ValueError, match="its weights or its configuration have changed"):
        checkpoint.claim(mt.ModelView(edited).describe())


def test_a_live_tracer_notices_a_changed_setting() -> None:
    model = model_of()
    tracer = mt.Tracer(model, PAIRS, mt.heads(model))
    model.cfg.eps = 10 * model.cfg.eps
    with pytest.raises(ModelChangedError, match="settings of"):
        tracer.effect(["L0H1"])


def test_flags_that_change_no_number_are_no_change() -> None:
    model = model_of()
    tracer = mt.Tracer(model, PAIRS, mt.heads(model))
    before = tracer.effect(["L0H1"])
    model(torch.tensor([[3, 4, 5]]))
    model.train()
    model.requires_grad_(False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.clone())  # a new version of the same numbers
    assert torch.equal(tracer.effect(["L0H1"]), before)


def test_a_hook_that_cannot_be_told_is_refused_by_a_cache_alone(one_model: Any, tmp_path: Path) -> None:
    lock = threading.Lock()

    def guarded(act: Tensor, hook: Any) -> Tensor:
        with lock:
            return act

    def opaque(act: Tensor, hook: Any) -> Tensor:
        return act * next(endless)

    endless = (2.0 for _ in range(10**6))
    for hook in (guarded, opaque):
        with _embedded(one_model, hook):
            effect(one_model)
            with pytest.raises(TypeError, match=r"cannot be told .*leave cache_dir out"):
                effect(one_model, tmp_path)
