"""What is judged: a set of hook groups among all that it was chosen from, with the model it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.circuit import Circuit
from tl_multitrace.groups import HookGroups, mask_of
from tl_multitrace.interventions import Intervention, intervention_by_name
from tl_multitrace.metrics import Metric, as_metric, metric_by_name
from tl_multitrace.models.compat import ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.solvers import SubsetPath
from tl_multitrace.solvers.search import Direction, Subset, subset
from tl_multitrace.tracer import Tracer

Judged = Circuit | SubsetPath
Interventions = Intervention | Sequence[Intervention] | None


@dataclass(frozen=True)
class Target:
    """A chosen set, and everything it takes to measure it on other prompts.

    Attributes:
        model: the TransformerLens model.
        groups: all hook groups of the search.
        members: mask indices of the chosen ones.
        metric: of each prompt.
        interventions: what replaces activations; one or several.
        direction: which way the effect is meant to go.
        provenance: of the circuit or path.
        search: prompts that the set was chosen on, where they are known.
        options: of its tracers, as the search had them: dtype, ranks, where results are kept, progress bars.
    """

    model: Any
    groups: HookGroups
    members: Subset
    metric: Metric
    interventions: tuple[Intervention, ...]
    direction: Direction
    provenance: Mapping[str, Any]
    search: PromptPairs | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sign(self) -> int:
        """1 where the effect is to rise, -1 where it is to fall."""
        return -1 if self.direction == "minimize" else 1

    @property
    def mask(self) -> Float[Tensor, " groups"]:
        """1 at the members, 0 elsewhere."""
        return mask_of(len(self.groups), self.members)

    @property
    def chosen(self) -> HookGroups:
        """The members alone."""
        return self.groups[list(self.members)]

    def tracer(self, pairs: PromptPairs, intervention: Intervention | None = None) -> Tracer:
        """The same trace on other prompts."""
        replaced = self.interventions[0] if intervention is None else intervention
        return Tracer(self.model, pairs, self.groups, self.metric, replaced, **self.options)


def target_of(
    judged: Judged,
    *,
    budget: int | None = None,
    tracer: Tracer | None = None,
    model: Any = None,
    groups: HookGroups | None = None,
    metric: Any = None,
    interventions: Interventions = None,
    direction: Direction | None = None,
) -> Target:
    """Put together what is judged, from the circuit's own tracer, from its file, and from what the caller names.

    Args:
        judged: a circuit, or a path and one of its budgets.
        budget: of a path; default its largest.
        tracer: stands for model, groups, metric and intervention; default the one the circuit was found with.
        model: of a circuit that was loaded from a file.
        groups: all hook groups that a loaded circuit was chosen from.
        metric: default the search's.
        interventions: default the search's.
        direction: default the search's.

    Raises:
        ValueError: something that the circuit neither carries nor the caller gave; the message says what to pass.
        TypeError: neither a circuit nor a path.
    """
    if not isinstance(judged, Circuit | SubsetPath):
        raise TypeError(f"expected a Circuit or a SubsetPath, got {type(judged).__name__}: pass path[10], say.")
    known = judged.tracer if tracer is None else tracer
    facts = dict(judged.provenance)
    model = _model(judged, known, model)
    every = _groups(judged, known, groups)
    return Target(
        model=model,
        groups=every,
        members=_members(judged, every, budget),
        metric=_metric(metric, known, facts),
        interventions=_interventions(interventions, known, facts),
        direction=_direction(direction, facts),
        provenance=facts | ({"budget": _choice(judged, budget).size} if isinstance(judged, SubsetPath) else {}),
        search=judged.tracer.pairs if judged.tracer is not None else None,
        options={} if known is None else known.options,
    )


def _choice(path: SubsetPath, budget: int | None) -> Any:
    return path.choice(path.sizes[-1] if budget is None else budget)


def _model(judged: Judged, known: Tracer | None, model: Any) -> Any:
    found = model if model is not None else known.model if known is not None else None
    if found is None:
        name = dict(judged.provenance.get("model") or {}).get("name", "its model")
        raise ValueError(
            f"this {type(judged).__name__} comes from a file and carries no model. Load {name} and pass model=, "
            "or pass tracer=."
        )
    ModelView(found)
    return found


def _groups(judged: Judged, known: Tracer | None, groups: HookGroups | None) -> HookGroups:
    if groups is not None:
        return groups
    if known is not None:
        return known.groups
    if isinstance(judged, SubsetPath):
        return judged.groups
    raise ValueError(
        f"this circuit comes from a file, which holds its {len(judged)} components but not the {judged.n_groups} "
        "hook groups it was chosen from, and faithfulness patches all the others. Pass groups=, such as heads(model)."
    )


def _members(judged: Judged, every: HookGroups, budget: int | None) -> Subset:
    """Places of the chosen components among all groups; a component that is read elsewhere does not count as there."""
    chosen = judged.groups[list(_choice(judged, budget).members)] if isinstance(judged, SubsetPath) else judged.groups
    return places_of(chosen, every)


def places_of(chosen: HookGroups, every: HookGroups) -> Subset:
    """Mask indices of some hook groups among all.

    Raises:
        ValueError: one of them is not there, or patches another activation there.
    """
    places = {c: i for i, c in enumerate(every.components)}
    for c, sites in zip(chosen.components, chosen.sites, strict=True):
        if c not in places:
            raise ValueError(
                f"{c.label} is not among the {len(every)} hook groups ({every!r}). Pass groups= as the search had them."
            )
        there = every.sites[places[c]]
        if [(s, s.site) for s in sites] != [(s, s.site) for s in there]:
            raise ValueError(f"{c.label} patches {_sites(sites)} in the circuit, but {_sites(there)} among the groups.")
    return subset(places[c] for c in chosen.components)


def _sites(sites: Sequence[Any]) -> str:
    return ", ".join(f"{s.label} ({s.site})" for s in sites)


def _metric(metric: Any, known: Tracer | None, facts: Mapping[str, Any]) -> Metric:
    if metric is not None:
        return as_metric(metric)
    if known is not None:
        return known.metric
    try:
        return metric_by_name(str(facts.get("metric")))
    except ValueError:
        raise ValueError(
            f"the file names the metric {facts.get('metric')!r}, which is not one of this package's. Pass metric=."
        ) from None


def _interventions(given: Interventions, known: Tracer | None, facts: Mapping[str, Any]) -> tuple[Intervention, ...]:
    if given is not None:
        listed = (given,) if isinstance(given, Intervention) else tuple(given)
        if not listed or not all(isinstance(i, Intervention) for i in listed):
            raise ValueError(f"interventions must be one or several, such as [MeanAblation()], got {given!r}.")
        return listed
    return (known.intervention if known is not None else _stored_intervention(facts),)


def _stored_intervention(facts: Mapping[str, Any]) -> Intervention:
    record = dict(facts.get("intervention") or {})
    name = str(record.pop("name", "unknown"))
    try:
        made = intervention_by_name(name, **record)
    except (ValueError, TypeError):
        raise ValueError(
            f"the file names the intervention {name!r}, which cannot be made from it. Pass interventions=."
        ) from None
    lost = sorted(set(vars(made)) - set(record))
    if lost:
        raise ValueError(
            f"the search's {name!r} intervention had a {lost[0]} of its own, which no file holds. Pass interventions=, "
            f"with {lost[0]}=."
        )
    return made


def _direction(direction: Direction | None, facts: Mapping[str, Any]) -> Direction:
    goals = facts.get("goals")  # a circuit of several goals is judged by the first
    found = direction or (goals[0].get("direction") if goals else facts.get("direction")) or "maximize"
    if found not in ("maximize", "minimize"):
        raise ValueError(f"direction must be 'maximize' or 'minimize', got {found!r}.")
    return "minimize" if found == "minimize" else "maximize"


def importances(values: Any, groups: HookGroups, what: str = "importances") -> Float[np.ndarray, " groups"]:
    """One number per hook group, NaN where a graph has no score for it.

    Args:
        values: one per group; a mapping from labels or components to numbers; or a graph with node scores, such as
            :func:`~tl_multitrace.read_circuit` gives it.
        groups: that they are of.
        what: how an error calls them.

    Raises:
        ValueError: not one finite number per group; labels of other groups, or some that are missing.
    """
    if hasattr(values, "node_scores"):
        return _by_label(values.node_scores(), groups, "the graph's node scores", partly=True)
    if isinstance(values, Mapping):
        return _by_label({str(getattr(k, "label", k)): v for k, v in values.items()}, groups, what)
    found = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if found.shape != (len(groups),) or found.dtype.kind not in "biuf" or not np.isfinite(found.astype(float)).all():
        raise ValueError(f"{what} must be {len(groups)} finite numbers, one per group, got shape {found.shape}.")
    return found.astype(float)


def _by_label(
    values: Mapping[str, Any], groups: HookGroups, what: str, partly: bool = False
) -> Float[np.ndarray, " groups"]:
    strange = [str(label) for label in values if label not in groups.labels]
    missing = [label for label in groups.labels if label not in values]
    if strange or (missing and not partly):
        which, named = ("name no hook group", strange) if strange else ("miss hook groups", missing)
        advice = "Pass groups=, those that they are of" if what == "scores" else "Make the tracer with their groups"
        raise ValueError(
            f"{what} {which}: {', '.join(named[:5])}{' ...' if len(named) > 5 else ''} ({len(named)}). {advice}: those "
            "of a MIB file are mib_groups(model)."
        )
    found = np.array([np.nan if values.get(label) is None else float(values[label]) for label in groups.labels])
    if not np.isfinite(found[~np.isnan(found)]).all() or (not partly and np.isnan(found).any()):
        raise ValueError(f"{what} must be finite numbers, got {dict(list(values.items())[:3])} ...")
    return found
