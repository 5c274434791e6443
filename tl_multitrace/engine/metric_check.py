"""A user's metric, tried once before it is trusted: what the engine takes for granted and a metric may break.

The engine hands one batch of answers to a metric: examples of several masks at once, of any number, in an order of its
own. So a metric has to be a function of each example alone, real, the same at every call, and must leave what it is
given as it is. Each of these, broken, gives wrong numbers without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.identity import OWN
from tl_multitrace.metric_base import CustomMetric, Metric, not_real
from tl_multitrace.metrics.weighted import WeightedSum

ROWS = 3
"""Examples that are tried alone."""


def check_metric(metric: Metric, answers: Answers) -> None:
    """Try a metric on the base run's answers, unless it is one of this package's.

    Args:
        metric: to be tried.
        answers: of one batch, finite.

    Raises:
        TypeError: it gives something else than real floating-point numbers.
        ValueError: it gives no number per example, changes what it is given, mixes examples, or differs from call to
            call. The message says which, and how to write it instead.
    """
    if _is_ours(metric):
        return
    name = str(getattr(metric, "label", "") or metric.name or type(metric).__name__)
    with torch.no_grad():
        out, base = _copy(answers), _copy(answers)
        values = metric(out, base)
        _check_values(name, values, len(answers.right))
        for given in (out, base):
            _check_unchanged(name, given, answers)
        _check_equal(values, metric(_copy(answers), _copy(answers)), partial(_differs, name))
        _check_rows(name, metric, answers, values)


def _is_ours(metric: Metric) -> bool:
    if isinstance(metric, WeightedSum):
        return all(_is_ours(term) for _, term in metric.terms)
    return type(metric).__module__.partition(".")[0] == OWN and not isinstance(metric, CustomMetric)


def _copy(answers: Answers) -> Answers:
    own = {f.name: getattr(answers, f.name) for f in fields(answers)}
    return replace(answers, **{name: part.clone() for name, part in own.items() if isinstance(part, Tensor)})


def _check_values(name: str, values: Any, n: int) -> None:
    if not isinstance(values, Tensor) or values.shape != (n,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"metric {name!r} must return a tensor of shape ({n},), one number per example, got {got}.")
    if not values.is_floating_point():
        raise not_real(name, values)


def _check_unchanged(name: str, given: Answers, answers: Answers) -> None:
    for f in fields(answers):
        now, before = getattr(given, f.name), getattr(answers, f.name)
        if isinstance(before, Tensor) and not (now is not None and _same(now, before)):
            raise ValueError(
                f"metric {name!r} changes {f.name} of the answers that it is given, which are kept for later calls: "
                f"effects would be wrong. Work on a copy: out.{f.name}.clone(), or x = x - y instead of x -= y."
            )


def _check_rows(name: str, metric: Metric, answers: Answers, values: Tensor) -> None:
    """One example alone, and beside others, gives what it gives in the batch."""
    n = len(values)
    for row in sorted({0, n // 2, n - 1})[:ROWS]:
        alone = answers.picked(torch.tensor([row], device=values.device))
        try:
            got = metric(_copy(alone), _copy(alone))
            beside = metric(_beside(alone), _beside(alone, base=True))[:1]
        except (RuntimeError, IndexError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(
                f"metric {name!r} fails on one example alone ({first}). Examples run in batches of any size and order, "
                "so what belongs to an example has to come from out and base."
            ) from error
        _check_values(name, got, 1)
        _check_equal(values[row : row + 1], got, partial(_mixes, name, row, values, got))
        _check_equal(got, beside, partial(_mixes, name, row, values, beside))


def _beside(alone: Answers, base: bool = False) -> Answers:
    """An example, and behind it one that differs from it in every number (in the base run by less)."""
    factor = 0.75 if base else 0.5
    last = None if alone.last is None else torch.cat([alone.last, (factor * alone.last).log_softmax(-1)])
    twice = alone.repeated(2)
    return replace(twice, token_logp=torch.cat([alone.token_logp, factor * alone.token_logp]), last=last)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _check_equal(a: Tensor, b: Tensor, error: Callable[[], ValueError]) -> None:
    scale = 1e-3 if a.dtype in (torch.bfloat16, torch.float16) else 1e-4
    if not torch.allclose(a, b.to(a.dtype), rtol=scale, atol=scale / 10, equal_nan=True):
        raise error()


def _differs(name: str) -> ValueError:
    return ValueError(
        f"metric {name!r} gives other numbers when it is called again on the same answers. A metric must be a function "
        "of what it is given: draw random numbers from a generator with a fixed seed inside it, and keep no state."
    )


def _mixes(name: str, row: int, values: Tensor, got: Tensor) -> ValueError:
    one, other = float(values[row]), float(got[0])
    return ValueError(
        f"metric {name!r} mixes examples: example {row} gives {one:.6g} among others and {other:.6g} in other company. "
        "A batch holds examples of several masks, so each number must depend on its own example alone: reduce over the "
        "other dimensions, not over the first (no x.mean(), x.mean(0), softmax(0) or ranks)."
    )
