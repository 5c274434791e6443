"""Heads: the default solver against exact greedy with restarts, budget by budget, and what both cost.

pytest tests/benchmarks/test_solver_heads.py
python tests/benchmarks/test_solver_heads.py [PROBLEM ...]           # the table, in Markdown
python tests/benchmarks/test_solver_heads.py --all trained-ioi       # every solver on one problem
python tests/benchmarks/test_solver_heads.py --figure FILE PROBLEM   # effect against budget
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from solver_models import TASKS, problem  # noqa: E402

import tl_multitrace as mt  # noqa: E402

DEMO = [f"demo-{task}" for task in TASKS]
LARGE = [*(f"trained-{task}" for task in TASKS), "diffuse-logits", "diffuse-odds"]
OTHERS: dict[str, Any] = {
    "top-k": mt.TopK(),
    "attribution patching": mt.AttributionPatching(),
    "integrated gradients": mt.IntegratedGradients(),
    "PGB-CT, path": mt.PGBCT(path=True),
    "hard concrete": mt.HardConcrete(),
    "random": mt.RandomSubset(),
}


def compared(name: str, others: dict[str, Any], seed: Any = 0) -> mt.SolverComparison:
    """Screened search, greedy and others on one problem: 24 budgets of 144 heads, 16 of 32."""
    tracer, held_out = problem(name)
    largest = 24 if len(tracer.groups) > 100 else 16
    solvers = {"screened search": mt.ScreenedSearch(), "greedy": mt.Greedy(), **others}
    return mt.compare_solvers(tracer, range(1, largest + 1), solvers, held_out=held_out, seed=seed)


def against_greedy(comparison: mt.SolverComparison) -> dict[str, float]:
    """Effect ratios over budgets, and ratios of cost and of wall time."""
    ours, greedy = comparison["screened search"], comparison["greedy"]
    ratio = np.array(ours.effects) / np.array(greedy.effects)
    return {
        "min": float(ratio.min()),
        "mean": float(ratio.mean()),
        "cost": ours.cost["equivalents"] / greedy.cost["equivalents"],
        "wall": ours.cost["seconds"] / greedy.cost["seconds"],
    }


@pytest.mark.parametrize("name", [*DEMO, *LARGE])
def test_heads(name: str) -> None:
    found = against_greedy(compared(name, {}))
    assert found["min"] >= 0.99 and found["mean"] >= 1.0
    if name in LARGE:
        assert found["cost"] <= 0.10


def table(names: list[str]) -> None:
    """Print one line per problem as it is measured."""
    columns = ["problem", "N", "S", "smallest ratio", "mean ratio", "cost", "cost / greedy's", "wall / greedy's"]
    sys.stdout.write("\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", ""]))
    for name in names:
        comparison = compared(name, {})
        ours, found = comparison["screened search"], against_greedy(comparison)
        cells = [name, len(ours.groups), len(ours), f"{found['min']:.3f}", f"{found['mean']:.3f}"]
        cells += [f"{ours.cost['equivalents']:.0f}", f"{found['cost']:.3f}", f"{found['wall']:.3f}"]
        sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
        sys.stdout.flush()


def every_solver(name: str, figure: str | None = None) -> None:
    """Print every solver's summary on one problem, or draw the paths."""
    # a figure has the effect of random sets in any case
    others = {k: v for k, v in OTHERS.items() if figure is None or k != "random"}
    comparison = compared(name, others)
    if figure is not None:
        comparison.plot().savefig(figure, dpi=150, bbox_inches="tight")
    columns = ["area", "log_area", "held_out_area", "loss_area", "ratio_min", "ratio_mean", "equivalents", "seconds"]
    sys.stdout.write(f"| {name} | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n")
    for solver, row in comparison.summary().iterrows():
        sys.stdout.write(f"| {solver} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |\n")


def main(arguments: list[str]) -> None:
    """Run what the command line asks for."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments[:1] == ["--figure"]:
        every_solver(arguments[2], arguments[1])
    elif arguments[:1] == ["--all"]:
        every_solver(arguments[1])
    else:
        table(arguments or [*DEMO, *LARGE])


if __name__ == "__main__":
    main(sys.argv[1:])
