"""A mean over prompts with its uncertainty: the number that every result reports."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclass(frozen=True)
class Score:
    """Mean of per-example effects.

    Attributes:
        mean: arithmetic mean, in the metric's unit.
        low: lower end of the 95 % interval (bootstrap over prompts).
        high: upper end.
        median: median over prompts; differs from the mean when a few prompts carry it.
        log: mean of the metric's log-scale quantity for ratio metrics (nats), else None.
        n: number of prompts.

    Examples:
        >>> import tl_multitrace as mt
        >>> score = mt.Score.of([1.0, 2.0, 3.0, 6.0])
        >>> score.mean, score.median, score.n
        (3.0, 2.5, 4)
        >>> score.low < score.mean < score.high
        True
    """

    mean: float
    low: float
    high: float
    median: float
    n: int
    log: float | None = None

    @classmethod
    def of(cls, values: Any, *, log: Any = None, seed: int = 0, resamples: int = 2000) -> Score:
        """Score of per-example values, ``[n]``.

        Args:
            values: effects, one per prompt.
            log: the same on a log scale.
            seed: of the bootstrap.
            resamples: bootstrap resamples (percentile interval, ``scipy.stats.bootstrap``).
        """
        x = np.asarray(values, dtype=float)
        low, high = interval(x, seed=seed, resamples=resamples)
        logged = None if log is None else float(np.mean(np.asarray(log, dtype=float)))
        return cls(float(x.mean()), low, high, float(np.median(x)), len(x), logged)

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return asdict(self)


def interval(
    x: Float[np.ndarray, " n"], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the mean itself twice where there is one value or no spread."""
    if len(x) < 2 or float(np.ptp(x)) == 0.0:
        return float(x.mean()), float(x.mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (x,),
            np.mean,
            n_resamples=resamples,
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(seed),
            batch=256,
        ).confidence_interval
    return float(found.low), float(found.high)
