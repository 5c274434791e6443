"""Multi-exchange search on a grid of sizes, for thousands of components.

Neurons have small effects of both signs: single steps are too many, and the best large set is far from the whole
mask. Per size one gradient gives every component a *keep-value* (predicted gain of adding an outsider, predicted loss
of dropping a member); then as many of the weakest members are exchanged for the best outsiders as predictions say is
worth it, or a half, a quarter, a tenth of that, whichever exact evaluation likes best. The grid is climbed from the
empty set and descended from the whole mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tl_multitrace.solvers.ranking import integrated_gradients
from tl_multitrace.solvers.search import Search, Subset, subset
from tl_multitrace.solvers.sweep import Screen

BACKTRACK = (1.0, 0.5, 0.25, 0.1)


@dataclass
class Exchange:
    """Exchange search over a grid of sizes.

    Attributes:
        search: evaluates and remembers.
        rounds: exchange rounds per size.
        steps: gradients of the path average that starts it.
    """

    search: Search
    rounds: int = 2
    steps: int = 5

    def __post_init__(self) -> None:
        # single verified moves are too few here to correct predictions of thousands
        self.screen = Screen(self.search, memory=0.0)
        self.value: dict[Subset, Float[np.ndarray, " groups"]] = {}

    def run(self) -> None:
        """Climb the grid, then descend it."""
        search = self.search
        self.average = integrated_gradients(search, self.steps)
        grid = self.grid()
        with search.progress(2 * len(grid), "exchange") as bar:
            current = search.forced
            for size in grid:
                current = self._settle(size, current)
                bar.update()
            current = search.top(self.average, len(search.candidates) + len(search.forced))
            for size in grid[::-1]:
                current = self._settle(size, current)
                bar.update()
        self._between(grid)

    def grid(self) -> list[int]:
        """Powers of two up to the largest budget, and the budgets themselves where those are few."""
        largest, least = self.search.largest, max(1, len(self.search.forced))
        powers = {1 << k for k in range(largest.bit_length()) if least <= 1 << k <= largest}
        asked = set(self.search.budgets) if len(self.search.budgets) <= 12 else set()
        return sorted(powers | asked | {largest})

    def _keep_value(self, members: Subset) -> Float[np.ndarray, " groups"]:
        """Predicted gain of having each component: of adding it, or of not dropping it."""
        if members not in self.value:
            gains = self.screen.gains(members)
            gains[list(members)] *= -1
            self.value = {members: gains}
        return self.value[members]

    def _settle(self, size: int, current: Subset) -> Subset:
        """The best of several proposals of one size, improved by exchanges."""
        search, value = self.search, self._keep_value(current)
        proposals = [search.top(value, size, search.forced), search.top(self.average, size, search.forced)]
        if len(current) <= size:
            proposals.append(search.top(value, size, current))
        if size in search.lead:
            proposals.append(search.lead[size][1])
        scores = search.scores(proposals)
        best = proposals[int(np.argmax(scores))]
        for _ in range(self.rounds):
            better = self._exchange(best)
            if better is None:
                break
            best = better
        return best

    def _exchange(self, members: Subset) -> Subset | None:
        """Exchange the weakest members for the best outsiders, as many as pay; None where no number does."""
        search, value = self.search, self._keep_value(members)
        own = sorted((i for i in members if i not in search.forced), key=lambda i: value[i])
        outside = search.addable(()) if not search.limits else search.candidates
        outside = outside[~np.isin(outside, members)]
        ranked = outside[np.argsort(-value[outside], kind="stable")][: len(own)]
        worth = sum(value[o] > value[i] for i, o in zip(own, ranked, strict=False))
        if not worth:
            return None
        here = search.score(members)
        for share in BACKTRACK:
            k = max(1, round(worth * share))
            swapped = subset((set(members) - set(own[:k])) | {int(o) for o in ranked[:k]})
            if search.feasible(swapped) and search.score(swapped) > here:
                return swapped
            if k == 1:
                break
        return None

    def _between(self, grid: list[int]) -> None:
        """Budgets between grid points: the next larger grid set cut, and the next smaller one grown, by keep-value."""
        for low, high in zip([len(self.search.forced), *grid], grid, strict=False):
            asked = [b for b in self.search.budgets if low < b < high]
            if not asked or high not in self.search.lead:
                continue
            members = self.search.lead[high][1]
            value = self._keep_value(members)
            ranked = sorted((i for i in members if i not in self.search.forced), key=lambda i: -value[i])
            for budget in asked:
                room = budget - len(self.search.forced)
                self.search.score(ranked[:room])
