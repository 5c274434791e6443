"""Solvers that rank single components once and take the best: cheap, and blind to how they act together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from tl_multitrace.solvers.search import Search


def take_top(search: Search, value: Float[np.ndarray, " groups"]) -> None:
    """Evaluate the top-S sets of a ranking (higher is better) for every budget, exactly."""
    # no common reference: storing one costs a forward, more than a restart from it saves a single set
    search.scores([search.top(value, budget, search.forced) for budget in search.budgets])


@dataclass(frozen=True)
class TopK:
    """Rank by the exact effect of each component alone (activation patching), one evaluation per component.

    Optimal where effects add up. Misses components that act only together (AND) and takes every copy of a redundant one
    (OR).

    Examples:
        >>> mt.select(tracer, 2, mt.TopK())[2].labels
        ['L0H3', 'L0H6']
    """

    name = "top-k"
    objective = "effect of each component alone"

    def search(self, search: Search) -> None:
        """Evaluate all single components, then the top sets."""
        value = np.full(search.n, -np.inf)
        candidates = search.candidates
        with search.progress(len(candidates), "single effects") as bar:
            for part in np.array_split(candidates, max(1, len(candidates) // 64)):
                value[part] = search.scores([[i] for i in part])
                bar.update(len(part))
        take_top(search, value)


@dataclass(frozen=True)
class AttributionPatching:
    """Rank by the derivative at the empty mask: one forward and one backward for all components.

    Source: Nanda 2023, attribution patching; Syed et al. 2023, arXiv:2310.10348.

    Args:
        at: where the derivative is taken: 0 (the base run) to 1 (everything patched).

    Examples:
        >>> mt.select(tracer, 2, mt.AttributionPatching())[2].labels
        ['L0H3', 'L0H6']
    """

    at: float = 0.0
    name = "attribution patching"
    objective = "first-order estimate of single effects"

    def search(self, search: Search) -> None:
        """Rank once, evaluate the top sets."""
        take_top(search, search.gradient(torch.full((search.n,), float(self.at))))


@dataclass(frozen=True)
class IntegratedGradients:
    """Rank by the derivative averaged along the straight path from no mask to the whole mask.

    The values sum to the whole mask's effect (completeness), up to the step size. Source: Sundararajan et al. 2017,
    arXiv:1703.01365; on masks of activations as in Hanna et al. 2024, arXiv:2403.17806 ("inputs" variant).

    Args:
        steps: midpoints on the path.

    Examples:
        >>> mt.select(tracer, 2, mt.IntegratedGradients(steps=10))[2].labels
        ['L0H1', 'L0H3']
    """

    steps: int = 5
    name = "integrated gradients"
    objective = "path-averaged first-order effects"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")

    def search(self, search: Search) -> None:
        """Average gradients, evaluate the top sets."""
        take_top(search, integrated_gradients(search, self.steps))


def integrated_gradients(search: Search, steps: int) -> Float[np.ndarray, " groups"]:
    """Mean derivative over ``steps`` midpoints of the path from 0 to 1."""
    total = np.zeros(search.n)
    with search.progress(steps, "gradients") as bar:
        for k in range(steps):
            total += search.gradient(torch.full((search.n,), (k + 0.5) / steps))
            bar.update()
    return total / steps
