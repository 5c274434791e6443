"""The result of a search: the chosen subset for every budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from pydantic import Field

from tl_multitrace.circuit import Circuit
from tl_multitrace.groups import mask_of
from tl_multitrace.models.ambient import neutral
from tl_multitrace.objective import Objective, aim_of
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Record, result
from tl_multitrace.records.stats import Score, random_sets
from tl_multitrace.records.stored import IfFinite, StoredGroups, Unsaved
from tl_multitrace.records.when_read import later
from tl_multitrace.solvers.search import Subset
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
CHANCE_DRAWS = 20
CHANCE_TRIES = 5
FEWEST_DRAWS = 3
HELD_OUT = {"": "mean", "_low": "low", "_high": "high"}


@dataclass(frozen=True)
class Choice:
    """What a search chose for one budget.

    Attributes:
        size: the budget: the largest number of groups allowed.
        members: mask indices of the best subset seen within it.
        score: its effect on the search's prompts.
        loss: the bounded loss that gradient solvers minimise (lower is better), on the same prompts.
        held_out: its effect on held-out prompts.
        chance: effect of random sets of its size and kinds.
        certificate: what is proved about it.
        goals: under an objective, the change of every goal and constraint, by name.
        held_out_goals: the same on held-out prompts.

    Examples:
        >>> path = mt.select(tracer, [1, 2], mt.Greedy())
        >>> choice = path.choice(2)
        >>> choice.size, choice.members, round(choice.score.mean)
        (2, (1, 3), 416)
    """

    size: int
    members: Subset
    score: Score
    loss: IfFinite = None
    held_out: Score | None = None
    chance: Score | None = None
    certificate: str = "not certified"
    goals: Mapping[str, Score] = field(default_factory=dict)
    held_out_goals: Mapping[str, Score] = field(default_factory=dict)


@result("tl_multitrace.path")
@dataclass(frozen=True, repr=False)
class SubsetPath(Record):
    """The best subset seen for every budget; ``path[S]`` is a :class:`Circuit` of at most S groups.

    Attributes:
        groups: all hook groups of the search.
        choices: per budget, ascending.
        full_effect: mean effect of the whole mask.
        full_score: the same with its interval.
        notes: what the solver has to say about its run.
        provenance: model, prompts, metric, intervention, direction, solver, seed, cost, versions.
        tracer: what it was searched on (of an objective, its first goal's); not saved.
        objective: the objective, where it was searched on several goals; not saved.

    Examples:
        >>> path = mt.select(tracer, [1, 2], mt.Greedy())
        >>> path.sizes, [round(effect) for effect in path.effects]
        ([1, 2], [340, 416])
        >>> path[2].labels
        ['L0H1', 'L0H3']
        >>> mt.SubsetPath.load(path.save("path.json")).sizes
        [1, 2]
    """

    groups: StoredGroups
    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]
    full_effect: float
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)
    tracer: Unsaved[Tracer | None] = field(default=None, repr=False, compare=False)
    objective: Unsaved[Objective | None] = field(default=None, repr=False, compare=False)
    full_score: Score | None = None
    _circuits: Unsaved[dict[int, Circuit]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if any(not 0 <= i < len(self.groups) for c in self.choices for i in c.members):
            raise ValueError(f"a chosen index is outside the {len(self.groups)} hook groups.")

    def __getstate__(self) -> dict[str, Any]:
        known = {size: circuit for size, circuit in self._circuits.items() if not circuit.unread}
        # the model stays where it is
        return {**vars(self), "tracer": None, "objective": None, "_circuits": known}

    # ------------------------------------------------------------------ reading

    @property
    def sizes(self) -> list[int]:
        """Budgets, ascending."""
        return [c.size for c in self.choices]

    @property
    def effects(self) -> list[float]:
        """Mean effect per budget, in the metric's unit."""
        return [c.score.mean for c in self.choices]

    @property
    def cost(self) -> Mapping[str, float]:
        """Forwards, backwards, forward equivalents and seconds of the search: what the solver evaluated.

        Not in it: scores of the choices with their intervals, the loss, held-out effects and the whole mask, a few
        forwards per budget; and the tables of circuits, which ``path[b].cost`` has. ``tracer.cost`` counts everything.
        """
        return dict(self.provenance.get("cost", {}))

    @property
    def success(self) -> bool:
        """Whether the search came to its end; else ``max_cost`` stopped it, and choices are the best seen so far."""
        return bool(dict(self.provenance.get("outcome") or {}).get("success", True))

    @property
    def message(self) -> str:
        """How the search ended, in words: what it has spent, and what to do where it was stopped."""
        return str(dict(self.provenance.get("outcome") or {}).get("message", ""))

    def __len__(self) -> int:
        return len(self.choices)

    def choice(self, size: int) -> Choice:
        """What was chosen for a budget (``size``).

        Raises:
            KeyError: no such budget was asked for.
        """
        for choice in self.choices:
            if choice.size == size:
                return choice
        raise KeyError(f"budget {size} was not asked for; this path has {_ranges(self.sizes)}.")

    @neutral()
    def __getitem__(self, size: int) -> Circuit:
        """The circuit for a budget. It runs nothing: marginal effects and chance are measured when they are read.

        Where the tracer is ``distributed`` they are measured at once, so that only this, and not every ``print``, has
        to be done on all ranks.
        """
        if size not in self._circuits:
            self._circuits[size] = self._circuit(self.choice(size))
        return self._circuits[size]

    def _circuit(self, choice: Choice) -> Circuit:
        aim: Any = self.objective or self.tracer
        cost = dict(self.provenance.get("cost") or {})

        def counted(measure: Callable[..., T], *given: Any) -> Callable[[], T]:
            @neutral()
            def work() -> T:
                before = aim.cost.equivalents
                found = measure(aim, choice.members, *given)
                cost["table"] = cost.get("table", 0.0) + aim.cost.equivalents - before
                return found

            return work

        table: dict[str, Callable[[], Any]] = {} if aim is None else {"marginals": counted(marginal_effects)}
        if choice.chance is None and aim is not None:
            table["chance"] = counted(chance_score, int(self.provenance.get("seed", 0)))
        made = Circuit(
            groups=self.groups[list(choice.members)],
            indices=choice.members,
            n_groups=len(self.groups),
            effect=choice.score.mean,
            score=choice.score,
            held_out=choice.held_out,
            chance=choice.chance,
            full_effect=self.full_effect,
            full_score=self.full_score,
            certificate=choice.certificate,
            provenance={**self.provenance, "cost": cost, "budget": choice.size},
            tracer=self.tracer,
        )
        circuit = later(made, table)
        if aim is not None and any(tracer.ranks.shared for tracer in aim_of(aim).tracers):
            _ = circuit.marginals, circuit.chance
        return circuit

    def to_dataframe(self) -> pd.DataFrame:
        """One row per budget: effect with interval, log-scale effect, loss, held-out effect, components."""
        import pandas as pd

        rows = [
            {
                "budget": c.size,
                "size": len(c.members),
                "effect": c.score.mean,
                "low": c.score.low,
                "high": c.score.high,
                "median": c.score.median,
                "log_effect": c.score.log,
                "loss": c.loss,
                **{f"held_out{end}": getattr(c.held_out, k, None) for end, k in HELD_OUT.items()},
                "components": " ".join(self.groups.components[i].label for i in c.members),
            }
            for c in self.choices
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        facts = self.provenance
        solver = facts.get("solver", {}).get("name", "unknown")
        head = f"SubsetPath by {solver}: budgets {_ranges(self.sizes)} of {len(self.groups)} components"
        cost = f"  cost {self.cost.get('equivalents', 0):.0f} forward equivalents, {self.cost.get('seconds', 0):.1f} s"
        rows = [f"  {'budget':>6s}  {'effect':>22s}  {'held out':>22s}"]
        for c in _spread(self.choices):
            rows.append(f"  {c.size:6d}  {c.score!s:>22s}  {str(c.held_out) if c.held_out else '-':>22s}")
        return "\n".join(
            [head, cost, *rows, f"  whole mask {self.full_effect:.3g}", *[f"  note: {n}" for n in self.notes]]
        )

    def _repr_html_(self) -> str:
        return f"<pre>{repr(self).replace('&', '&amp;').replace('<', '&lt;')}</pre>"

    def plot(self, *others: SubsetPath, **options: Any) -> Any:
        """Effect against budget, ``others`` over it; options: see :func:`tl_multitrace.render.plot_path`."""
        return self.drawn("plot", *others, **options)

    def goals(self) -> pd.DataFrame:
        """Under an objective: one row per budget and goal or constraint, with intervals, bounds and what was kept.

        Columns: budget, goal, role, unit, change, low, high, held_out, held_out_low, held_out_high, bound, kept (on
        the search's prompts), kept_held_out. ``kept`` is None for goals.
        """
        from tl_multitrace.solvers.goal_table import goal_table

        return goal_table(self)


# ---------------------------------------------------------------------- what a circuit's table needs


def marginal_effects(tracer: Tracer | Objective, members: Subset) -> tuple[float, ...]:
    """Effect of a set minus that of the set without each member, exact."""
    if not members:
        return ()
    full = mask_of(len(tracer.groups), members)
    masks = full.repeat(len(members) + 1, 1)
    masks[torch.arange(len(members)), list(members)] = 0.0
    means = aim_of(tracer).means(masks, full, 0.0)
    return tuple((means[-1] - means[:-1]).tolist())


def chance_score(tracer: Tracer | Objective, members: Subset, seed: int = 0, draws: int = CHANCE_DRAWS) -> Score | None:
    """Mean effects of random sets with as many components of each kind; the interval holds the middle 95 % of them.

    Under constraints only sets that keep them count; None where hardly any of ``CHANCE_TRIES`` times as many does.
    """
    aim = aim_of(tracer)
    tried = draws * (CHANCE_TRIES if aim.has_bounds else 1)
    masks = random_sets(tracer.groups, members, tried, seed)
    amounts = aim.means(masks, pressure=0.0)
    if aim.has_bounds:
        amounts = amounts[[aim.holds(mask) for mask in masks]][:draws]
    return Score.of_sets(amounts) if len(amounts) >= FEWEST_DRAWS else None


def _ranges(sizes: list[int]) -> str:
    """Budgets in words: runs of successive ones by their ends."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(sizes), key=lambda at: at[1] - at[0])]
    return ", ".join(str(r[0][1]) if len(r) == 1 else f"{r[0][1]}-{r[-1][1]}" for r in runs)


def _spread(choices: tuple[Choice, ...], most: int = 8) -> list[Choice]:
    if len(choices) <= most:
        return list(choices)
    picks = sorted({round(i * (len(choices) - 1) / (most - 1)) for i in range(most)})
    return [choices[i] for i in picks]
