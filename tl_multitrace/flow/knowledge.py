"""Which components mediate which facts: a graph in which facts that share their mediators hang together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace._version import __version__
from tl_multitrace.causal_trace.average import FactRuns, TraceOptions, so_far
from tl_multitrace.causal_trace.corruption import Corruption
from tl_multitrace.causal_trace.grid import TraceGrid
from tl_multitrace.causal_trace.sweep import Sweep
from tl_multitrace.groups import HookGroups, Points, heads, mlps
from tl_multitrace.models.ambient import neutral
from tl_multitrace.progress import bar, ticking
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.fact_files import as_facts
from tl_multitrace.records.stats import Score, undefined
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import networkx as nx

FACT, MEDIATOR = 0, 1
"""The two sides of the graph, as networkx names them in the node attribute ``bipartite``."""


@dataclass(frozen=True)
class Mediation:
    """What every component does for one fact.

    Attributes:
        id: names the fact.
        label: the fact as text.
        effects: per draw or prompt and component.
        total: of all that could be restored, per draw or prompt.
    """

    id: str
    label: str
    effects: Float[Tensor, "n groups"]
    total: Float[Tensor, " n"]


@neutral()
def knowledge_graph(
    model: Any,
    facts: Any = None,
    *,
    groups: HookGroups | None = None,
    top: int = 5,
    min_share: float = 0.1,
    samples: int = 10,
    noise: float = 3.0,
    corruption: str | Corruption = "gaussian",
    known_only: bool = True,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> nx.Graph:
    """A bipartite graph that links each fact to the components that mediate it, each measured alone.

    Of a model: causal traces, one per fact. The subject is corrupted, one component restored at all of the prompt's
    positions, and an edge carries how much of p(answer) comes back (see :func:`~tl_multitrace.causal_trace`).
    Of a tracer: an edge carries the metric's change when one of its hook groups is patched in the fact's prompts.

    Args:
        model: a TransformerLens model, or a :class:`~tl_multitrace.Tracer`.
        facts: with a model, a file or a list as :func:`~tl_multitrace.causal_trace.load_facts` reads them; with a
            tracer, a name for each of its prompt pairs (pairs of one name are one fact) or None for one fact per pair.
        groups: candidate mediators, with a model; default: all heads and MLP layers.
        top: mediators per fact, at most: those of the largest effect.
        min_share: leave out mediators whose effect is smaller than this share of the fact's total effect (answer of
            the clean against the corrupted run; all groups patched).
        samples: draws of the corruption per fact.
        noise: in standard deviations of the subjects' token embeddings.
        corruption: as :func:`~tl_multitrace.causal_trace`.
        known_only: leave out facts whose answer is not the model's top prediction.
        seed: of draws and intervals.
        folder: keep finished traces here, and reuse those that are there.
        progress: show a progress bar.

    Returns:
        An undirected graph. Facts have ``bipartite`` 0, ``kind`` "fact", ``label``, ``total``; components ``bipartite``
        1, ``kind``, ``layer``, ``label``, and ``facts``, the number of facts they mediate. Edges carry ``effect``,
        ``low`` and ``high`` (95 % interval over draws or prompts; not of a single one), ``share``, ``unit`` and ``n``.
        A mediator whose interval includes 0 is left out; of a fact with one draw or prompt there is no interval to tell
        by.

    Raises:
        ValueError: no facts, none that the model knows, ``top`` below 1, a share outside [0, 1], names that are not
            one per pair.

    Examples:
        >>> facts = [("The Falcon Tower is in the city of", "Falcon Tower", " Rome")]
        >>> graph = mt.knowledge_graph(model, facts, samples=4)
        >>> sorted(name for name, node in graph.nodes(data=True) if node.get("facts", 0) > 0)
        ['L0MLP', 'L2H7', 'L2MLP', 'L3MLP']
    """
    if top < 1 or not 0 <= min_share <= 1:
        raise ValueError(f"top must be at least 1 and min_share in [0, 1], got {top!r} and {min_share!r}.")
    if isinstance(model, Tracer):
        found, chosen = _of_tracer(model, facts, groups, progress), model.groups
        about = {"metric": model.metric.name or "custom", "unit": model.metric.unit or "effect"}
    else:
        chosen = _all_components(model) if groups is None else groups
        options = TraceOptions(
            restore=chosen, window=1, samples=samples, noise=noise, seed=seed, corruption=corruption, severed=(),
            layers=None, units=None, known_only=known_only, subjects=None, memory_limit=None,
        )  # fmt: skip
        found = _of_model(model, facts, options, folder, progress)
        about = {"metric": "answer_prob", "unit": "probability"}
    return _graph(found, chosen, _Rule(top, min_share, seed), {"tl_multitrace": __version__, **about})


def _all_components(model: Any) -> HookGroups:
    return heads(model) + mlps(model) if Points.of(model).layers("mlp", "out") else heads(model)


# ---------------------------------------------------------------------- effects, fact by fact


def _of_model(
    model: Any, facts: Any, options: TraceOptions, folder: str | Path | None, progress: bool | None
) -> list[Mediation]:
    if facts is None:
        raise ValueError("there are no facts: give (prompt, subject, answer) tuples, or a file of facts.")
    runs = FactRuns(model, as_facts(facts), options, None if folder is None else Path(folder))
    grids: list[TraceGrid] = []
    with bar(len(runs.facts), "facts", progress, leave=True) as shown:
        for grid in runs.grids(ticking(shown, lambda: so_far(grids))):
            grids.append(grid)
    if not grids:
        raise ValueError(f"no fact is left of {len(runs.facts)}: {runs.left_out()}. Pass known_only=False to keep all.")
    kept = [fact for fact in runs.facts if fact.id not in runs.dropped]
    return [
        Mediation(fact.id, f"{fact.prompt}{grid.answer}", grid.indirect_effect, grid.total_effect)
        for fact, grid in zip(kept, grids, strict=True)
    ]


def _names(pairs: PromptPairs, facts: Any) -> list[str]:
    if facts is None:
        return [str(i) for i in range(len(pairs))]
    if isinstance(facts, str) or len(facts) != len(pairs):
        raise ValueError(f"{len(facts)} names of facts for {len(pairs)} prompt pairs: give one per pair.")
    return [str(name) for name in facts]


def _of_tracer(tracer: Tracer, facts: Any, groups: HookGroups | None, progress: bool | None) -> list[Mediation]:
    if groups is not None:
        raise ValueError("a tracer brings its own hook groups: leave out groups=, or pass the model instead.")
    names = _names(tracer.pairs, facts)
    effects = Sweep(tracer).effects(progress)
    total = tracer.effect(torch.ones(len(tracer.groups))).cpu()
    base = tracer.pairs.to_dataframe()["base"].tolist()
    found = []
    for name in dict.fromkeys(names):
        rows = [i for i, other in enumerate(names) if other == name]
        found.append(Mediation(name, str(base[rows[0]]) if facts is None else name, effects[rows], total[rows]))
    return found


# ---------------------------------------------------------------------- the graph


@dataclass(frozen=True)
class _Rule:
    """Which components count as a fact's mediators."""

    top: int
    min_share: float
    seed: int

    def mediators(self, fact: Mediation, total: float) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers and edge attributes of those of the largest effect."""
        means, left = fact.effects.double().mean(0), self.top
        whole = Score.of(fact.total.double().numpy(), seed=self.seed)
        for number in torch.argsort(-means.abs(), stable=True).tolist():
            mean = float(means[number])
            if not left or not mean or abs(mean) < self.min_share * abs(total):
                return
            score = Score.of(fact.effects[:, number].double().numpy(), seed=self.seed)
            if score.low is not None and not score.clear:
                continue
            left -= 1
            share = {"share": mean / total} if total and not undefined(whole) else {}
            ends = {} if score.low is None else {"low": score.low, "high": score.high}
            yield number, {"effect": mean, **ends, "n": score.n, **share}


def _graph(found: Sequence[Mediation], groups: HookGroups, rule: _Rule, facts: dict[str, Any]) -> nx.Graph:
    import networkx as nx

    graph = nx.Graph(**facts)
    for fact in found:
        total, name = float(fact.total.double().mean()), f"fact {fact.id}"
        graph.add_node(name, bipartite=FACT, kind="fact", label=fact.label, total=total)
        for number, edge in rule.mediators(fact, total):
            c = groups.components[number]
            graph.add_node(c.label, bipartite=MEDIATOR, kind=c.kind, layer=c.layer, label=c.label)
            graph.add_edge(name, c.label, unit=facts["unit"], **edge)
    for node, attributes in graph.nodes(data=True):
        if attributes["bipartite"] == MEDIATOR:
            attributes["facts"] = graph.degree(node)
    return graph
