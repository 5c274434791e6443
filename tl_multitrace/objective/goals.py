"""What an objective is made of: goals to push and constraints to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaxtyping import Float
from scipy import stats
from torch import Tensor

from tl_multitrace.objective.reduce import Bound, Mean, Reduce
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tracer import Tracer

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Term:
    """One number about the model: a tracer's metric over its prompts, as a change against the base run.

    Attributes:
        name: how results call it.
        tracer: model, prompts, hook groups, metric and intervention.
        reduce: how examples become one number; default their mean.
    """

    name: str
    tracer: Tracer
    reduce: Reduce = field(default_factory=Mean)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("a goal or constraint needs a name, such as 'bias'.")
        self.reduce.check(self.tracer.pairs.labels)

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return 1

    def changes(self, effects: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
        """The number's change, from per-example effects."""
        base = self.tracer.base_metric.to(effects)
        return self.reduce(effects + base, base, self.tracer.pairs.labels)

    def on(self, pairs: PromptPairs) -> Any:
        """The same on other prompts."""
        return replace(self, tracer=self.tracer.on(pairs))

    def describe(self) -> dict[str, Any]:
        """Record for provenance."""
        metric = self.tracer.metric
        return {
            "name": self.name,
            "metric": metric.name or "custom",
            "unit": metric.unit,
            "over": self.reduce.name,
            "intervention": self.tracer.intervention.describe(),
            "prompts": {"n": self.tracer.n, "digest": self.tracer.pairs.digest()},
        }


@dataclass(frozen=True)
class Goal(Term):
    """A number to push.

    Args:
        name: how results call it.
        tracer: model, prompts, hook groups, metric and intervention.
        reduce: :class:`Mean` (default), :class:`DemographicParityGap` or :class:`EqualizedOddsGap`.
        weight: what one unit of its metric is worth; above 0.
        direction: ``"maximize"`` or ``"minimize"``.

    Raises:
        ValueError: a weight that is not above 0, an unknown direction, labels that ``reduce`` cannot use.

    Examples:
        >>> goal = mt.Goal("bias", tracer, weight=2.0)
        >>> goal.sign, goal.describe()["weight"]
        (1, 2.0)
    """

    weight: float = 1.0
    direction: Direction = "maximize"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the weight of goal {self.name!r} must be above 0, got {self.weight}: use direction=.")
        if self.direction not in ("maximize", "minimize"):
            raise ValueError(f"direction must be 'maximize' or 'minimize', got {self.direction!r}.")

    @property
    def sign(self) -> int:
        """1 where it is to rise."""
        return 1 if self.direction == "maximize" else -1

    def describe(self) -> dict[str, Any]:
        """Record for provenance."""
        return {**super().describe(), "weight": self.weight, "direction": self.direction}


@dataclass(frozen=True)
class Constraint(Term):
    """A number to keep: its change against the base run stays within a bound.

    Args:
        name: how results call it.
        tracer: model, prompts, hook groups, metric and intervention.
        reduce: as for :class:`Goal`.
        at_most: largest change allowed, in the metric's unit; 0 or above. ``Perplexity`` with 0.02: a rise of 2 %.
        at_least: smallest change allowed; 0 or below. ``Accuracy`` with 0: no loss.
        confidence: hold the bound with this confidence (one-sided, from the spread over prompts) instead of on average,
            so that it can be expected to hold on other prompts too. With ``reduce=Mean()`` only.

    Raises:
        ValueError: no bound or two, one that the unpatched model breaks, a confidence outside 0.5 to 1.

    Examples:
        >>> text = mt.task("neutral_text", model, n=8)
        >>> heads = mt.heads(model).at("everywhere")
        >>> tracer = mt.Tracer(model, text.pairs, heads, mt.Perplexity(), mt.ZeroAblation())
        >>> kept = mt.Constraint("perplexity", tracer, at_most=0.02)
        >>> kept.bound, kept.sign
        (0.02, -1)
    """

    at_most: float | None = None
    at_least: float | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [bound for bound in (self.at_most, self.at_least) if bound is not None]
        if len(given) != 1 or not math.isfinite(given[0]):
            raise ValueError(f"constraint {self.name!r} needs one bound: at_most=0.02 or at_least=-0.1, say.")
        if self.sign * self.bound > 0:
            raise ValueError(
                f"constraint {self.name!r} asks for a change (at_{'least' if self.at_least else 'most'}={self.bound}), "
                "which the unpatched model does not have: make it a Goal with a weight."
            )
        if self.confidence is not None and not (0.5 <= self.confidence < 1 and isinstance(self.reduce, Mean)):
            raise ValueError(
                f"confidence is from 0.5 to 1, and for a mean; got {self.confidence} ({self.reduce.name})."
            )

    @property
    def sign(self) -> int:
        """1 where larger is better, -1 where the change has to stay small."""
        return -1 if self.at_most is not None else 1

    @property
    def bound(self) -> float:
        """The change allowed."""
        return float(self.at_most if self.at_most is not None else self.at_least or 0.0)

    @property
    def judged(self) -> Term:
        """What the bound is held against: the mean, or its confidence bound."""
        if self.confidence is None:
            return self
        return Term(self.name, self.tracer, Bound(-self.sign * float(stats.norm.ppf(self.confidence))))

    def violation(self, change: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
        """By how much the judged change is over the bound; 0 where it is within."""
        tolerance = 1e-9 + 1e-6 * abs(self.bound)
        over = self.sign * (self.bound - change) - tolerance
        return over.clamp_min(0.0)

    def describe(self) -> dict[str, Any]:
        """Record for provenance."""
        bounds = {"at_most": self.at_most, "at_least": self.at_least, "confidence": self.confidence}
        return {**super().describe(), **{k: v for k, v in bounds.items() if v is not None}}


def common_groups(terms: tuple[Term, ...]) -> None:
    """Refuse terms whose masks do not name the same components; positions may differ.

    Raises:
        ValueError: two names alike, or hook groups that differ.
    """
    names = [r.name for r in terms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two goals or constraints are called {twice!r}: give each its own name.")
    first = _places(terms[0].tracer)
    for term in terms[1:]:
        if _places(term.tracer) != first:
            raise ValueError(
                f"{term.name!r} and {terms[0].name!r} are traced over different components, so one mask cannot "
                "serve both. Make both tracers with the same groups (groups.at('everywhere') moves only positions)."
            )


def _places(tracer: Tracer) -> list[list[tuple[str, int, int | None]]]:
    return [[(s.kind, s.layer, s.index) for s in group] for group in tracer.groups.sites]
