"""``ScreenedSearch``: the default solver. Sets at least as good as exact greedy's, for a small part of its cost.

Three parts, each of which remembers what it evaluated:

1. a two-way sweep with screened, exactly verified steps (``sweep.py``), for up to some hundreds of components;
   multi-exchange on a grid of sizes (``exchange.py``) for thousands;
2. group testing from the full set (``group_testing.py``) for what neither gradients nor single effects can see, as
   far as it can pay: fully where evaluations are few, and where the path stays below what the whole mask shows to be
   there;
3. the sweep again over whatever group testing improved, and swaps where they are few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int

from tl_multitrace.solvers.certify import neighbours
from tl_multitrace.solvers.exact import Exhaustive
from tl_multitrace.solvers.exchange import Exchange
from tl_multitrace.solvers.group_testing import GroupTest
from tl_multitrace.solvers.search import Search, Subset
from tl_multitrace.solvers.sweep import Sweep, SweepSettings

Effort = Literal["low", "normal", "high"]
_SCALE = {"low": 0.5, "normal": 1.0, "high": 3.0}
_LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}
EXHAUSTIVE_SUBSETS = 256
SWEEP_GROUPS = 512
PRESSURES = (0.1, 1.0)
"""Under constraints the search runs twice: first past sets that break them a little, as the way to better ones."""

SWAPS = {"low": 0, "normal": 60, "high": 4000}
"""Most neighbours of a best set that are all verified, by effort."""


@dataclass(frozen=True)
class ScreenedSearch:
    """Screened path, group testing and exchange steps; the default.

    Args:
        effort: how much is verified: ``"low"`` about half, ``"high"`` about three times as much, with every best set
            checked for local optimality.
        screen_dtype: ``"bfloat16"`` or ``"float16"`` runs the gradients that only rank candidates in that precision
            (autocast; the model keeps its weights). What is chosen is always decided, and scored, in the tracer's own.
            Worth it on a GPU; a CPU without such arithmetic gets slower.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model, [0]), task.metric)
        >>> path = mt.select(tracer, 2, mt.ScreenedSearch(effort="low"))
        >>> path[2].labels, path[2].certificate.split(" ")[0]
        (['L0H1', 'L0H3'], 'optimal')
    """

    effort: Effort = "normal"
    screen_dtype: str | None = None
    name = "screened search"
    objective = "effect"

    def __post_init__(self) -> None:
        if self.effort not in _SCALE:
            raise ValueError(f"effort must be one of {', '.join(_SCALE)}, got {self.effort!r}.")
        if self.screen_dtype not in (None, *_LOWER):
            raise ValueError(
                f"screen_dtype must be None or one of {', '.join(map(repr, _LOWER))}, got {self.screen_dtype!r}."
            )

    @property
    def scale(self) -> float:
        """Factor on what is verified."""
        return _SCALE[self.effort]

    def search(self, search: Search) -> None:
        """Run the parts that fit the number of components."""
        search.screen_dtype = None if self.screen_dtype is None else _LOWER[self.screen_dtype]
        free = len(search.candidates)
        total = sum(math.comb(free, k) for k in range(min(search.largest, free) + 1))
        if total <= EXHAUSTIVE_SUBSETS * self.scale:
            Exhaustive().search(search)
            return
        large = free > SWEEP_GROUPS
        for pressure in PRESSURES if search.aim.has_bounds else (1.0,):
            began = search.spent
            search.press(pressure)
            sweep = Sweep(search, self._settings())
            if large:
                Exchange(search, rounds=max(1, round(2 * self.scale))).run()
            else:
                sweep.run()
            search.log_stage("exchange" if large else "sweep", began)
        path = {size: search.best_within(size) for size in search.budgets}
        began = search.spent
        allowance = self.scale * 120 / math.sqrt(search.largest)  # evaluations: joint action hides in small sets
        GroupTest(search, sweep.screen, self._order(search), allowance).run()
        search.log_stage("group testing", began)
        if self._improved(search, path):
            if not large:
                sweep.run()
            sizes = ", ".join(map(str, self._improved(search, path)))
            search.notes.append(f"group testing found what the screened path had missed, at budgets {sizes}")
        began = search.spent
        self._swaps(search)
        search.log_stage("swaps", began)

    def _settings(self) -> SweepSettings:
        base, counts = SweepSettings(), ("k_min", "k_max", "k_late", "first_min", "first_max", "drops")
        scaled = {name: max(1, round(getattr(base, name) * self.scale)) for name in counts}
        return replace(base, **scaled, floor=base.floor * self.scale, per_step=base.per_step * self.scale)

    def _order(self, search: Search) -> Int[np.ndarray, " candidates"]:
        """Components by their largest derivative, of either sign, inside the mask's range and at its end."""
        value = np.zeros(search.n)
        for at in (0.3, 0.7, 1.0):
            value = np.maximum(value, np.abs(search.gradient(torch.full((search.n,), at))))
        candidates = search.candidates
        return candidates[np.argsort(-value[candidates], kind="stable")]

    @staticmethod
    def _improved(search: Search, path: dict[int, tuple[float, Subset]]) -> list[int]:
        return [s for s, (score, _) in path.items() if search.best_within(s)[0] > score + 1e-6 * abs(score)]

    def _swaps(self, search: Search) -> None:
        """All exact swaps of the best sets where they are few, until none helps."""
        few = [s for s in sorted(search.best) if 0 < s <= search.largest]
        few = [s for s in few if s * len(search.candidates) <= SWAPS[self.effort]]
        with search.progress(len(few), "swaps") as bar:
            for size in few:
                members: Subset | None = None
                while members != search.best[size][1]:
                    members = search.best[size][1]
                    search.scores([s for _, s in neighbours(search, members, size)], reference=members)
                bar.update()
