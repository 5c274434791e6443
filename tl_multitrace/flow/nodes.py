"""What can be a node of a flow graph, and which node can act on which directly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.cost import HookError
from tl_multitrace.groups import ATTENTION_INPUTS, SITES, Component, HookGroups, Position, residual
from tl_multitrace.models.compat import ModelView
from tl_multitrace.prompts import PromptPairs

ANSWER = "answer"
"""Id of the node that stands for the metric."""

ATTENTION = ("head", "attn")
MLP = ("neuron", "mlp_dim", "mlp")

Place = int | str | tuple[int, int]
Tokens = bool | Place | Sequence[Place]
Chosen = Circuit | HookGroups | Sequence[Component | str]


@dataclass(frozen=True)
class Edge:
    """One direct effect to measure.

    Attributes:
        sender: number of the node that is changed.
        receiver: number of the node that sees it, or None for the answer.
        input: what the receiver reads it by: ``"q"``, ``"k"``, ``"v"``, ``"in"`` (an MLP) or ``"out"`` (the answer).
    """

    sender: int
    receiver: int | None
    input: str


@dataclass(frozen=True)
class Nodes:
    """The components of a flow graph, then the tokens that may act on them.

    Attributes:
        groups: one group per node.
        n_components: how many of them are components; the rest are tokens.
        parallel: whether a block's MLP does not see its attention.
        n_chosen: how many of the components are the circuit's; the others are there for what passes through them.
    """

    groups: HookGroups
    n_components: int
    parallel: bool
    n_chosen: int

    @classmethod
    def of(
        cls, model: Any, components: Sequence[Component], positions: Sequence[Place], n_chosen: int | None = None
    ) -> Nodes:
        """Nodes of a model, checked; all of the circuit unless ``n_chosen`` says how many.

        Raises:
            ValueError: something that cannot be a node, or is outside the model.
            HookError: the model has no hook points for what an attention layer reads.
        """
        for component in components:
            _check(component)
        made = HookGroups.of(model, components)
        _check_inputs(ModelView(model), components)
        groups = made + residual(model, [0], positions=positions) if positions else made
        return cls(groups, len(made), ModelView(model).parallel_attn_mlp, len(made) if n_chosen is None else n_chosen)

    @property
    def components(self) -> range:
        """Numbers of the components."""
        return range(self.n_components)

    @property
    def tokens(self) -> range:
        """Numbers of the tokens."""
        return range(self.n_components, len(self.groups))

    def __getitem__(self, number: int) -> Component:
        return self.groups.components[number]

    def name(self, number: int | None) -> str:
        """Id of a node in the graph: ``L2H0``, ``@3`` for a token, ``answer``."""
        if number is None:
            return ANSWER
        label = self[number].label
        return label if number < self.n_components else label.removeprefix("L0")

    def writes_at(self, number: int) -> str | None:
        """Name of the layer output that a component is part of; tokens write to no layer's."""
        if number >= self.n_components:
            return None
        kind = "attn" if self.is_attention(number) else "mlp"
        return SITES[kind, "out"].hook.format(layer=self[number].layer)

    def is_attention(self, number: int) -> bool:
        """Whether a node is a head or an attention layer."""
        return number < self.n_components and self[number].kind in ATTENTION

    def receivers(self, sender: int) -> list[int]:
        """Components that read the residual stream after a node has written to it."""
        return [r for r in self.components if self._sees(r, sender)]

    def _sees(self, receiver: int, sender: int) -> bool:
        if sender >= self.n_components:
            return True
        a, b = self[sender], self[receiver]
        inside = a.kind in ATTENTION and b.kind in MLP and not self.parallel
        return a.layer < b.layer or (a.layer == b.layer and inside)

    def inputs(self, receiver: int) -> tuple[str, ...]:
        """What a component reads by; attention weights do not depend on values."""
        if not self.is_attention(receiver):
            return ("in",)
        return tuple(x for x in ATTENTION_INPUTS if x != "v" or self[receiver].site != "pattern")

    def edges(self, senders: Iterable[int]) -> list[Edge]:
        """Every edge that a model could have between some senders and the components and answer."""
        return [edge for s in senders for edge in (*self._between(s), Edge(s, None, "out"))]

    def _between(self, sender: int) -> list[Edge]:
        return [Edge(sender, r, x) for r in self.receivers(sender) for x in self.inputs(r)]


def _check(component: Component) -> None:
    if component.kind == "resid":
        raise ValueError(
            f"{component.label} is a residual state: it is the sum of everything before it, so no effect on it is "
            "direct. Choose heads, neurons, MLP or attention layers; tokens are nodes by themselves."
        )


def _check_inputs(view: ModelView, components: Iterable[Component]) -> None:
    """Refuse attention layers whose queries, keys or values have no hook points: nothing can be sent to them."""
    names = [x.format(layer=c.layer) for c in components if c.kind in ATTENTION for x in ATTENTION_INPUTS.values()]
    missing = next((name for name in names if not view.has_point(name)), None)
    if missing is not None:
        raise HookError(
            f"{view.name} has no hook point {missing}, so no edge can be drawn to that layer's heads. Draw edges "
            "between its mlps, or look at the effects of heads as a whole (select, tracer.effects)."
        )


def chosen_components(circuit: Chosen, groups: HookGroups) -> list[Component]:
    """The components of a circuit, of hook groups, or named by labels of the tracer's groups.

    Raises:
        ValueError: none, or a group of several sites.
        KeyError: a label that is not among the tracer's groups.
    """
    picked = circuit.groups if isinstance(circuit, Circuit) else circuit
    if not isinstance(picked, HookGroups):
        picked = groups[[groups.index(c) for c in picked]]
    if not len(picked):
        raise ValueError("the circuit has no components, so there is nothing to draw edges between.")
    several = next((i for i, sites in enumerate(picked.sites) if len(sites) > 1), None)
    if several is not None:
        raise ValueError(
            f"{picked.labels[several]} stands for a group of {len(picked.sites[several])} sites: information also "
            "flows between them. Give each its own group, such as HookGroups.of(model, groups.sites[i])."
        )
    return [sites[0] for sites in picked.sites]


def token_positions(tokens: Tokens, pairs: PromptPairs) -> list[Place]:
    """Positions of the token nodes: every one, those asked for, or none."""
    if isinstance(tokens, bool):
        return list(range(int(pairs.lengths.max()))) if tokens else []
    return [tokens] if isinstance(tokens, int | str) else list(tokens)


def token_text(pairs: PromptPairs, position: Position) -> str:
    """Base and source token at a position, of the first prompts in which they differ, and a mark where not in all."""
    if not isinstance(position, int) or not pairs.base_words:
        return ""
    rows = [i for i, words in enumerate(pairs.base_words) if -len(words) <= position < len(words)]
    both = sorted(dict.fromkeys(_both(pairs, i, position) for i in rows), key=lambda words: words[0] == words[1])
    return " / ".join(both[0]) + (" …" if len(both) > 1 else "") if both else ""


def _both(pairs: PromptPairs, i: int, position: int) -> tuple[str, str]:
    base, source = pairs.base_words[i], pairs.source_words[i]
    at = position % len(base) + int(pairs.shifts[i])
    return base[position].strip(), source[at].strip() if 0 <= at < len(source) else "–"
