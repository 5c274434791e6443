"""Neurons: the default solver against integrated gradients and a six-value PGB-CT sweep, on held-out prompts as well.

pytest tests/benchmarks/test_solver_neurons.py
python tests/benchmarks/test_solver_neurons.py [PROBLEM ...]   # the table, in Markdown
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
from scipy.integrate import trapezoid  # noqa: E402
from solver_models import TASKS, problem  # noqa: E402

import tl_multitrace as mt  # noqa: E402

PROBLEMS = [f"demo-{task}:neurons" for task in TASKS]
GRID = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
OURS, RANKED, PUBLISHED = "screened search", "integrated gradients", "PGB-CT, 6 values"


def compared(name: str, seed: Any = 0) -> mt.SolverComparison:
    """The three solvers on one problem."""
    tracer, held_out = problem(name)
    solvers = {OURS: mt.ScreenedSearch(), RANKED: mt.IntegratedGradients(), PUBLISHED: mt.PGBCT(sweep=SWEEP)}
    return mt.compare_solvers(tracer, GRID, solvers, held_out=held_out, seed=seed)


def against_the_others(comparison: mt.SolverComparison) -> dict[str, float]:
    """Areas over the logarithm of the budget as ratios to the better of the two others, and the cost ratio.

    ``worst``: over the grid, the smallest advantage over both others as a share of the whole path's best effect; PGB-CT
    counts at each budget with the best set it returned within it.
    """
    summary, paths = comparison.summary(), comparison.paths
    ours, ranked, published = (np.array(paths[name].effects) for name in (OURS, RANKED, PUBLISHED))
    others = np.maximum(ranked, published)
    areas = {name: log_area(comparison[name]) for name in (OURS, RANKED, PUBLISHED)}
    best = max(areas[RANKED][1], areas[PUBLISHED][1])
    return {
        "worst": float(((ours - others) / others.max()).min()),
        "area": areas[OURS][0] / max(areas[RANKED][0], areas[PUBLISHED][0]),
        "held_out_area": areas[OURS][1] / best if best > 0 else float("inf"),
        "cost": float(summary.loc[OURS, "equivalents"] / summary.loc[PUBLISHED, "equivalents"]),
    }


def log_area(path: mt.SubsetPath) -> tuple[float, float]:
    """Mean effect over the grid (evenly spaced in the logarithm), on the search's prompts and on held-out ones."""
    held = [c.held_out.mean for c in path.choices if c.held_out is not None]
    seen, unseen = (float(trapezoid(effects)) / (len(effects) - 1) for effects in (path.effects, held))
    return seen, unseen


@pytest.mark.parametrize("name", PROBLEMS)
def test_neurons(name: str) -> None:
    found = against_the_others(compared(name))
    assert found["worst"] >= -0.001
    assert found["held_out_area"] >= 1.05 and found["cost"] <= 0.5


@pytest.mark.parametrize("name", PROBLEMS[:1])
def test_five_seeds(name: str) -> None:
    tracer, held_out = problem(name)
    seeds = tuple(range(5))
    found = mt.compare_solvers(tracer, GRID, [mt.ScreenedSearch()], held_out=held_out, seed=seeds).summary()
    assert float(found.loc[OURS, "spread"]) <= 0.05 * abs(float(found.loc[OURS, "area"]))


def main(names: list[str]) -> None:
    """Print one line per problem as it is measured."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    columns = ["problem", "N", "worst budget", "area", "held-out area", "cost", "cost / sweep's", "seconds"]
    sys.stdout.write("\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", ""]))
    for name in names or PROBLEMS:
        comparison = compared(name)
        ours, found = comparison[OURS], against_the_others(comparison)
        cells = [
            name,
            len(ours.groups),
            f"{found['worst']:+.3f}",
            *(f"{found[k]:.2f}" for k in ("area", "held_out_area")),
        ]
        cells += [f"{ours.cost['equivalents']:.0f}", f"{found['cost']:.2f}", f"{ours.cost['seconds']:.0f}"]
        sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
