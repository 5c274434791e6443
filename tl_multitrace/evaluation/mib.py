"""``cpr_cmd``: the scores of MIB's circuit-localisation track (arXiv:2504.13151).

    CPR = integral of f      over the kept fraction of components, from .001 to 1 (higher is better)
    CMD = integral of |1 - f|                                                     (lower is better)

``f`` is faithfulness with the top of a ranking kept and everything else replaced; the integral is the trapezoid on the
nominal fraction, and ``floor(fraction * n)`` components are kept. CPR is read from the *signed* ranking (components
that help first, those that hurt last), CMD from the *absolute* one (those that matter first, either way).

85 % of that axis lies on the last three points, so both are also given on a logarithmic axis: there the trapezoid is
taken over log10 of the fraction and divided by its range, which makes it a mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import trapezoid

from tl_multitrace.copies import copies_of
from tl_multitrace.evaluation.evaluate import rounded
from tl_multitrace.evaluation.target import Interventions, importances, target_of
from tl_multitrace.groups import HookGroups, mib_groups
from tl_multitrace.models.ambient import neutral
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, intervention_name, result
from tl_multitrace.records.stats import Copies, Estimate, Score, Statistic, estimates, once, prompt_notes, undefined
from tl_multitrace.solvers import SubsetPath
from tl_multitrace.solvers.search import Subset
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Kept fractions of the benchmark.

Examples:
    >>> from tl_multitrace.evaluation import FRACTIONS
    >>> FRACTIONS[0], FRACTIONS[-1]
    (0.001, 1.0)
"""


def kept_counts(n: int, fractions: Sequence[float] = FRACTIONS) -> list[int]:
    """How many of ``n`` components are kept at each fraction, rounded down as the benchmark does.

    Args:
        n: number of components.
        fractions: kept shares of them, ascending.

    Examples:
        >>> from tl_multitrace.evaluation import kept_counts
        >>> kept_counts(32, fractions=(0.05, 0.1, 0.5, 1.0))
        [1, 3, 16, 32]
    """
    return [math.floor(round(fraction * n, 9)) for fraction in fractions]


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness against the kept fraction, under one ranking.

    Attributes:
        ranking: ``"signed"``, ``"absolute"``, or ``"path"`` where a search chose each set.
        kept: components kept at each fraction.
        faithfulness: at each fraction; None, as all that follows, where the effect of patching everything may be zero.
        cpr: integral of faithfulness, with its interval over prompts.
        cmd: integral of the distance of faithfulness from 1.
        log_cpr: mean of faithfulness over the logarithm of the fraction.
        log_cmd: mean of its distance from 1, likewise.
    """

    ranking: str
    kept: tuple[int, ...]
    faithfulness: tuple[float | None, ...]
    cpr: Estimate | None
    cmd: Estimate | None
    log_cpr: Estimate | None
    log_cmd: Estimate | None


@result("tl_multitrace.mib", key="result")
@dataclass(frozen=True, repr=False)
class MibScores(Result):
    """CPR and CMD of a ranking or a path, with the curves behind them.

    Attributes:
        fractions: kept fractions.
        curves: one per ranking.
        n_groups: number of components that are ranked.
        n: distinct prompts.
        metric: name of the metric.
        intervention: what replaces the activations that are not kept.
        notes: what a reader must know.
        provenance: of the path.

    Examples:
        >>> scores = mt.cpr_cmd(mt.ComponentScores.of(tracer).mean, tracer=tracer)
        >>> scores.n_groups, round(scores.log_cpr.value, 1)
        (32, 0.5)
    """

    fractions: tuple[float, ...]
    curves: tuple[FaithfulnessCurve, ...]
    n_groups: int
    n: int
    metric: str
    intervention: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    def __getitem__(self, ranking: str) -> FaithfulnessCurve:
        """The curve of a ranking; raises KeyError where there is none of that name."""
        for curve in self.curves:
            if curve.ranking == ranking:
                return curve
        raise KeyError(f"no ranking {ranking!r}: these scores have {', '.join(c.ranking for c in self.curves)}.")

    @property
    def cpr(self) -> Estimate | None:
        """From the signed ranking, or the path."""
        return self.curves[0].cpr

    @property
    def cmd(self) -> Estimate | None:
        """From the absolute ranking, or the path."""
        return self.curves[-1].cmd

    @property
    def log_cpr(self) -> Estimate | None:
        """CPR's companion on a logarithmic axis."""
        return self.curves[0].log_cpr

    @property
    def log_cmd(self) -> Estimate | None:
        """CMD's companion on a logarithmic axis."""
        return self.curves[-1].log_cmd

    def to_dataframe(self) -> pd.DataFrame:
        """One row per ranking and fraction: components kept and faithfulness; ablation and metric in each."""
        import pandas as pd

        record = {"ablation": intervention_name(self.intervention), "metric": self.metric}
        rows = [
            {"ranking": c.ranking, "fraction": x, "kept": k, "faithfulness": f, **record}
            for c in self.curves
            for x, k, f in zip(self.fractions, c.kept, c.faithfulness, strict=True)
        ]
        return pd.DataFrame(rows)

    def headline(self) -> str:
        """What was scored."""
        return (
            f"MibScores: {self.n_groups} components, {self.n} prompts, {self.metric}, "
            f"{intervention_name(self.intervention)}"
        )

    def summary(self) -> list[tuple[str, str]]:
        """Both scores, and both on the logarithmic axis, with the ranking each is read from."""
        first, last = self.curves[0].ranking, self.curves[-1].ranking
        if self.cpr is None:
            return [("CPR, CMD", "undefined: the effect of patching everything may be 0")]
        return [
            ("CPR", f"{self.cpr} ({first} ranking; higher is better)"),
            ("CMD", f"{self.cmd} ({last} ranking; lower is better)"),
            ("log CPR", f"{self.log_cpr} (mean over the log of the fraction)"),
            ("log CMD", f"{self.log_cmd} (likewise)"),
        ]


@neutral()
def cpr_cmd(
    path: SubsetPath | Any,
    pairs: PromptPairs | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    tracer: Tracer | None = None,
    model: Any = None,
    metric: Any = None,
    interventions: Interventions = None,
    seed: int = 0,
) -> MibScores:
    """MIB's CPR and CMD of a ranking of components, of a graph with node scores, or of a path.

    The behaviour is that of the base run, since what is kept is the base run's activation: in MIB the base prompts are
    the clean ones and the source prompts the counterfactuals.

    Args:
        path: one importance per hook group (heads, neurons, any kinds), higher kept first, also by label. A component's
            own effect is one where patching everything raises the metric; where that lowers it (noising), its negative
            is. Or a graph with node scores, such as a MIB file, with a tracer over ``mib_groups(model)``. Or a path,
            whose best set within each kept number is taken; give it the budgets ``kept_counts(len(groups))``, since
            beyond its largest one it has nothing more to keep.
        pairs: prompts to score on; default those of the tracer.
        fractions: kept fractions, ascending.
        tracer: model, groups, metric and intervention; needed with importances.
        model: for a path that was loaded from a file.
        metric: default the search's.
        interventions: one, default the search's.
        seed: of the bootstrap.

    Raises:
        ValueError: importances of the wrong length or not finite, no tracer for them, no prompts, fractions out of
            order, or no effect of patching everything on any prompt. Where that effect may be zero on average, scores
            are None and a note says why.

    Examples:
        >>> alone = mt.ComponentScores.of(tracer).mean
        >>> scores = mt.cpr_cmd(alone, tracer=tracer)
        >>> round(scores.cpr.value, 2), round(scores.cmd.value, 2)
        (0.97, 0.03)
    """
    ends = [0.0, *fractions]
    if any(b <= a for a, b in zip(ends, fractions, strict=False)) or ends[-1] > 1 or len(fractions) < 2:
        raise ValueError(f"fractions must ascend, above 0 and up to 1, got {list(fractions)}.")
    on, sets, facts, notes = _sets(path, pairs, fractions, tracer, model, metric, interventions)
    kept = sorted({members for ranked in sets.values() for members in ranked})
    values, copies = _rest_effects(on, kept), copies_of(on)
    place = {members: i + 1 for i, members in enumerate(kept)}
    curves = [_curve(name, s, values[[0, *[place[m] for m in s]]], copies, fractions, seed) for name, s in sets.items()]
    full = Score.of(values[0], copies=copies, seed=seed)
    notes += [*_other_nodes(on), *prompt_notes(copies), *[f"CPR and CMD are {why}" for why in [undefined(full)] if why]]
    return MibScores(
        fractions=tuple(map(float, fractions)),
        curves=tuple(curves),
        n_groups=len(on.groups),
        n=full.n,
        metric=on.metric.name or "custom",
        intervention=on.intervention.describe(),
        notes=tuple(notes),
        provenance=facts,
    )


def _other_nodes(tracer: Tracer) -> list[str]:
    """What must be said where the ranked components are not those of the benchmark."""
    nodes = mib_groups(tracer.model)
    if set(tracer.groups.components) == set(nodes.components) and set(tracer.groups.sites) == set(nodes.sites):
        return []
    return [
        f"these are not MIB's numbers: MIB ranks the {len(nodes)} nodes of this model (its input, heads and MLPs), "
        f"here {tracer.groups!r} are ranked, and all else keeps running. For MIB's make the tracer with "
        "mib_groups(model)"
    ]


def _sets(
    path: Any,
    pairs: PromptPairs | None,
    fractions: Sequence[float],
    tracer: Tracer | None,
    model: Any,
    metric: Any,
    interventions: Interventions,
) -> tuple[Tracer, dict[str, list[Subset]], Mapping[str, Any], list[str]]:
    """What to run on, and the kept sets of each ranking."""
    if isinstance(path, SubsetPath):
        target = target_of(path, tracer=tracer, model=model, metric=metric, interventions=interventions)
        known = pairs if pairs is not None else tracer.pairs if tracer is not None else target.search
        if known is None:
            raise ValueError("this path comes from a file and carries no prompts: pass pairs=.")
        return target.tracer(known), *_path_sets(path, fractions, target.groups)
    if tracer is None:
        raise ValueError("importances need the model and hook groups that they are of: pass tracer=.")
    on = tracer
    if not (pairs is None and metric is None and interventions is None):
        given = interventions[0] if isinstance(interventions, Sequence) else interventions
        on = tracer.on(pairs, metric=metric, intervention=given)
    ranked = importances(path, tracer.groups)
    unscored = int(np.isnan(ranked).sum())
    notes = [f"{unscored} of {len(ranked)} components have no score: they are always kept"] if unscored else []
    return on, _ranked_sets(ranked, fractions), {}, notes


def _ranked_sets(importance: Float[np.ndarray, " groups"], fractions: Sequence[float]) -> dict[str, list[Subset]]:
    """Tops of both rankings; what has no score is always kept and does not count, as in the benchmark."""
    always, scored = np.flatnonzero(np.isnan(importance)), np.flatnonzero(~np.isnan(importance))
    rankings = {"signed": importance[scored], "absolute": np.abs(importance[scored])}
    counts = kept_counts(len(scored), fractions)
    orders = {name: scored[np.argsort(-value, kind="stable")] for name, value in rankings.items()}
    return {
        name: [tuple(sorted([*always.tolist(), *order[:k].tolist()])) for k in counts] for name, order in orders.items()
    }


def _path_sets(
    path: SubsetPath, fractions: Sequence[float], groups: HookGroups
) -> tuple[dict[str, list[Subset]], Mapping[str, Any], list[str]]:
    n, counts = len(groups), kept_counts(len(groups), fractions)
    sets = [_within(path, count, n) for count in counts]
    short = [x for x, k in zip(fractions, counts, strict=True) if path.sizes[-1] < k < n]
    note = f"the path ends at {path.sizes[-1]} of {n} components, which is what it keeps at fractions {short} too"
    return {"path": sets}, dict(path.provenance), [note] if short else []


def _within(path: SubsetPath, count: int, n: int) -> Subset:
    """The path's set of at most ``count`` components; everything where everything is kept."""
    if count >= n:
        return tuple(range(n))
    fitting = [c for c in path.choices if c.size <= count]
    return fitting[-1].members if fitting else ()


def _rest_effects(tracer: Tracer, kept: Sequence[Subset]) -> Float[np.ndarray, "k n"]:
    """Per-example effects of patching everything, then of patching all but each kept set."""
    masks = torch.ones(len(kept) + 1, len(tracer.groups))
    for row, members in zip(masks[1:], kept, strict=True):
        row[list(members)] = 0.0
    values = rounded(tracer, tracer.effects(masks))
    if not values[0].any():
        raise ValueError(
            "patching every component has no effect on these prompts, so faithfulness is not defined. Use prompts "
            "whose source differs from their base."
        )
    return values


def _curve(
    name: str,
    sets: Sequence[Subset],
    rows: Float[np.ndarray, "k n"],
    copies: Copies,
    fractions: Sequence[float],
    seed: int,
) -> FaithfulnessCurve:
    kept = tuple(len(s) for s in sets)
    found = estimates(areas(fractions), rows, copies=copies, over=0, seed=seed)
    means = once(rows, copies).mean(-1)
    faithfulness = [None if found[0] is None else float(1 - mean / means[0]) for mean in means[1:]]
    return FaithfulnessCurve(name, kept, tuple(faithfulness), *found)


def areas(fractions: Sequence[float]) -> Statistic:
    """CPR, CMD and both on a logarithmic axis, from the mean effects of patching everything and all but each set."""
    x = np.asarray(fractions, dtype=float)
    logged = np.log10(x)

    def statistic(means: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        f = 1 - means[1:] / means[0]
        curves = (f, np.abs(1 - f))
        linear = [trapezoid(c, x, axis=0) for c in curves]
        return np.stack([*linear, *[trapezoid(c, logged, axis=0) / np.ptp(logged) for c in curves]])

    return statistic
