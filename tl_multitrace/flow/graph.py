"""How the chosen components connect: direct effects as the edges of a networkx graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace._version import __version__
from tl_multitrace.circuit import Circuit
from tl_multitrace.copies import distinct
from tl_multitrace.flow.nodes import ANSWER, Chosen, Edge, Nodes, Tokens, chosen_components, token_positions, token_text
from tl_multitrace.flow.patching import PathPatching
from tl_multitrace.groups import Component, HookGroups, Position
from tl_multitrace.interventions import Interchange
from tl_multitrace.models.ambient import neutral
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.stats import Copies, Score, undefined
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import networkx as nx

logger = logging.getLogger(__name__)


@neutral()
def information_flow(
    circuit: Chosen,
    tracer: Tracer | None = None,
    *,
    pairs: PromptPairs | None = None,
    tokens: Tokens = True,
    through: HookGroups | None = None,
    patched: Sequence[Component | str] = (),
    min_share: float = 0.01,
    significant: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> nx.MultiDiGraph:
    """Direct effects between chosen components, from the tokens, and to the answer, by path patching.

    The edge from A to B by input x (``"q"``, ``"k"``, ``"v"`` of a head or attention layer, ``"in"`` of an MLP or its
    neurons, ``"out"`` for the answer) says how much the metric changes when B's input x, and nothing else, sees A's
    source value: every other attention and MLP output stays at the base run's until B has read; then only B's own
    output changes, and the model runs on from there. Positive: the metric rises. Nothing is between A and B: what A
    does to B through a third component is on the two edges by way of that one, if it was chosen.

    Args:
        circuit: a circuit, hook groups, or labels of the tracer's groups; heads (``z`` or ``pattern``), neurons, MLP
            dimensions, MLP layers, attention layers, each also at single positions.
        tracer: model, prompts, metric and intervention; default: the one that found the circuit.
        pairs: other prompts to measure on, such as held-out ones.
        tokens: also the effects of the prompts' embeddings, token by token: all that differ between base and source,
            or those at these positions (``"last"``, a span's name, a number).
        through: further components to draw edges through, such as ``mlps(model)`` for a circuit of heads: what passes
            from A to B by one of them is on no edge without it. They have ``chosen`` False.
        patched: components that are at their source values in the run that edges are measured in, and stay there as
            receivers. Where two components only work together, each edge of one is zero in the base run, and shows
            once the other is patched. The edges *from* patched components are what taking the source value away
            would lose.
        min_share: leave out edges whose size is below this share of the whole circuit's effect.
        significant: leave out edges whose 95 % interval includes 0.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        A directed graph; two nodes can have an edge per input: ``graph[a][b][input]``. Edges carry ``effect`` (mean
        over distinct prompts, in the metric's unit), ``low`` and ``high`` (95 % bootstrap interval; left out where
        there is one prompt alone), ``significant`` (there is an interval, and it excludes 0),
        ``share`` (effect over the whole circuit's; not where that may be 0), ``input``, ``unit``, ``n``. Nodes carry
        ``kind`` (a component's, ``"token"`` or ``"answer"``), ``layer`` (tokens -1), ``label``, components ``chosen``,
        tokens ``text``. ``graph.graph`` says what was measured, on what, and what it cost.

    Raises:
        ValueError: no tracer; no components; a residual state or a group of several sites among them; a share outside
            [0, 1]; anything outside the model.
        HookError: the model ignores edits at queries, keys, values or layer outputs.

    Examples:
        >>> nats = mt.Tracer(model, task.pairs, tracer.groups, mt.LogitDiff())
        >>> graph = mt.information_flow(circuit, nats, through=mt.mlps(model), min_share=0.1)
        >>> edge = graph["@2"]["L0H3"]["v"]
        >>> print(f"{edge['effect']:.1f} {edge['unit']} by the values of L0H3")
        4.9 nats by the values of L0H3
    """
    if not 0 <= min_share <= 1:
        raise ValueError(f"min_share must lie in [0, 1], got {min_share!r}: it is a share of the circuit's effect.")
    tracer = _tracer_of(circuit, tracer)
    prompts = tracer.pairs if pairs is None else pairs
    chosen = chosen_components(circuit, tracer.groups)
    nodes = Nodes.of(tracer.model, _with(chosen, through), token_positions(tokens, prompts), len(chosen))
    runs = PathPatching(tracer, nodes, prompts, _numbers(patched, nodes))
    whole = torch.zeros(len(nodes.groups))
    whole[: len(chosen)] = 1.0
    full = Score.of(runs.tracer.effect(whole).double().numpy(), copies=distinct(prompts), weighted=True, seed=seed)
    total = full.mean
    effects = runs.direct_effects(progress)
    facts = _facts(runs, total, patched)
    shares = abs(total) > runs.noise and not undefined(full)
    rule = _Rule(total, min_share, significant, seed, runs.noise, distinct(prompts), shares)
    return _graph(nodes, effects, facts, rule, prompts)


def _with(chosen: list[Component], through: HookGroups | None) -> list[Component]:
    more = [] if through is None else chosen_components(through, through)
    return [*chosen, *(c for c in more if c not in chosen)]


def expected_cost(circuit: Chosen, tracer: Tracer, through: HookGroups | None = None) -> float:
    """Forward equivalents that :func:`information_flow` takes at most, tokens included; equal ones cost nothing.

    A run per edge from its receiver's layer on, and two kinds of run per sender.

    Args:
        circuit: as :func:`information_flow` takes it.
        tracer: likewise.
        through: likewise.

    Examples:
        >>> from tl_multitrace.flow import expected_cost
        >>> expected_cost(circuit, tracer) > 0
        True
    """
    components = _with(chosen_components(circuit, tracer.groups), through)
    nodes = Nodes.of(tracer.model, components, _changed_tokens(tracer))
    total, n_layers = 2.0, tracer.view.n_layers  # base and source run
    for sender in range(len(nodes.groups)):
        layers = [nodes[r].layer for r in nodes.receivers(sender) for _ in nodes.inputs(r)]
        total += 4 * (1 - nodes[sender].layer / n_layers) + sum(1 - layer / n_layers for layer in layers)
    return total


def _changed_tokens(tracer: Tracer) -> list[int]:
    """Positions whose embeddings may differ between base and source."""
    pairs, every = tracer.pairs, list(range(int(tracer.pairs.lengths.max())))
    width = min(pairs.base_tokens.shape[1], pairs.source_tokens.shape[1], len(every))
    if tracer.intervention.name != Interchange.name or bool((pairs.shifts != 0).any()):
        return every
    same = (pairs.base_tokens[:, :width] == pairs.source_tokens[:, :width]).all(0).tolist()
    return [p for p in every if p >= width or not same[p]]


def _tracer_of(circuit: Chosen, tracer: Tracer | None) -> Tracer:
    found = tracer or (circuit.tracer if isinstance(circuit, Circuit) else None)
    if found is None:
        raise ValueError(
            "there is no tracer: a circuit that was loaded from a file has none. Pass tracer=Tracer(model, pairs, "
            "groups, metric), with the prompts and the metric to measure with."
        )
    if isinstance(circuit, Circuit):
        circuit.check_model(found.model)
    return found


def _numbers(patched: Sequence[Component | str], nodes: Nodes) -> list[int]:
    labels = [c if isinstance(c, str) else c.label for c in patched]
    known = {nodes.name(i): i for i in nodes.components}
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise ValueError(f"patched={unknown[0]!r} is not in the circuit, which has {', '.join(list(known)[:8])}.")
    return [known[label] for label in labels]


def _facts(runs: PathPatching, total: float, patched: Sequence[Component | str]) -> dict[str, Any]:
    """What was measured, in types that every graph format holds."""
    tracer, cost = runs.tracer, runs.tracer.cost
    return {
        "tl_multitrace": __version__,
        "model": tracer.view.name,
        "metric": tracer.metric.name or "custom",
        "unit": tracer.metric.unit or "effect",
        "intervention": tracer.intervention.name,
        "patched": " ".join(c if isinstance(c, str) else c.label for c in patched),
        "n": tracer.n,
        "prompts": tracer.pairs.digest(),
        "n_layers": tracer.view.n_layers,
        "circuit_effect": total,
        "forward_equivalents": float(cost.equivalents),
        "seconds": float(cost.seconds),
    }


@dataclass(frozen=True)
class _Rule:
    """Which edges are worth keeping, and how they are scored."""

    total: float
    min_share: float
    significant: bool
    seed: int
    noise: float
    copies: Copies
    shares: bool

    def score(self, effects: Float[Tensor, " n"]) -> dict[str, Any] | None:
        """Attributes of an edge, or None where it is left out."""
        size = abs(float(effects.double().mean()))
        if float(effects.abs().max()) <= self.noise or size < self.min_share * abs(self.total):
            return None
        score = Score.of(effects.double().numpy(), copies=self.copies, seed=self.seed)
        if self.significant and score.low is not None and not score.clear:
            return None
        share = {"share": score.mean / self.total} if self.shares else {}
        ends = {} if score.low is None else {"low": score.low, "high": score.high}
        return {"effect": score.mean, **ends, "significant": score.clear, "n": score.n, **share}


def _graph(
    nodes: Nodes, effects: Mapping[Edge, Float[Tensor, " n"]], facts: dict[str, Any], rule: _Rule, pairs: PromptPairs
) -> nx.MultiDiGraph:
    import networkx as nx

    graph = nx.MultiDiGraph(**facts)
    for number in nodes.components:
        graph.add_node(nodes.name(number), **_component(nodes[number]), chosen=number < nodes.n_chosen)
    graph.add_node(ANSWER, kind="answer", layer=int(facts["n_layers"]), label=ANSWER)
    for edge, values in effects.items():
        found = rule.score(values)
        if found is None:
            continue
        sender = nodes.name(edge.sender)
        if edge.sender in nodes.tokens and sender not in graph:
            graph.add_node(sender, **_token(nodes[edge.sender].position, sender, pairs))
        graph.add_edge(sender, nodes.name(edge.receiver), key=edge.input, input=edge.input, unit=facts["unit"], **found)
    logger.info("%d of %d edges kept", graph.number_of_edges(), len(effects))
    return graph


def _component(c: Component) -> dict[str, Any]:
    own: dict[str, Any] = {"kind": c.kind, "layer": c.layer, "label": c.label, "site": c.site}
    own |= {} if c.index is None else {"index": c.index}
    return own | ({} if c.position is None else {"position": str(c.position)})


def _token(position: Position, label: str, pairs: PromptPairs) -> dict[str, Any]:
    text = token_text(pairs, position)
    return {"kind": "token", "layer": -1, "label": label, "position": str(position), **({"text": text} if text else {})}
