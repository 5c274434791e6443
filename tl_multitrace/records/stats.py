"""The one file of statistics: means over distinct prompts, their intervals and tests, and random sets.

Evidence is counted once. Prompts that are copies of each other are one observation: every function here takes
``copies``, one number per value that is equal for copies (:func:`tl_multitrace.copies.distinct`), and works on the mean
of each distinct prompt. From one distinct prompt there is no interval, and below :data:`FEW` nothing is claimed.

A ratio is undefined where the interval of its denominator holds 0: its value could then be any number of either sign.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from tl_multitrace.groups import HookGroups

LEVEL = 0.95
RESAMPLES = 2000

FEW = 5
"""Distinct prompts below which nothing is claimed: with four, flipping signs can't give a p-value below 1/16."""

FLIPS = 4999
"""Sign flips of a permutation test, at most; fewer prompts than 13 have fewer, and then all are taken."""

MOST_CELLS = 4_000_000
"""Numbers that one batch of bootstrap resamples may hold."""

Copies = Sequence[int] | Int[np.ndarray, " n"] | None
Statistic = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]
"""From means ``[k]`` (or ``[k, resamples]``) to numbers ``[out]`` (or ``[out, resamples]``)."""


# ---------------------------------------------------------------------- numbers with their uncertainty


class Uncertain:
    """A number with its 95 % interval; ``low`` and ``high`` are None where there is none."""

    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """Whether there is an interval, and it leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def beyond(self, limit: float, sign: int = 1) -> bool:
        """Whether there is an interval, and all of it lies above ``limit`` (below, where ``sign`` is -1)."""
        end = self.low if sign > 0 else self.high
        return end is not None and sign * end > sign * limit

    def _text(self, number: float, n: int | None = None) -> str:
        if self.low is None or self.high is None:
            return f"{number:.3g} (no interval)"
        few = f", from {n} only" if n is not None and n < FEW else ""
        return f"{number:.3g} [{self.low:.3g}, {self.high:.3g}]{few}"


@dataclass(frozen=True)
class Score(Uncertain):
    """Mean of per-example effects.

    Attributes:
        mean: arithmetic mean over distinct prompts, in the metric's unit.
        low: lower end of the 95 % interval (bootstrap over distinct prompts); None where there is one prompt alone.
        high: upper end.
        median: median over distinct prompts; differs from the mean when a few prompts carry it.
        log: mean of the metric's log-scale quantity for ratio metrics (nats), else None.
        n: number of distinct prompts.

    Examples:
        >>> score = mt.Score.of([1.0, 2.0, 3.0, 6.0])
        >>> score.mean, score.median, score.n
        (3.0, 2.5, 4)
        >>> score.low < score.mean < score.high
        True
        >>> print(mt.Score.of([1.0, 1.0, 1.0], copies=[0, 0, 0]))
        1 (no interval)
    """

    mean: float
    low: float | None
    high: float | None
    median: float
    n: int
    log: float | None = None

    @classmethod
    def of(
        cls,
        values: Any,
        *,
        log: Any = None,
        copies: Copies = None,
        weighted: bool = False,
        seed: Any = 0,
        resamples: int = RESAMPLES,
    ) -> Score:
        """Score of per-example values, ``[n]``.

        Args:
            values: effects, one per prompt.
            log: the same on a log scale.
            copies: equal numbers for copies of one prompt; default: all prompts are distinct.
            weighted: let a prompt weigh in the mean as often as it is there, as in a search, whose mean is over rows;
                it is still one observation for the interval.
            seed: of the bootstrap.
            resamples: bootstrap resamples (percentile interval).

        Raises:
            ValueError: no values.
        """
        x = once(values, copies)
        if not x.size:
            raise ValueError("a mean over no prompts: give one value at least.")
        weights = _counts(copies, len(x)) if weighted else np.ones(len(x))
        mean = float(np.average(x, weights=weights))
        low, high = _mean_interval(x, weights, mean, seed, resamples)
        logged = None if log is None else float(np.average(once(log, copies), weights=weights))
        return cls(mean, low, high, float(np.median(x)), len(x), logged)

    @classmethod
    def of_sets(cls, drawn: Any) -> Score:
        """What chance gets; the interval holds the middle 95 % *of the sets*, and their mean.

        A few sets that hold the mechanism may pull the mean beyond all others, most of all in odds: then the interval
        ends at the mean, so that nothing is called beyond chance that does not pass both.

        Args:
            drawn: mean effects of random sets.
        """
        x = np.asarray(drawn, dtype=float)
        mean, (low, high) = float(x.mean()), np.quantile(x, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(mean, min(mean, float(low)), max(mean, float(high)), float(np.median(x)), len(x))

    def at_least(self, limit: float, sign: int = 1) -> bool:
        """Whether all that is known lies beyond ``limit`` times ``sign``: the interval, or where none is, the mean."""
        return self.beyond(sign * limit, sign) if self.low is not None else sign * self.mean > limit

    def __str__(self) -> str:
        return self._text(self.mean, self.n)

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate(Uncertain):
    """A number made from means (a ratio, an area) or a frequency, with its 95 % interval.

    Attributes:
        value: computed from all prompts.
        low: lower end of the interval; None where there is one distinct prompt alone.
        high: upper end.

    Examples:
        >>> from tl_multitrace.evaluation import Estimate
        >>> print(Estimate(value=0.715, low=0.617, high=0.801))
        0.715 [0.617, 0.801]
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return self._text(self.value)


def once(values: Any, copies: Copies = None) -> Float[np.ndarray, "*k m"]:
    """The mean of each distinct prompt's values, ``[..., n]`` to ``[..., m]``, in the order of first appearance."""
    x = np.asarray(values, dtype=float)
    if copies is None or len(found := np.unique(copies)) == x.shape[-1]:
        return x
    return np.stack([x[..., np.asarray(copies) == one].mean(-1) for one in found], axis=-1)


def _counts(copies: Copies, m: int) -> Float[np.ndarray, " m"]:
    return np.ones(m) if copies is None else np.unique(copies, return_counts=True)[1].astype(float)


def by_label(
    values: Float[np.ndarray, " n"], labels: Sequence[str], copies: Copies = None, seed: int = 0
) -> dict[str, Score]:
    """Score of each subgroup of prompts, in the order of its first prompt; empty without labels."""
    names, same = np.array([str(name) for name in labels]), np.arange(len(values)) if copies is None else copies
    rows = {name: names == name for name in dict.fromkeys(names.tolist())}
    return {name: Score.of(values[own], copies=np.asarray(same)[own], seed=seed) for name, own in rows.items()}


def prompt_notes(copies: Copies) -> list[str]:
    """What must be said of the number of prompts: copies, or too few distinct ones; empty where there is nothing."""
    n, m = (0, 0) if copies is None else (len(copies), len(np.unique(copies)))
    notes = [f"{n - m} of {n} prompts are copies of others: copies count once"] if m < n else []
    if m == 1:
        notes.append("there is one distinct prompt: no interval, and nothing is known about other prompts")
    elif 1 < m < FEW:
        notes.append(f"there are only {m} distinct prompts: intervals are rough, and chance is not ruled out")
    return notes


# ---------------------------------------------------------------------- bootstrap


def redraws(n: int, seed: Any, resamples: int = RESAMPLES) -> Int[np.ndarray, "resamples n"]:
    """Numbers of ``n`` observations, drawn with repetition."""
    index: Int[np.ndarray, "resamples n"] = np.random.default_rng(seed).integers(0, n, (resamples, n))
    return index


def bootstrapped(
    statistic: Statistic, values: Float[np.ndarray, "k m"], seed: Any, resamples: int = RESAMPLES
) -> Float[np.ndarray, "out resamples"]:
    """What a statistic makes of the means of redrawn observations; all rows are redrawn together."""
    index = redraws(values.shape[-1], seed, resamples)
    parts = np.array_split(index, max(1, -(-index.size * len(values) // MOST_CELLS)))
    return np.concatenate([np.atleast_2d(statistic(values[:, part].mean(-1))) for part in parts], axis=-1)


def middle(draws: Float[np.ndarray, "*k draws"], level: float = LEVEL) -> tuple[Any, Any]:
    """Both ends of the percentile interval; draws that are not defined count as none."""
    ends: np.ndarray = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return ends[0], ends[1]


def _mean_interval(
    x: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"], mean: float, seed: Any, resamples: int
) -> tuple[float | None, float | None]:
    if len(x) < 2:
        return None, None
    if float(np.ptp(x)) == 0.0:
        return mean, mean
    return around(mean, *map(float, middle(_mean_draws(x, weights, seed, resamples))))


def _mean_draws(
    x: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"], seed: Any, resamples: int
) -> Float[np.ndarray, " resamples"]:
    both = np.stack([x * weights, weights])
    draws: Float[np.ndarray, " resamples"] = bootstrapped(lambda m: m[:1] / m[1:], both, seed, resamples)[0]
    return draws


def score_draws(values: Any, copies: Copies, seed: Any, resamples: int = RESAMPLES) -> Float[np.ndarray, " resamples"]:
    """The redrawn means behind a weighted :meth:`Score.of`, to be added up with others."""
    x = once(values, copies)
    return _mean_draws(x, _counts(copies, len(x)), seed, resamples)


def around(value: float, low: float, high: float) -> tuple[float, float]:
    """Ends that hold the value: a percentile interval of a skewed statistic can miss it."""
    return min(low, value), max(high, value)


def estimates(
    statistic: Statistic,
    values: Float[np.ndarray, "k n"],
    *,
    copies: Copies = None,
    over: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Estimate | None]:
    """What ``statistic`` makes of the means over distinct prompts, with percentile bootstrap intervals.

    The rows of ``values`` are measured on the same prompts and are redrawn together, so that the interval of a ratio
    knows that both its parts move with the same prompts.

    Args:
        statistic: see :data:`Statistic`.
        values: per-example numbers, one row per quantity.
        copies: see :meth:`Score.of`.
        over: the row that the statistic divides by; where its interval holds 0, nothing is defined.
        seed: of the bootstrap.
        resamples: bootstrap resamples.

    Returns:
        One estimate per number; None where it is not defined.
    """
    x = once(values, copies)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        point = np.atleast_1d(statistic(x.mean(-1)))
        if over is not None and undefined(Score.of(x[over], seed=seed, resamples=resamples)):
            return [None] * len(point)
        if x.shape[-1] < 2:
            return [Estimate(float(p), None, None) if np.isfinite(p) else None for p in point]
        low, high = middle(bootstrapped(statistic, x, seed, resamples))
    columns = zip(point.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Estimate(row[0], *around(*row)) if np.isfinite(row).all() else None for row in columns]


def undefined(full: Score) -> str:
    """Why a ratio to a full effect is not defined, in words; empty where it is."""
    if full.clear or (full.low is None and full.mean):
        return ""
    if full.mean == full.low == full.high == 0 or (full.low is None and not full.mean):
        return "undefined: patching everything changes nothing"
    return f"undefined: the effect of patching everything, {full}, may be 0"


def frequency(count: int, n: int) -> Estimate:
    """How often something happened in ``n`` independent runs, with Wilson's interval (``scipy.stats.binomtest``)."""
    found = stats.binomtest(count, n).proportion_ci(method="wilson")
    return Estimate(count / n, float(found.low), float(found.high))


# ---------------------------------------------------------------------- tests


def sign_flip_p(values: Float[np.ndarray, " n"], sign: int = 1, seed: int = 0, copies: Copies = None) -> float:
    """Permutation p-value, one-sided, of a mean of zero (``scipy.stats.permutation_test``), over distinct prompts.

    If the answers meant nothing, each effect could as well have the other sign.

    Args:
        values: per-example effects on a scale on which exchanging the answers turns the sign: differences of logits or
            log-odds, not odds.
        sign: -1 where effects are to be negative.
        seed: of the flips, where there are too many to take all.
        copies: see :meth:`Score.of`.
    """
    x = once(values, copies)
    if len(x) < 2:
        return 1.0
    found = stats.permutation_test(
        (sign * x,),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=FLIPS,
        rng=np.random.default_rng([seed, 72]),
        batch=512,
    )
    return float(found.pvalue)


def coins(n: int, seed: int) -> np.ndarray:
    """Fair coins, ``[n]`` booleans."""
    return np.random.default_rng([seed, 73]).random(n) < 0.5


def some_of(candidates: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """At most ``count`` of the candidates, drawn without repetition."""
    generator = np.random.default_rng(list(seed))
    return generator.choice(candidates, min(count, len(candidates)), replace=False) if len(candidates) else candidates


def redrawn_rows(copies: Int[np.ndarray, " n"], seed: Any, resamples: int = 1) -> list[Int[np.ndarray, " rows"]]:
    """Rows of each bootstrap resample of the prompts: distinct prompts are drawn, each with all its copies."""
    rows = [np.flatnonzero(copies == one) for one in np.unique(copies)]
    return [np.concatenate([rows[i] for i in draw]) for draw in redraws(len(rows), seed, resamples)]


# ---------------------------------------------------------------------- chance


def random_sets(
    groups: HookGroups, members: Sequence[int], draws: int, seed: int = 0, *, stream: int = 71
) -> Float[Tensor, "draws groups"]:
    """Masks (0 or 1, no unit) of random sets that hold as many groups of each kind as ``members`` does.

    Each draw is one random order of the groups, and the set is its start: so the sets of a smaller budget lie within
    those of a larger one, and more draws go on from fewer.

    Args:
        groups: all hook groups.
        members: mask indices of the set to match.
        draws: how many sets.
        seed: of the draws.
        stream: different streams of one seed are independent.

    Examples:
        >>> from tl_multitrace.evaluation import random_sets
        >>> masks = random_sets(tracer.groups, circuit.indices, draws=5)
        >>> masks.sum(1).tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    kinds, masks = np.array(groups.kinds), torch.zeros(draws, len(groups))
    chosen = kinds[list(members)]
    places = {kind: np.flatnonzero(kinds == kind) for kind in np.unique(kinds)}
    for draw, row in enumerate(masks):
        generator = np.random.default_rng([seed, stream, draw])
        for kind, there in places.items():  # every kind is shuffled, wanted or not: sets of all budgets are nested
            row[generator.permutation(there)[: int((chosen == kind).sum())]] = 1.0
    return masks
