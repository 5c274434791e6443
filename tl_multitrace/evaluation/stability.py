"""``stability``: which components come back when the prompts are drawn again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats

from tl_multitrace.circuit import Circuit
from tl_multitrace.copies import copies_of
from tl_multitrace.groups import Component, mask_of
from tl_multitrace.interventions import ResampleAblation
from tl_multitrace.models.ambient import neutral
from tl_multitrace.objective import Objective, aim_of
from tl_multitrace.progress import bar, tell
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, intervention_name, result
from tl_multitrace.records.stats import Estimate, Score, frequency, prompt_notes, redrawn_rows
from tl_multitrace.solvers.path import marginal_effects
from tl_multitrace.solvers.search import Direction, Subset
from tl_multitrace.solvers.select import Solver, select
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

BUDGET = 10


@result("tl_multitrace.stability", key="result")
@dataclass(frozen=True, repr=False)
class Stability(Result):
    """How much of a circuit comes back on other draws of the prompts.

    Attributes:
        components: those that were chosen at least once, the most frequent first.
        indices: their places in the search's mask.
        frequencies: in which share of the runs each was chosen, with Wilson's 95 % interval.
        sets: mask indices chosen in each run.
        jaccard: mean overlap of two runs, from 0 to 1.
        jaccard_low: smallest overlap of any two runs.
        chance_jaccard: mean overlap of two random sets of the budget's size.
        threshold: frequency from which a component counts as stable.
        budget: of each search.
        n_groups: hook groups of the search.
        solver: its name.
        metric: its name.
        direction: of the search.
        intervention: what replaced activations.
        notes: what a reader must know.
        provenance: model, prompts, seeds, versions.

    Examples:
        >>> found = mt.stability(tracer, mt.AttributionPatching(), resamples=3, budget=2)
        >>> len(found.sets), round(found.jaccard, 1)
        (3, 1.0)
    """

    components: tuple[Component, ...]
    indices: tuple[int, ...]
    frequencies: tuple[Estimate, ...]
    sets: tuple[tuple[int, ...], ...]
    jaccard: float
    jaccard_low: float
    chance_jaccard: float
    threshold: float
    budget: int
    n_groups: int
    solver: str
    metric: str
    direction: str
    intervention: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    @property
    def stable(self) -> tuple[Component, ...]:
        """Components chosen in at least a share ``threshold`` of the runs."""
        pairs = zip(self.components, self.frequencies, strict=True)
        return tuple(c for c, f in pairs if f.value >= self.threshold)

    def circuit(self, tracer: Tracer) -> Circuit:
        """The stable components as a circuit, measured on a tracer's prompts.

        Args:
            tracer: with the hook groups of the search.

        Raises:
            ValueError: its groups are others.
        """
        places = sorted(i for i, f in zip(self.indices, self.frequencies, strict=True) if f.value >= self.threshold)
        if len(tracer.groups) != self.n_groups or set(tracer.groups[places].components) != set(self.stable):
            raise ValueError(f"the tracer's {tracer.groups!r} are not the {self.n_groups} groups that were searched.")
        return _circuit(tracer, places, self)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component: frequency with interval, whether it is stable; ablation, direction, metric."""
        import pandas as pd

        record = {"ablation": intervention_name(self.intervention), "direction": self.direction, "metric": self.metric}
        rows = [
            {
                "component": c.label,
                "frequency": f.value,
                "low": f.low,
                "high": f.high,
                "stable": f.value >= self.threshold,
                "runs": len(self.sets),
                **record,
            }
            for c, f in zip(self.components, self.frequencies, strict=True)
        ]
        return pd.DataFrame(rows)

    def headline(self) -> str:
        """What was repeated."""
        return (
            f"Stability of {self.solver}: {len(self.sets)} runs, budget {self.budget} of {self.n_groups} components, "
            f"{self.direction} {self.metric}, {intervention_name(self.intervention)}"
        )

    def summary(self) -> list[tuple[str, str]]:
        """Overlap of the runs, and the components by frequency."""
        often = [f"{c.label} {f.value:.0%}" for c, f in zip(self.components, self.frequencies, strict=True)]
        labels = ", ".join(c.label for c in self.stable)
        return [
            ("Jaccard", f"{self.jaccard:.2f} (lowest {self.jaccard_low:.2f}; random sets {self.chance_jaccard:.2g})"),
            ("stable", f"{len(self.stable)} in {self.threshold:.0%} of the runs or more: {labels or 'none'}"),
            ("frequency", ", ".join(often[:12]) + (" ..." if len(often) > 12 else "")),
        ]


@neutral()
def stability(
    tracer: Tracer | Objective,
    solver: Solver | None = None,
    resamples: int = 20,
    seeds: int | Sequence[int] = 0,
    *,
    budget: int | Mapping[str, int] | None = None,
    direction: Direction = "maximize",
    threshold: float = 0.8,
    max_cost: float | int | None = None,
    progress: bool | None = None,
) -> Stability:
    """Search again on bootstrap resamples of the prompts, and count which components come back.

    Args:
        tracer: model, prompts, groups, metric and intervention; its prompts are drawn from, with replacement. Of an
            objective, every goal's and constraint's prompts are.
        solver: default :class:`~tl_multitrace.solvers.screened.ScreenedSearch`.
        resamples: draws of the prompts per seed; each is one search.
        seeds: one, or several; a seed decides the draws and goes to the solver. Every run has a draw of its own, so the
            intervals count all of them.
        budget: of each search, or one for each kind of group as :func:`select` takes them; default 10, or all groups
            where there are fewer.
        direction: ``"maximize"`` or ``"minimize"``.
        threshold: share of the runs from which a component counts as stable.
        max_cost: forward equivalents that each search may take, as for :func:`select`.
        progress: show a progress bar; default: the tracer's setting.

    Raises:
        ValueError: fewer than 2 runs, a threshold outside (0, 1], or what :func:`select` refuses.

    Examples:
        >>> found = mt.stability(tracer, mt.Greedy(), resamples=3, budget=1)
        >>> [component.label for component in found.stable]
        ['L0H3']
    """
    listed = [int(seeds)] if isinstance(seeds, int | np.integer) else [int(s) for s in seeds]
    runs = [(seed, draw) for seed in dict.fromkeys(listed) for draw in range(resamples)]
    if len(runs) < 2 or not 0 < threshold <= 1:
        raise ValueError(f"need 2 runs or more and a threshold up to 1, got {len(runs)} runs, threshold {threshold}.")
    limits = min(BUDGET, len(tracer.groups)) if budget is None else budget
    size = sum(limits.values()) if isinstance(limits, Mapping) else limits
    found, name, spent = [], "", 0.0
    with bar(len(runs), "resamples", tracer.progress if progress is None else progress) as shown:
        for seed, draw in runs:
            how: dict[str, Any] = {"direction": direction, "seed": seed, "max_cost": max_cost, "progress": False}
            path = select(_redrawn(tracer, seed, draw), limits, solver, **how)
            found.append(path.choice(size).members)
            name, spent = str(path.provenance["solver"]["name"]), spent + path.cost["equivalents"]
            tell(shown, effect=path.choice(size).score.mean, overlap=jaccard(found[0], found[-1]), cost=spent)
            shown.update()
    logger.info("stability: %d searches by %s, %.1f forward equivalents", len(runs), name, spent)
    return _stability(tracer, found, size, name, direction, threshold, listed)


def _redrawn(target: Tracer | Objective, seed: int, draw: int) -> Tracer | Objective:
    if isinstance(target, Tracer):
        return _resampled(target, seed, draw)
    moved = {id(t): _resampled(t, seed, draw) for t in target.tracers}
    goals = [replace(goal, tracer=moved[id(goal.tracer)]) for goal in target.goals]
    return Objective(goals, [replace(c, tracer=moved[id(c.tracer)]) for c in target.constraints])


def _resampled(tracer: Tracer, seed: int, draw: int) -> Tracer:
    rows = redrawn_rows(copies_of(tracer), [seed, 75, draw])[0].tolist()
    pairs, intervention = tracer.pairs[rows], tracer.intervention
    if isinstance(intervention, ResampleAblation) and intervention.reference is None:
        intervention = replace(intervention, reference=tracer.pairs)  # a draw may hold only one prompt of some length
    return tracer.on(pairs, intervention=intervention)


def _stability(
    tracer: Tracer | Objective,
    sets: list[Subset],
    budget: int,
    solver: str,
    direction: Direction,
    threshold: float,
    seeds: list[int],
) -> Stability:
    counts = np.bincount([i for s in sets for i in s], minlength=len(tracer.groups))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    overlaps = [jaccard(a, b) for a, b in combinations(sets, 2)]
    facts = aim_of(tracer).provenance()
    empty = sum(not s for s in sets)
    few = prompt_notes(copies_of(tracer)) if isinstance(tracer, Tracer) else []
    return Stability(
        components=tuple(tracer.groups.components[i] for i in order),
        indices=tuple(order),
        frequencies=tuple(frequency(int(counts[i]), len(sets)) for i in order),
        sets=tuple(sets),
        jaccard=float(np.mean(overlaps)),
        jaccard_low=float(np.min(overlaps)),
        chance_jaccard=chance_jaccard(budget, len(tracer.groups)),
        threshold=threshold,
        budget=budget,
        n_groups=len(tracer.groups),
        solver=solver,
        metric=str(facts["metric"]),
        direction=direction,
        intervention=facts["intervention"],
        notes=(*few, *[f"{empty} of {len(sets)} runs found no set better than the empty one"][: bool(empty)]),
        provenance={**facts, "seeds": seeds},
    )


def jaccard(a: Subset, b: Subset) -> float:
    """Size of the intersection over size of the union; 1 for two empty sets."""
    union = set(a) | set(b)
    return len(set(a) & set(b)) / len(union) if union else 1.0


def chance_jaccard(size: int, n: int) -> float:
    """Expected Jaccard index of two random sets of one size (``scipy.stats.hypergeom``), whatever their kinds."""
    common = np.arange(max(0, 2 * size - n), size + 1)
    return float(np.sum(stats.hypergeom(n, size, size).pmf(common) * common / (2 * size - common)))


def _circuit(tracer: Tracer, places: list[int], found: Stability) -> Circuit:
    mask = mask_of(len(tracer.groups), places)
    both = tracer.effects(torch.stack([mask, torch.ones_like(mask)])).double().cpu().numpy()
    facts = {**aim_of(tracer).provenance(), "direction": found.direction, "solver": {"name": found.solver}}
    return Circuit(
        groups=tracer.groups[places],
        indices=tuple(places),
        n_groups=len(tracer.groups),
        effect=float(both[0].mean()),
        score=Score.of(both[0], copies=copies_of(tracer), weighted=True),
        full_effect=float(both[1].mean()),
        marginals=marginal_effects(tracer, tuple(places)),
        certificate=f"in {found.threshold:.0%} of {len(found.sets)} searches on resampled prompts",
        provenance=facts,
        tracer=tracer,
    )
