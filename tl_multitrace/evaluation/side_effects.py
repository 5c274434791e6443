"""``side_effects``: what else a circuit does: other behaviours before and after it is switched off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from pydantic import Field

from tl_multitrace.circuit import Circuit
from tl_multitrace.copies import copies_of
from tl_multitrace.groups import Component, HookGroups
from tl_multitrace.interventions import GivenAblation, Intervention, ZeroAblation
from tl_multitrace.metrics import KLDivergence, Metric
from tl_multitrace.models.ambient import neutral
from tl_multitrace.models.compat import ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, result
from tl_multitrace.records.stats import FEW, Score
from tl_multitrace.switching import How, means, missing_reference, switched_groups
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class Behaviour(Protocol):
    """Prompts with a metric, such as a :class:`~tl_multitrace.Task`."""

    @property
    def pairs(self) -> PromptPairs:
        """The prompts."""

    @property
    def metric(self) -> Metric:
        """Of each prompt."""


Side = Literal["source", "base"]
Other = Behaviour | tuple[PromptPairs, Metric]


@dataclass(frozen=True)
class SideEffect:
    """One behaviour before and after.

    Attributes:
        name: of the behaviour.
        metric: name of its metric.
        unit: of the metric.
        before: the metric as the model is; 0 for a metric that is relative to that.
        after: the metric with the circuit switched off.
        change: ``after - before``, prompt by prompt; positive: the metric rose.
        kl: ``KL(before || after)`` of the next token, in nats, from 0: how much changed, whether the metric sees it or
            not.

    Examples:
        >>> one = mt.side_effects(circuit, {"ioi": mt.task("ioi", model, n=8)}).effects[0]
        >>> round(one.after.mean - one.before.mean - one.change.mean, 3)
        0.0
    """

    name: str
    metric: str
    unit: str
    before: Score
    after: Score
    change: Score
    kl: Score

    @property
    def clear(self) -> bool:
        """Whether the interval of the change leaves out 0, over as many distinct prompts as a claim needs."""
        return self.change.clear and self.change.n >= FEW


@result("tl_multitrace.side_effects", key="result")
@dataclass(frozen=True, repr=False)
class SideEffects(Result):
    """What switching a circuit off does to several behaviours.

    Attributes:
        components: what was switched off, at every position.
        how: ``"mean"`` or ``"zero"``.
        side: which prompts of each behaviour were run, ``"source"`` or ``"base"``.
        effects: one per behaviour, in the order given.
        notes: what a reader must know.
        provenance: of the circuit; under ``"side_effects"`` the cost, in forwards of one prompt.

    Examples:
        >>> found = mt.side_effects(circuit, {"ioi": mt.task("ioi", model, n=8)})
        >>> [(one.name, one.metric, one.unit) for one in found.effects]
        [('ioi', 'logit_diff', 'nats')]
    """

    components: tuple[Component, ...]
    how: str
    side: str
    effects: Annotated[tuple[SideEffect, ...], Field(min_length=1)]
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    def __getitem__(self, name: str) -> SideEffect:
        """The effect on a behaviour; raises KeyError for one that was not measured."""
        for effect in self.effects:
            if effect.name == name:
                return effect
        raise KeyError(f"no behaviour {name!r}; measured: {', '.join(e.name for e in self.effects)}.")

    def __len__(self) -> int:
        return len(self.effects)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per behaviour: metric before, after, change and KL with their intervals, unit, prompts."""
        import pandas as pd

        rows = []
        for e in self.effects:
            row: dict[str, Any] = {"behaviour": e.name, "metric": e.metric, "unit": e.unit, "prompts": e.change.n}
            for what, score in (("before", e.before), ("after", e.after), ("change", e.change), ("kl", e.kl)):
                row |= {what: score.mean, f"{what}_low": score.low, f"{what}_high": score.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def headline(self) -> str:
        """What was switched off."""
        labels = [c.label for c in self.components]
        listed = ", ".join(labels[:8]) + (" ..." if len(labels) > 8 else "")
        return f"Side effects of the {self.how} ablation of {len(labels)} components: {listed}"

    def summary(self) -> list[tuple[str, str]]:
        """Each behaviour before and after."""
        return [
            (e.name, f"{e.metric} {e.before.mean:.3g} -> {e.after}; change {e.change} {e.unit}; KL {e.kl.mean:.3g}")
            for e in self.effects
        ]


@neutral()
def side_effects(
    circuit: Circuit,
    others: Mapping[str, Other],
    model: Any = None,
    how: How = "mean",
    *,
    reference: PromptPairs | None = None,
    side: Side = "source",
    everywhere: bool = False,
    seed: int = 0,
) -> SideEffects:
    """Measure other behaviours before and after a circuit is switched off, as :meth:`Circuit.ablate` does it.

    Args:
        circuit: what to switch off.
        others: by name a task, or ``(pairs, metric)``.
        model: default: the one the circuit was found on.
        how: ``"mean"`` or ``"zero"``.
        reference: see :meth:`Circuit.ablate`.
        side: which prompts of each pair are run: ``"source"``, whose answer is the right one in every task of this
            package, so that the metric says how well the model does; or ``"base"``.
        everywhere: see :meth:`Circuit.ablate`.
        seed: of the bootstrap intervals over prompts.

    Raises:
        ValueError: no behaviours, no model, or what :meth:`Circuit.ablate` refuses.

    Examples:
        >>> found = mt.side_effects(circuit, {"ioi": mt.task("ioi", model, n=8)}, how="mean")
        >>> list(found.to_dataframe()["behaviour"])
        ['ioi']
    """
    if not others:
        raise ValueError("there is no behaviour to measure: pass others={'facts': task('facts', model), ...}.")
    if side not in ("source", "base"):
        raise ValueError(f"unknown side {side!r}: use 'source' or 'base'.")
    if model is None and circuit.tracer is None:
        raise ValueError("the circuit carries no model (a circuit from a file does not): pass model=.")
    model = circuit.tracer.model if model is None else model
    circuit.check_model(model)
    parts = (site for sites in circuit.groups.sites for site in sites)
    groups = switched_groups(model, parts, everywhere=everywhere)
    together = groups.joined([range(len(groups))], [groups.components[0]])
    ablation, forwards = _ablation(circuit, model, groups, how, reference)
    options = {} if circuit.tracer is None else {"distributed": circuit.tracer.ranks}
    count, effects, given = [forwards], [], {}
    for name, other in others.items():
        pairs, metric = _parts(other, side)
        given[name] = len(pairs)
        effects.append(_effect(name, Tracer(model, pairs, together, metric, ablation, **options), seed, count))
    return SideEffects(
        components=circuit.components,
        how=how,
        side=side,
        effects=tuple(effects),
        notes=_notes(tuple(effects), given),
        provenance={**circuit.provenance, "side_effects": {"forwards": count[0], "seed": seed}},
    )


def _ablation(
    circuit: Circuit, model: Any, groups: HookGroups, how: How, reference: PromptPairs | None
) -> tuple[Intervention, float]:
    """The ablation, with means taken once for all behaviours, and the prompts run for it."""
    if how == "zero":
        return ZeroAblation(), 0.0
    if how != "mean":
        raise ValueError(f"unknown ablation {how!r}: use 'mean' or 'zero'.")
    if reference is None and circuit.tracer is None:
        raise ValueError(missing_reference("a mean ablation"))
    pairs: PromptPairs = circuit.tracer.pairs if reference is None else reference
    values = means(ModelView(model), groups.names_filter, pairs.source_tokens, pairs.source_lengths)
    return GivenAblation(values), float(len(pairs))


def _parts(other: Other, side: Side) -> tuple[PromptPairs, Metric]:
    """The prompts, with those to run as their base side, and the metric."""
    pairs, metric = other if isinstance(other, tuple) else (other.pairs, other.metric)
    return (pairs if side == "base" else pairs.swap()), metric


def _effect(name: str, on: Tracer, seed: int, forwards: list[float]) -> SideEffect:
    moved = on.on(metric=KLDivergence())
    before, change, kl = (_numbers(x) for x in (on.base_metric, on.effect([1.0]), moved.effect([1.0])))
    forwards[0] += (on.cost.forwards + moved.cost.forwards) * on.n
    copies = copies_of(on)
    scores = [Score.of(x, copies=copies, seed=seed) for x in (before, before + change, change, kl.clip(min=0.0))]
    return SideEffect(name, on.metric.name or "custom", on.metric.unit, *scores)


def _numbers(values: Any) -> Float[np.ndarray, " n"]:
    found: Float[np.ndarray, " n"] = values.double().cpu().numpy()
    return found


def _notes(effects: tuple[SideEffect, ...], given: Mapping[str, int]) -> tuple[str, ...]:
    relative = [e.name for e in effects if e.before.mean == 0.0 and not e.before.low and not e.before.high]
    few = [e.name for e in effects if e.change.n < FEW]
    double = [f"{e.name} ({e.change.n} of {given[e.name]})" for e in effects if e.change.n < given[e.name]]
    notes = []
    if relative:
        are = "is" if len(relative) == 1 else "are"
        notes.append(f"{', '.join(relative)} {are} measured relative to the model as it is, which therefore reads 0")
    if double:
        notes.append(f"the same prompt counts once, distinct ones: {', '.join(double)}")
    if few:
        notes.append(f"fewer than {FEW} distinct prompts, so that no change is clear: {', '.join(few)}")
    return tuple(notes)
