"""Per-example numbers from answer scores, with formula, unit and what positive means.

===================  ============================================  =========================  =====================
metric               formula                                       unit                       source
===================  ============================================  =========================  =====================
``LogitDiff``        logit(answer) - logit(wrong)                  nats                       Wang et al. 2022
``OddsRatio``        odds(mask) / odds(base) - 1                   relative change of odds    arXiv:2606.03085
``LogOddsRatio``     log odds(mask) - log odds(base)               nats                       its log form
``AnswerProb``       p(answer)                                     probability                Meng et al. 2022
``AnswerLogProb``    log p(answer)                                 nats
``ProbDiff``         p(answers) - p(wrong answers)                 probability                Hanna et al. 2023
``ChoiceProb``       p(answers) / (p(answers) + p(wrong))          probability
``Accuracy``         1 where the answer scores best                share of examples
``KLDivergence``     KL(base || run) of the next token             nats
``Perplexity``       perplexity(mask) / perplexity(base) - 1       relative change
===================  ============================================  =========================  =====================

A candidate of several tokens scores ``exp(mean log p)`` of its tokens, or with ``reduce="sum"`` the probability of the
whole continuation. Gaps between subgroups are functions of these numbers: see ``objective.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_multitrace.answers import Answers, Reduce
from tl_multitrace.metric_base import CustomMetric, Metric, MetricFn, as_metric

__all__ = [
    "Accuracy",
    "AnswerLogProb",
    "AnswerProb",
    "ChoiceProb",
    "CustomMetric",
    "KLDivergence",
    "LogOddsRatio",
    "LogitDiff",
    "Metric",
    "MetricFn",
    "OddsRatio",
    "Perplexity",
    "ProbDiff",
    "WeightedSum",
    "as_metric",
    "metric_by_name",
]


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
class LogOddsRatio(OddsRatio):
    """Change of the log-odds of the answer, ``log odds(mask) - log odds(base)``: :class:`OddsRatio` on a log scale.

    Above 0: the mask moves probability towards the answer. Unit: nats. A few examples of large ratio do not move its
    mean as they move that of the ratio.
    """

    name: ClassVar[str] = "log_odds_ratio"
    unit: ClassVar[str] = "nats"

    outer = Metric.outer
    loss = Metric.loss
    loss_name = Metric.loss_name


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
class ProbDiff(Metric):
    """Summed probability of the answers minus that of the wrong answers, from -1 to 1; positive: answers are preferred.

    With the years above a threshold as answers and those below as wrong answers this is the greater-than measure (Hanna
    et al. 2023, arXiv:2305.00586); with a true and a false continuation, the truthfulness difference.

    Args:
        reduce: see :class:`OddsRatio`.
    """

    reduce: Reduce = "mean"
    name: ClassVar[str] = "prob_diff"
    unit: ClassVar[str] = "probability"
    needs_wrong: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """See the class."""
        right, wrong = out.grouped(self.reduce)
        return right.exp() - wrong.exp()

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """``(2 - effect) / 4``, from 0 to 1."""
        return (2 - sign * effect) / 4

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean (2-effect)/4"


@dataclass(frozen=True)
class ChoiceProb(AnswerProb):
    """Probability of the answers among the candidates, ``p(answers) / (p(answers) + p(wrong answers))``, from 0 to 1.

    The chance that the model, made to choose, answers right; its difference between subgroups is a parity gap.

    Args:
        reduce: see :class:`OddsRatio`.
    """

    name: ClassVar[str] = "choice_prob"
    unit: ClassVar[str] = "probability"
    needs_wrong: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """Log-odds, in nats."""
        right, wrong = out.grouped(self.reduce)
        return right - wrong

    def outer(self, inner: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``sigmoid(log-odds)``."""
        return torch.sigmoid(inner)


@dataclass(frozen=True)
class Perplexity(Metric):
    """Relative change of the perplexity of a text: ``perplexity(mask) / perplexity(base) - 1``.

    The text is each pair's answer, scored token by token behind its prompt: ``perplexity = exp(-mean log p)``. Above 0:
    the mask makes the model worse at the text; 0.02 is a rise of 2 %. Components have to cover the answer's tokens
    too (``groups.at("everywhere")``). The mean over texts is at least the change of the perplexity of all texts
    together, ``exp(mean change in nats) - 1``.
    """

    name: ClassVar[str] = "perplexity"
    unit: ClassVar[str] = "relative change of perplexity"
    relative: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """Rise of ``-mean log p``, in nats per token."""
        return base.grouped("mean")[0] - out.grouped("mean")[0]

    def outer(self, inner: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``exp(rise) - 1``."""
        return torch.expm1(inner)

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """``1 / (1 + effect)``; minimised: ``1 + effect``."""
        return 1 / (1 + effect) if sign > 0 else 1 + effect

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean 1/(1+effect)"


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
        # a token that the base run gives no probability at all (some models mask parts of their vocabulary) adds 0
        change = (base.last - out.last).masked_fill(base.last == -torch.inf, 0.0)
        return (base.last.exp() * change).sum(-1)

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


BY_NAME: tuple[type[Metric], ...] = (
    LogitDiff,
    OddsRatio,
    LogOddsRatio,
    AnswerProb,
    AnswerLogProb,
    ProbDiff,
    ChoiceProb,
    Accuracy,
    KLDivergence,
    Perplexity,
)


def metric_by_name(name: str, **options: Any) -> Metric:
    """The built-in metric that calls itself ``name``.

    Raises:
        ValueError: no such metric.
    """
    for metric in BY_NAME:
        if metric.name == name:
            return metric(**options)
    raise ValueError(f"unknown metric {name!r}: use one of {', '.join(m.name for m in BY_NAME)}.")
