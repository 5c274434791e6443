"""Answer against wrong answer: differences of logits, and odds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_multitrace.answers import Answers, Reduce
from tl_multitrace.metric_base import Metric


@dataclass(frozen=True)
class LogitDiff(Metric):
    """Logit of the answer minus logit of the wrong answer; positive: the answer is preferred. Unit: nats.

    For several candidates or tokens: mean log score of the answers minus that of the wrong answers, which for single
    tokens equals the difference of logits (the normaliser cancels).

    Args:
        reduce: ``"mean"`` or ``"sum"`` of log p over a candidate's tokens.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.LogitDiff())
        >>> base, change = tracer.base_metric.mean(), tracer.effect(["L0H3"]).mean()
        >>> round(base.item(), 1), round(change.item(), 1)
        (-1.8, 5.4)
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

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.OddsRatio())
        >>> ratio, nats = tracer.effect(["L0H3"]).mean(), tracer.log_effect(["L0H3"]).mean()
        >>> round(ratio.item()), round(nats.item(), 1)
        (340, 5.4)
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

    Args:
        reduce: see :class:`OddsRatio`.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.LogOddsRatio())
        >>> round(tracer.effect(["L0H3"]).mean().item(), 1)
        5.4
    """

    name: ClassVar[str] = "log_odds_ratio"
    unit: ClassVar[str] = "nats"

    outer = Metric.outer
    loss = Metric.loss
    loss_name = Metric.loss_name
