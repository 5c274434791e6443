"""What a planted circuit is: a model, its prompts, and the sets a subset search has to find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from tl_multitrace.groups import Component as GroupComponent
from tl_multitrace.groups import HookGroups
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tracer import Tracer

Component = tuple[str, int, int | None]
"""``(kind, layer, index)`` with kind ``head``, ``pattern``, ``neuron`` or ``mlp`` (index None)."""

Subset = frozenset[Component]
Direction = Literal["noising", "restoring"]
DIRECTIONS: tuple[Direction, Direction] = ("noising", "restoring")

REACH = 0.9
"""A set *works* when its effect is at least this share of ``PlantedCircuit.target``."""

UNIT = 2.0
"""Logits that one planted component is worth; every stated effect is a multiple of it."""


@dataclass(frozen=True)
class Truth:
    """The known answer in one direction, as the circuit alone (idle components left out) gives it.

    Attributes:
        minimal: the inclusion-minimal sets that work.
        optimal: for sizes 1, 2, ...: the largest movement (a positive number of logits) that a set of *at most*
            that size makes in the wanted direction, and a set that makes it. It stays flat after the last entry.
        silent: circuit components whose effect alone is zero (majority: next to it), although a minimal set needs them.
    """

    minimal: tuple[Subset, ...]
    optimal: tuple[tuple[float, Subset], ...]
    silent: Subset = frozenset()


@dataclass(frozen=True)
class PlantedCircuit:
    """A transformer with hand-set weights, and what is causally relevant in it by construction.

    The metric is ``logit(answer) - logit(wrong answer)`` at the last position, averaged over prompts; the effect of
    a set is the metric with its activations taken from the source run (at all positions) minus the metric without.

    Attributes:
        name: the id that ``build`` takes.
        model: a ``HookedTransformer`` or ``TransformerBridge`` in eval mode.
        base_tokens: the clean prompts.
        source_tokens: the corrupted prompts, aligned with the clean ones.
        answers: the token that the clean prompt calls for.
        wrong_answers: the token it is compared with.
        kind: the hook site behind a component: ``head`` is ``attn.hook_z``, ``pattern`` ``attn.hook_pattern``,
            ``neuron`` ``mlp.hook_post``; ``mixed`` has heads beside whole MLPs (``hook_mlp_out``).
        components: every candidate, planted or idle.
        minimal: the inclusion-minimal sets whose effect is at least ``REACH`` of ``target``. With leaks in a large
            model a crowd of idle components can reach it too; no crowd of a minimal set's size can.
        best: per size, the best effect of any set of at most that size: the lowest when noising, the highest when
            restoring. Idle components' leaks are counted in.
        optimal: per size, a set with that effect.
        target: the best effect that the planted components alone can have.
        silent: planted components with no effect alone, which a ranking by single effects puts below every leak.
        leaks: the effect of each idle component when restoring; empty without leaks. When noising it is the negative.
    """

    name: str
    model: Any
    base_tokens: Int[Tensor, "n pos"]
    source_tokens: Int[Tensor, "n pos"]
    answers: Int[Tensor, " n"]
    wrong_answers: Int[Tensor, " n"]
    kind: Literal["head", "pattern", "neuron", "mixed"]
    components: list[Component]
    minimal: dict[Direction, list[Subset]]
    best: dict[Direction, dict[int, float]]
    optimal: dict[Direction, dict[int, Subset]]
    target: dict[Direction, float]
    silent: dict[Direction, Subset]
    leaks: dict[Component, float]

    def tokens(self, direction: Direction) -> tuple[Int[Tensor, "n pos"], Int[Tensor, "n pos"]]:
        """The prompts we intervene on and those the activations come from.

        Args:
            direction: ``noising`` intervenes on the clean prompts, ``restoring`` on the corrupted ones.

        Returns:
            Base and source tokens.
        """
        clean_first = direction == "noising"
        return (self.base_tokens, self.source_tokens) if clean_first else (self.source_tokens, self.base_tokens)

    def tracer(self, direction: Direction, **options: Any) -> Tracer:
        """The candidates on the prompts, ready for ``select``.

        Search it with ``direction="minimize"`` when noising (the behaviour breaks), with ``"maximize"`` when restoring.

        Args:
            direction: as in ``tokens``.
            options: of :class:`Tracer`, such as ``intervention`` or ``batch_size``.
        """
        pairs = PromptPairs.from_tokens(*self.tokens(direction), self.answers, self.wrong_answers)
        groups = HookGroups.of(self.model, [_group(component) for component in self.components])
        return Tracer(self.model, pairs, groups, **options)

    def labels(self, members: Iterable[Component]) -> list[str]:
        """Components by the labels that circuits print, in the order of ``components``.

        Args:
            members: some of ``components``.
        """
        chosen = set(members)
        return [_group(component).label for component in self.components if component in chosen]


def _group(component: Component) -> GroupComponent:
    kind, layer, index = component
    if kind == "pattern":
        return GroupComponent("head", layer, index, site="pattern")
    return GroupComponent(kind, layer, index)


def with_leaks(truth: Truth, leaks: dict[Component, float], extra: int = 2) -> list[tuple[float, Subset]]:
    """The optimum per size once idle components add their own small effects.

    Leaks write straight to the answer, so they add up; the best set of size S is a best planted set of some smaller
    size with the strongest helpful leaks on top.

    Args:
        truth: the answer without leaks.
        leaks: effect of each idle component, positive where it helps.
        extra: how many sizes beyond the planted ones to give.

    Returns:
        Movement and set for sizes 1, 2, ...
    """
    helpful = sorted((item for item in leaks.items() if item[1] > 0), key=lambda item: -item[1])
    planted = [(0.0, Subset()), *truth.optimal]
    rows = []
    for size in range(1, len(planted) + extra):
        options = []
        for movement, members in planted[: size + 1]:
            fill = helpful[: size - len(members)]
            options.append((movement + sum(value for _, value in fill), members | {name for name, _ in fill}))
        rows.append(max(options, key=lambda option: option[0]))
    return rows
