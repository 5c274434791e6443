"""What every solver works on: scored evaluations of subsets, with the best seen per size kept.

A solver never sees a hook name, a metric's sign or a budget's bookkeeping. It asks for the scores of index sets (higher
is better, whatever the direction) or for gradients; everything it asks for is remembered, and what it has seen is the
result.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_multitrace.engine.shared import Loop
from tl_multitrace.groups import mask_of
from tl_multitrace.objective import Aim, Objective, aim_of
from tl_multitrace.objective.goals import Direction as Direction
from tl_multitrace.progress import bar, tell
from tl_multitrace.tracer import Tracer

logger = logging.getLogger(__name__)

Subset = tuple[int, ...]
MOST_MASKS = 512
"""Sets evaluated in one call."""


class CostReached(Exception):
    """What a solver asked for next would take the search past its ``max_cost``; ``select`` ends it there."""


def subset(members: Iterable[SupportsIndex]) -> Subset:
    """Sorted tuple of distinct indices."""
    return tuple(sorted({int(i) for i in members}))


@dataclass
class Search:
    """One subset search on a tracer or an objective.

    Attributes:
        tracer: what is searched on: a tracer, or an objective of several.
        budgets: sizes that were asked for, ascending.
        sign: +1 to maximise the effect, -1 to minimise it.
        seed: for whatever is random in a solver.
        allowed: groups that may be chosen.
        forced: groups that every subset holds.
        limits: most groups of a kind that a chosen set may hold.
        best: best score and subset seen, per exact size; only of what the constraints allow.
        lead: the same whatever the constraints allow: where a search goes on from; without constraints, ``best``.
        pressure: share of the penalty for breaking constraints that scores are charged.
        notes: what the solver wants the user to know.
        screen_dtype: lower precision for gradients that only rank; scores are exact in any case.
        show_progress: whether progress bars are shown.
        certificates: what a solver proved about the choice of a budget.
        max_cost: forward equivalents that the search may take; None for any number.
        stopped: whether something was refused because of ``max_cost``.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class First:
        ...     name = "first"
        ...     def search(self, search):
        ...         search.score(search.candidates[: search.largest])
        >>> mt.select(tracer, 2, First())[2].labels
        ['L0H0', 'L0H1']
    """

    tracer: Tracer | Objective
    budgets: tuple[int, ...]
    sign: int
    seed: int
    allowed: Bool[np.ndarray, " groups"]
    forced: Subset = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    show_progress: bool = False
    best: dict[int, tuple[float, Subset]] = field(default_factory=dict)
    lead: dict[int, tuple[float, Subset]] = field(default_factory=dict)
    pressure: float = 1.0
    notes: list[str] = field(default_factory=list)
    screen_dtype: torch.dtype | None = None
    certificates: dict[int, str] = field(default_factory=dict)
    max_cost: float | None = None
    stopped: bool = False
    _memo: dict[Subset, float] = field(default_factory=dict)
    _bar: Any = None

    # ------------------------------------------------------------------ facts

    def __post_init__(self) -> None:
        if not self.aim.has_bounds:
            self.lead = self.best
        self._began = self.tracer.cost.equivalents
        self._pass = float(len(self.tracer.tracers)) if isinstance(self.tracer, Objective) else 1.0

    @cached_property
    def aim(self) -> Aim:
        """What sets are scored by: the tracer's mean effect, or several goals within bounds."""
        return aim_of(self.tracer)

    @property
    def n(self) -> int:
        """Number of hook groups."""
        return len(self.tracer.groups)

    @property
    def largest(self) -> int:
        """The largest budget."""
        return self.budgets[-1]

    @property
    def candidates(self) -> Int[np.ndarray, " candidates"]:
        """Groups that may be added."""
        free = self.allowed.copy()
        free[list(self.forced)] = False
        return np.flatnonzero(free)

    def addable(self, members: Iterable[SupportsIndex]) -> Int[np.ndarray, " candidates"]:
        """Groups that may be added to a set: allowed, not in it, and within their kind's limit."""
        free = self.allowed.copy()
        free[[int(i) for i in members]] = False
        if self.limits:
            counts = self.count_kinds(members)
            full = [kind for kind, limit in self.limits.items() if counts.get(kind, 0) >= limit]
            free &= ~np.isin(self.kinds, full)
        return np.flatnonzero(free)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Kind of every group, ``[groups]``."""
        return np.array(self.tracer.groups.kinds)

    def count_kinds(self, members: Iterable[SupportsIndex]) -> dict[str, int]:
        """How many groups of each kind a set holds."""
        return dict(Counter(self.kinds[[int(i) for i in members]].tolist()))

    def feasible(self, members: Subset) -> bool:
        """Whether a set may be chosen: allowed groups only, kinds within their limits."""
        if members and not self.allowed[list(members)].all():
            return False
        counts = self.count_kinds(members) if self.limits else {}
        return all(counts.get(kind, 0) <= limit for kind, limit in self.limits.items())

    def top(self, value: Float[np.ndarray, " groups"], size: int, members: Subset = ()) -> Subset:
        """A set of ``size`` groups: ``members``, then the highest values that may be added."""
        chosen = list(members)
        counts = Counter(self.kinds[chosen].tolist()) if self.limits else Counter[str]()
        for i in np.argsort(-value, kind="stable"):
            if len(chosen) >= size:
                break
            kind = self.kinds[i] if self.limits else ""
            if self.allowed[i] and i not in members and counts[kind] < self.limits.get(kind, self.n):
                chosen.append(int(i))
                counts[kind] += 1
        return subset(chosen)

    def generator(self, stream: int = 0) -> np.random.Generator:
        """A random generator of this search's seed; different streams are independent."""
        return np.random.default_rng([self.seed, stream])

    # ------------------------------------------------------------------ exact scores

    def score(self, members: Iterable[SupportsIndex]) -> float:
        """Exact mean score of one subset."""
        return float(self.scores([subset(members)])[0])

    def scores(
        self, subsets: Sequence[Iterable[SupportsIndex]], reference: Iterable[SupportsIndex] | None = None
    ) -> Float[np.ndarray, " k"]:
        """Exact mean scores; each subset is evaluated once in a search and remembered.

        Forced groups are added. Sets near a ``reference`` restart from the first block where they differ from it.

        Raises:
            CostReached: there is a ``max_cost``, and no more can be scored within it.
        """
        wanted = [subset((*s, *self.forced)) for s in subsets]
        new = [s for s in dict.fromkeys(wanted) if s not in self._memo]
        ref = None if reference is None else subset((*reference, *self.forced))
        # the first score of an objective weighs its bounds, by the whole mask and a derivative
        beside = float(ref is not None) + (3.0 if self.aim.has_bounds and not self._memo else 0.0)
        while new:
            part = new[: self._affordable(len(new), beside)]
            with self._paid(len(part) + beside):
                self._note(part, self.aim.means(*self._masks(part, ref), self.pressure))
            new, beside = new[len(part) :], float(ref is not None)
            self._tell()
        return np.array([self._memo[s] for s in wanted])

    def _masks(self, sets: Sequence[Subset], reference: Subset | None = None) -> tuple[Tensor, Tensor | None]:
        """Masks of sets, and of one that they differ little from."""
        return torch.stack([self.mask(s) for s in sets]), None if reference is None else self.mask(reference)

    def _note(self, sets: Sequence[Subset], values: Float[np.ndarray, " sets"]) -> None:
        for s, value in zip(sets, values.tolist(), strict=True):
            self._remember(s, self.sign * value)

    def known(self, members: Iterable[SupportsIndex]) -> float | None:
        """The score of a subset if it was evaluated before."""
        return self._memo.get(subset((*members, *self.forced)))

    def _remember(self, members: Subset, value: float) -> None:
        self._memo[members] = value
        if not self.feasible(members):
            return
        self._take(self.lead, members, value)
        if self.lead is not self.best and self.aim.holds(self.mask(members)):
            self._take(self.best, members, value)

    def _take(self, bests: dict[int, tuple[float, Subset]], members: Subset, value: float) -> None:
        size = len(members)
        # ties go to the set that was seen first, so that a run does not depend on rounding alone
        if size not in bests or value > bests[size][0]:
            bests[size] = (value, members)

    def press(self, pressure: float) -> None:
        """Charge breaking constraints more or less from now on; what was evaluated is scored anew, at no cost."""
        if pressure == self.pressure:
            return
        known, self.pressure = list(self._memo), pressure
        self._memo.clear()
        self.lead.clear()
        for start in range(0, len(known), MOST_MASKS):
            part = known[start : start + MOST_MASKS]
            self._note(part, self.aim.means(*self._masks(part), self.pressure))

    def mask(self, members: Iterable[SupportsIndex]) -> Float[Tensor, " groups"]:
        """Binary mask of a subset, from 0 to 1."""
        return mask_of(self.n, members)

    # ------------------------------------------------------------------ gradients

    def gradient(self, mask: Any) -> Float[np.ndarray, " groups"]:
        """Mean derivative of the score with respect to each mask entry."""
        with self._paid(2.0):
            return np.asarray(self.sign * self.aim.slope(mask, self.screen_dtype))

    def gains(self, members: Subset) -> Float[np.ndarray, " groups"]:
        """Predicted gain in score of adding each outsider and of dropping each member, from one derivative."""
        with self._paid(2.0 if members in self._memo else 3.0):
            return self.aim.gains(self.mask(members), self.sign, self.screen_dtype, self.pressure)

    def loss(self, mask: Any) -> float:
        """The bounded loss that gradient solvers minimise, at a soft mask."""
        with self._paid(1.0):
            return self.aim.loss(mask, self.sign)

    def loss_gradient(self, mask: Any, examples: Tensor, keep: int = 1) -> Float[Tensor, " groups"]:
        """Its derivative on some examples; under ``max_cost`` only if as many sets can be scored afterwards."""
        passes = 2.0 if isinstance(self.tracer, Objective) else 2.0 * len(examples) / self.tracer.n
        with self._paid(passes, 0.0 if self.max_cost is None else min(float(keep), self.max_cost / self._pass / 4)):
            return self.aim.loss_gradient(mask, self.sign, examples)

    # ------------------------------------------------------------------ cost

    @property
    def spent(self) -> float:
        """Forward equivalents so far."""
        return self.tracer.cost.equivalents - self._began

    @property
    def evaluated(self) -> int:
        """Number of different sets that were scored."""
        return len(self._memo)

    def message(self, spent: float) -> str:
        """How it ended, in words, and what it has spent: forward equivalents."""
        if not self.stopped:
            return f"finished: {self.evaluated} sets scored, {spent:.4g} forward equivalents"
        return (
            f"stopped at max_cost: {spent:.4g} of {self.max_cost:.4g} forward equivalents spent, {self.evaluated} sets "
            "scored; the choices are the best of these. Pass a larger max_cost to search on"
        )

    def _affordable(self, count: int, beside: float = 0.0) -> int:
        """How many of so many passes can be made at once, after some ``beside``; raises CostReached for none."""
        if self.max_cost is None:
            return min(count, MOST_MASKS)
        left = (self.max_cost - self.spent) / self._pass - beside + 1e-9
        if left < 1:
            self.stopped = True
            raise CostReached
        return min(count, MOST_MASKS, int(left))

    @contextmanager
    def _paid(self, passes: float, keep: float = 0.0) -> Iterator[None]:
        """Refuse passes that cannot be afforded; learn what one takes: more where memory cannot hold activations."""
        self._affordable(1, passes - 1 + keep)
        before = self.spent
        yield
        self._pass = max(self._pass, (self.spent - before) / passes)

    # ------------------------------------------------------------------ interruptions

    def loop(self, solver: Any, *what: Any) -> Loop:
        """Where a ``solver`` keeps the state of a loop of its own, known by it, this search and ``what``."""
        own = (self.sign, self.seed, self.allowed, self.forced, sorted(self.limits.items()), self.max_cost)
        goals = [self.aim.provenance().get(part) for part in ("goals", "constraints")]
        return Loop([tracer.calls for tracer in self.aim.tracers], goals, solver, own, *what)

    # ------------------------------------------------------------------ bests

    def best_within(self, size: int) -> tuple[float, Subset]:
        """Best score and subset seen of at most ``size`` groups; raises ValueError where none was evaluated."""
        found = [(self.best[s][0], -s) for s in self.best if s <= size]
        if not found:
            raise ValueError(f"no subset of at most {size} groups within the constraints was evaluated.")
        _, negative = max(found)
        return self.best[-negative]

    def progress(self, total: int | None, what: str) -> Any:
        """A progress bar, silent unless asked for; shows the best effect within the largest budget, and the cost."""
        self._bar = bar(total, what, self.show_progress)
        return self._bar

    def _tell(self) -> None:
        if self._bar is not None and not self._bar.disable:
            tell(self._bar, best=self.best_effect, cost=self.tracer.cost.equivalents)

    @property
    def best_effect(self) -> float | None:
        """Best effect seen within the largest budget, None before there is one."""
        found = [score for size, (score, _) in self.best.items() if size <= self.largest]
        return self.sign * max(found) if found else None

    def log_stage(self, stage: str, began: float) -> None:
        """Log what a ``stage`` of a solver has brought and cost; ``began``: the cost before it."""
        best = self.best_effect
        found = "nothing yet" if best is None else f"best effect {best:.4g}"
        spent = self.spent - began
        logger.info("%s: %s, %d sets evaluated, %.1f forward equivalents", stage, found, len(self._memo), spent)
