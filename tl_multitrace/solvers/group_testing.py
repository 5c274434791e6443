"""Group testing from the full set: what gradients and single effects cannot see.

Components that only work jointly (AND), that stand in for each other (OR), or both, have no effect alone and no
gradient at the empty set. But with everything patched the effect is there, and it stays while components that do not
matter are taken away. *Delta debugging* (Zeller and Hildebrandt 2002) takes them away in chunks: halves first, then
ever smaller chunks, until no single member can go: about k log N evaluations for a set of k, whatever its members do
alone.

One minimal set rarely is all. Where the effect survives without a whole minimal set (or without one of its members)
there is another mechanism, and it is searched in what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from tl_multitrace.solvers.search import Search, Subset, subset
from tl_multitrace.solvers.sweep import Screen

EXACT_DESCENT = 6
"""Minimal sets of at most so many members are taken apart by exact drops; larger ones by screened drops."""


class Exhausted(Exception):
    """The evaluations that may be spent are spent."""


@dataclass
class GroupTest:
    """Searches minimal sets that keep a share of the effect, within a number of evaluations.

    Attributes:
        search: evaluates and remembers.
        screen: predicts which members of the full set are harmful.
        order: components by how much screening makes of them, best first; chunks are cut from its end.
        evaluations: evaluations that may still be spent.
        reward: evaluations that each improvement of the path earns, up to ``ceiling`` in all.
        ceiling: most evaluations that may be spent.
        thresholds: shares of the best effect seen that a set has to keep.
        shuffles: random orders, after the screened one.
    """

    search: Search
    screen: Screen
    order: Int[np.ndarray, " candidates"]
    evaluations: float
    reward: float = 100.0
    ceiling: float = 600.0
    thresholds: tuple[float, ...] = (0.95, 0.5, 0.25)
    shuffles: int = 6
    found: list[Subset] = field(default_factory=list)
    _bar: Any = None

    def run(self) -> None:
        """Test from the full set without its harmful members, then from the full set."""
        with self.search.progress(int(self.evaluations), "group testing") as self._bar, suppress(Exhausted):
            everyone = [int(i) for i in self.order]
            pruned = self._prune(everyone)
            starts = [everyone] if len(pruned) == len(everyone) else [pruned, everyone]
            self._earn(max(self._score(s) for s in starts))
            for start, goal, order in self._plans(starts):
                self._explore(start, order, goal)

    def _plans(self, starts: list[list[int]]) -> Iterator[tuple[list[int], float, list[int]]]:
        """Start, goal and order of every test: the screened order first, then shuffles; high goals first."""
        generator, empty = self.search.generator(1), self.search.score(())
        top = max(self._score(s) for s in starts)
        for shuffle in range(self.shuffles + 1):
            for threshold in self.thresholds:
                goal = empty + threshold * (top - empty)
                for start in starts:
                    if top > empty and self._score(start) >= goal:
                        yield start, goal, start if not shuffle else generator.permutation(start).tolist()

    def _explore(self, start: list[int], order: list[int], goal: float) -> None:
        """One minimal set, and those that remain possible without it or without one of its members."""
        first = self._minimal(order, goal)
        if first is None or first in self.found:
            return
        self._take(first)
        without = [set(first), *({i} for i in first if 1 < len(first) <= EXACT_DESCENT)]
        for gone in without:
            rest = [i for i in order if i not in gone]
            if rest and self._score(rest) >= goal:
                other = self._minimal(rest, goal)
                if other is not None and other not in self.found:
                    self._take(other)

    def _take(self, members: Subset) -> None:
        self.found.append(members)
        before = self._path()
        self._descend(list(members))
        if any(score > before[size] + 1e-9 * abs(before[size]) for size, score in self._path().items()):
            self.evaluations += self.reward

    def _path(self) -> dict[int, float]:
        return {size: self.search.best_within(size)[0] for size in self.search.budgets}

    # ------------------------------------------------------------------ what may be spent

    def _score(self, members: list[int] | Subset) -> float:
        if self.search.known(members) is None:
            if self.evaluations < 1 or self.ceiling < 1:
                raise Exhausted
            self.evaluations, self.ceiling = self.evaluations - 1, self.ceiling - 1
            self._bar.total = int(self._bar.n + min(self.evaluations, self.ceiling)) + 1
            self._bar.update()
        return self.search.score(members)

    def _earn(self, top: float) -> None:
        """Go on to the ceiling where the whole mask shows more than the path has reached, and the path has stalled.

        A path that still grows is on its way there: effects are spread over many components, not hidden.
        """
        largest = self.search.largest
        best, halfway = self.search.best_within(largest)[0], self.search.best_within(largest // 2)[0]
        gap = top - best
        if gap > 0.1 * abs(top - self.search.score(())) and best - halfway < 0.25 * gap:
            self.evaluations = self.ceiling

    # ------------------------------------------------------------------ moves

    def _prune(self, members: list[int]) -> list[int]:
        """The full set without the members whose loss is predicted, and found, to be a gain."""
        kept, best = list(members), self._score(members)
        for _ in range(2):
            gains = self.screen.gains(subset((*kept, *self.search.forced)))
            harmful = sorted((i for i in kept if gains[i] > 0), key=lambda i: -gains[i])
            sizes = dict.fromkeys(k for k in (len(harmful), len(harmful) // 2, len(harmful) // 5) if k)
            tried = [[i for i in kept if i not in set(harmful[:k])] for k in sizes if k < len(kept)]
            if not tried:
                return kept
            scores = [self._score(t) for t in tried]
            if max(scores) <= best:
                return kept
            best, kept = max(scores), tried[int(np.argmax(scores))]
        return kept

    def _minimal(self, members: list[int], goal: float) -> Subset | None:
        """A set that reaches the goal and of which no single member can go; None where many are needed."""
        kept, parts = list(members), 2
        while len(kept) > 1:
            kept, reduced = self._reduce(kept, parts, lambda rest: self._score(rest) >= goal)
            if reduced:
                parts = max(2, min(parts, len(kept)))
                continue
            if parts >= len(kept):
                break
            if parts >= 8 and len(kept) > 8 * self.search.largest:
                return None
            parts = min(len(kept), parts * 2)
        return subset(kept)

    def _reduce(self, kept: list[int], parts: int, holds: Callable[[list[int]], bool]) -> tuple[list[int], bool]:
        """Try to do without each of so many chunks, from the end of the order."""
        size, reduced = -(-len(kept) // parts), False
        for chunk in [kept[i : i + size] for i in range(0, len(kept), size)][::-1]:
            gone = set(chunk)
            rest = [i for i in kept if i not in gone]
            if rest and holds(rest):
                kept, reduced = rest, True
        return kept, reduced

    def _descend(self, kept: list[int]) -> None:
        """From a minimal set down to one member, dropping the least harmful member each time."""
        while len(kept) > 1:
            drops = kept
            if len(kept) > EXACT_DESCENT:
                gains = self.screen.gains(subset((*kept, *self.search.forced)))
                drops = sorted(kept, key=lambda i: -gains[i])[:3]
            sets = [[j for j in kept if j != i] for i in drops]
            kept = sets[int(np.argmax([self._score(s) for s in sets]))]
