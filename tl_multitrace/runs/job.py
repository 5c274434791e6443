"""The whole job behind the command line: a model and prompts in, a scored circuit out. Nothing is written here."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tl_multitrace.cost import HookError, Ledger
from tl_multitrace.distributed import ALONE, Ranks
from tl_multitrace.evaluation import evaluate, side_effects, stability
from tl_multitrace.flow import expected_cost, information_flow
from tl_multitrace.groups import HookGroups, mlps
from tl_multitrace.interventions import intervention_by_name
from tl_multitrace.loading import load_model, set_bos
from tl_multitrace.metrics import LogitDiff, OddsRatio, metric_by_name
from tl_multitrace.models.compat import ModelView
from tl_multitrace.objective import Goal, Objective
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.runs.bounds import constraints_of
from tl_multitrace.runs.checkpoint import Checkpoint
from tl_multitrace.runs.run import Run
from tl_multitrace.solvers import Solver, SubsetPath, select, solver_by_name
from tl_multitrace.spec import budgets_from_text, describe_components, groups_from_text
from tl_multitrace.tasks import Task, task, task_from_file, tasks
from tl_multitrace.tasks.registry import IN_PACKAGE, Direction
from tl_multitrace.tasks.sieve import Alignment
from tl_multitrace.tracer import Tracer

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What to search, in which model, on which prompts; all of it plain text and numbers.

    Attributes:
        model: hub name, local folder or ``"demo"``.
        task: name of a task; None where ``prompts`` is given.
        prompts: file of prompts, or ``hf:name``, as :func:`~tl_multitrace.tasks.task_from_file` takes it.
        data: file of the task, where it reads one that others publish.
        components: as :func:`~tl_multitrace.spec.groups_from_text` takes them; default the task's.
        budget: as :func:`~tl_multitrace.spec.budgets_from_text` takes it.
        solver: name of a solver; default the package's default.
        intervention: name; default the task's.
        metric: name; default the task's.
        direction: default the task's.
        n: prompts to use, at most.
        held_out: share of the prompts kept for scoring afterwards; 0 for none.
        stability: searches to repeat on resampled prompts; 0 for none.
        max_cost: forward equivalents that the search, and each repetition of it, may take; None for any number.
        keep: tasks whose metric may change only so far, ``"neutral_text=0.02"``; see ``bounds.py``.
        align: what happens to prompts of different token length.
        bos: whether prompts begin with a BOS token; default: what TransformerLens does for the model.
        seed: of prompts, split, search and intervals.
        device: default a GPU where there is one.
        dtype: of the weights.
        trust_remote_code: run Python code that comes with the model.
        memory_limit: of activations, as :class:`~tl_multitrace.Tracer` takes it.
    """

    model: str = "demo"
    task: str | None = None
    prompts: str | None = None
    data: str | None = None
    components: str | None = None
    budget: str = "10"
    solver: str | None = None
    intervention: str | None = None
    metric: str | None = None
    direction: Direction | None = None
    n: int | None = None
    held_out: float = 0.3
    stability: int = 5
    max_cost: float | None = None
    keep: tuple[str, ...] = ()
    align: Alignment = "drop"
    bos: bool | None = None
    seed: int = 0
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    trust_remote_code: bool = False
    memory_limit: int | str | None = None

    def arguments(self) -> dict[str, Any]:
        """The job as a record for ``run.json``; of the data file its name, since its folder says nothing elsewhere."""
        return {**asdict(self), "data": self.data and Path(self.data).name}


@dataclass
class Log:
    """What happened while a job ran.

    Attributes:
        tell: called with a line for the user at each step.
        timings: seconds per step.
        cost: of the search, in forward equivalents.
        steps: cost per step, everything that ran counted, in runs of single prompt pairs.
        facts: what a run's record says beside its arguments.
        device: that the model is on.
    """

    tell: Tell = lambda line: None
    timings: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    device: torch.device | None = None
    _ledger: Ledger = field(default_factory=Ledger)

    @contextlib.contextmanager
    def step(self, name: str, line: str) -> Iterator[None]:
        """Tell the user, and take time and cost, also of a step that fails."""
        self.tell(line)
        logger.info("%s", line)
        began, before = time.perf_counter(), self._ledger.total()
        try:
            with self._ledger.open():
                yield
        finally:
            self.timings[name] = round(time.perf_counter() - began, 3)
            cost = self._ledger.total() - before
            if cost.equivalents:
                self.steps[name] = {"forwards": round(cost.forwards, 3), "backwards": round(cost.backwards, 3)}
            logger.info("%s: %.1f s, %.0f prompt runs", name, self.timings[name], cost.equivalents)


def run_job(
    job: Job, log: Log, *, progress: bool = False, ranks: Ranks = ALONE, checkpoint: Checkpoint | None = None
) -> Run:
    """Load, trace, select and score.

    Args:
        job: what to do.
        log: told of each step.
        progress: show the search's progress bars.
        ranks: processes that share the prompts.
        checkpoint: where results are kept on the way, and taken from.

    Returns:
        The measured run: path, circuit for the largest budget, per-prompt effects and views.

    Raises:
        ValueError: a name or number that the model or the prompts don't support; the message says what to type.
    """
    with _threads(1 if job.model == "demo" else None):
        return _run_job(job, log, progress and ranks.first, ranks, checkpoint)


def _run_job(job: Job, log: Log, progress: bool, ranks: Ranks, checkpoint: Checkpoint | None) -> Run:
    with log.step("model", f"Loading {job.model}"), contextlib.redirect_stdout(sys.stderr):
        model = load_model(job.model, job.device, job.dtype, trust_remote_code=job.trust_remote_code)
        set_bos(model, job.bos)
    log.device = ModelView(model).device
    if checkpoint is not None:
        ranks.after_first(lambda: checkpoint.claim(ModelView(model).describe()))
    with log.step("prompts", f"Making prompts: {job.task or job.prompts}"):
        made = make_task(job, model)
        search, held = split_pairs(made.pairs, job)
        groups = groups_from_text(model, job.components or made.groups)
        budgets = budgets_from_text(job.budget, len(groups))
    log.facts |= {"title": _title(made, job.model), "question": made.question, "task": made.name}
    log.facts |= {"kept": made.kept, "dropped": dict(made.dropped)}
    log.facts |= _data_name(job)
    _tell_prompts(log, made, search, held)
    with log.step("search", f"Searching {describe_components(model, groups)}, budget {job.budget}"):
        kept: dict[str, Any] = {"distributed": ranks, "cache_dir": None if checkpoint is None else checkpoint.found}
        kept |= {"progress": progress, "memory_limit": job.memory_limit}
        tracer = Tracer(model, search, groups, made.metric, made.intervention, **kept)
        solver = None if job.solver is None else solver_by_name(job.solver)
        path = _search(job, made, tracer, held, budgets, solver)
    with log.step("scores", "Scoring the circuit, prompt by prompt"):
        path = replace(path, provenance={**path.provenance, "task": made.name, **_data_name(job)})
        circuit = path[path.sizes[-1]]
        _ = circuit.marginals, (circuit.chance if held is None or job.keep else None)  # else chance is of held-out ones
        log.cost |= path.cost
        title = str(log.facts["title"])
        run = Run(path, circuit, tracer=tracer, held_out=held, title=title, facts=log.facts).measured()
    return _with_side_effects(_judged(_with_flow(run, tracer, log), job, log, budgets), made, job, log)


def _search(
    job: Job, made: Task, tracer: Tracer, held: PromptPairs | None, budgets: Any, solver: Solver | None
) -> SubsetPath:
    how: dict[str, Any] = {"seed": job.seed, "max_cost": job.max_cost}
    if not job.keep:
        return select(tracer, budgets, solver, direction=made.direction, held_out=held, **how)
    constraints, unseen = constraints_of(job.keep, tracer, seed=job.seed, held_out=held is not None)
    objective = Objective([Goal(made.name, tracer, direction=made.direction)], constraints)
    seen_later = None if held is None else {made.name: held, **unseen}
    return select(objective, budgets, solver, held_out=seen_later, **how)


FLOW_COST = 0.3
"""What tracing the edges between components may cost, as a share of the search's cost."""

FLOW_PROMPTS = 8
"""Fewest prompts that edges are measured on."""


def _with_flow(run: Run, tracer: Tracer, log: Log) -> Run:
    """The run with its flow graph, as far as there can be one and it is cheap beside the search.

    Ratios of odds are measured by their logarithm, in which the effects of edges one after the other are of one size.
    """
    if isinstance(tracer.metric, OddsRatio):
        tracer = tracer.on(metric=LogitDiff(reduce=tracer.metric.reduce))
    try:
        through, n = _affordable(run, tracer)
        if not n:
            log.tell(
                f"Edges between the {len(run.circuit)} components left out: they would take longer than the search"
            )
            return run
        with log.step("flow", f"Tracing edges between the components, on {n} prompts"):
            pairs = tracer.pairs.split(n / tracer.n, seed=0)[0] if n < tracer.n else tracer.pairs
            return replace(run, flow=information_flow(run.circuit, tracer, pairs=pairs, through=through))
    except (ValueError, HookError) as error:  # residual states, windows of layers: a circuit need not have edges
        log.tell(f"Edges between the components left out: {error}")
        return run


def _affordable(run: Run, tracer: Tracer) -> tuple[HookGroups | None, int]:
    """Whether to trace edges through all MLP layers too, and on how many prompts; 0 where neither is cheap."""
    budget = FLOW_COST * float(run.path.cost.get("equivalents", 0))
    for through in (mlps(tracer.model), None) if tracer.view.d_mlp else (None,):
        n = min(tracer.n, int(budget / expected_cost(run.circuit, tracer, through) * tracer.n))
        if n >= min(FLOW_PROMPTS, tracer.n):
            return through, n
    return None, 0


def _judged(run: Run, job: Job, log: Log, budgets: Any) -> Run:
    """The run with its circuit judged on held-out prompts, and its search repeated on resampled ones."""
    tracer, facts = run.tracer, run.path.provenance
    if run.held_out is not None:
        with log.step("evaluation", f"Judging the circuit on {len(run.held_out)} held-out prompts"):
            found = evaluate(run.circuit, run.held_out, seed=job.seed)
            circuit = run.circuit
            if not job.keep:  # under bounds, chance is of sets that keep them
                facts = {**circuit.provenance, "chance_on": "the held-out prompts"}
                circuit = circuit.with_scores(chance=found.ablations[0].chance, provenance=facts)
            run = replace(run, circuit=circuit, evaluation=found)
    if job.stability and tracer is not None:
        with log.step(
            "stability", f"Searching again on {job.stability} resamples of the prompts (--stability 0: none)"
        ):
            solver = None if job.solver is None else solver_by_name(job.solver)
            budget = budgets if isinstance(budgets, Mapping) else run.path.sizes[-1]
            direction: Direction = "minimize" if facts.get("direction") == "minimize" else "maximize"
            target = run.path.objective or tracer
            how: dict[str, Any] = {"budget": budget, "direction": direction, "max_cost": job.max_cost}
            again = stability(target, solver, job.stability, job.seed, **how)
            run = replace(run, stability=again)
    return run


SIDE_COST = 0.15
"""What measuring side effects may cost, as a share of the search's cost."""

SIDE_PROMPTS = (8, 64)
"""Fewest and most prompts per behaviour."""

NEUTRAL = "neutral_text"
"""The task that a circuit should leave alone before all others."""


def _with_side_effects(run: Run, made: Task, job: Job, log: Log) -> Run:
    """The run with what switching its circuit off does to its own task and to the others that this model can say."""
    tracer = run.tracer
    if tracer is None or not len(run.circuit):
        return run
    allowed = _side_prompts(run, tracer)
    most = allowed // SIDE_PROMPTS[0]
    if not most:
        log.tell("Side effects left out: they would take long beside the search")
        return run
    own = replace(made, pairs=tracer.pairs if run.held_out is None else run.held_out)
    others = {made.name: own, **_other_tasks(made.name, tracer.model, most - 1, job.seed)}
    n = min(SIDE_PROMPTS[1], allowed // len(others))
    chosen = {name: (one.pairs[:n], one.metric) for name, one in others.items()}
    try:
        with log.step("side_effects", f"Switching the circuit off in {len(chosen)} behaviours, up to {n} prompts each"):
            return replace(run, side_effects=side_effects(run.circuit, chosen, seed=job.seed))
    except (ValueError, HookError) as error:  # components at positions that other prompts do not have
        log.tell(f"Side effects left out: {error}")
        return run


def _other_tasks(own: str, model: Any, most: int, seed: int) -> dict[str, Task]:
    """Tasks that need no file of others and that the model's tokenizer can say, at most so many; plain text first."""
    table = tasks()
    names = [str(name) for name in table["name"][table["data"] == IN_PACKAGE] if name != own]
    found: dict[str, Task] = {}
    for name in sorted(names, key=lambda name: (name != NEUTRAL, name)):
        if len(found) == most:
            break
        with contextlib.suppress(ValueError):
            found[name] = task(name, model, n=SIDE_PROMPTS[1], seed=seed)
    return found


def _side_prompts(run: Run, tracer: Tracer) -> int:
    """How many prompts of all behaviours together are cheap beside the search.

    Each runs twice before and twice after, the search's own prompts once for their means.
    """
    runs = SIDE_COST * float(run.path.cost.get("equivalents", 0)) * tracer.n - tracer.n
    return max(0, int(runs / 4))


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch's threads for the duration: the demo model is so small that a second one only waits, and waits actively."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_task(job: Job, model: Any) -> Task:
    """The job's task on a model, with the job's own metric, intervention and direction where it names them."""
    if (job.task is None) == (job.prompts is None):
        raise ValueError("a job needs a task or a prompts file, and not both.")
    if job.data is not None and job.task is None:
        raise ValueError("data is the file of a task: give the task too, or the file as prompts.")
    if job.prompts is not None:
        made = task_from_file(job.prompts, model, align=job.align)
        made = made if job.n is None else replace(made, pairs=made.pairs[: job.n])
    else:
        options: dict[str, Any] = {} if job.data is None else {"path": job.data}
        made = task(str(job.task), model, n=job.n, seed=job.seed, align=job.align, **options)
    changes: dict[str, Any] = {}
    if job.metric is not None:
        changes["metric"] = metric_by_name(job.metric)
    if job.intervention is not None:
        changes["intervention"] = intervention_by_name(job.intervention)
    if job.direction is not None:
        changes["direction"] = job.direction
    return replace(made, **changes)


def _data_name(job: Job) -> dict[str, str]:
    """The name of the task's file, where it reads one, for provenance."""
    return {} if job.data is None else {"data": Path(job.data).name}


def split_pairs(pairs: PromptPairs, job: Job) -> tuple[PromptPairs, PromptPairs | None]:
    """Prompts of the search, and held-out prompts that only score it."""
    return (pairs, None) if job.held_out == 0 else pairs.split(1 - job.held_out, seed=job.seed)


def _tell_prompts(log: Log, made: Task, search: PromptPairs, held: PromptPairs | None) -> None:
    unseen = f", {len(held)} of them held out" if held is not None else ""
    log.tell(f"  {made.kept} prompt pairs{unseen}")
    for why, count in made.dropped.items():
        log.tell(f"  {count} left out: {why}")


def _title(made: Task, model: str) -> str:
    return f"{made.name} in {Path(model).name if Path(model).is_dir() else model}"
