"""Multi-component causal tracing (Yan et al., ACL 2026, arXiv:2606.03085): which solver finds how much, at what cost.

WinoBias and WinoGender over attention patterns of heads, professions and CounterFact over MLP output dimensions, in the
paper's settings (see the tasks' ``setting="paper"``). The paper scores a set on the prompts that it was found on; here
that number stands beside the same set's effect on held-out prompts. Effects are means over prompts.

The paper's numbers for GPT-2 medium and XL are taken from a public summary of it, which names the file it was read in;
what is not in there stands as not published as a number, although the paper may plot it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tl_multitrace.reproduce.experiment import Request, Work, scored
from tl_multitrace.reproduce.result import Curve, Published, Reproduction, Row
from tl_multitrace.solvers import PGBCT, SolverComparison, SubsetPath, compare_solvers, solver_by_name
from tl_multitrace.solvers.path import Choice
from tl_multitrace.solvers.select import Solver
from tl_multitrace.spec import budgets_from_text, describe_components
from tl_multitrace.tasks import Task, task
from tl_multitrace.tasks.registry import info_of
from tl_multitrace.tracer import Tracer

PAPER = "Yan et al., ACL 2026, arXiv:2606.03085"
SUMMARY = f"{PAPER}, read in the summary at papernotes.org"
SHARES = (0.1, 0.2, 0.3, 0.4)
"""The paper's budgets, as shares of all components."""

Numbers = Mapping[str, Mapping[str, tuple[float, ...]]]
"""Per model and solver, the published effects at :data:`SHARES`; NaN where only one of them is known."""

NOT_KNOWN = float("nan")
WINOGENDER: Numbers = {
    "gpt2-medium": {
        "top-k": (0.191, 0.201, 0.203, 0.205),
        "greedy": (0.208, 0.224, 0.232, 0.237),
        "PGB-CT": (0.203, 0.218, 0.227, 0.233),
    }
}
WINOBIAS: Numbers = {
    "gpt2-medium": {
        "top-k": (0.374, 0.378, 0.389, 0.388),
        "greedy": (0.391, 0.406, 0.415, 0.420),
        "PGB-CT": (0.381, 0.394, 0.401, 0.404),
    },
    "gpt2-xl": {
        "top-k": (NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, 0.539),
        "PGB-CT": (NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, 0.576),
    },
}


@dataclass(frozen=True)
class MultiComponent:
    """One data set of the paper.

    Attributes:
        name: of the experiment.
        task: whose ``setting="paper"`` it is.
        title: in one line.
        model: published default.
        solvers: names; ``"pgbct"`` takes the paper's settings.
        published: effects that could be found as numbers.
        source: publication.
    """

    name: str
    task: str
    title: str
    model: str = "gpt2"
    solvers: tuple[str, ...] = ("pgbct", "top-k", "screened")
    published: Numbers = field(default_factory=dict)
    source: str = PAPER

    def check(self, request: Request) -> None:
        """A file where the task reads one, solvers and budgets that can be read."""
        info = info_of(self.task)
        if info.data and request.data is None:
            raise ValueError(f"{self.name} reads a file that does not ship with the package: {info.data}. Pass --data.")
        for name in request.solvers:
            solver_by_name(name)
        if request.budget is not None:
            budgets_from_text(request.budget, 1 << 30)

    def run(self, work: Work) -> Reproduction:
        """Compare the solvers over the budgets."""
        request, made = work.request, self._task(work)
        groups = made.hook_groups(work.model)
        search, held = (made.pairs, None) if not request.held_out else made.pairs.split(1 - request.held_out)
        work.tell(f"  {made.kept} prompt pairs, {0 if held is None else len(held)} of them held out")
        work.tell(f"Searching {describe_components(work.model, groups)}")
        tracer = Tracer(work.model, search, groups, made.metric, made.intervention, progress=work.progress)
        budgets = self._budgets(request, len(groups))
        found = compare_solvers(tracer, budgets, self._solvers(request), held_out=held, seed=request.seed)
        work.extras["comparison.json"] = found
        work.settings |= {"task": self.task, "components": made.groups, "metric": made.metric.name}
        work.settings |= {"kept": made.kept, "dropped": sum(made.dropped.values()), "budgets": list(budgets)}
        work.equivalents += sum(path.cost.get("equivalents", 0.0) for path in found.paths.values())
        if held is not None:
            work.notes.append("the sets are searched on a part of the prompts; the paper searches and scores on all")
        self._tabulate(work, found, tracer)
        return work.finish(self, ("number of components", f"mean effect ({made.metric.unit})"))

    def _task(self, work: Work) -> Task:
        options: dict[str, Any] = {} if work.request.data is None else {"path": work.request.data}
        info = info_of(self.task)
        setting = "paper" if "paper" in info.settings else None
        if self.task == "professions" and work.request.data is None:
            work.notes.append("professions and templates are the package's own; pass --data for the paper's lists")
        n = work.prompts(info.in_setting(setting).n)
        return task(self.task, work.model, n, work.request.seed, setting=setting, **options)

    def _budgets(self, request: Request, n_groups: int) -> tuple[int, ...]:
        if request.budget is not None:
            found = budgets_from_text(request.budget, n_groups)
            if isinstance(found, Mapping):
                raise ValueError(f"{self.name} compares sets of one kind of component: give numbers, such as 5,10,20.")
            return found
        shares = SHARES[:2] if request.quick else SHARES
        return tuple(sorted({max(1, round(share * n_groups)) for share in shares}))

    def _solvers(self, request: Request) -> dict[str, Solver]:
        names = request.solvers or (self.solvers[:2] if request.quick else self.solvers)
        made = {}
        for name in names:
            solver = solver_by_name(name)
            if isinstance(solver, PGBCT):
                solver = PGBCT(path=True, epochs=2, runs=2) if request.quick else PGBCT(path=True, shuffle=True)
            made[solver.name] = solver
        return made

    def _tabulate(self, work: Work, found: SolverComparison, tracer: Tracer) -> None:
        theirs = self._of_model(work)
        for name, path in found.paths.items():
            self._add_solver(work, name, path, tracer, theirs)
        if not theirs:
            self._only_theirs(work)

    def _of_model(self, work: Work) -> dict[str, tuple[float, ...]]:
        """The published numbers of the model at hand."""
        name = work.view.name.rsplit("/", 1)[-1]
        return dict(self.published.get(name, {}))

    def _add_solver(
        self, work: Work, name: str, path: SubsetPath, tracer: Tracer, theirs: Mapping[str, tuple[float, ...]]
    ) -> None:
        n = len(path.groups)
        for choice in path.choices:
            share = choice.size / n
            held = None if choice.held_out is None else choice.held_out.mean
            published = published_value(theirs.get(name, ()), choice.size, n, work.view.name)
            what = f"{name}, {choice.size} components ({share:.0%})"
            work.rows.append(scored(what, tracer.metric.unit, choice.score, held_out=held, published=published))
        work.curves += _curves(name, path.choices)
        if name in theirs:
            known = [(round(s * n), y) for s, y in zip(SHARES, theirs[name], strict=True) if y == y]
            x, y = zip(*known, strict=True)
            work.curves.append(Curve(f"{name}, published", x, y, "published"))

    def _only_theirs(self, work: Work) -> None:
        """Rows of the published models, for want of numbers of the model at hand."""
        for model, solvers in self.published.items():
            for name, values in solvers.items():
                for share, value in zip(SHARES, values, strict=True):
                    if value == value:
                        what = f"{name}, {share:.0%} of the components of {model}"
                        theirs = Published(value, model, SUMMARY)
                        work.rows.append(Row(what, "relative change of odds", None, published=theirs))


def published_value(values: tuple[float, ...], size: int, n: int, model: str) -> Published | None:
    """The published number for a budget, where it is one of the paper's shares of ``n`` components."""
    for share, value in zip(SHARES, values, strict=False):
        if size == round(share * n) and value == value:
            return Published(value, model, SUMMARY)
    return None


def _curves(name: str, choices: tuple[Choice, ...]) -> list[Curve]:
    x = tuple(float(c.size) for c in choices)
    known = [(c.score.low, c.score.high) for c in choices if c.score.low is not None and c.score.high is not None]
    low, high = zip(*known, strict=True) if len(known) == len(choices) else ((), ())
    made = [Curve(name, x, tuple(c.score.mean for c in choices), low=tuple(low), high=tuple(high))]
    held = [(float(c.size), c.held_out.mean) for c in choices if c.held_out is not None]
    if held:
        made.append(Curve(name, tuple(s for s, _ in held), tuple(v for _, v in held), "dashed"))
    return made


EXPERIMENTS = (
    MultiComponent(
        "winobias", "winobias", "Gender bias in WinoBias: joint effect of attention heads", published=WINOBIAS
    ),
    MultiComponent(
        "winogender", "winogender", "Gender bias in Winogender: joint effect of attention heads", published=WINOGENDER
    ),
    MultiComponent(
        "professions",
        "professions",
        "Gender stereotypes of professions: joint effect of MLP output dimensions",
        solvers=("pgbct", "attribution"),
    ),
    MultiComponent(
        "counterfact",
        "counterfact",
        "CounterFact: joint effect of MLP output dimensions on a fact",
        "distilgpt2",
        solvers=("pgbct", "attribution"),
    ),
)
