"""``significance``: is the circuit more than chance, as a whole and component by component?

Two things have to be ruled out, and a p-value here is the larger of both (an intersection-union test, which keeps its
level without a correction):

* **no effect**: with answers that mean nothing each prompt's effect could have either sign, so signs are flipped;
* **any set would do**: random sets of the same size and kinds, or for a component: others of its kind in its place.

Random sets alone are not enough. A search on meaningless answers still finds components that move the metric much on
every prompt, and on held-out prompts their sum lands far outside that of random sets, on either side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from tl_multitrace.copies import copies_of
from tl_multitrace.evaluation.evaluate import log_effects, mean_effects, rounded, seen_before
from tl_multitrace.evaluation.target import Judged, Target, target_of
from tl_multitrace.groups import Component, HookGroups
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.chance import FEW_SETS, chance_p
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, intervention_name, result
from tl_multitrace.records.stats import coins, prompt_notes, random_sets, sign_flip_p, some_of
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ComponentTest:
    """Whether one component of a circuit is more than chance.

    Attributes:
        component: which.
        drop: mean effect that the circuit loses without it, in the metric's unit.
        p_zero: that the drop is zero (sign flips over prompts), one-sided.
        p_chance: that another component of its kind does as well in its place; 1 where there is no other.
        adjusted: the larger of both, corrected over the circuit's components (Benjamini-Hochberg).
    """

    component: Component
    drop: float
    p_zero: float
    p_chance: float
    adjusted: float

    @property
    def p_value(self) -> float:
        """The larger of both."""
        return max(self.p_zero, self.p_chance)


@result("tl_multitrace.significance", key="result")
@dataclass(frozen=True, repr=False)
class Significance(Result):
    """P-values of a circuit and of its components, one-sided in the direction of the search.

    Attributes:
        effect: mean effect on these prompts.
        p_zero: that it is zero.
        p_chance: that random sets of the same size and kinds have it as well.
        tests: one per component.
        draws: random sets.
        n: distinct prompts.
        metric: name of the metric.
        direction: of the search.
        intervention: what replaced activations.
        notes: what a reader must know.
        provenance: of the circuit.

    Examples:
        >>> tested = mt.significance(circuit, task.pairs, draws=39, replacements=5)
        >>> tested.significant(level=0.1), [test.component.label for test in tested.tests]
        (True, ['L0H1', 'L0H3'])
    """

    effect: float
    p_zero: float
    p_chance: float
    tests: tuple[ComponentTest, ...]
    draws: int
    n: int
    metric: str
    direction: str
    intervention: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    @property
    def p_value(self) -> float:
        """P-value, that the circuit is nothing more than chance: the larger of ``p_zero`` and ``p_chance``."""
        return max(self.p_zero, self.p_chance)

    def significant(self, level: float = 0.05) -> bool:
        """Whether the circuit as a whole is more than chance.

        Args:
            level: largest p-value that counts.
        """
        return self.p_value <= level

    def components(self, level: float = 0.05) -> tuple[Component, ...]:
        """Those that are more than chance, with at most a share ``level`` of false ones expected among them.

        Args:
            level: share of false ones that is expected, at most.
        """
        return tuple(t.component for t in self.tests if t.adjusted <= level)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component: drop, p-values, corrected p-value; ablation, direction and metric in each."""
        import pandas as pd

        record = {"ablation": intervention_name(self.intervention), "direction": self.direction, "metric": self.metric}
        rows = [
            {
                "component": t.component.label,
                "drop": t.drop,
                "p_zero": t.p_zero,
                "p_chance": t.p_chance,
                "p_value": t.p_value,
                "adjusted": t.adjusted,
                **record,
            }
            for t in self.tests
        ]
        return pd.DataFrame(rows)

    def headline(self) -> str:
        """What was tested."""
        return (
            f"Significance: {len(self.tests)} components, {self.n} prompts, {self.draws} random sets, "
            f"{self.direction} {self.metric}, {intervention_name(self.intervention)}"
        )

    def summary(self) -> list[tuple[str, str]]:
        """The circuit's p-value, and the components that pass."""
        kept = self.components()
        labels = ", ".join(c.label for c in kept[:20]) + (" ..." if len(kept) > 20 else "")
        return [
            ("effect", f"{self.effect:.3g}"),
            ("p", f"{self.p_value:.3g} (zero effect {self.p_zero:.3g}, random sets {self.p_chance:.3g})"),
            ("components", f"{len(kept)} of {len(self.tests)} at a false discovery rate of 5 %: {labels or 'none'}"),
        ]


def significance(
    circuit: Judged,
    pairs: PromptPairs,
    *,
    budget: int | None = None,
    draws: int = 199,
    replacements: int = 99,
    tracer: Tracer | None = None,
    model: Any = None,
    groups: HookGroups | None = None,
    metric: Any = None,
    seed: int = 0,
) -> Significance:
    """Test a circuit and each of its components against chance, on held-out prompts.

    Costs ``draws + components * (replacements + 1)`` forwards over the prompts. No p-value against ``d`` random sets is
    below ``1 / (d + 1)``.

    Args:
        circuit: a circuit, or a path and one of its budgets (default the largest).
        pairs: prompts that the circuit was *not* chosen on; on those of the search every p-value is too small.
        budget: which circuit of a path.
        draws: random sets of the same size and kinds.
        replacements: components of the same kind that are tried in each component's place, at most; 0 leaves the
            components out.
        tracer: see :func:`evaluate`, also for the rest.
        model: for a circuit that was loaded from a file.
        groups: for a loaded circuit: all hook groups it was chosen from.
        metric: default the search's.
        seed: of whatever is drawn.

    Raises:
        ValueError: fewer than 19 draws, which can never reach 5 %; or what :func:`evaluate` refuses.

    Examples:
        >>> train, held_out = task.pairs.split(0.5, seed=0)
        >>> circuit = mt.select(tracer.on(train), 2, mt.Greedy())[2]
        >>> tested = mt.significance(circuit, held_out, draws=39, replacements=5)
        >>> tested.p_value <= 0.05
        True
    """
    if draws < FEW_SETS:
        least = 1 / (draws + 1)
        raise ValueError(f"{draws} random sets can't give a p-value below {least:.2g}: draw {FEW_SETS} or more.")
    target = target_of(circuit, budget=budget, tracer=tracer, model=model, groups=groups, metric=metric)
    on = target.tracer(pairs)
    copies = copies_of(on)
    with on.session():
        effect = float(mean_effects(on, target.mask[None])[0])
        whole = _scaled(on, target.mask)
        drawn = mean_effects(on, random_sets(target.groups, target.members, draws, seed))
        tests = _tests(on, target, whole, effect, replacements, seed) if replacements else ()
    return Significance(
        effect=effect,
        p_zero=sign_flip_p(whole, target.sign, seed, copies),
        p_chance=chance_p(effect, drawn, target.sign),
        tests=tests,
        draws=draws,
        n=len(np.unique(copies)),
        metric=target.metric.name or "custom",
        direction=target.direction,
        intervention=on.intervention.describe(),
        notes=(*seen_before(target, pairs), *prompt_notes(copies)),
        provenance=dict(target.provenance),
    )


def _scaled(tracer: Tracer, mask: torch.Tensor) -> Float[np.ndarray, " n"]:
    """Per-example effect on the scale on which exchanging answers turns its sign."""
    logged = log_effects(tracer, mask)
    return rounded(tracer, tracer.effect(mask)) if logged is None else logged


def _tests(
    tracer: Tracer, target: Target, whole: Float[np.ndarray, " n"], effect: float, replacements: int, seed: int
) -> tuple[ComponentTest, ...]:
    rows, copies = [], copies_of(tracer)
    for member in target.members:
        without = target.mask
        without[member] = 0.0
        mean = float(mean_effects(tracer, without[None])[0])
        p_zero = sign_flip_p(whole - _scaled(tracer, without), target.sign, seed, copies)
        others = _instead(target, member, replacements, seed)
        masks = without.repeat(len(others), 1)
        masks[torch.arange(len(others)), torch.as_tensor(others)] = 1.0
        drawn = mean_effects(tracer, masks) if len(others) else np.empty(0)
        rows.append((target.groups.components[member], effect - mean, p_zero, chance_p(effect, drawn, target.sign)))
    if not rows:
        return ()
    adjusted = stats.false_discovery_control([max(zero, chance) for *_, zero, chance in rows])
    return tuple(ComponentTest(*row, adjusted=float(q)) for row, q in zip(rows, adjusted, strict=True))


def _instead(target: Target, member: int, count: int, seed: int) -> np.ndarray:
    """Groups of the member's kind outside the set, at most ``count`` of them at random."""
    kinds = np.array(target.groups.kinds)
    free = kinds == kinds[member]
    free[list(target.members)] = False
    others = np.flatnonzero(free)
    return some_of(others, count, [seed, 74, member])


def shuffled_answers(pairs: PromptPairs, seed: int = 0) -> PromptPairs:
    """A null task: answers and wrong answers exchanged in each pair with probability one half.

    No component can carry what a coin decides, so whatever a search finds on such prompts is chance. Shuffle the
    prompts of the search and the held-out ones with different seeds.

    Args:
        pairs: prompts with wrong answers.
        seed: of the coins.

    Raises:
        ValueError: a pair has no wrong answer to exchange with.

    Examples:
        >>> from tl_multitrace.evaluation import shuffled_answers
        >>> null = shuffled_answers(task.pairs, seed=1)
        >>> int((null.right != task.pairs.right)[:, 0].sum())
        9
    """
    present = (pairs.candidates >= 0).any(-1)
    wrong = present & ~pairs.right
    if not bool(wrong.any(-1).all()):
        bare = int((~wrong.any(-1)).nonzero()[0])
        raise ValueError(f"pair {bare} has no wrong answer: without one there is nothing to exchange its answer with.")
    tossed = torch.as_tensor(coins(len(pairs), seed))
    return replace(pairs, right=torch.where(tossed[:, None], wrong, pairs.right))
