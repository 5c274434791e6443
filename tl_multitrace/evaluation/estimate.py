"""Numbers made from means over prompts (ratios, areas), and frequencies, with their intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

Statistic = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]
"""From means ``[k]`` (or ``[k, resamples]``) to numbers ``[out]`` (or ``[out, resamples]``)."""

MOST_CELLS = 4_000_000
"""Numbers that one batch of bootstrap resamples may hold."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: computed from all prompts.
        low: lower end of the interval.
        high: upper end.

    Examples:
        >>> from tl_multitrace.evaluation import Estimate
        >>> print(Estimate(value=0.715, low=0.617, high=0.801))
        0.715 [0.617, 0.801]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def estimates(
    statistic: Statistic, values: Float[np.ndarray, "k n"], *, seed: int = 0, resamples: int = 2000
) -> list[Estimate | None]:
    """What ``statistic`` makes of the means over prompts, with percentile bootstrap intervals over prompts.

    The rows of ``values`` are measured on the same prompts and are resampled together, so that the interval of a ratio
    knows that both its parts move with the same prompts (``scipy.stats.bootstrap``).

    Args:
        statistic: see :data:`Statistic`.
        values: per-example numbers, one row per quantity.
        seed: of the bootstrap.
        resamples: bootstrap resamples.

    Returns:
        One estimate per number; None where it is not defined (a ratio to an effect of zero).
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        point = np.atleast_1d(statistic(values.mean(-1)))
        low, high = _intervals(statistic, values, seed, resamples) if values.shape[1] > 1 else (point, point)
    columns = zip(point.tolist(), np.atleast_1d(low).tolist(), np.atleast_1d(high).tolist(), strict=True)
    return [Estimate(*row) if np.isfinite(row).all() else None for row in columns]


def _intervals(
    statistic: Statistic, values: Float[np.ndarray, "k n"], seed: int, resamples: int
) -> tuple[Float[np.ndarray, " out"], Float[np.ndarray, " out"]]:
    def of_resamples(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(values[:, index.astype(int)].mean(-1))

    found = stats.bootstrap(
        (np.arange(values.shape[1]),),
        of_resamples,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, min(256, MOST_CELLS // values.size)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return found.low, found.high


def frequency(count: int, n: int) -> Estimate:
    """How often something happened in ``n`` independent runs, with Wilson's interval (``scipy.stats.binomtest``)."""
    found = stats.binomtest(count, n).proportion_ci(method="wilson")
    return Estimate(count / n, float(found.low), float(found.high))
