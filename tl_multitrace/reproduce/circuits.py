"""Published circuits of GPT-2 small: is the behaviour there, do their components keep it, and which do we find?

    kept(C) = F(C) / F(model)      F: the mean metric; F(C): everything but C patched

Indirect objects (Wang et al., ICLR 2023, arXiv:2211.00593): heads outside the circuit are replaced by their mean over
prompts of another meaning. Greater-than (Hanna et al., NeurIPS 2023, arXiv:2305.00586): heads and MLP layers outside it
take the activation of the prompt whose start year ends in 01. The published circuits were patched along paths, and at
chosen tokens; here whole components are, at every token of the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from tl_multitrace.groups import HookGroups, mask_of
from tl_multitrace.interventions import Interchange, Intervention, MeanAblation
from tl_multitrace.metrics import Accuracy, AnswerProb, Metric
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.stats import Score
from tl_multitrace.reproduce.experiment import Request, Work, scored
from tl_multitrace.reproduce.result import Curve, Published, Reproduction, Row
from tl_multitrace.solvers import select, solver_by_name
from tl_multitrace.spec import budgets_from_text, describe_components, groups_from_text
from tl_multitrace.tasks import Task, task
from tl_multitrace.tasks.registry import info_of
from tl_multitrace.tracer import Tracer

IOI = "Wang et al., ICLR 2023, arXiv:2211.00593"
GREATER_THAN = "Hanna et al., NeurIPS 2023, arXiv:2305.00586, as quoted in secondary notes"
SMALL = (12, 12)
"""Layers and heads of GPT-2 small, which the published components are of."""

IOI_HEADS: Mapping[str, Sequence[tuple[int, int]]] = {
    "name mover": ((9, 9), (10, 0), (9, 6)),
    "backup name mover": ((10, 10), (10, 6), (10, 2), (10, 1), (11, 2), (9, 7), (9, 0), (11, 9)),
    "negative name mover": ((10, 7), (11, 10)),
    "S-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
    "induction": ((5, 5), (5, 8), (5, 9), (6, 9)),
    "duplicate token": ((0, 1), (0, 10), (3, 0)),
    "previous token": ((2, 2), (4, 11)),
}
GREATER_THAN_HEADS = ((0, 1), (0, 3), (0, 5), (5, 5), (6, 1), (6, 9), (7, 10), (8, 11), (9, 1))
GREATER_THAN_MLPS = (0, 1, 2, 3, 8, 9, 10, 11)


@dataclass(frozen=True)
class PublishedCircuit:
    """One published circuit.

    Attributes:
        name: of the experiment.
        task: whose source prompts are the ones the model answers right.
        title: in one line.
        source: publication.
        components: as :func:`~tl_multitrace.spec.groups_from_text` takes them.
        members: labels of the published circuit.
        ablation: makes what the rest is patched with.
        numbers: published, by quantity.
        also: further metrics of the whole model, by quantity.
        model: published.
        n: prompts.
    """

    name: str
    task: str
    title: str
    source: str
    components: str
    members: tuple[str, ...]
    ablation: Callable[[], Intervention]
    numbers: Mapping[str, float]
    also: Mapping[str, Metric] = field(default_factory=dict)
    model: str = "gpt2"
    n: int = 200

    def check(self, request: Request) -> None:
        """Known task, one solver, numbers as budget."""
        info_of(self.task)
        if len(request.solvers) > 1:
            raise ValueError(f"{self.name} runs one solver, got {', '.join(request.solvers)}.")
        for name in request.solvers:
            solver_by_name(name)
        if request.budget is not None and isinstance(budgets_from_text(request.budget, 1 << 30), Mapping):
            raise ValueError(f"{self.name} takes plain budgets, such as 1-26, not one for each kind of component.")

    def run(self, work: Work) -> Reproduction:
        """The model's own performance, what the published components keep of it, and what a search finds."""
        made, groups = self._task(work), groups_from_text(work.model, self.components)
        search, held = made.pairs.split(1 - work.request.held_out) if work.request.held_out else (made.pairs, None)
        work.tell(f"  {made.kept} prompt pairs, {0 if held is None else len(held)} of them held out")
        clean = {"search": search.swap()} | ({} if held is None else {"held": held.swap()})
        tracers = {
            name: Tracer(work.model, pairs, groups, made.metric, self.ablation()) for name, pairs in clean.items()
        }
        self._performance(work, tracers, made)
        if (work.view.n_layers, work.view.n_heads) == SMALL:
            self._published_set(work, tracers, groups)
        else:
            work.notes.append(f"{work.view.name} is no GPT-2 small: the published components are not looked for in it")
        self._search(work, made, search, tracers, groups)
        work.settings |= {"task": self.task, "components": self.components, "metric": made.metric.name}
        work.settings |= {"ablation": self.ablation().name}
        work.notes.append("components are patched whole, at every prompt token; the publication patches paths")
        return work.finish(self, ("number of components", "share of the model's performance that is kept"))

    def _task(self, work: Work) -> Task:
        options: dict[str, Any] = {} if work.request.data is None else {"path": work.request.data}
        if not options:
            reads = "path" in inspect.signature(info_of(self.task).make).parameters
            more = "; pass --data for the published ones" if reads else ""
            work.notes.append(f"prompts are this package's own{more}")
        return task(self.task, work.model, work.prompts(self.n), work.request.seed, **options)

    def _performance(self, work: Work, tracers: Mapping[str, Tracer], made: Task) -> None:
        unit = made.metric.unit
        self._add(work, f"F(model): {made.metric.name}", unit, [t.base_metric for t in tracers.values()])
        for what, metric in self.also.items():
            values = [t.on(metric=metric).base_metric for t in tracers.values()]
            self._add(work, what, metric.unit, values)

    def _add(self, work: Work, what: str, unit: str, values: Sequence[Any]) -> None:
        """A row from per-prompt values on the search's prompts and, maybe, the held-out ones."""
        ours, held = _numbers(values[0]), None if len(values) < 2 else float(_numbers(values[1]).mean())
        score = Score.of(ours, seed=work.request.seed)
        work.rows.append(scored(what, unit, score, held_out=held, published=self._number(what)))

    def _number(self, what: str) -> Published | None:
        value = self.numbers.get(what)
        return None if value is None else Published(value, "gpt2", self.source)

    def _published_set(self, work: Work, tracers: Mapping[str, Tracer], groups: HookGroups) -> None:
        mask = groups.as_mask(list(self.members))
        values = [t.base_metric + t.effect(1 - mask) for t in tracers.values()]
        without = [t.base_metric + t.effect(mask) for t in tracers.values()]
        unit = next(iter(tracers.values())).metric.unit
        self._add(work, "F(published circuit)", unit, values)
        self._add(work, "F(without the published circuit)", unit, without)
        shares = [_share(v, t) for v, t in zip(values, tracers.values(), strict=True)]
        held = shares[1] if len(shares) > 1 else None
        what = "kept by the published circuit"
        row = Row(what, "share", shares[0], held_out=held, n=len(values[0]), published=self._number(what))
        work.rows.append(row)
        at, share = float(len(self.members)), self.numbers.get(what)
        work.curves.append(Curve("published components, here", (at,), (shares[0],), "published"))
        if share is not None:
            work.curves.append(Curve("as published", (at,), (share,), "published"))

    def _search(
        self, work: Work, made: Task, search: PromptPairs, tracers: Mapping[str, Tracer], groups: HookGroups
    ) -> None:
        budgets = self._budgets(work, len(groups))
        work.tell(f"Searching {describe_components(work.model, groups)}")
        tracer = Tracer(work.model, search, groups, made.metric, Interchange(), progress=work.progress)
        solver = solver_by_name(work.request.solvers[0]) if work.request.solvers else None
        path = select(tracer, budgets, solver, direction=made.direction, seed=work.request.seed)
        work.equivalents += float(path.cost.get("equivalents", 0.0))
        work.extras["path.json"] = path
        kept = {name: _kept(t, [path.choice(size).members for size in path.sizes]) for name, t in tracers.items()}
        x = tuple(float(size) for size in path.sizes)
        name = str(path.provenance["solver"]["name"])
        work.curves.append(Curve(name, x, tuple(kept["search"])))
        if "held" in kept:
            work.curves.append(Curve(name, x, tuple(kept["held"]), "dashed"))
        for i, size in enumerate(path.sizes):
            held = kept["held"][i] if "held" in kept else None
            what = f"kept by the best {size} found"
            work.rows.append(Row(what, "share", kept["search"][i], held_out=held, n=tracer.n))
        if (work.view.n_layers, work.view.n_heads) == SMALL:
            largest = {groups.labels[i] for i in path.choice(path.sizes[-1]).members}
            common = len(largest & set(self.members)) / len(self.members)
            work.rows.append(Row(f"published components among the best {path.sizes[-1]}", "share", common))

    def _budgets(self, work: Work, n_groups: int) -> tuple[int, ...]:
        if work.request.budget is not None:
            found = budgets_from_text(work.request.budget, n_groups)
            return found if isinstance(found, tuple) else (n_groups,)
        sizes = (1, 2, 4) if work.request.quick else (1, 2, 4, 8, 12, 16, 20, 26, 34)
        return tuple(size for size in sizes if size <= n_groups)


def _kept(tracer: Tracer, sets: Sequence[Sequence[int]]) -> list[float]:
    """Per set, the share of the model's performance that is left with everything else patched."""
    masks = torch.stack([1 - mask_of(len(tracer.groups), members) for members in sets])
    return [_share(tracer.base_metric + effect, tracer) for effect in tracer.effects(masks)]


def _share(values: Any, tracer: Tracer) -> float:
    return float(values.double().mean() / tracer.base_metric.double().mean())


def _numbers(values: Any) -> Float[np.ndarray, " n"]:
    found: Float[np.ndarray, " n"] = values.double().cpu().numpy()
    return found


EXPERIMENTS = (
    PublishedCircuit(
        name="ioi",
        task="ioi",
        title="Indirect object identification: the published heads and the best we find",
        source=IOI,
        components="heads",
        members=tuple(f"L{layer}H{head}" for part in IOI_HEADS.values() for layer, head in part),
        ablation=MeanAblation,
        numbers={
            "F(model): logit_diff": 3.56,
            "indirect object preferred": 0.993,
            "probability of the indirect object": 0.49,
            "F(published circuit)": 3.10,
            "kept by the published circuit": 0.87,
        },
        also={"indirect object preferred": Accuracy(), "probability of the indirect object": AnswerProb()},
    ),
    PublishedCircuit(
        name="greater-than",
        task="greater_than",
        title="Greater-than: the published heads and MLP layers, and the best we find",
        source=GREATER_THAN,
        components="heads,mlps",
        members=(
            *(f"L{layer}H{head}" for layer, head in GREATER_THAN_HEADS),
            *(f"L{layer}MLP" for layer in GREATER_THAN_MLPS),
        ),
        ablation=Interchange,
        numbers={
            "F(model): prob_diff": 0.817,
            "F(published circuit)": 0.727,
            "F(without the published circuit)": -0.366,
            "kept by the published circuit": 0.895,
        },
    ),
)
