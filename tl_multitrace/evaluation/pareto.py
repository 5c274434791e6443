"""``pareto``: what a budget can buy of one goal for how much of another.

A set is on the front when no other set seen is at least as good in everything and better in something. Searches under
several bounds (for every constraint: from no cost at all up to what the best set costs) and several weights (for
every further goal) look for such sets; every set that any of them evaluated exactly is a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from tl_multitrace.circuit import Circuit
from tl_multitrace.groups import mask_of
from tl_multitrace.objective import Objective
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, result
from tl_multitrace.records.stats import Score
from tl_multitrace.solvers.path import marginal_effects
from tl_multitrace.solvers.select import Solver, default_solver, select

if TYPE_CHECKING:
    import pandas as pd

UNBOUND = 1e30
WEIGHTS = (0.1, 0.3, 3.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """One of the numbers that are traded against each other.

    Attributes:
        name: of the goal or constraint.
        unit: of its metric.
        better: ``"higher"`` or ``"lower"``.
        role: ``"goal"`` or ``"constraint"``.

    Examples:
        >>> from tl_multitrace.evaluation import Axis
        >>> Axis(name="perplexity", unit="relative change", better="lower", role="constraint").better
        'lower'
    """

    name: str
    unit: str
    better: str
    role: str


@dataclass(frozen=True)
class FrontPoint:
    """One set on the front.

    Attributes:
        members: mask indices.
        labels: of its components.
        changes: of every goal and constraint against the base run, with intervals, on the search's prompts.
        held_out: the same on held-out prompts; empty if none were given.

    Examples:
        >>> from tl_multitrace import Score
        >>> from tl_multitrace.evaluation import FrontPoint
        >>> point = FrontPoint(members=(3,), labels=("L0H3",), changes={"bias": Score.of([1.0, 2.0])})
        >>> point.changes["bias"].mean
        1.5
    """

    members: tuple[int, ...]
    labels: tuple[str, ...]
    changes: Mapping[str, Score]
    held_out: Mapping[str, Score] = field(default_factory=dict)


@result("tl_multitrace.front", key="result")
@dataclass(frozen=True, repr=False)
class Front(Result):
    """Sets of at most ``budget`` components of which none is beaten in everything by another set that was seen.

    Attributes:
        axes: what is traded, goals first.
        points: by the first axis, best first.
        budget: largest size allowed.
        evaluated: sets that were evaluated exactly.
        notes: what a reader must know.
        provenance: goals, constraints, model, seed, cost, versions.
        objective: what was searched on; not saved.

    Examples:
        >>> pairs, heads = mt.task("professions", model, n=16).pairs, mt.heads(model)
        >>> by_label = {label: pairs.subgroup(label) for label in ("female", "male")}
        >>> objective = mt.Objective([mt.Goal(n, mt.Tracer(model, p, heads)) for n, p in by_label.items()])
        >>> front = mt.pareto(objective, budget=2, levels=2, solver=mt.Greedy())
        >>> [axis.name for axis in front.axes], len(front.points) > 0
        (['female', 'male'], True)
        >>> front.circuit(0, objective).labels
        ['L0H1', 'L0H3']
    """

    axes: tuple[Axis, ...]
    points: tuple[FrontPoint, ...]
    budget: int
    evaluated: int
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> FrontPoint:
        return self.points[index]

    def __iter__(self) -> Iterator[FrontPoint]:
        return iter(self.points)

    def circuit(self, index: int, objective: Objective) -> Circuit:
        """A point as a circuit.

        Args:
            index: of the point.
            objective: the one that was searched on, whose tracers measure.

        Raises:
            ValueError: its components are others.
        """
        point = self.points[index]
        members = list(point.members)
        if max([*members, 0]) >= len(objective.groups) or objective.groups[members].labels != list(point.labels):
            raise ValueError("the objective's components are not those that were searched: pass the same groups.")
        mask = mask_of(len(objective.groups), members)
        score = objective.measure(mask, 1, int(self.provenance.get("seed", 0)))
        return Circuit(
            groups=objective.groups[members],
            indices=point.members,
            n_groups=len(objective.groups),
            effect=score.mean,
            score=score,
            marginals=marginal_effects(objective, point.members),
            certificate=f"on the front of {self.evaluated} sets evaluated exactly",
            provenance={**self.provenance, "budget": self.budget, "direction": "maximize"},
            tracer=objective.tracer,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per point: size, change of every axis with its interval, held-out change, components."""
        import pandas as pd

        return pd.DataFrame([_row(point, self.axes) for point in self.points])

    def headline(self) -> str:
        """What is traded."""
        names = ", ".join(f"{axis.name} ({axis.better} is better)" for axis in self.axes)
        return f"Front of {len(self)} sets of at most {self.budget} components: {names}"

    def summary(self) -> list[tuple[str, str]]:
        """The front's ends and middle, and what it cost."""
        picks = sorted({0, len(self) // 4, len(self) // 2, 3 * len(self) // 4, len(self) - 1})
        lines = [(f"{i}", _line(self.points[i], self.axes)) for i in picks if 0 <= i < len(self)]
        cost = dict(self.provenance.get("cost", {})).get("equivalents", 0.0)
        return [*lines, ("cost", f"{cost:.0f} forward equivalents, {self.evaluated} sets")]


def pareto(
    objective: Objective,
    budget: int,
    *,
    levels: int = 6,
    most: int = 24,
    solver: Solver | None = None,
    seed: int = 0,
    held_out: Mapping[str, PromptPairs] | None = None,
) -> Front:
    """The front of a budget: which sets trade the goals and constraints of an objective best against each other.

    The constraints' own bounds play no part: the front shows what each bound would cost.

    Args:
        objective: two goals or constraints at least.
        budget: largest set.
        levels: bounds tried per constraint, from none of its cost to almost all that the best set has.
        most: points kept, spread evenly along the front; its ends always.
        solver: how to search; default :class:`~tl_multitrace.ScreenedSearch`.
        seed: of the solver and the intervals.
        held_out: prompts to score the points on afterwards, by goal.

    Raises:
        ValueError: one goal and no constraint, fewer than one level or two points, or what :func:`select` refuses.

    Examples:
        >>> pairs = mt.task("professions", model, n=16).pairs
        >>> heads, off = mt.heads(model), mt.MeanAblation(reference=pairs)
        >>> text = mt.task("neutral_text", model, n=8).pairs
        >>> bias = mt.Goal("bias", mt.Tracer(model, pairs, heads, mt.LogOddsRatio(), off))
        >>> worse = mt.Tracer(model, text, heads.at("everywhere"), mt.Perplexity(), off)
        >>> objective = mt.Objective([bias], [mt.Constraint("perplexity", worse, at_most=0.02)])
        >>> front = mt.pareto(objective, budget=2, levels=2, solver=mt.Greedy())
        >>> [f"{axis.name}: {axis.better} is better" for axis in front.axes]
        ['bias: higher is better', 'perplexity: lower is better']
    """
    if len(objective.terms) < 2:
        raise ValueError("a front needs two goals, or a goal and a constraint: there is nothing to trade in one.")
    if levels < 1 or most < 2:
        raise ValueError(f"levels is at least 1 and most at least 2, got {levels} and {most}.")
    search = _Searches(objective, budget, default_solver() if solver is None else solver, seed)
    search.run(levels)
    axes = axes_of(objective)
    members = search.candidates()
    values = search.values(members, axes)
    best = thin(values, nondominated(values), most)
    points = _points(objective, [members[i] for i in best], held_out, seed)
    facts = {"seed": seed, "solver": {"name": search.solver.name}, "cost": search.cost()}
    return Front(axes, points, budget, len(members), provenance=objective.provenance() | facts)


class _Searches:
    """The searches behind a front, which share what they evaluated."""

    def __init__(self, objective: Objective, budget: int, solver: Solver, seed: int) -> None:
        loose = [_loosened(c) for c in objective.constraints]
        self.start = objective.cost.copy()
        self.loose = Objective(objective.goals, loose, {}, True)
        self.budget, self.solver, self.seed = budget, solver, seed

    def run(self, levels: int) -> None:
        best = self._search(self.loose)
        costs = self.loose.changes(best[None])
        for c in self.loose.constraints:
            worst = float(costs[c.name][0])
            if c.sign * worst < 0:
                for share in np.linspace(0, 1, levels + 1)[:-1] ** 1.5:
                    key = "at_most" if c.sign < 0 else "at_least"
                    tight = replace(c, **{key: share * worst})
                    others = [tight if other is c else other for other in self.loose.constraints]
                    self._search(replace(self.loose, constraints=others))
        for goal in self.loose.goals[1:]:
            for weight in WEIGHTS:
                heavier = replace(goal, weight=goal.weight * weight)
                goals = [heavier if other is goal else other for other in self.loose.goals]
                self._search(replace(self.loose, goals=goals))

    def _search(self, objective: Objective) -> Float[torch.Tensor, " groups"]:
        path = select(objective, range(1, self.budget + 1), self.solver, seed=self.seed)
        return mask_of(len(objective.groups), path.choices[-1].members)

    def candidates(self) -> list[tuple[int, ...]]:
        """Every set within the budget that was evaluated, the empty one included."""
        return [chosen for chosen in self.loose.seen_sets() if len(chosen) <= self.budget]

    def values(self, members: Sequence[tuple[int, ...]], axes: Sequence[Axis]) -> Float[np.ndarray, "sets axes"]:
        """Changes with the sign that makes higher better."""
        changes = self.loose.changes(torch.stack([mask_of(len(self.loose.groups), chosen) for chosen in members]))
        return np.stack([changes[a.name] * (1 if a.better == "higher" else -1) for a in axes], axis=1)

    def cost(self) -> dict[str, float]:
        spent = self.loose.cost - self.start
        return {"equivalents": spent.equivalents, "seconds": spent.seconds}


def _loosened(constraint: Any) -> Any:
    key = "at_most" if constraint.sign < 0 else "at_least"
    return replace(constraint, **{key: -constraint.sign * UNBOUND}, confidence=None)


def axes_of(objective: Objective) -> tuple[Axis, ...]:
    """What is traded, goals first."""
    return tuple(
        Axis(r.name, r.tracer.metric.unit, "higher" if r.sign > 0 else "lower", type(r).__name__.lower())
        for r in objective.terms
    )


def nondominated(values: Float[np.ndarray, "sets axes"]) -> Bool[np.ndarray, " sets"]:
    """Sets that no other beats: at least as high everywhere and higher somewhere. Of equal ones the first counts."""
    keep = np.ones(len(values), dtype=bool)
    order = np.lexsort(-values.T[::-1])  # by the first axis, then the next: whoever beats a set comes before it
    front: list[int] = []
    for i in order:
        if front and bool((values[front] >= values[i]).all(1).any()):
            keep[i] = False
        else:
            front.append(int(i))
    return keep


def thin(values: Float[np.ndarray, "sets axes"], keep: Bool[np.ndarray, " sets"], most: int) -> list[int]:
    """At most so many of the kept sets, by the first axis from its best, evenly spread along the front."""
    found = np.flatnonzero(keep)
    found = found[np.argsort(-values[found, 0], kind="stable")]
    if len(found) <= most:
        return [int(i) for i in found]
    span = np.ptp(values[found], axis=0)
    steps = np.abs(np.diff(values[found] / np.where(span > 0, span, 1.0), axis=0)).sum(1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    picks = sorted({int(np.abs(along - at).argmin()) for at in np.linspace(0, along[-1], most)})
    return [int(found[i]) for i in picks]


def _points(
    objective: Objective, sets: Sequence[tuple[int, ...]], held_out: Mapping[str, PromptPairs] | None, seed: int
) -> tuple[FrontPoint, ...]:
    unseen = None if held_out is None else objective.on(held_out)
    points = []
    for members in sets:
        mask = mask_of(len(objective.groups), members)
        labels = tuple(objective.groups[list(members)].labels) if members else ()
        held = {} if unseen is None else unseen.goal_scores(mask, seed)
        points.append(FrontPoint(members, labels, objective.goal_scores(mask, seed), held))
    return tuple(points)


def _row(point: FrontPoint, axes: Sequence[Axis]) -> dict[str, Any]:
    row: dict[str, Any] = {"size": len(point.members)}
    for axis in axes:
        score, held = point.changes[axis.name], point.held_out.get(axis.name)
        row |= {axis.name: score.mean, f"{axis.name}_low": score.low, f"{axis.name}_high": score.high}
        row[f"{axis.name}_held_out"] = None if held is None else held.mean
    return row | {"components": " ".join(point.labels)}


def _line(point: FrontPoint, axes: Sequence[Axis]) -> str:
    numbers = ", ".join(f"{axis.name} {point.changes[axis.name].mean:+.3g}" for axis in axes)
    return f"{numbers} ({len(point.members)}: {' '.join(point.labels[:6])}{' ...' if len(point.labels) > 6 else ''})"
