"""Several goals at once: a weighted sum of numbers over several prompt sets, within bounds.

    score(m) = sum_goals weight * sign * change_g(m)  -  price * sum_constraints log(1 + violation_c(m) / scale_c)

``change`` is the number's difference to the base run. The second part leads a search back to what is allowed; it
decides nothing: a set that breaks a bound, as measured exactly, is never chosen. ``price`` is the size of the goals'
sum over the whole mask (or its largest single derivative, if that is more), ``scale`` the bound itself, or a hundredth
of the constraint's own change over the whole mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.cost import Cost
from tl_multitrace.groups import HookGroups
from tl_multitrace.objective.aim import EffectMemo, TracerAim
from tl_multitrace.objective.goals import Constraint, Goal, Term, common_groups
from tl_multitrace.objective.predict import changes_of, key_of, linear, resampled, set_of, switched
from tl_multitrace.objective.reduce import Mean
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.stats import Score, around, middle
from tl_multitrace.tracer import Tracer

BOUND = " (bound)"
"""Marks what a constraint is judged by, which with a confidence is not its mean change."""


@dataclass(frozen=True)
class Objective:
    """Goals and constraints that one subset is to serve; :func:`~tl_multitrace.select` takes it like a tracer.

    Args:
        goals: what to push; their weighted sum is the effect that paths and circuits report.
        constraints: what to keep.
        seen: exact changes of the sets evaluated so far, by mask.
        remembers: keep ``seen`` from one search to the next, so that a set costs once; a search's cost then depends on
            those before it.

    Raises:
        ValueError: no goal, a name twice, or tracers over different components.

    Examples:
        >>> pairs = mt.task("professions", model, n=16).pairs
        >>> text = mt.task("neutral_text", model, n=8).pairs
        >>> heads, off = mt.heads(model), mt.MeanAblation(reference=pairs)
        >>> bias = mt.Goal("bias", mt.Tracer(model, pairs, heads, mt.LogOddsRatio(), off))
        >>> worse = mt.Tracer(model, text, heads.at("everywhere"), mt.Perplexity(), off)
        >>> objective = mt.Objective([bias], [mt.Constraint("perplexity", worse, at_most=0.02)])
        >>> path = mt.select(objective, 2, mt.Greedy())
        >>> path.goals()[["goal", "kept"]].to_dict("records")
        [{'goal': 'bias', 'kept': None}, {'goal': 'perplexity', 'kept': True}]
    """

    goals: Sequence[Goal]
    constraints: Sequence[Constraint] = ()
    seen: dict[bytes, dict[str, float]] = field(default_factory=dict, repr=False, compare=False)
    remembers: bool = field(default=False, repr=False, compare=False)
    _memo: EffectMemo = field(default_factory=EffectMemo, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.goals:
            raise ValueError("an objective needs at least one Goal.")
        object.__setattr__(self, "goals", tuple(self.goals))
        object.__setattr__(self, "constraints", tuple(self.constraints))
        common_groups(self.terms)

    # ------------------------------------------------------------------ facts

    @property
    def terms(self) -> tuple[Term, ...]:
        """Goals, then constraints."""
        return (*self.goals, *self.constraints)

    @cached_property
    def tracers(self) -> tuple[Tracer, ...]:
        """Every tracer once."""
        return tuple({id(r.tracer): r.tracer for r in self.terms}.values())

    @property
    def tracer(self) -> Tracer:
        """The first goal's, whose metric circuits are shown and judged with."""
        return self.tracers[0]

    @property
    def groups(self) -> HookGroups:
        """The first goal's."""
        return self.tracer.groups

    @property
    def has_bounds(self) -> bool:
        """Whether there are constraints."""
        return bool(self.constraints)

    @property
    def progress(self) -> bool:
        """Whether the first goal's tracer shows progress."""
        return self.tracer.progress

    @property
    def n(self) -> int:
        """Examples of the largest prompt set; minibatches draw as many of each."""
        return max(t.n for t in self.tracers)

    @property
    def cost(self) -> Cost:
        """Sum over the tracers, each in passes over its own prompts."""
        forwards, backwards, seconds = (sum(own) for own in zip(*(t.cost.numbers for t in self.tracers), strict=True))
        return Cost(forwards, backwards, seconds)

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "sum of weighted bounded losses + sum log(1 + violation/scale)"

    @contextmanager
    def session(self) -> Iterator[Objective]:
        """Sessions of all tracers."""
        with ExitStack() as stack:
            for tracer in self.tracers:
                stack.enter_context(tracer.session())
            yield self

    def forget(self) -> None:
        """Drop what earlier calls stored, known sets included."""
        if not self.remembers:
            self.seen.clear()
        self._memo.forget()
        for tracer in self.tracers:
            tracer.forget()

    def flush(self) -> None:
        """Those of all tracers."""
        for tracer in self.tracers:
            tracer.flush()

    def on(self, held_out: Mapping[str, PromptPairs]) -> Objective:
        """The same goals and constraints on other prompts (``held_out``, by name); others keep their own.

        Raises:
            ValueError: a name that is none of the objective's.
        """
        names = [r.name for r in self.terms]
        if not isinstance(held_out, Mapping) or set(held_out) - set(names):
            strange = sorted(set(held_out) - set(names)) if isinstance(held_out, Mapping) else type(held_out).__name__
            raise ValueError(
                f"held-out prompts of an objective are a dictionary by goal ({', '.join(names)}), got {strange}: pass "
                f"held_out={{{names[0]!r}: pairs}}."
            )
        moved: dict[tuple[int, int], Tracer] = {}

        def move(term: Any) -> Any:
            pairs = held_out.get(term.name)
            if pairs is None:
                return term
            key = (id(term.tracer), id(pairs))  # goals that share a tracer share it there too
            moved[key] = moved.get(key) or term.tracer.on(pairs)
            return replace(term, tracer=moved[key])

        return Objective([move(g) for g in self.goals], [move(c) for c in self.constraints])

    # ------------------------------------------------------------------ exact numbers

    def changes(self, masks: Any, reference: Any = None) -> dict[str, Float[np.ndarray, " k"]]:
        """Change of every goal and constraint under each mask, exact, by name."""
        stacked = self.groups.as_masks(masks)
        judged = self._evaluate(stacked, reference)
        return {r.name: np.array([row[r.name] for row in judged]) for r in self.terms}

    def _evaluate(self, masks: Float[Tensor, "k groups"], reference: Any = None) -> list[dict[str, float]]:
        """Changes by name, and under ``name + BOUND`` what a constraint is judged by; every mask once."""
        keys = [key_of(mask) for mask in masks]
        new = [i for i, key in enumerate(keys) if key not in self.seen and keys.index(key) == i]
        if new:
            found = self._changes(masks[new], reference)
            for row, i in enumerate(new):
                self.seen[keys[i]] = {name: float(values[row]) for name, values in found.items()}
        return [self.seen[key] for key in keys]

    def seen_sets(self) -> list[tuple[int, ...]]:
        """Every set that was evaluated so far."""
        sets = [set_of(key, len(self.groups)) for key in self.seen]
        return [chosen for chosen in sets if chosen is not None]

    def _changes(self, masks: Tensor, reference: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for tracer in self.tracers:
            effects = tracer.effects(masks, reference=reference).double().cpu()
            for term in (r for r in self.terms if r.tracer is tracer):
                found[term.name] = term.changes(effects)
                if isinstance(term, Constraint):
                    found[term.name + BOUND] = term.judged.changes(effects)
        return found

    def means(
        self,
        masks: Float[Tensor, "k groups"],
        reference: Float[Tensor, " groups"] | None = None,
        pressure: float = 1.0,
    ) -> Float[np.ndarray, " k"]:
        """The score of each mask: the module's formula, with a share of its price; without, the goals' sum alone."""
        rows = self._evaluate(masks, reference)
        changes = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
        return np.asarray(self._score(changes, pressure).numpy())

    def holds(self, mask: Float[Tensor, " groups"]) -> bool:
        """Whether a mask is within every bound."""
        row = self._evaluate(mask[None])[0]
        return all(
            float(c.violation(torch.tensor(row[c.name + BOUND], dtype=torch.float64))) == 0.0 for c in self.constraints
        )

    def sum_of(self, changes: Mapping[str, Float[Tensor, "*k"]]) -> Float[Tensor, "*k"]:
        """The goals' weighted sum, from ``changes`` by name."""
        parts = [g.weight * g.sign * changes[g.name] for g in self.goals]
        return torch.stack(parts).sum(0)

    def _score(self, changes: Mapping[str, Tensor], pressure: float = 1.0) -> Tensor:
        total = self.sum_of(changes)
        for c in (c for c in self.constraints if pressure and c.name + BOUND in changes):
            charge = pressure * self.price
            total = total - charge * torch.log1p(c.violation(changes[c.name + BOUND]) / self.scales[c.name])
        return total

    @cached_property
    def _whole(self) -> dict[str, Tensor]:
        """Changes under the whole mask, which price and scales are taken from."""
        return self._changes(torch.ones(1, len(self.groups)), None)

    @cached_property
    def price(self) -> float:
        """What one unit of a broken bound costs in score; see the module's formula."""
        full = float(self.sum_of(self._whole))
        start = self.sum_slope(torch.zeros(len(self.groups)))
        return max(abs(full), float(start.abs().max()), 1e-12)

    @cached_property
    def scales(self) -> dict[str, float]:
        """Per constraint; see the module's formula."""
        return {
            c.name: abs(c.bound) or max(0.01 * float(self._whole[c.name].abs()), 1.0 / c.tracer.n * 1e-2)
            for c in self.constraints
        }

    # ------------------------------------------------------------------ derivatives

    @property
    def _followed(self) -> tuple[Constraint, ...]:
        """Constraints that derivatives can follow: a surrogate's units are not those of the bound."""
        return tuple(c for c in self.constraints if c.tracer.metric.differentiable)

    def slope(self, mask: Float[Tensor, " groups"], dtype: torch.dtype | None = None) -> Float[np.ndarray, " groups"]:
        """Derivative of the score to every entry of a soft mask; metrics without one stand by their surrogate."""
        return np.asarray(self._slope(mask, dtype, bounds=True).numpy())

    def sum_slope(self, mask: Float[Tensor, " groups"]) -> Float[Tensor, " groups"]:
        """Derivative of the goals' sum alone at a soft ``mask``."""
        return self._slope(mask, None, bounds=False)

    @torch.enable_grad()
    def _slope(self, mask: Tensor, dtype: torch.dtype | None, bounds: bool) -> Float[Tensor, " groups"]:
        wanted = (*self.goals, *self._followed) if bounds else self.goals
        found = {id(t): linear(t, mask, dtype) for t in self.tracers if any(r.tracer is t for r in wanted)}
        leaves = {key: effects.clone().requires_grad_() for key, (effects, _) in found.items()}
        changes: dict[str, Tensor] = {}
        for term in wanted:
            effects = leaves[id(term.tracer)][None]
            if isinstance(term, Constraint):
                changes[term.name + BOUND] = term.judged.changes(effects)
            else:
                changes[term.name] = term.changes(effects)
        total = self._score(changes) if bounds else self.sum_of(changes)
        weights = torch.autograd.grad(total.sum(), list(leaves.values()), allow_unused=True)
        parts = [w @ found[key][1] for key, w in zip(leaves, weights, strict=True) if w is not None]
        return torch.stack(parts).sum(0)

    def gains(
        self, mask: Float[Tensor, " groups"], sign: int, dtype: torch.dtype | None = None, pressure: float = 1.0
    ) -> Float[np.ndarray, " groups"]:
        """Predicted gain in score of switching each entry, each metric through its own non-linearity.

        A metric without a derivative takes no part as a constraint, and stands by its surrogate as a goal.
        """
        known = self._evaluate(mask[None])[0]
        start = {name: torch.tensor([value], dtype=torch.float64) for name, value in known.items()}
        then = dict(start)
        for tracer in self.tracers:
            here, moved = switched(tracer, mask, dtype)
            for r in (r for r in self.terms if r.tracer is tracer):
                if isinstance(r, Goal):
                    then[r.name] = start[r.name] + changes_of(r, moved) - r.changes(here[None])
                elif isinstance(r, Constraint) and r in self._followed:
                    judged = r.judged
                    shift = changes_of(judged, moved) - judged.changes(here[None])
                    then[r.name + BOUND] = start[r.name + BOUND] + shift
        return np.asarray(sign * (self._score(then, pressure) - self._score(start, pressure)).cpu().numpy())

    def loss(self, mask: Any, sign: int) -> float:
        """Sum of weighted bounded losses and of the bounds' logarithms, over all examples."""
        total = 0.0
        for r in (*self.goals, *self._followed):
            effects = self._effect(r, mask)
            total += float(_mean_loss(r, effects) if _by_example(r) else self._whole_loss(r, effects))
        return total

    @torch.enable_grad()
    def loss_gradient(self, mask: Float[Tensor, " groups"], sign: int, examples: Tensor) -> Float[Tensor, " groups"]:
        """Derivative of :meth:`loss`: of means on some examples of their prompt sets, of gaps and bounds on all."""
        total = torch.zeros(len(self.groups), dtype=torch.float64)
        for r in (*self.goals, *self._followed):
            if _by_example(r):
                own = torch.unique(examples % r.tracer.n)
                found = r.tracer.loss_gradient(mask, partial(_mean_loss, r), own)[1].double().cpu()
            else:
                effects, slopes = linear(r.tracer, mask, None)
                leaf = effects.requires_grad_()
                found = torch.autograd.grad(self._whole_loss(r, leaf), leaf)[0] @ slopes
            total += found
        return total

    def _whole_loss(self, r: Term, effects: Float[Tensor, " n"]) -> Tensor:
        if isinstance(r, Constraint):
            return torch.log1p(r.violation(r.judged.changes(effects[None]))[0] / self.scales[r.name])
        assert isinstance(r, Goal)
        return r.weight * torch.sigmoid(-r.sign * r.changes(effects[None])[0])

    # ------------------------------------------------------------------ scores

    def measure(self, mask: Float[Tensor, " groups"], sign: int, seed: int = 0) -> Score:
        """The goals' sum with its interval: each goal's prompts are resampled on their own."""
        parts = [(g.weight * g.sign, *resampled(g, self._effect(g, mask), seed)) for g in self.goals]
        mean, median = (sum(w * getattr(score, k) for w, score, _ in parts) for k in ("mean", "median"))
        known = all(score.low is not None for _, score, _ in parts)
        draws = np.sum([w * drawn for w, _, drawn in parts], axis=0)
        low, high = around(mean, *map(float, middle(draws))) if known else (None, None)
        return Score(mean, low, high, median, sum(score.n for _, score, _ in parts))

    def goal_scores(self, mask: Float[Tensor, " groups"], seed: int = 0) -> dict[str, Score]:
        """Change of every goal and constraint, with its interval, by name."""
        return {r.name: resampled(r, self._effect(r, mask), seed)[0] for r in self.terms}

    def _effect(self, term: Term, mask: Float[Tensor, " groups"]) -> Float[Tensor, " n"]:
        return self._memo.effect(term.tracer, mask).double().cpu()

    def provenance(self) -> dict[str, Any]:
        """Model, and every goal and constraint with its prompts, metric and intervention."""
        several = {"metric": "weighted sum of goals", "metric_unit": ""} if len(self.goals) > 1 else {}
        return {
            **TracerAim(self.tracer).provenance(),
            **several,
            "goals": [g.describe() for g in self.goals],
            "constraints": [c.describe() for c in self.constraints],
        }


def _by_example(r: Term) -> TypeGuard[Goal]:
    """Whether a term's loss is a mean over examples, so that some of them stand for all."""
    return isinstance(r, Goal) and isinstance(r.reduce, Mean)


def _mean_loss(r: Goal, effects: Float[Tensor, " e"]) -> Tensor:
    return r.weight * r.tracer.metric.surrogate.loss(effects, r.sign).mean()
