"""What chance gets: random sets of the same size and kinds, and effects whose sign means nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from tl_multitrace.prompts import PromptPairs
from tl_multitrace.solvers.path import random_sets

__all__ = ["chance_p", "percentile", "random_sets", "shuffled_answers", "sign_flip_p"]

FLIPS = 4999
"""Sign flips of a permutation test, at most; fewer prompts than 13 have fewer, and then all are taken."""

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


def sign_flip_p(values: Float[np.ndarray, " n"], sign: int = 1, seed: int = 0) -> float:
    """Permutation p-value, one-sided, of a mean of zero (``scipy.stats.permutation_test``).

    If the answers meant nothing, each effect could as well have the other sign.

    Args:
        values: per-example effects on a scale on which exchanging the answers turns the sign: differences of logits or
            log-odds, not odds.
        sign: -1 where effects are to be negative.
        seed: of the flips, where there are too many to take all.
    """
    if len(values) < 2:
        return 1.0
    found = stats.permutation_test(
        (sign * values,),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=FLIPS,
        rng=np.random.default_rng([seed, 72]),
        batch=512,
    )
    return float(found.pvalue)


def shuffled_answers(pairs: PromptPairs, seed: int = 0) -> PromptPairs:
    """A null task: answers and wrong answers exchanged in each pair with probability one half.

    No component can carry what a coin decides, so whatever a search finds on such prompts is chance. Shuffle the
    prompts of the search and the held-out ones with different seeds.

    Args:
        pairs: prompts with wrong answers.
        seed: of the coins.

    Raises:
        ValueError: a pair has no wrong answer to exchange with.

    Examples:
        >>> import tl_multitrace as mt
        >>> from tl_multitrace.evaluation import shuffled_answers
        >>> model = mt.load_model("demo")
        >>> task = mt.task("professions", model, n=16)
        >>> null = shuffled_answers(task.pairs, seed=1)
        >>> int((null.right != task.pairs.right)[:, 0].sum())
        9
    """
    present = (pairs.candidates >= 0).any(-1)
    wrong = present & ~pairs.right
    if not bool(wrong.any(-1).all()):
        bare = int((~wrong.any(-1)).nonzero()[0])
        raise ValueError(f"pair {bare} has no wrong answer: without one there is nothing to exchange its answer with.")
    coins = torch.as_tensor(np.random.default_rng([seed, 73]).random(len(pairs)) < 0.5)
    return replace(pairs, right=torch.where(coins[:, None], wrong, pairs.right))
