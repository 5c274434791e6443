"""Probabilities of the answers, and whether they come first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.answers import Answers, Reduce
from tl_multitrace.metric_base import Metric


@dataclass(frozen=True)
class AnswerLogProb(Metric):
    """Log probability of the answer (log of the sum over right candidates). Unit: nats; at most 0.

    Args:
        reduce: see :class:`OddsRatio`.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.AnswerLogProb())
        >>> round(tracer.effect(["L0H3"]).mean().item(), 1)
        2.0
    """

    reduce: Reduce = "mean"
    name: ClassVar[str] = "answer_logprob"
    unit: ClassVar[str] = "nats"

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """See the class."""
        return out.grouped(self.reduce)[0]


@dataclass(frozen=True)
class AnswerProb(AnswerLogProb):
    """Probability of the answer (sum over right candidates), from 0 to 1.

    Args:
        reduce: see :class:`OddsRatio`.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.AnswerProb())
        >>> base, change = tracer.base_metric.mean(), tracer.effect(["L0H3"]).mean()
        >>> round(base.item(), 2), round(change.item(), 2)
        (0.15, 0.82)
    """

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

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.ProbDiff())
        >>> base, change = tracer.base_metric.mean(), tracer.effect(["L0H3"]).mean()
        >>> round(base.item(), 1), round(change.item(), 1)
        (-0.7, 1.6)
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

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.ChoiceProb())
        >>> round(tracer.effect(["L0H3"]).mean().item(), 1)
        0.8
    """

    name: ClassVar[str] = "choice_prob"
    unit: ClassVar[str] = "probability"
    needs_wrong: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """Log-odds, in nats."""
        right, wrong = out.grouped(self.reduce)
        return right - wrong

    def outer(self, inner: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The probability, sigmoid of the log-odds."""
        return torch.sigmoid(inner)


@dataclass(frozen=True)
class Accuracy(Metric):
    """1 where the best-scored answer beats every wrong answer (without those: tops the vocabulary), else 0.

    It has no gradient: solvers differentiate :attr:`surrogate`, the log-odds of the answer, and say so.

    Args:
        reduce: see :class:`OddsRatio`.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.Accuracy())
        >>> tracer.base_metric.mean().item(), tracer.effect(["L0H3"]).mean().item()
        (0.0, 1.0)
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
