"""Effects against what chance gets: ranks among random sets, and the one verdict in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tl_multitrace.records.stats import FEW, Score, undefined

FEW_SETS = 19
"""Random sets below which no p-value reaches 5 %."""

ROUNDING = 1e-6
"""Two effects that differ by less than this share are the same set, evaluated in another batch."""


def percentile(observed: float, drawn: Float[np.ndarray, " draws"], sign: int = 1) -> float:
    """Share of random sets that an effect beats, from 0 to 100; sets of the same effect count half.

    Args:
        observed: mean effect.
        drawn: mean effects of random sets.
        sign: -1 where lower effects are better.
    """
    gap = sign * (observed - drawn)
    same = np.abs(gap) <= ROUNDING * max(abs(observed), 1e-12)
    return float(100 * np.mean(np.where(same, 0.5, gap > 0)))


def chance_p(observed: float, drawn: Float[np.ndarray, " draws"], sign: int = 1) -> float:
    """Permutation p-value, one-sided: share of random sets that do at least as well, the observed one counted in."""
    as_good = sign * (drawn - observed) >= -ROUNDING * max(abs(observed), 1e-12)
    return float((1 + np.sum(as_good)) / (1 + len(drawn)))


@dataclass(frozen=True)
class Verdict:
    """What may be said of an effect and chance; terminal, report and notes print these words.

    Attributes:
        beyond: whether the effect is more than chance; None where the evidence allows no claim.
        words: the same in words.

    Examples:
        >>> from tl_multitrace.records.chance import beyond_chance
        >>> effect, sets = mt.Score.of([4.0, 5.0, 5.0, 6.0, 7.0]), mt.Score.of_sets([0.1 * i for i in range(20)])
        >>> print(beyond_chance(effect, sets))
        beyond chance: its interval is wholly above what 95 % of 20 random sets reach (0.0475 to 1.85, on average 0.95)
    """

    beyond: bool | None
    words: str

    def __str__(self) -> str:
        return self.words


def beyond_chance(
    score: Score | None, chance: Score | None, *, direction: str = "maximize", full: Score | None = None
) -> Verdict:
    """Whether an effect is beyond what random sets of the same size and kinds reach: the one rule of the package.

    It is where its whole interval lies beyond 0 and beyond the middle 95 % of the random sets.

    Args:
        score: the effect, on prompts that the set was not chosen on if there are such.
        chance: :meth:`Score.of_sets` of the random sets.
        direction: ``"maximize"`` or ``"minimize"``.
        full: effect of patching everything on the same prompts: where that may be 0, there is nothing to be a part of.

    Examples:
        >>> import tl_multitrace as mt
        >>> from tl_multitrace.evaluation import beyond_chance
        >>> sets = mt.Score.of_sets([0.1 * i for i in range(20)])
        >>> beyond_chance(mt.Score.of([-1.0, 4.0, 5.0, -3.0, 2.0]), sets).beyond
        False
        >>> beyond_chance(mt.Score.of([4.0, 5.0]), sets).words[:52]
        'no claim about chance from 2 distinct prompts (of 5 '
    """
    if score is None or chance is None:
        return Verdict(None, "not compared with chance")
    sign, side = (-1, "below") if direction == "minimize" else (1, "above")
    average = f"random sets of its size and kinds reach {chance.mean:.3g} on average"
    if sign * score.mean <= max(sign * chance.mean, 0.0):
        return Verdict(False, f"no more than chance: {average}")
    if score.n < FEW or score.low is None:
        few = f"{score.n} distinct prompt{'s' * (score.n > 1)} (of {FEW} needed)"
        return Verdict(None, f"no claim about chance from {few}: {average}")
    if chance.n < FEW_SETS or chance.low is None or chance.high is None:
        return Verdict(None, f"no claim about chance from {chance.n} random sets (of {FEW_SETS} needed): {average}")
    ends = f"{chance.low:.3g} to {chance.high:.3g}, on average {chance.mean:.3g}"
    reach = f"what 95 % of {chance.n} random sets reach ({ends})"
    if not score.beyond(0.0, sign):
        return Verdict(False, f"not clearly beyond chance: its interval holds 0, and {average}")
    if not score.beyond(chance.high if sign > 0 else chance.low, sign):
        return Verdict(False, f"not clearly beyond chance: its interval is not wholly {side} {reach}")
    if full is not None and undefined(full):
        doubt = f"but the effect of patching everything, {full}, may be 0"
        return Verdict(None, f"no claim about chance: its interval is wholly {side} {reach}, {doubt}")
    return Verdict(True, f"beyond chance: its interval is wholly {side} {reach}")
