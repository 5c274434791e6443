"""What a cache holds is of the metric at hand, and is what a computation may give."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_identity import PAIRS, effect, model_of
from torch import Tensor

import tl_multitrace as mt
from tl_multitrace.engine.identity import ModelChangedError
from tl_multitrace.identity import digest_of


@pytest.fixture(scope="module")
def one_model() -> Any:
    return model_of()


# ------------------------------------------------------------------------------------------------- changes to a metric
FACTOR = 1.0


class Scaled(mt.LogitDiff):
    def __init__(self, factor: float) -> None:
        super().__init__()
        object.__setattr__(self, "factor", factor)

    def inner(self, out: Any, base: Any) -> Tensor:
        return self.factor * super().inner(out, base)


class Holding(mt.LogitDiff):
    weights: Any = None

    def inner(self, out: Any, base: Any) -> Tensor:
        return self.weights.sum() * super().inner(out, base)


def _holding(weights: Tensor) -> Holding:
    made = Holding()
    object.__setattr__(made, "weights", weights)
    return made


def _diff(out: Any) -> Tensor:
    right, wrong = out.grouped()
    return right - wrong


def _helped(out: Any, base: Any) -> Tensor:
    return _helper(out)


def _helper(out: Any) -> Tensor:
    return FACTOR * _diff(out)


def _closed(factor: float) -> Callable[..., Tensor]:
    return lambda out, base: factor * _diff(out)


def _default(factor: float) -> Callable[..., Tensor]:
    def metric(out: Any, base: Any, by: float = factor) -> Tensor:
        return by * _diff(out)

    return metric


def _times(factor: float, out: Any, base: Any) -> Tensor:
    return factor * _diff(out)


SETTINGS = types.ModuleType("settings_of_a_study")
SETTINGS.FACTOR = 1.0  # type: ignore[attr-defined]


def _configured(out: Any, base: Any) -> Tensor:
    return SETTINGS.FACTOR * _diff(out)


def _by_constant(factor: float) -> Any:
    global FACTOR
    FACTOR = factor
    return _helped


def _by_module(factor: float) -> Any:
    SETTINGS.FACTOR = factor  # type: ignore[attr-defined]
    return _configured


def _by_code(factor: float) -> Any:
    found: dict[str, Any] = {"_diff": _diff}
    exec(f"def metric(out, base):\n    return {factor!r} * _diff(out)", found)
    return found["metric"]


class Method:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def score(self, out: Any, base: Any) -> Tensor:
        return self.factor * _diff(out)

    def __call__(self, out: Any, base: Any) -> Tensor:
        return self.score(out, base)


def _by_class_attribute(factor: float) -> Any:
    made = type("Local", (Scaled,), {"factor": factor, "__init__": lambda self: None})()
    return made


METRICS: dict[str, Callable[[float], Any]] = {
    "set in __init__": Scaled,
    "a tensor set later": lambda factor: _holding(torch.tensor([factor])),
    "a class attribute": _by_class_attribute,
    "a constant that a helper reads": _by_constant,
    "a constant of another module": _by_module,
    "a closure": _closed,
    "a default": _default,
    "a partial": lambda factor: functools.partial(_times, factor),
    "the code": _by_code,
    "a bound method": lambda factor: Method(factor).score,
    "an object that is called": Method,
    "a weighted sum": lambda factor: mt.WeightedSum(((factor, mt.LogitDiff()),)),
}


@pytest.mark.parametrize("what", METRICS)
def test_a_cache_gives_what_the_metric_at_hand_gives(what: str, one_model: Any, tmp_path: Path) -> None:
    plain = effect(one_model)
    for factor in (1.0, 50.0, 1.0):
        assert torch.allclose(effect(one_model, tmp_path, METRICS[what](factor)), factor * plain, rtol=1e-4)
    assert len(list(tmp_path.iterdir())) == 2  # and the same metric made again is the same


def test_a_metric_that_is_edited_is_noticed_by_a_live_tracer(one_model: Any, tmp_path: Path) -> None:
    metric = Scaled(2.0)
    tracer = mt.Tracer(one_model, PAIRS, mt.heads(one_model), metric)
    object.__setattr__(metric, "factor", 3.0)
    with pytest.raises(ModelChangedError, match="the metric has changed"):
        tracer.effect(["L0H1"])
    kept = mt.Tracer(one_model, PAIRS, mt.heads(one_model), _by_constant(1.0), cache_dir=tmp_path)
    kept.effect(["L0H1"])
    _by_constant(7.0)
    with pytest.raises(ModelChangedError, match="the metric has changed"):
        kept.effect(["L0H1"])


def test_a_metric_may_count_its_calls(one_model: Any, tmp_path: Path) -> None:
    class Counting(mt.LogitDiff):
        def inner(self, out: Any, base: Any) -> Tensor:
            object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
            return super().inner(out, base)

    for folder in (None, tmp_path):
        tracer = mt.Tracer(one_model, PAIRS, mt.heads(one_model), Counting(), cache_dir=folder)
        assert torch.equal(tracer.effect(["L0H1"]), tracer.effect(["L0H1"]))


@pytest.mark.parametrize("thing", [threading.Lock(), (i for i in ()), open(__file__)])
def test_what_cannot_be_told_is_refused_with_the_reason(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be told \(.*cannot.*pickle.*leave cache_dir out"):
        digest_of({"metric": lambda out: thing})


def test_a_live_tracer_is_refused_as_part_of_a_metric(one_model: Any, tmp_path: Path) -> None:
    tracer = mt.Tracer(one_model, PAIRS, mt.heads(one_model))
    with pytest.raises(TypeError, match=r"is a Tracer.*it holds a run in progress"):
        effect(one_model, tmp_path, lambda out, base: _diff(out) + 0 * tracer.n)


# --------------------------------------------------------------------------------------------------- what a cache holds
def _spoilt(folder: Path, spoil: Callable[[dict[str, Tensor]], Any]) -> None:
    """Alter every result in a cache, with names that hold for the altered content."""
    import hashlib

    from tl_multitrace.engine.cache import pack, unpack

    for path in folder.rglob("*.safetensors"):
        values = unpack(path.read_bytes())
        for key, found in values.items():
            if key != "base":
                spoil(found)
        content = pack(values)
        path.unlink()
        (path.parent / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors").write_bytes(content)


SPOILT: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "not a number": lambda v: v.update(each=torch.full_like(v["each"], torch.nan)),
    "infinite": lambda v: v["each"].view(-1)[:1].fill_(torch.inf),
    "another shape": lambda v: v.update(each=v["each"][:, :-1]),
    "another rank": lambda v: v.update(each=v["each"].flatten()),
    "too many sums": lambda v: v.update(sums=torch.ones(2)),
    "no numbers": lambda v: v.pop("each"),
    "a broken cost": lambda v: v.update(cost=torch.full((3,), torch.nan, dtype=torch.float64)),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_result_that_cannot_be_is_computed_again(what: str, one_model: Any, tmp_path: Path, caplog: Any) -> None:
    expected = effect(one_model, tmp_path)
    _spoilt(tmp_path, SPOILT[what])
    assert torch.equal(effect(one_model, tmp_path), expected)
    assert "it is left out and computed again" in caplog.text


def test_results_of_another_base_run_are_not_taken(one_model: Any, tmp_path: Path, caplog: Any) -> None:
    """What no digest sees, such as a patched library, shows in the base run."""
    plain = torch.addmm
    before = effect(one_model, tmp_path)
    torch.addmm = lambda *args, **kwargs: plain(*args, **kwargs) * 1.5  # type: ignore[assignment]
    try:
        changed = effect(one_model)
        if torch.equal(changed, before):
            pytest.skip("this model does not call addmm by that name")
        assert torch.equal(effect(one_model, tmp_path), changed)
        assert "holds results of something else (its base run differs by" in caplog.text
    finally:
        torch.addmm = plain
    assert torch.equal(effect(one_model, tmp_path), before)
