"""``compare``: two circuits side by side: what they share, what moves, and what each does on the other's ground."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from tl_multitrace.circuit import Circuit
from tl_multitrace.copies import copies_of
from tl_multitrace.evaluation.target import places_of
from tl_multitrace.groups import Component, HookGroups
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, intervention_name, result
from tl_multitrace.records.stats import Estimate, Score, estimates, undefined
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Transfer:
    """What both circuits do on one ground: one model's behaviour on one prompt set.

    Attributes:
        ground: whose ground it is: ``"a"`` or ``"b"``.
        model: name of the model.
        metric: name of the metric.
        direction: in which its own circuit was searched.
        intervention: what replaces activations.
        own: effect of the circuit that belongs here.
        other: effect of the one that comes from elsewhere.
        ratio: ``other`` over ``own``, on the same prompts; 1: the other does as well here. None where the own
            circuit's effect may be zero: its interval holds 0.
    """

    ground: str
    model: str
    metric: str
    direction: str
    intervention: Mapping[str, Any]
    own: Score
    other: Score
    ratio: Estimate | None


@result("tl_multitrace.circuit_comparison", key="result")
@dataclass(frozen=True, repr=False)
class CircuitComparison(Result):
    """Two circuits side by side.

    Attributes:
        shared: components of both.
        only_a: components of the first alone.
        only_b: components of the second alone.
        shares: per component label, its marginal effect over the circuit's effect, in the first and in the second (so
            that two metrics can be held against each other); None where it is not part of it, was not measured, or the
            interval of the circuit's effect holds 0.
        jaccard: size of the intersection over size of the union.
        overlap_p: chance of so large an overlap between random sets of these sizes, one-sided (hypergeometric); None
            where the circuits were not chosen from the same number of groups.
        transfers: what each circuit does on its own and on the other's ground; empty without tracers.
        notes: what a reader must know.
        provenance: of both, under ``"a"`` and ``"b"``.

    Examples:
        >>> path = mt.select(tracer, [1, 2], mt.Greedy())
        >>> found = mt.compare(path[1], path[2])
        >>> found.jaccard, [component.label for component in found.only_b]
        (0.5, ['L0H1'])
    """

    shared: tuple[Component, ...]
    only_a: tuple[Component, ...]
    only_b: tuple[Component, ...]
    shares: Mapping[str, tuple[float | None, float | None]]
    jaccard: float
    overlap_p: float | None
    transfers: tuple[Transfer, ...]
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    def __getitem__(self, ground: str) -> Transfer:
        """What both do on the ground of ``"a"`` or ``"b"``; raises KeyError where that was not measured."""
        for transfer in self.transfers:
            if transfer.ground == ground:
                return transfer
        raise KeyError(f"no transfer to {ground!r}: it was not measured, for want of a tracer.")

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component: where it is, its share in either circuit, and how far that moves from a to b."""
        import pandas as pd

        rows = []
        for where, components in (("both", self.shared), ("a", self.only_a), ("b", self.only_b)):
            for c in components:
                a, b = self.shares.get(c.label, (None, None))
                moved = None if a is None or b is None else b - a
                rows.append({"component": c.label, "kind": c.kind, "layer": c.layer, "in": where})
                rows[-1] |= {"share_a": a, "share_b": b, "moved": moved}
        columns = ["component", "kind", "layer", "in", "share_a", "share_b", "moved"]
        return pd.DataFrame(rows, columns=columns)

    def transfer_table(self) -> pd.DataFrame:
        """One row per ground and circuit: effect with interval, ratio; model, ablation, direction and metric."""
        import pandas as pd

        rows = []
        for t in self.transfers:
            record = {"model": t.model, "ablation": intervention_name(t.intervention)}
            record |= {"direction": t.direction, "metric": t.metric}
            for score, own in ((t.own, True), (t.other, False)):
                name = t.ground if own else "ab".replace(t.ground, "")
                ratio = None if own or t.ratio is None else t.ratio.value
                row = {"ground": t.ground, "circuit": name, "effect": score.mean, "low": score.low, "high": score.high}
                rows.append({**row, "ratio": ratio, "n": score.n, **record})
        return pd.DataFrame(rows)

    def headline(self) -> str:
        """The sizes of both."""
        a, b = len(self.shared) + len(self.only_a), len(self.shared) + len(self.only_b)
        return f"CircuitComparison of {a} and {b} components"

    def summary(self) -> list[tuple[str, str]]:
        """Overlap and transfer."""
        p = "" if self.overlap_p is None else f"; by chance in {self.overlap_p:.2g} of random pairs"
        lines = [("overlap", f"{len(self.shared)} shared, Jaccard {self.jaccard:.2f}{p}")]
        for name, components in (("shared", self.shared), ("only a", self.only_a), ("only b", self.only_b)):
            labels = ", ".join(c.label for c in components[:12]) + (" ..." if len(components) > 12 else "")
            lines.append((name, labels or "none"))
        for t in self.transfers:
            how = f"{t.direction} {t.metric}, {intervention_name(t.intervention)}, {t.model}"
            ratio = t.ratio or "undefined: the own circuit's effect may be 0"
            lines.append((f"on {t.ground}", f"own {t.own}, other {t.other}, ratio {ratio} ({how})"))
        return lines


def compare(
    circuit_a: Circuit,
    circuit_b: Circuit,
    *,
    pairs_a: PromptPairs | None = None,
    pairs_b: PromptPairs | None = None,
    tracer_a: Tracer | None = None,
    tracer_b: Tracer | None = None,
    seed: int = 0,
) -> CircuitComparison:
    """Compare two circuits: of two behaviours in one model, or of one behaviour in two models of one shape.

    Each circuit is run on its own ground and on the other's: the other's model, prompts, metric and intervention. So a
    base model is held against its fine-tuned version, or one bias against another.

    Args:
        circuit_a: the first.
        circuit_b: the second.
        pairs_a: prompts of the first's ground, held out ones best; default those of its tracer.
        pairs_b: likewise.
        tracer_a: model, metric and intervention of the first's ground; default the tracer it was found with.
        tracer_b: likewise. A side without a tracer is no ground: overlap is all that can be said.
        seed: of the bootstrap.

    Raises:
        ValueError: prompts without a tracer, or a component that the other's model does not have.

    Examples:
        >>> by_label = {label: tracer.on(task.pairs.subgroup(label)) for label in ("female", "male")}
        >>> a, b = (mt.select(tracer, 2, mt.Greedy())[2] for tracer in by_label.values())
        >>> found = mt.compare(a, b)
        >>> sorted(component.label for component in found.shared)
        ['L0H3']
        >>> list(found.transfer_table().columns)
        ['ground', 'circuit', 'effect', 'low', 'high', 'ratio', 'n', 'model', 'ablation', 'direction', 'metric']
    """
    ours, theirs = set(circuit_a.components), set(circuit_b.components)
    sides = (
        ("a", circuit_a, circuit_b, tracer_a or circuit_a.tracer, pairs_a),
        ("b", circuit_b, circuit_a, tracer_b or circuit_b.tracer, pairs_b),
    )
    transfers = [_transfer(*side, seed) for side in sides if _is_ground(side[0], side[3], side[4])]
    missing = [name for name, _, _, tracer, _ in sides if tracer is None]
    notes = [
        f"circuit {name} carries no tracer: pass tracer_{name}= to measure transfer to its ground" for name in missing
    ]
    return CircuitComparison(
        shared=tuple(c for c in circuit_a.components if c in theirs),
        only_a=tuple(c for c in circuit_a.components if c not in theirs),
        only_b=tuple(c for c in circuit_b.components if c not in ours),
        shares=_shares(circuit_a, circuit_b),
        jaccard=circuit_a.jaccard(circuit_b),
        overlap_p=_overlap_p(circuit_a, circuit_b),
        transfers=tuple(transfers),
        notes=tuple(notes),
        provenance={"a": dict(circuit_a.provenance), "b": dict(circuit_b.provenance)},
    )


def _is_ground(name: str, tracer: Tracer | None, pairs: PromptPairs | None) -> bool:
    if tracer is None and pairs is not None:
        raise ValueError(f"circuit {name} carries no model to run pairs_{name} on: pass tracer_{name}= too.")
    return tracer is not None


def _shares(a: Circuit, b: Circuit) -> dict[str, tuple[float | None, float | None]]:
    tables = [_share_by_label(circuit) for circuit in (a, b)]
    return {label: (tables[0].get(label), tables[1].get(label)) for label in dict.fromkeys([*a.labels, *b.labels])}


def _share_by_label(circuit: Circuit) -> dict[str, float]:
    if not circuit.effect or not np.isfinite(circuit.effect) or (circuit.score and undefined(circuit.score)):
        return {}
    return {label: m / circuit.effect for label, m in zip(circuit.labels, circuit.marginals, strict=False)}


def _overlap_p(a: Circuit, b: Circuit) -> float | None:
    """Survival function of the overlap of random sets; from the counts alone, so it takes the groups to be the same."""
    if a.n_groups != b.n_groups:
        return None
    common = len(set(a.components) & set(b.components))
    return float(stats.hypergeom(a.n_groups, len(a), len(b)).sf(common - 1))


def _transfer(
    name: str, own: Circuit, other: Circuit, tracer: Tracer, pairs: PromptPairs | None, seed: int
) -> Transfer:
    groups = _ground_groups(tracer, own, other)
    on = tracer.on(pairs, groups=groups)
    masks = [_mask(groups, circuit) for circuit in (own, other)]
    values, copies = on.effects(masks).double().cpu().numpy(), copies_of(on)
    return Transfer(
        ground=name,
        model=on.view.name,
        metric=on.metric.name or "custom",
        direction=str(own.provenance.get("direction", "maximize")),
        intervention=on.intervention.describe(),
        own=Score.of(values[0], copies=copies, seed=seed),
        other=Score.of(values[1], copies=copies, seed=seed),
        ratio=estimates(_ratio, values, copies=copies, over=0, seed=seed)[0],
    )


def _ratio(means: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(means[1:2] / means[:1])


def _ground_groups(tracer: Tracer, *circuits: Circuit) -> HookGroups:
    """The components of both circuits as hook groups of the ground's model."""
    found: dict[Component, tuple[Component, ...]] = {}
    for circuit in circuits:
        found |= dict(zip(circuit.groups.components, circuit.groups.sites, strict=True))
    sites = HookGroups.of(tracer.model, dict.fromkeys(s for group in found.values() for s in group))
    return HookGroups(tuple(found), tuple(found.values()), sites.sizes)


def _mask(groups: HookGroups, circuit: Circuit) -> list[float]:
    on = set(places_of(circuit.groups, groups))
    return [float(i in on) for i in range(len(groups))]
