"""What a metric is: per-example numbers from answer scores, with what solvers use of them.

A metric is any callable ``metric(out, base) -> Float["n"]`` that takes the :class:`Answers` of a run and of the
unpatched base run. :class:`Metric` adds an inner quantity in which effects are closer to linear (log-odds for odds),
the bounded loss that PGB-CT minimises, and a differentiable surrogate where the metric itself has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.answers import Answers


@runtime_checkable
class MetricFn(Protocol):
    """Any callable that turns the answers of a run (and of the base run) into one number per example.

    Examples:
        >>> from tl_multitrace.metrics import MetricFn
        >>> isinstance(lambda out, base: out.scores()[:, 0], MetricFn)
        True
    """

    def __call__(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """One number per example."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric with what solvers use of it. Subclasses define :meth:`inner` and, where it differs, :meth:`outer`.

    Attributes:
        name: how results call it.
        unit: unit of its values.
        needs_wrong: whether pairs need wrong answers.
        needs_last: whether it reads the whole distribution at the answer position.
        relative: whether it is already relative to the base run (0 there).
        differentiable: whether :meth:`inner` has a useful gradient.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Margin(mt.Metric):
        ...     name, unit, needs_wrong = "margin", "nats", True
        ...     def inner(self, out, base):
        ...         right, wrong = out.grouped()
        ...         return right - wrong
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), metric=Margin())
        >>> round(tracer.effect(["L0H3"]).mean().item(), 1)
        5.4
    """

    name: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    needs_wrong: ClassVar[bool] = False
    needs_last: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """The quantity that changes most nearly linearly with a mask, in its own unit.

        Args:
            out: answers of the run.
            base: answers of the unpatched run.
        """
        raise NotImplementedError

    def outer(self, inner: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The metric, in its unit, from :meth:`inner`; the identity by default.

        Args:
            inner: what :meth:`inner` gave.
        """
        return inner

    def __call__(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """The metric per example."""
        return self.outer(self.inner(out, base))

    @property
    def surrogate(self) -> Metric:
        """The metric that gradients are taken of: itself, unless it has none."""
        return self

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """Bounded decreasing transform of an effect, for gradient solvers; ``sign`` -1 when the effect is minimised.

        Args:
            effect: per example.
            sign: 1 where the number is to rise, -1 where it is to fall.
        """
        return torch.sigmoid(-sign * effect)

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean sigmoid(-effect)"


@dataclass(frozen=True)
class CustomMetric(Metric):
    """A user's callable as a :class:`Metric`; made by :func:`as_metric`.

    Args:
        fn: ``fn(out, base)``, one number per example.
        label: how results call it.

    Examples:
        >>> from tl_multitrace.metrics import as_metric
        >>> metric = as_metric(lambda out, base: out.scores()[:, 0])
        >>> type(metric).__name__, metric.differentiable
        ('CustomMetric', True)
    """

    fn: Any = None
    label: str = "custom"

    needs_last: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Tensor:
        """The callable's value, ``[n]``; whole numbers and booleans as floating-point ones.

        Raises:
            ValueError: it did not return one number per example.
            TypeError: complex numbers.
        """
        value = self.fn(out, base)
        if not isinstance(value, Tensor) or value.shape != (len(out.right),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"metric {self.label!r} must return a tensor of shape ({len(out.right)},), one per example, got {got}."
            )
        if value.is_complex():
            raise not_real(self.label, value)
        whole = not value.is_floating_point()
        return value.to(out.token_logp.dtype) if whole else value  # a count or a yes, of which effects are differences


def not_real(name: str, values: Tensor) -> TypeError:
    """The error of a metric (by its ``name``) whose ``values`` are not real floating-point numbers."""
    how = "its real part or its size: values.real, values.abs()" if values.is_complex() else "values.float()"
    return TypeError(
        f"metric {name!r} returns {values.dtype} numbers; effects are differences of real floating-point numbers. "
        f"Return {how}."
    )


def as_metric(metric: Any) -> Metric:
    """``metric`` itself, or a callable ``fn(out, base)`` wrapped.

    Args:
        metric: a :class:`Metric`, or ``fn(out, base)`` that gives one number per example.

    Raises:
        TypeError: not callable, or a class instead of an instance.

    Examples:
        >>> from tl_multitrace.metrics import as_metric
        >>> log_p = as_metric(lambda out, base: out.scores()[:, 0])
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), log_p)
        >>> round(tracer.effect(["L0H3"]).mean().item(), 1)
        2.0
    """
    if isinstance(metric, type):
        raise TypeError(f"metric is the class {metric.__name__}: pass an instance, {metric.__name__}().")
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return CustomMetric(metric, getattr(metric, "__name__", type(metric).__name__))
    raise TypeError(f"metric must be a Metric or a callable (out, base) -> tensor, got {type(metric).__name__}.")
