"""``select``: the verb. A solver is data; the loop around it, the bookkeeping and the scoring are here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from tl_multitrace.groups import Component, HookGroups
from tl_multitrace.models.ambient import neutral
from tl_multitrace.objective import Aim, Objective, aim_of
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.stats import Score
from tl_multitrace.solvers.certify import certificate
from tl_multitrace.solvers.path import Choice, SubsetPath
from tl_multitrace.solvers.screened import ScreenedSearch
from tl_multitrace.solvers.search import CostReached, Direction, Search, Subset, subset
from tl_multitrace.tracer import Tracer

logger = logging.getLogger(__name__)


@runtime_checkable
class Solver(Protocol):
    """Hyperparameters and one method; see ``Search`` for what it may ask.

    Examples:
        >>> from tl_multitrace.solvers import Solver
        >>> isinstance(mt.Greedy(), Solver)
        True
    """

    name: str

    def search(self, search: Search) -> None:
        """Evaluate subsets; the best seen per size is the result."""
        ...


@neutral()
def select(
    tracer: Tracer | Objective,
    budgets: int | Iterable[int] | Mapping[str, int],
    solver: Solver | None = None,
    *,
    direction: Direction = "maximize",
    seed: int = 0,
    held_out: PromptPairs | Mapping[str, PromptPairs] | None = None,
    forced: Iterable[int | str | Component] = (),
    forbidden: Iterable[int | str | Component] = (),
    max_cost: float | int | None = None,
    progress: bool | None = None,
) -> SubsetPath:
    """Choose the subset of at most S hook groups that moves the metric most, for every budget S.

    Args:
        tracer: model, prompts, groups and metric; or an :class:`~tl_multitrace.Objective` of several goals, whose
            weighted sum is the effect and whose constraints every choice keeps.
        budgets: largest subset sizes, or one; each from 1 to the number of groups. A mapping such as
            ``{"head": 5, "neuron": 50}`` allows so many of each kind (with one budget, cheap neurons crowd the heads
            out).
        solver: how to search; default :class:`~tl_multitrace.solvers.screened.ScreenedSearch`.
        direction: ``"maximize"`` or ``"minimize"`` the mean effect.
        seed: of whatever is random in the solver, the bootstrap and the random baseline.
        held_out: prompts to score every choice on afterwards; never used to choose. For an objective, by goal:
            ``{"bias": pairs}``.
        forced: groups (index, label or component) in every subset; they count against the budget.
        forbidden: groups in none.
        max_cost: forward equivalents that the search may take, over the prompt set (of an objective, over all of them
            together). A search that would take more stops before it does: ``path.success`` is then False,
            ``path.message`` says what was spent, and the choices are the best sets seen. Scoring them is not counted.
        progress: show progress bars; default: the tracer's setting.

    Returns:
        The best subset seen within each budget: ``path[S]`` has at most S groups, and its mean effect is no worse than
        ``path[S-1]``'s.

    Raises:
        ValueError: a budget below 1 or above the number of groups, unknown direction, groups both forced and forbidden,
            an objective that is to be minimised, forced groups that break its constraints, or a ``max_cost`` that not
            even the empty set can be scored within.
        TypeError: neither a tracer nor an objective.

    Examples:
        >>> train, held_out = task.pairs.split(0.5, seed=0)
        >>> tracer = mt.Tracer(model, train, mt.heads(model), task.metric)
        >>> path = mt.select(tracer, [1, 2], held_out=held_out)
        >>> path[2].labels, path[2].held_out.n
        (['L0H3', 'L0H5'], 8)
    """
    solver = default_solver() if solver is None else solver
    aim = aim_of(tracer)
    tracer.forget()
    search = make_search(tracer, budgets, direction, seed, forced, forbidden, max_cost)
    search.show_progress = tracer.progress if progress is None else progress and aim.tracers[0].ranks.first
    logger.info("%s: %d components, budgets %s, %s", solver.name, search.n, _listed(search.budgets), direction)
    before, began = tracer.cost.copy(), time.perf_counter()
    with tracer.session(), torch.enable_grad(), ExitStack() as stack:  # whatever the caller's notebook has switched off
        stack.callback(tracer.flush)  # what was found reaches the disk whatever happens
        with suppress(CostReached):
            search.score(())
            solver.search(search)
        if not search.evaluated:
            raise ValueError(f"max_cost={max_cost} does not even pay for the empty set: pass a larger one.")
        cost, seconds = tracer.cost - before, time.perf_counter() - began
        choices = _choices(aim, None if held_out is None else aim.on(held_out), search)
        full = aim.measure(torch.ones(search.n), search.sign, seed)
    message = search.message(cost.equivalents)
    warnings = [*([message] if search.stopped else []), *overfit_notes(choices, search.sign)]
    for warning in warnings:
        logger.warning("%s", warning)
    logger.info(
        "%s: best effect %.4g of %.4g with everything on, %.1f forward equivalents, %.1f s",
        solver.name, choices[-1].score.mean, full.mean, cost.equivalents, seconds,
    )  # fmt: skip
    options: dict[str, Any] = {f.name: getattr(solver, f.name) for f in fields(solver)} if is_dataclass(solver) else {}
    spent = {name: getattr(cost, name) for name in ("forwards", "backwards", "equivalents")} | {"seconds": seconds}
    facts = aim.provenance() | {
        "direction": direction,
        "seed": seed,
        "solver": {"name": solver.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}},
        "cost": spent,
        "outcome": {"success": not search.stopped, "message": message},
    }
    objective = tracer if isinstance(tracer, Objective) else None
    notes = (*search.notes, *warnings)
    return SubsetPath(tracer.groups, choices, full.mean, notes, facts, aim.tracers[0], objective, full)


def make_search(
    tracer: Tracer | Objective,
    budgets: int | Iterable[int] | Mapping[str, int],
    direction: str,
    seed: int,
    forced: Iterable[int | str | Component],
    forbidden: Iterable[int | str | Component],
    max_cost: float | int | None,
) -> Search:
    """The search that a solver works on; what :func:`select` is given is checked as it says."""
    groups = tracer.groups
    if direction not in ("maximize", "minimize"):
        raise ValueError(f"direction must be 'maximize' or 'minimize', got {direction!r}.")
    if isinstance(tracer, Objective) and direction != "maximize":
        raise ValueError("an objective is maximised: give its goals their own direction.")
    if max_cost is not None and not 0 < max_cost < math.inf:
        raise ValueError(f"max_cost is a number of forward equivalents above 0, such as 100, got {max_cost!r}.")
    limits = check_limits(budgets, groups) if isinstance(budgets, Mapping) else {}
    sizes = check_budgets(sum(limits.values()) if isinstance(budgets, Mapping) else budgets, len(groups))
    keep, drop = (subset(i if isinstance(i, int) else groups.index(i) for i in which) for which in (forced, forbidden))
    if both := set(keep) & set(drop):
        raise ValueError(f"{groups.labels[min(both)]} is both forced and forbidden.")
    if len(keep) > sizes[0]:
        raise ValueError(f"{len(keep)} forced groups do not fit the smallest budget {sizes[0]}.")
    allowed = np.ones(len(groups), dtype=bool)
    allowed[list(drop)] = False
    most = None if max_cost is None else float(max_cost)
    return Search(tracer, sizes, 1 if direction == "maximize" else -1, seed, allowed, keep, limits, max_cost=most)


def _listed(budgets: Sequence[int]) -> str:
    return ", ".join(map(str, budgets)) if len(budgets) <= 6 else f"{budgets[0]} to {budgets[-1]} ({len(budgets)})"


def overfit_notes(choices: Sequence[Choice], sign: int) -> list[str]:
    """A warning where the search's prompts show more effect than held-out ones, beyond what intervals explain."""
    known = [(c.size, c.score, c.held_out) for c in choices if c.held_out is not None]
    inflated = [(b, s, h) for b, s, h in known if s.beyond(h.mean, sign) and h.beyond(s.mean, -sign)]
    if not inflated:
        return []
    size, own, held = inflated[-1]
    budgets = ", ".join(str(b) for b, _, _ in inflated)
    return [
        "the effect on the search's own prompts is larger than on held-out ones by more than their intervals explain, "
        f"at budgets {budgets} (budget {size}: {own.mean:.3g} against {held.mean:.3g}): quote the held-out effect, or "
        "search on more prompts"
    ]


def default_solver() -> Solver:
    """The solver used where none is named: :class:`~tl_multitrace.solvers.screened.ScreenedSearch`."""
    return ScreenedSearch()


def check_budgets(budgets: int | Iterable[int], n: int) -> tuple[int, ...]:
    """Budgets, ascending and distinct.

    Raises:
        ValueError: none, not whole numbers, below 1 or above ``n``.
    """
    given = [budgets] if isinstance(budgets, int | np.integer) else list(budgets)
    if not given or any(int(b) != b for b in given):
        raise ValueError(f"budgets must be whole numbers such as 10 or range(1, 26), got {given!r}.")
    if min(given) < 1 or max(given) > n:
        bad = min(given) if min(given) < 1 else max(given)
        raise ValueError(
            f"budget {bad} is outside 1 to {n}, the number of hook groups. Ask for range(1, {min(n, 25) + 1}), say."
        )
    return tuple(sorted({int(b) for b in given}))


def check_limits(limits: Mapping[str, int], groups: HookGroups) -> dict[str, int]:
    """Largest number of groups per kind; kinds that are not named get none.

    Raises:
        ValueError: a kind that is not among the groups, or a limit below 0 or above their number.
    """
    counts = {kind: groups.kinds.count(kind) for kind in dict.fromkeys(groups.kinds)}
    for kind, limit in limits.items():
        if kind not in counts:
            raise ValueError(f"budget for {kind!r}, but the hook groups are of {', '.join(counts)}.")
        if not 0 <= limit <= counts[kind]:
            raise ValueError(f"budget {limit} for {kind!r} is outside 0 to {counts[kind]}, the number of such groups.")
    return {kind: int(limits.get(kind, 0)) for kind in counts}


def _choices(aim: Aim, held: Aim | None, search: Search) -> tuple[Choice, ...]:
    """The best set seen within each budget, scored with intervals; held-out prompts come after the search's own."""
    chosen = {size: search.best_within(size)[1] for size in search.budgets}
    measured: list[dict[Subset, tuple[Score, dict[str, Score]]]] = [{}, {}]
    for on, into in zip((aim, held) if held is not None else (aim,), measured, strict=False):
        for members in dict.fromkeys(chosen.values()):
            mask = search.mask(members)
            into[members] = on.measure(mask, search.sign, search.seed), on.goal_scores(mask, search.seed)
    own, unseen = measured
    stopped = "; stopped at max_cost" if search.stopped else ""
    return tuple(
        Choice(
            size,
            members,
            score=own[members][0],
            loss=aim.loss(search.mask(members), search.sign),
            held_out=unseen[members][0] if unseen else None,
            certificate=certificate(search, members, size) + stopped,
            goals=own[members][1],
            held_out_goals=unseen[members][1] if unseen else {},
        )
        for size, members in chosen.items()
    )
