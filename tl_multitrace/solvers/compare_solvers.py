"""``compare_solvers``: one problem, several solvers, and one table that shows what each found and what it cost.

The metric that is reported and the loss that gradient solvers minimise stand side by side, because they can rank two
sets differently (a mean of ratios is carried by a few prompts that a bounded loss hardly sees).
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from scipy.integrate import trapezoid

from tl_multitrace.groups import Component
from tl_multitrace.objective import Objective, aim_of
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.record import Record, result
from tl_multitrace.solvers.names import solver_by_name
from tl_multitrace.solvers.path import SubsetPath
from tl_multitrace.solvers.search import Direction
from tl_multitrace.solvers.select import Solver, select
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd

Named = Solver | str
COSTS = ("forwards", "backwards", "equivalents", "seconds")


def _groups_once(content: dict[str, Any]) -> dict[str, Any]:
    """The groups, which all searches share, stand once."""
    runs = {name: [{k: v for k, v in run.items() if k != "groups"} for run in r] for name, r in content["runs"].items()}
    return {**content, "groups": next(iter(content["runs"].values()))[0]["groups"], "runs": runs}


def _groups_in_each(content: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(runs := content.get("runs"), dict) or not all(isinstance(r, list) for r in runs.values()):
        return content  # which validation refuses
    given = {"groups": content.get("groups")}
    return {**content, "runs": {n: [{**r, **given} if isinstance(r, dict) else r for r in x] for n, x in runs.items()}}


@result("tl_multitrace.comparison", pack=_groups_once, upgrade=_groups_in_each)
@dataclass(frozen=True, repr=False)
class SolverComparison(Record):
    """What several solvers found on one problem.

    Attributes:
        runs: per solver, one path for each seed.
        objectives: what each solver optimises, in words.
        losses: formula of the bounded loss in the column ``loss``.

    Examples:
        >>> found = mt.compare_solvers(tracer, [1, 2], ["top-k", "greedy"])
        >>> sorted(found.paths), found.disagreements()
        (['greedy', 'top-k'], [2])
        >>> found.summary()["area"].round().tolist()
        [366.0, 378.0]
    """

    runs: Annotated[Mapping[str, Annotated[tuple[SubsetPath, ...], Field(min_length=1)]], Field(min_length=1)]
    objectives: Mapping[str, str] = field(default_factory=dict)
    losses: str = ""

    # ------------------------------------------------------------------ reading

    @property
    def paths(self) -> dict[str, SubsetPath]:
        """Each solver's path under the first seed."""
        return {name: paths[0] for name, paths in self.runs.items()}

    def __getitem__(self, name: str) -> SubsetPath:
        """One solver's path under the first seed; raises KeyError where there is no such solver."""
        if name not in self.runs:
            raise KeyError(f"no solver {name!r} in this comparison: it has {', '.join(map(repr, self.runs))}.")
        return self.runs[name][0]

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def sign(self) -> int:
        """1 where effects were maximised, -1 where they were minimised."""
        first = next(iter(self.paths.values()))
        return -1 if first.provenance.get("direction") == "minimize" else 1

    @cached_property
    def _table(self) -> pd.DataFrame:
        import pandas as pd

        rows = [
            {"solver": name, "seed": path.provenance.get("seed", 0), **row, **{k: path.cost.get(k) for k in COSTS}}
            for name, paths in self.runs.items()
            for path in paths
            for row in path.to_dataframe().to_dict("records")
        ]
        table = pd.DataFrame(rows)
        moved = self.sign * table["effect"]
        best = moved.groupby(table["budget"]).transform("max")
        table.insert(list(table).index("loss") + 1, "ratio", (moved / best).where(best > 0))  # else nothing moved
        return table

    def to_dataframe(self) -> pd.DataFrame:
        """One row per solver, seed and budget.

        ``effect`` with its interval, ``log_effect`` and ``held_out`` as in a path's table; ``loss``: the bounded loss
        that gradient solvers minimise (lower is better); ``ratio``: effect over the best of all at that budget;
        ``forwards``, ``backwards``, ``equivalents`` (forward equivalents), ``seconds``: of the solver's whole search.
        """
        return self._table.copy()

    def summary(self) -> pd.DataFrame:
        """One row per solver: areas over the budgets, ratios to the best, cost; means over seeds.

        ``area`` is the mean effect over the range of budgets (trapezoid), ``log_area`` the same over the logarithm of
        the budget, which the largest budgets do not rule; ``held_out_area`` and ``loss_area`` go with ``area``.
        ``spread`` is the standard deviation of ``area`` over seeds.
        """
        import pandas as pd

        rows = [self._summarised(name, rows) for name, rows in self._table.groupby("solver", sort=False)]
        table = pd.DataFrame(rows)
        table["cost_ratio"] = table["equivalents"] / table["equivalents"].min()
        return table.set_index("solver")

    def _summarised(self, name: Any, rows: pd.DataFrame) -> dict[str, Any]:
        areas = [area(seed) for _, seed in rows.groupby("seed")]
        record: dict[str, Any] = {"solver": name, **{key: np.mean([a[key] for a in areas]) for key in areas[0]}}
        if len(areas) > 1:
            record["spread"] = float(np.std([a["area"] for a in areas], ddof=1))
        record["ratio_mean"], record["ratio_min"] = rows["ratio"].mean(), rows["ratio"].min()
        costs = rows.drop_duplicates("seed")
        return record | {key: costs[key].mean() for key in COSTS} | {"optimises": self.objectives.get(name, "")}

    def disagreements(self) -> list[int]:
        """Budgets at which the set with the best effect is not the one with the best loss."""
        found = []
        for budget, rows in self._table.dropna(subset=["loss"]).groupby("budget"):
            effects, losses = self.sign * rows["effect"].to_numpy(), rows["loss"].to_numpy()
            chosen = losses[effects.argmax()]
            if losses.min() < chosen - 1e-9 * abs(chosen):
                found.append(int(str(budget)))
        return found

    # ------------------------------------------------------------------ showing

    def __repr__(self) -> str:
        table = self.summary().drop(columns=["forwards", "backwards", "cost_ratio"]).dropna(axis=1, how="all")
        return "\n".join([self._headline(), table.to_string(float_format="{:.4g}".format), *self._remarks()])

    def _repr_html_(self) -> str:
        table = self.summary().dropna(axis=1, how="all").to_html(float_format="{:.4g}".format)
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self._remarks())
        return f"<p>{html.escape(self._headline())}</p>{table}{remarks}"

    def _headline(self) -> str:
        first = next(iter(self.paths.values()))
        facts = first.provenance
        return (
            f"SolverComparison: {len(self)} solvers, {len(first)} budgets of {first.sizes[0]} to {first.sizes[-1]} of "
            f"{len(first.groups)} components, {facts.get('direction', 'maximize')} {facts.get('metric', 'effect')}"
        )

    def _remarks(self) -> list[str]:
        remarks = [f"loss: {self.losses}, what gradient solvers minimise on the same prompts; lower is better"]
        if budgets := self.disagreements():
            listed = ", ".join(map(str, budgets))
            remarks.append(f"at budgets {listed} the best effect and the best loss belong to different sets")
        return remarks

    def plot(self, **options: Any) -> Any:
        """Effect against budget, the solvers over each other with their cost; see ``SubsetPath.plot``."""
        first, *others = self.paths.values()
        return first.plot(*others, **options)


def area(rows: pd.DataFrame) -> dict[str, float]:
    """Mean effect, held-out effect and loss over the range of budgets, on linear and logarithmic axes."""
    budgets = rows["budget"].to_numpy(dtype=float)
    found = {}
    for name, column in (
        ("area", "effect"),
        ("log_area", "effect"),
        ("held_out_area", "held_out"),
        ("loss_area", "loss"),
    ):
        x, y = np.log(budgets) if name == "log_area" else budgets, rows[column].to_numpy(dtype=float)
        found[name] = float(trapezoid(y, x) / np.ptp(x)) if len(x) > 1 else float(y[0])
    return found


def compare_solvers(
    tracer: Tracer | Objective,
    budgets: int | Iterable[int] | Mapping[str, int],
    solvers: Mapping[str, Named] | Iterable[Named],
    *,
    direction: Direction = "maximize",
    seed: int | Sequence[int] = 0,
    held_out: PromptPairs | Mapping[str, PromptPairs] | None = None,
    forced: Iterable[int | str | Component] = (),
    forbidden: Iterable[int | str | Component] = (),
    max_cost: float | int | None = None,
    progress: bool | None = None,
) -> SolverComparison:
    """Run several solvers on one problem and put what they found and what it cost into one table.

    Solvers are given as such or by name (``"greedy"``), or as a mapping from the names that the table shall show.
    Several seeds show the spread. Everything else is as :func:`select` takes it; ``max_cost`` is of each search.

    Returns:
        A :class:`SolverComparison`: ``paths``, ``to_dataframe()``, ``summary()``, ``plot()``, ``save()``.

    Raises:
        ValueError: no solvers, two of one name, no seed, an unknown name, or what :func:`select` refuses.

    Examples:
        >>> found = mt.compare_solvers(tracer, [1, 2], [mt.Greedy(), mt.AttributionPatching()])
        >>> found.to_dataframe().query("budget == 2")[["solver", "ratio"]].round(2).to_dict("records")
        [{'solver': 'greedy', 'ratio': 1.0}, {'solver': 'attribution patching', 'ratio': 0.94}]
    """
    named = named_solvers(solvers)
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seed must be one number or several different ones, got {seed!r}.")
    sizes = budgets if isinstance(budgets, Mapping | int) else tuple(budgets)
    options: dict[str, Any] = {"direction": direction, "held_out": held_out, "progress": progress}
    options |= {"forced": tuple(forced), "forbidden": tuple(forbidden), "max_cost": max_cost}
    aim = aim_of(tracer)
    with tracer.session():
        aim.means(torch.ones(1, len(tracer.groups)), pressure=0.0)  # the first solver shall not pay for first calls
        runs = {
            name: tuple(_named(select(tracer, sizes, solver, seed=s, **options), name) for s in seeds)
            for name, solver in named.items()
        }
    objectives = {name: str(getattr(solver, "objective", "")) for name, solver in named.items()}
    turned = " of the effect turned round" if direction == "minimize" else ""
    return SolverComparison(runs, objectives, aim.loss_name + turned)


def named_solvers(solvers: Mapping[str, Named] | Iterable[Named]) -> dict[str, Solver]:
    """Solvers by the name that tables show.

    Raises:
        ValueError: none, or two of one name.
    """
    given = list(solvers.items()) if isinstance(solvers, Mapping) else [("", solver) for solver in solvers]
    made = [(name, solver_by_name(s) if isinstance(s, str) else s) for name, s in given]
    names = [name or solver.name for name, solver in made]
    if not names:
        raise ValueError("no solvers to compare: pass some, such as [ScreenedSearch(), Greedy()].")
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise ValueError(f"two solvers are called {double[0]!r}: pass a mapping, {{'a name': solver, ...}}.")
    return {name: solver for name, (_, solver) in zip(names, made, strict=True)}


def _named(path: SubsetPath, name: str) -> SubsetPath:
    """The path with its solver called ``name``, as its legend shall say."""
    solver = dict(path.provenance.get("solver", {}))
    facts = solver if solver.get("name") == name else {**solver, "name": name, "kind": solver.get("name")}
    return replace(path, provenance={**path.provenance, "solver": facts})
