"""Solvers that evaluate sets exactly: greedy, exhaustive and random."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from tl_multitrace.solvers.search import Search


@dataclass(frozen=True)
class Greedy:
    """Add the component with the best exact gain, one after the other.

    Costs about N evaluations per step; each restarts from the first block that the candidate changes. Within ``1 -
    1/e`` of the optimum for monotone submodular effects (Nemhauser et al. 1978), which circuits often are not.

    Args:
        patience: steps without improvement after which it stops; 0 goes on to the largest budget.

    Examples:
        >>> mt.select(tracer, 2, mt.Greedy())[2].labels
        ['L0H1', 'L0H3']
    """

    patience: int = 0
    name = "greedy"
    objective = "effect"

    def search(self, search: Search) -> None:
        """Grow the set to the largest budget."""
        chosen: list[int] = []
        best, idle = search.score(chosen), 0
        steps = min(search.largest - len(search.forced), len(search.candidates))
        with search.progress(steps, "greedy") as bar:
            for _ in range(steps):
                free = [int(i) for i in search.addable((*chosen, *search.forced))]
                if not free:
                    return
                scores = search.scores([[*chosen, i] for i in free], reference=chosen)
                chosen.append(free[int(scores.argmax())])
                bar.update()
                idle = 0 if scores.max() > best else idle + 1
                best = max(best, float(scores.max()))
                if self.patience and idle >= self.patience:
                    search.notes.append(f"greedy stopped at {len(chosen)}: no gain in {idle} steps")
                    return


@dataclass(frozen=True)
class Exhaustive:
    """Evaluate every subset up to the largest budget: the optimum, for about 20 components at most.

    Args:
        limit: refuse more subsets than this.

    Raises:
        ValueError: when searching, if there are more.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model, [0]), task.metric)
        >>> path = mt.select(tracer, 2, mt.Exhaustive())
        >>> path[2].labels, path[2].certificate.split(" ")[0]
        (['L0H1', 'L0H3'], 'optimal')
    """

    limit: int = 1 << 20
    name = "exhaustive"
    objective = "effect"

    def search(self, search: Search) -> None:
        """Enumerate by size; raises ValueError for more subsets than ``limit``."""
        free, room = [int(i) for i in search.candidates], search.largest - len(search.forced)
        total = sum(math.comb(len(free), k) for k in range(room + 1))
        if total > self.limit:
            raise ValueError(
                f"Exhaustive would evaluate {total:,} subsets of {len(free)} components (limit {self.limit:,}). Use "
                "fewer components, a smaller budget, or ScreenedSearch()."
            )
        with search.progress(total, "exhaustive") as bar:
            for size in range(room + 1):
                # sets that share all but their last member share a run up to that member's block
                for shared, sets in itertools.groupby(itertools.combinations(free, size), key=lambda s: s[:-1]):
                    batch = list(sets)
                    search.scores(batch, reference=shared)
                    bar.update(len(batch))
        for size in range(search.largest + 1):
            search.certificates[size] = f"optimal (exhaustive, {total:,} subsets)"


@dataclass(frozen=True)
class RandomSubset:
    """The best of some random sets per budget: what chance gets, and the floor for every other solver.

    Args:
        draws: sets per budget.

    Examples:
        >>> chance = mt.select(tracer, 2, mt.RandomSubset(draws=5))
        >>> chance[2].effect < mt.select(tracer, 2, mt.Greedy())[2].effect
        True
    """

    draws: int = 20
    name = "random"
    objective = "effect"

    def search(self, search: Search) -> None:
        """Draw and evaluate."""
        generator = search.generator()
        for budget in search.budgets:
            search.scores([search.top(generator.random(search.n), budget, search.forced) for _ in range(self.draws)])
