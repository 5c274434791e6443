"""Per-example numbers from answer scores, with their sign conventions.

A metric is any callable ``metric(out, base) -> Float["n"]`` that takes the :class:`Answers` of a run and of the
unpatched base run. The classes here add what solvers can use: an inner quantity in which effects are closer to linear
(log-odds for odds), the bounded loss that PGB-CT minimises, and a differentiable surrogate where the metric itself has
no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_multitrace.answers import Answers, Reduce


@runtime_checkable
class MetricFn(Protocol):
    """Any callable that turns the answers of a run (and of the base run) into one number per example."""

    def __call__(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """One number per example."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric with what solvers use of it. Subclasses define :meth:`inner` and, where it differs, :meth:`outer`.

    Class attributes:
        name: how results call it.
        unit: unit of its values.
        needs_wrong: whether pairs need wrong answers.
        needs_last: whether it reads the whole distribution at the answer position.
        relative: whether it is already relative to the base run (0 there).
        differentiable: whether :meth:`inner` has a useful gradient.
    """

    name: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    needs_wrong: ClassVar[bool] = False
    needs_last: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """The quantity that changes most nearly linearly with a mask, in its own unit."""
        raise NotImplementedError

    def outer(self, inner: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The metric from :meth:`inner`; the identity by default."""
        return inner

    def __call__(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """The metric per example."""
        return self.outer(self.inner(out, base))

    @property
    def surrogate(self) -> Metric:
        """The metric that gradients are taken of: itself, unless it has none."""
        return self

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """Bounded decreasing transform of an effect, for gradient solvers; ``sign`` -1 when the effect is minimised."""
        return torch.sigmoid(-sign * effect)

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean sigmoid(-effect)"


@dataclass(frozen=True)
class LogitDiff(Metric):
    """Logit of the answer minus logit of the wrong answer; positive: the answer is preferred. Unit: nats.

    For several candidates or tokens: mean log score of the answers minus that of the wrong answers, which for single
    tokens equals the difference of logits (the normaliser cancels).

    Args:
        reduce: ``"mean"`` or ``"sum"`` of log p over a candidate's tokens.
    """

    reduce: Reduce = "mean"
    name: ClassVar[str] = "logit_diff"
    unit: ClassVar[str] = "nats"
    needs_wrong: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """See the class."""
        scores, exists = out.scores(self.reduce), out.present.any(-1)
        scores = scores.masked_fill(~exists, 0.0)
        wrong = exists & ~out.right
        return _mean(scores, out.right) - _mean(scores, wrong)


def _mean(values: Float[Tensor, "n k"], chosen: Bool[Tensor, "n k"]) -> Float[Tensor, " n"]:
    return (values * chosen).sum(-1) / chosen.sum(-1).clamp_min(1)


@dataclass(frozen=True)
class OddsRatio(Metric):
    """Relative change of the odds of the answer: ``odds(mask) / odds(base) - 1``, ``odds = p(answer) / p(wrong)``.

    The bias measure of multi-component causal tracing (arXiv:2606.03085). Above 0: the mask moves probability towards
    the answer; -1 is the lower limit. A mean over examples is moved by a few large ratios, so the mean log-odds change
    (:meth:`inner`) is reported beside it.

    Args:
        reduce: candidate score ``exp(mean log p)`` or, with ``"sum"``, the probability of the whole continuation.
    """

    reduce: Reduce = "mean"
    name: ClassVar[str] = "odds_ratio"
    unit: ClassVar[str] = "relative change of odds"
    needs_wrong: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """Change of the log-odds, in nats."""
        right, wrong = out.grouped(self.reduce)
        base_right, base_wrong = base.grouped(self.reduce)
        return (right - wrong) - (base_right - base_wrong)

    def outer(self, inner: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``exp(change of log-odds) - 1``."""
        return torch.expm1(inner)

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """``1 / (1 + effect)``, the published objective; minimised: ``1 + effect`` (the odds turned over)."""
        return 1 / (1 + effect) if sign > 0 else 1 + effect

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean 1/(1+effect)"


@dataclass(frozen=True)
class AnswerLogProb(Metric):
    """Log probability of the answer (log of the sum over right candidates). Unit: nats; at most 0.

    Args:
        reduce: see :class:`OddsRatio`.
    """

    reduce: Reduce = "mean"
    name: ClassVar[str] = "answer_logprob"
    unit: ClassVar[str] = "nats"

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """See the class."""
        return out.grouped(self.reduce)[0]


@dataclass(frozen=True)
class AnswerProb(AnswerLogProb):
    """Probability of the answer (sum over right candidates), from 0 to 1."""

    name: ClassVar[str] = "answer_prob"
    unit: ClassVar[str] = "probability"

    def outer(self, inner: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``exp(log p)``."""
        return inner.exp()

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """``(1 - effect) / 2``, from 0 to 1."""
        return (1 - sign * effect) / 2

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean (1-effect)/2"


@dataclass(frozen=True)
class KLDivergence(Metric):
    """``KL(base || run)`` of the next token at the answer position. Unit: nats; 0 where nothing changed."""

    name: ClassVar[str] = "kl_divergence"
    unit: ClassVar[str] = "nats"
    needs_last: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """See the class."""
        assert out.last is not None and base.last is not None
        return (base.last.exp() * (base.last - out.last)).sum(-1)

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """``1 / (1 + KL)``; minimised: ``KL / (1 + KL)``."""
        return 1 / (1 + effect) if sign > 0 else effect / (1 + effect)

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean 1/(1+KL)"


@dataclass(frozen=True)
class Accuracy(Metric):
    """1 where the best-scored answer beats every wrong answer (without those: tops the vocabulary), else 0.

    It has no gradient: solvers differentiate :attr:`surrogate`, the log-odds of the answer, and say so.

    Args:
        reduce: see :class:`OddsRatio`.
    """

    reduce: Reduce = "mean"
    name: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "share of examples"
    needs_last: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """See the class."""
        scores, exists = out.scores(self.reduce), out.present.any(-1)
        best = scores.masked_fill(~out.right, -torch.inf).amax(-1)
        rivals = scores.masked_fill(out.right | ~exists, -torch.inf).amax(-1)
        assert out.last is not None
        alone = ~(exists & ~out.right).any(-1)
        return (best >= torch.where(alone, out.last.amax(-1), rivals)).to(scores.dtype)

    @property
    def surrogate(self) -> Metric:
        """Log probability of the answer."""
        return AnswerLogProb(self.reduce)


@dataclass(frozen=True)
class WeightedSum(Metric):
    """Sum of weighted metrics, ``sum_i w_i * metric_i``.

    Args:
        terms: ``(weight, metric)`` pairs.

    Raises:
        ValueError: no terms, or a weight that is not finite.
    """

    terms: tuple[tuple[float, Metric], ...] = ()

    def __post_init__(self) -> None:
        terms = tuple((float(w), m) for w, m in self.terms)
        if not terms or any(w != w or abs(w) == float("inf") for w, _ in terms):
            raise ValueError(f"WeightedSum needs (weight, metric) pairs with finite weights, got {self.terms!r}.")
        object.__setattr__(self, "terms", terms)

    name: ClassVar[str] = "weighted_sum"

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """See the class."""
        total = sum(w * m(out, base) for w, m in self.terms)
        assert isinstance(total, Tensor)
        return total

    @property
    def needs_wrong(self) -> bool:  # type: ignore[override]
        """Whether any term needs wrong answers."""
        return any(m.needs_wrong for _, m in self.terms)

    @property
    def needs_last(self) -> bool:  # type: ignore[override]
        """Whether any term reads the whole distribution."""
        return any(m.needs_last for _, m in self.terms)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether every term has a gradient."""
        return all(m.differentiable for _, m in self.terms)

    @property
    def surrogate(self) -> Metric:
        """The sum of the terms' surrogates."""
        return self if self.differentiable else WeightedSum(tuple((w, m.surrogate) for w, m in self.terms))


@dataclass(frozen=True)
class CustomMetric(Metric):
    """A user's callable as a :class:`Metric`; made by :func:`as_metric`."""

    fn: Any = None
    label: str = "custom"

    needs_last: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """The callable's value.

        Raises:
            ValueError: it did not return one number per example.
        """
        value = self.fn(out, base)
        if not isinstance(value, Tensor) or value.shape != (len(out.right),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"metric {self.label!r} must return a tensor of shape ({len(out.right)},), one per example, got {got}."
            )
        return value


def as_metric(metric: Any) -> Metric:
    """``metric`` itself, or a callable ``fn(out, base)`` wrapped.

    Raises:
        TypeError: not callable, or a class instead of an instance.
    """
    if isinstance(metric, type):
        raise TypeError(f"metric is the class {metric.__name__}: pass an instance, {metric.__name__}().")
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return CustomMetric(metric, getattr(metric, "__name__", type(metric).__name__))
    raise TypeError(f"metric must be a Metric or a callable (out, base) -> tensor, got {type(metric).__name__}.")


def metric_by_name(name: str, **options: Any) -> Metric:
    """The built-in metric that calls itself ``name``.

    Raises:
        ValueError: no such metric.
    """
    known: Sequence[type[Metric]] = (LogitDiff, OddsRatio, AnswerProb, AnswerLogProb, KLDivergence, Accuracy)
    for metric in known:
        if metric.name == name:
            return metric(**options)
    raise ValueError(f"unknown metric {name!r}: use one of {', '.join(m.name for m in known)}.")
