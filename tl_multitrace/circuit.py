"""One chosen subset of components, with its scores and where they come from.

A circuit stands alone: it saves to versioned JSON, runs as TransformerLens hooks in anybody's analysis, and carries in
its ``repr`` what is needed to judge it (effect with interval, held-out effect, what chance gets at this size, cost).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tl_multitrace.groups import Component, HookGroups, mask_of
from tl_multitrace.models.ambient import neutral
from tl_multitrace.models.compat import HookFn, ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.chance import Verdict, beyond_chance
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, result
from tl_multitrace.records.stats import Score, undefined
from tl_multitrace.records.stored import Measured, StoredGroups, Unsaved
from tl_multitrace.records.when_read import later, when_read
from tl_multitrace.switching import How, Switch, ablation, steering, switched_groups

if TYPE_CHECKING:
    import pandas as pd


MOST = 30
"""Components that its text lists; the others are counted."""

MAX_GROUPS = 1 << 26
"""More entries of a mask than any search has."""


@when_read("chance", "marginals")
@result("tl_multitrace.circuit")
@dataclass(frozen=True, repr=False)
class Circuit(Result):
    """A chosen set of hook groups.

    Attributes:
        groups: the chosen groups alone, in the order of the search's mask.
        indices: their places in that mask.
        n_groups: length of that mask.
        effect: mean per-example effect on the prompts of the search, in the metric's unit.
        score: the same with interval and median; None for a set nobody has measured.
        held_out: effect on held-out prompts.
        chance: mean effect of random sets of the same size and kinds; the interval holds the middle 95 % of them, and
            the mean.
            Of a circuit that a path gave it is measured when it is first read (:attr:`cost`), as ``marginals`` are.
        full_effect: effect of the whole mask.
        full_score: the same with its interval, on the prompts of the search.
        marginals: per component, the effect lost without it: ``effect(S) - effect(S minus c)``; empty if not measured.
        certificate: what is proved about the choice.
        provenance: model, prompts, metric, intervention, direction, seed, cost, versions.
        tracer: the tracer it was found with, for :meth:`show`; not saved.

    Examples:
        >>> circuit.labels, round(circuit.effect)
        (['L0H1', 'L0H3'], 416)
        >>> circuit.to_dataframe()[["component", "layer", "index"]].to_dict("records")
        [{'component': 'L0H3', 'layer': 0, 'index': 3}, {'component': 'L0H1', 'layer': 0, 'index': 1}]
        >>> mt.Circuit.load(circuit.save("circuit.json")).labels
        ['L0H1', 'L0H3']
    """

    groups: StoredGroups
    indices: tuple[int, ...]
    n_groups: Annotated[int, Field(ge=0, le=MAX_GROUPS)]
    effect: Measured
    score: Score | None = None
    held_out: Score | None = None
    chance: Score | None = None
    full_effect: float | None = None
    marginals: tuple[float, ...] = ()
    certificate: str = "not certified"
    provenance: Provenance = field(default_factory=dict)
    tracer: Unsaved[Any] = field(default=None, repr=False, compare=False)
    full_score: Score | None = None

    WIDTH: ClassVar[int] = 9

    def __post_init__(self) -> None:
        if any(not 0 <= i < self.n_groups for i in self.indices) or len(set(self.indices)) != len(self.indices):
            raise ValueError(f"indices must be distinct numbers below {self.n_groups}, got {list(self.indices[:8])}.")
        if len(self.indices) != len(self.groups):
            raise ValueError(f"{len(self.indices)} indices for {len(self.groups)} components.")
        if not self.unread and self.marginals and len(self.marginals) != len(self.groups):
            raise ValueError(f"{len(self.marginals)} marginal effects for {len(self.groups)} components.")

    def __getstate__(self) -> dict[str, Any]:
        read = {"chance": self.chance, "marginals": self.marginals}  # there, nothing can measure them any more
        return {**vars(self), **read, "tracer": None}  # the model stays where it is

    @property
    def unread(self) -> dict[str, Any]:
        """What is still to be measured when it is read: the functions that do, by field."""
        return {name: vars(self)[name] for name in ("chance", "marginals") if callable(vars(self)[name])}

    @property
    def cost(self) -> dict[str, float]:
        """Forward equivalents: of the whole ``search``, and of this circuit's own ``table``, as far as it was read.

        The table is marginal effects (one forward for the set and each of its members, from the blocks that differ) and
        chance (20 random sets). ``marginals``, ``chance``, ``print``, ``to_dataframe``, ``plot``, ``save`` and pickling
        read it, and pay for it the first time.
        """
        known = dict(self.provenance.get("cost") or {})
        return {"search": float(known.get("equivalents", 0)), "table": float(known.get("table", 0))}

    # ------------------------------------------------------------------ the set

    @property
    def components(self) -> tuple[Component, ...]:
        """The chosen components."""
        return self.groups.components

    @property
    def labels(self) -> list[str]:
        """Their labels."""
        return self.groups.labels

    @property
    @neutral()
    def mask(self) -> Float[Tensor, " groups"]:
        """1 at the chosen groups of the search's mask, 0 elsewhere (no unit)."""
        return mask_of(self.n_groups, self.indices)

    @property
    def share(self) -> float | None:
        """Share of the whole mask's effect; can exceed 1 where some components work against the behaviour.

        None where the whole mask's effect may be zero.
        """
        return None if not self.full_effect or self.no_share else self.effect / self.full_effect

    @property
    def no_share(self) -> str:
        """Why there is no share of the whole mask's effect, in words; empty where there is, or nothing is known."""
        return "" if self.full_score is None else undefined(self.full_score)

    @property
    def verdict(self) -> Verdict:
        """Whether its held-out effect (else its effect on the search's prompts) is beyond what random sets reach."""
        direction = str(self.provenance.get("direction", "maximize"))
        return beyond_chance(self.held_out or self.score, self.chance, direction=direction, full=self.full_score)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Component]:
        return iter(self.components)

    def __contains__(self, component: object) -> bool:
        return component in self.components or component in self.labels

    def __or__(self, other: Circuit) -> Circuit:
        """Components in either; unmeasured."""
        extra = [i for i, c in enumerate(other.components) if c not in self.components]
        return self._derived([*range(len(self))], other, extra, "union")

    def __and__(self, other: Circuit) -> Circuit:
        """Components in both; unmeasured."""
        own = [i for i, c in enumerate(self.components) if c in other.components]
        return self._derived(own, None, [], "intersection")

    def __sub__(self, other: Circuit) -> Circuit:
        """Components here but not there; unmeasured."""
        own = [i for i, c in enumerate(self.components) if c not in other.components]
        return self._derived(own, None, [], "difference")

    def _derived(self, own: list[int], other: Circuit | None, extra: list[int], how: str) -> Circuit:
        if other is not None and other.n_groups != self.n_groups:
            raise ValueError(
                f"the circuits were chosen from {self.n_groups} and {other.n_groups} hook groups, so their masks do "
                "not fit together. Search both over the same groups."
            )
        groups, indices = self.groups[own], [self.indices[i] for i in own]
        if other is not None and extra:
            groups, indices = groups + other.groups[extra], indices + [other.indices[i] for i in extra]
        clash = len(set(indices)) < len(indices)
        if clash or (other is not None and not self._same_places(other)):
            raise ValueError(
                "the circuits were chosen from different hook groups: one mask entry would stand for two components. "
                "Search both over the same groups."
            )
        told = ("model", "metric", "intervention", "direction", "task")
        kept = {k: v for k, v in self.provenance.items() if k in told}
        return Circuit(groups, tuple(indices), self.n_groups, float("nan"), provenance={**kept, "derived": how})

    def _same_places(self, other: Circuit) -> bool:
        """Whether components that both circuits hold have the same mask index in both."""
        mine = dict(zip(self.components, self.indices, strict=True))
        return all(mine.get(c, i) == i for c, i in zip(other.components, other.indices, strict=True))

    def jaccard(self, other: Circuit) -> float:
        """Size of the intersection with ``other`` over size of the union, from 0 to 1; 1 for two empty circuits."""
        mine, theirs = set(self.components), set(other.components)
        return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0

    # ------------------------------------------------------------------ as hooks

    def fwd_hooks(self, cache: Any, *, strength: float = 1.0, pairs: Any = None) -> list[tuple[str, HookFn]]:
        """TransformerLens hooks that patch this circuit from a source run's cache; see :meth:`HookGroups.fwd_hooks`.

        The cache is at least of ``circuit.groups.names_filter``; a strength of 1 replaces activations, one between 0
        and 1 mixes them; pairs are needed where prompts are padded or a group names a span.
        """
        return self.groups.fwd_hooks(torch.full((len(self),), float(strength)), cache, pairs)

    def hooks(self, model: Any, cache: Any, *, strength: float = 1.0, pairs: Any = None) -> AbstractContextManager[Any]:
        """The model with its hooks attached: ``model``, and ``cache, strength, pairs`` as in :meth:`fwd_hooks`.

        Raises:
            ValueError: the circuit is of another model.
        """
        self.check_model(model)
        return self.groups.hooks(model, torch.full((len(self),), float(strength)), cache, pairs)

    def ablate(
        self, model: Any, how: How = "mean", reference: PromptPairs | None = None, *, everywhere: bool = False
    ) -> Switch:
        """Switch the circuit off in any run: ``with circuit.ablate(model) as m: m.generate(...)``.

        Every component's activation, at every position, prompt and generated, becomes its mean over the tokens of the
        reference prompts, or 0. Heads found at their attention pattern are switched at their output ``z``.

        Args:
            model: the model it was found on.
            how: ``"mean"`` (the value of ``MeanAblation()``) or ``"zero"``.
            reference: its *source* prompts are averaged; default: the prompts of the circuit's own search.
            everywhere: also switch components that the circuit restricts to some positions, at all positions.

        Raises:
            ValueError: another model, no reference, a component with a position, an unknown ``how``.
        """
        return ablation(model, self._switched(model, everywhere), how, self._reference(reference))

    def steer(
        self, model: Any, strength: float, reference: PromptPairs | None = None, *, everywhere: bool = False
    ) -> Switch:
        """Push the circuit in any run, at every position: ``act + strength * (mean source act - mean base act)``.

        Means are over the tokens of the reference prompts. A strength of 1 moves each component by the whole difference
        of its means, towards what the source prompts do; a negative one moves it the other way; 0 changes nothing.
        Source: activation addition (Turner et al. 2023, arXiv:2308.10248), here by the difference in means. The
        reference is by default the circuit's own search; its differences should point one way: of two subgroups that
        differ in opposite ways, pass one (``pairs.labels``). Model and ``everywhere`` are as in :meth:`ablate`.

        Raises:
            ValueError: as :meth:`ablate`; a strength that is not finite; base and source prompts that are the same.
        """
        return steering(model, self._switched(model, everywhere), strength, self._reference(reference))

    def _switched(self, model: Any, everywhere: bool) -> HookGroups:
        self.check_model(model)
        return switched_groups(model, (s for sites in self.groups.sites for s in sites), everywhere=everywhere)

    def _reference(self, given: PromptPairs | None) -> PromptPairs | None:
        return given if given is not None or self.tracer is None else self.tracer.pairs

    def check_model(self, model: Any) -> None:
        """Refuse a ``model`` that this circuit cannot be of.

        Raises:
            ValueError: number of layers, heads, neurons or width differ from the model it was found on.
        """
        view, known = ModelView(model), dict(self.provenance.get("model") or {})
        for name in ("n_layers", "n_heads", "d_model", "d_mlp", "d_vocab"):
            if name in known and int(known[name]) != int(getattr(view, name)):
                raise ValueError(
                    f"this circuit is of {known.get('name')} ({name} {known[name]}), not of {view.name} ({name} "
                    f"{getattr(view, name)}). Load the model it was found on."
                )
        HookGroups.of(model, [s for sites in self.groups.sites for s in sites])

    # ------------------------------------------------------------------ showing

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component: label, kind, layer, index, position, marginal effect and its share of the effect.

        There is no share where the interval of the effect holds 0.
        """
        import pandas as pd

        marginals: Sequence[float | None] = self.marginals or [None] * len(self)
        unclear = self.score is not None and bool(undefined(self.score))
        shares = [None if m is None or not self.effect or unclear else m / self.effect for m in marginals]
        rows = [
            (c.label, c.kind, c.layer, c.index, c.position, marginal, share)
            for c, marginal, share in zip(self.components, marginals, shares, strict=True)
        ]
        columns = ["component", "kind", "layer", "index", "position", "marginal", "share"]
        frame = pd.DataFrame(rows, columns=columns)
        down = self.provenance.get("direction") != "minimize"
        ranked = frame.sort_values("marginal", ascending=not down, kind="stable", ignore_index=True)
        return ranked if self.marginals else frame

    def summary(self) -> list[tuple[str, str]]:
        """What is known about the circuit, line by line: name and value."""
        facts = self.provenance
        unit, how = str(facts.get("metric_unit", "") or ""), facts.get("intervention")
        how = how.get("name", "") if isinstance(how, Mapping) else how or ""
        _ = self.marginals, self.chance  # read first: the last line says what they cost
        lines = [
            ("model", str(dict(facts.get("model") or {}).get("name", "unknown"))),
            ("metric", f"{facts.get('metric', 'unknown')}, {facts.get('direction', '')}, {how}"),
            ("effect", f"{self.score or f'{self.effect:.3g}'} {unit}".rstrip()),
        ]
        if self.score is not None and self.score.log is not None:
            lines.append(("log scale", f"{self.score.log:.3g} nats"))
        if self.share is not None:
            lines.append(("of all", f"{self.share:.0%} of the whole mask's {self.full_effect:.3g}"))
        elif self.no_share:
            lines.append(("of all", self.no_share))
        lines.append(("held out", str(self.held_out) if self.held_out else "not measured"))
        lines.append(("chance", f"{self.chance} (random sets of this size)" if self.chance else "not measured"))
        lines.append(("verdict", str(self.verdict)))
        lines.append(("choice", self.certificate))
        cost = dict(facts.get("cost") or {})
        table = f"; {self.cost['table']:.3g} more for this table" if self.cost["table"] else ""
        spent = f"{cost.get('equivalents', 0):.0f} forward equivalents, {cost.get('seconds', 0):.1f} s{table}"
        return [*lines, ("cost", spent)] if cost else lines

    def headline(self) -> str:
        """How many of how many components."""
        return f"Circuit of {len(self)} of {self.n_groups} components"

    def table_lines(self) -> list[str]:
        """The components, the strongest first, with marginal effect and share."""
        frame = self.to_dataframe().head(MOST)
        told = [(r.component, _number(r.marginal), _percent(r.share)) for r in frame.itertuples()]
        lines = [f"  {name:>12s}  {marginal:>10s}  {share:>6s}" for name, marginal, share in told]
        table = [f"  {'component':>12s}  {'marginal':>10s}  {'share':>6s}", *lines] if lines else []
        return [*table, *([f"  ... and {len(self) - MOST} more"] if len(self) > MOST else [])]

    def show(self, model: Any = None, pairs: Any = None, **options: Any) -> Any:
        """Circuitsvis views; ``model``, ``pairs`` and options as in :func:`tl_multitrace.render.show`."""
        return self.drawn("show", model, pairs, **options)

    def with_scores(self, **scores: Any) -> Circuit:
        """A copy with some fields (``scores``) replaced, such as ``held_out=``; it measures nothing."""
        unread = {name: measure for name, measure in self.unread.items() if name not in scores}
        return later(replace(self, **{name: getattr(Circuit, name) for name in unread} | scores), unread)


def _number(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.3g}"


def _percent(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.0%}"
