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
whole continuation. Gaps between subgroups are functions of these numbers: see ``objective``.
"""

from __future__ import annotations

from typing import Any

from tl_multitrace.metric_base import CustomMetric, Metric, MetricFn, as_metric
from tl_multitrace.metrics.odds import LogitDiff, LogOddsRatio, OddsRatio
from tl_multitrace.metrics.probability import Accuracy, AnswerLogProb, AnswerProb, ChoiceProb, ProbDiff
from tl_multitrace.metrics.weighted import WeightedSum
from tl_multitrace.metrics.whole import KLDivergence, Perplexity

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

    Args:
        name: such as ``"odds_ratio"``.
        options: the metric's own, such as ``reduce=``.

    Raises:
        ValueError: no such metric.

    Examples:
        >>> from tl_multitrace.metrics import metric_by_name
        >>> metric_by_name("odds_ratio", reduce="sum")
        OddsRatio(reduce='sum')
    """
    for metric in BY_NAME:
        if metric.name == name:
            return metric(**options)
    raise ValueError(f"unknown metric {name!r}: use one of {', '.join(m.name for m in BY_NAME)}.")
