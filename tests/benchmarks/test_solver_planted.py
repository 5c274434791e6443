"""What every solver misses on the planted circuits, as a table.

pytest tests/benchmarks/test_solver_planted.py                                   # the default solver misses nothing
python tests/benchmarks/test_solver_planted.py large-rotated-leaks [SOLVER ...]  # the table, in Markdown
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import pytest  # noqa: E402
import torch  # noqa: E402
from planted_searches import build, missed, search  # noqa: E402

import tl_multitrace as mt  # noqa: E402
from planted import DIRECTIONS, cases  # noqa: E402

SOLVERS: dict[str, Any] = {
    "ScreenedSearch()": mt.ScreenedSearch(),
    "Greedy()": mt.Greedy(),
    "TopK()": mt.TopK(),
    "AttributionPatching()": mt.AttributionPatching(),
    "IntegratedGradients()": mt.IntegratedGradients(),
    "PGBCT(path=True)": mt.PGBCT(path=True),
    "HardConcrete()": mt.HardConcrete(),
    "RandomSubset()": mt.RandomSubset(),
}
SETTINGS = {
    "small": cases("small"),
    "small-rotated-leaks": cases("small", rotated=True, leaks=True),
    "large": cases("large"),
    "large-rotated-leaks": cases("large", rotated=True, leaks=True),
}


@dataclass
class Tally:
    """One solver on all circuits of a setting.

    Attributes:
        missed: circuit to the directions in which some budget fell short (``N`` noising, ``R`` restoring).
        budgets: budgets that fell short, and all of them.
        costs: forward equivalents of the searches.
        seconds: of all searches.
    """

    missed: dict[str, str] = field(default_factory=dict)
    budgets: tuple[int, int] = (0, 0)
    costs: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, name: str, direction: str, path: mt.SubsetPath, short: int) -> None:
        """Count one search."""
        plain = name.split("-")[0]
        if short:
            self.missed[plain] = self.missed.get(plain, "") + direction[0].upper()
        self.budgets = (self.budgets[0] + short, self.budgets[1] + len(path))
        self.costs.append(path.cost["equivalents"])
        self.seconds += path.cost["seconds"]

    def row(self, solver: str) -> str:
        """A line of the table."""
        names = ", ".join(name if ways == "NR" else f"{name} ({ways})" for name, ways in self.missed.items())
        targets = sum(map(len, self.missed.values()))
        costs = torch.tensor(self.costs)
        return (
            f"| `{solver}` | {targets} of {len(self.costs)} | {self.budgets[0]} of {self.budgets[1]} | "
            f"{costs.median():.0f} ({costs.min():.0f}-{costs.max():.0f}) | {self.seconds:.0f} | {names or 'none'} |"
        )


def tally(solver: Any, names: Iterable[str]) -> Tally:
    """One solver on some circuits, both directions."""
    found = Tally()
    for name in names:
        for direction in DIRECTIONS:
            path = search(build(name), direction, solver)
            found.add(name, direction, path, len(missed(build(name), direction, path)))
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_default_misses_nothing(setting: str) -> None:
    found = tally(mt.ScreenedSearch(), SETTINGS[setting])
    assert not found.missed


def test_every_other_solver_misses_something() -> None:
    """Else the circuits would prove nothing; random sets are left out."""
    for name in ("Greedy()", "TopK()", "IntegratedGradients()"):
        assert tally(SOLVERS[name], SETTINGS["small-rotated-leaks"]).missed


def main(setting: str, *chosen: str) -> None:
    """Print the table of one setting, line by line as it is measured."""
    torch.set_num_threads(1)
    head = "| solver | searches that miss | budgets missed | forward equivalents, median (range) | seconds | circuits |"
    sys.stdout.write(head + "\n|---|---|---|---|---|---|\n")
    for name in chosen or SOLVERS:
        sys.stdout.write(tally(SOLVERS[name], SETTINGS[setting]).row(name) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
