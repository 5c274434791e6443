"""Weighted sums of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.metric_base import Metric


@dataclass(frozen=True)
class WeightedSum(Metric):
    """Sum of weighted metrics, ``sum_i w_i * metric_i``.

    Args:
        terms: ``(weight, metric)`` pairs.

    Raises:
        ValueError: no terms, or a weight that is not finite.

    Examples:
        >>> metric = mt.WeightedSum(((1.0, mt.LogitDiff()), (-0.1, mt.KLDivergence())))
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), metric)
        >>> round(tracer.effect(["L0H3"]).mean().item(), 1)
        5.2
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
