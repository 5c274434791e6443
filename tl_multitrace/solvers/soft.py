"""What solvers with a soft mask share: a sweep over penalty weights that brackets the budgets, and sets between.

A penalised run ends at one set whose size follows from the penalty's weight and cannot be asked for. So the weight is
searched: outwards until the smallest and the largest budget are bracketed, then by bisection (of the logarithm) where
most budgets are still without a set of their own size. Every run starts where the run at the next smaller weight ended.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.engine.cache import Shapes
from tl_multitrace.engine.shared import Loop
from tl_multitrace.solvers.search import CostReached, Search, Subset

WIDEN = 4.0
"""Factor by which the weight moves outwards."""

OUTWARDS = 3
"""Times it does so to either side: beyond, the set hardly depends on the penalty any more."""


@dataclass(frozen=True)
class Run:
    """One penalised run.

    Attributes:
        weight: of the size penalty.
        end: the solver's variables at the end, from which the next run may start.
        value: how much the run made of each component, higher is better; ranks them where sizes have to be filled.
        members: the set it ended at.
    """

    weight: float
    end: Float[Tensor, " groups"]
    value: Float[np.ndarray, " groups"]
    members: Subset


Runner = Callable[[float, Run | None], Run]
"""A run at a weight, started from an earlier one or afresh."""


def sweep(search: Search, run: Runner, weights: Iterable[float]) -> list[Run]:
    """One run per weight, lightest first, each started where the one before ended."""
    runs: list[Run] = []
    for weight in sorted(weights):
        if not search.stopped:
            runs.append(run(weight, _warm(runs, weight, search.n)))
    return runs


def bracket(search: Search, run: Runner, first: float, most: int) -> list[Run]:
    """Up to ``most`` runs whose sets bracket the budgets, ordered by weight (larger sets first)."""
    runs: list[Run] = []
    weight: float | None = first
    while weight is not None and len(runs) < most and not search.stopped:
        runs = sorted([*runs, run(weight, _warm(runs, weight, search.n))], key=lambda r: r.weight)
        weight = _next_weight(search, runs, first)
    return runs


def _warm(runs: list[Run], weight: float, n: int) -> Run | None:
    """The run at the next smaller weight; None where there is none or it ended at a corner, with no way back."""
    below = [r for r in runs if r.weight < weight]
    return below[-1] if below and 0 < len(below[-1].members) < n else None


def _next_weight(search: Search, runs: list[Run], first: float) -> float | None:
    lowest, highest = runs[0], runs[-1]
    if len(lowest.members) < search.largest and lowest.weight > first / WIDEN**OUTWARDS:
        return lowest.weight / WIDEN
    if len(highest.members) > search.budgets[0] and highest.weight < first * WIDEN**OUTWARDS:
        return highest.weight * WIDEN
    gaps = {math.sqrt(a.weight * b.weight): _gap(search, a, b) for a, b in itertools.pairwise(runs)}
    middle = max(gaps, key=lambda w: gaps[w], default=None)
    return middle if middle is not None and gaps[middle] > 0 else None


def _gap(search: Search, larger: Run, smaller: Run) -> float:
    """How far apart two sizes are, as a ratio, where budgets lie between them."""
    ends = sorted((len(larger.members), len(smaller.members)))
    between = [b for b in search.budgets if ends[0] < b < ends[1]]
    return math.log((between[-1] + 1) / between[0]) if between else 0.0


def fill(search: Search, runs: list[Run]) -> dict[Subset, str]:
    """Evaluate every run's own set, and sets of each budget's size cut from, or grown on, the runs next to it.

    Returns:
        How each set was made, in words.
    """
    origin = {r.members: f"the set at weight {r.weight:.2g}" for r in runs}
    for budget in search.budgets:
        larger = min((r for r in runs if len(r.members) >= budget), key=lambda r: len(r.members), default=None)
        smaller = max((r for r in runs if len(r.members) <= budget), key=lambda r: len(r.members), default=None)
        for r in (larger, smaller):
            if r is not None:
                chosen = search.top(r.value, budget, search.forced)
                origin.setdefault(chosen, f"the highest at weight {r.weight:.2g}")
    search.scores(list(origin))
    return origin


def tell(search: Search, origin: dict[Subset, str], ranking: str) -> None:
    """Note which budgets were served by a run's own set and which by cutting a ranking."""
    cut = [b for b in search.budgets if "highest" in origin.get(search.best_within(b)[1], "")]
    own = [b for b in search.budgets if "the set at" in origin.get(search.best_within(b)[1], "")]
    search.notes.append(f"sets that a run ended at: budgets {_listed(own)}; cut from {ranking}: {_listed(cut)}")


def _listed(budgets: list[int]) -> str:
    return ", ".join(map(str, budgets)) or "none"


def pinned(search: Search, z: Float[Tensor, " groups"]) -> Float[Tensor, " groups"]:
    """The mask with forced groups on and forbidden ones off, so that the others are chosen beside these."""
    z = torch.where(torch.as_tensor(search.allowed), z, 0.0)
    z[list(search.forced)] = 1.0
    return z


# ---------------------------------------------------------------------- one run


@dataclass
class Descent:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) on a vector over minibatches of prompts, with a rate for each entry.

    ``torch.optim.Adam`` has one rate per tensor. Everything that the next step depends on is kept, so that an
    interrupted run goes on; where ``max_cost`` leaves too little for a step, the run ends where it is.

    Attributes:
        at: where the run is.
        loop: where its state is kept.
        rates: step per entry, or one for all.
        batches: gives the minibatches of an epoch; the last is used first.
        generator: of whatever is drawn at random on the way.
        total: sum of ``at`` over the steps.
        steps: made so far.
    """

    at: Float[Tensor, " groups"]
    loop: Loop
    rates: Tensor | float
    batches: Callable[[], list[Tensor]]
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        self.total, self.first, self.second = (torch.zeros_like(self.at) for _ in range(3))
        self.steps, self.left = 0, list[Tensor]()
        vectors: Shapes = dict.fromkeys(("at", "total", "first", "second"), tuple(self.at.shape))
        if (kept := self.loop.read({**vectors, "steps": ()})) is not None:
            self.at, self.total, self.first, self.second = (kept[name] for name in vectors)
            self.steps, self.left = int(kept["steps"]), list(kept["left"].split(kept["sizes"].tolist()))
            if self.generator is not None:
                self.generator.set_state(kept["generator"])

    def run(
        self,
        steps: int,
        gradient: Callable[[Tensor, Tensor, int], Tensor],
        bar: Any,
        put_back: Callable[[Tensor], Tensor] = lambda at: at,
    ) -> None:
        """Step down ``gradient(at, examples, step)`` until so many steps were made, each put back to what may be."""
        bar.update(self.steps)
        b1, b2 = 0.9, 0.999
        while self.steps < steps:
            self.left = self.left or self.batches()
            try:
                slope = gradient(self.at.detach(), self.left.pop(), self.steps).detach()
            except CostReached:
                return
            self.steps += 1
            self.first = b1 * self.first + (1 - b1) * slope
            self.second = b2 * self.second + (1 - b2) * slope**2
            size = (self.second / (1 - b2**self.steps)).sqrt() + 1e-8
            self.at = put_back(self.at - self.rates * ((self.first / (1 - b1**self.steps)) / size))
            self.total = self.total + self.at
            self.loop.write(self._state, now=self.steps == steps)
            bar.update()

    def _state(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in ("at", "total", "first", "second")}
        drawn = {} if self.generator is None else {"generator": self.generator.get_state()}
        left = torch.cat(self.left) if self.left else torch.zeros(0, dtype=torch.long)
        sizes = torch.tensor([len(b) for b in self.left], dtype=torch.long)
        return {**own, **drawn, "steps": torch.tensor(self.steps), "left": left, "sizes": sizes}


def minibatches(n: int, size: int, generator: torch.Generator | None) -> list[Tensor]:
    """Pair numbers in batches: in the given order, or shuffled by a generator."""
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    return list(order.split(size))
