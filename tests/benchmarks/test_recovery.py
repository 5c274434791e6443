"""How well every solver recovers the planted circuits, as a table of areas.

pytest tests/benchmarks/test_recovery.py                                   # the default solver: area 1 everywhere
python tests/benchmarks/test_recovery.py large-rotated-leaks [SOLVER ...]  # the table, in Markdown
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from planted_searches import build, search  # noqa: E402
from test_solver_planted import SETTINGS, SOLVERS  # noqa: E402

import tl_multitrace as mt  # noqa: E402
from planted import DIRECTIONS, Direction  # noqa: E402


@dataclass
class Tally:
    """One solver on all circuits of a setting.

    Attributes:
        found: one recovery per circuit and direction.
        names: of the circuits that were not exactly recovered.
        cost: forward equivalents of the searches.
    """

    found: list[mt.Recovery] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)

    def row(self, solver: str) -> str:
        """A line of the table."""
        roc, pr = (np.array([getattr(r, k) for r in self.found]) for k in ("roc", "pr"))
        exact = sum(r.exact for r in self.found)
        return (
            f"| `{solver}` | {roc.mean():.3f} ({roc.min():.2f}) | {pr.mean():.3f} ({pr.min():.2f}) | "
            f"{exact} of {len(self.found)} | {np.median(self.cost):.0f} | {', '.join(self.names) or 'none'} |"
        )


def recovered(name: str, direction: Direction, solver: Any) -> tuple[mt.Recovery, float]:
    """One search against the smallest sets that work, and its cost."""
    sets = [
        [mt.Component("head" if kind == "pattern" else kind, layer, index) for kind, layer, index in members]
        for members in sorted(build(name).minimal[direction], key=len)
    ]
    path = search(build(name), direction, solver)
    return mt.recovery(path, sets[0], alternatives=sets[1:]), path.cost["equivalents"]


def tally(solver: Any, names: Iterable[str]) -> Tally:
    """One solver on some circuits, both directions."""
    made = Tally()
    for name in names:
        missed = ""
        for direction in DIRECTIONS:
            found, cost = recovered(name, direction, solver)
            made.found.append(found)
            made.cost.append(cost)
            missed += "" if found.exact else direction[0].upper()
        if missed:
            made.names.append(name.split("-")[0] + ("" if missed == "NR" else f" ({missed})"))
    return made


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_default_recovers_everything(setting: str) -> None:
    found = tally(mt.ScreenedSearch(), SETTINGS[setting]).found
    assert {(r.roc, r.pr, r.exact) for r in found} == {(1.0, 1.0, True)}


def main(setting: str, *chosen: str) -> None:
    """Print the table of one setting, line by line as it is measured."""
    torch.set_num_threads(1)
    head = "| solver | ROC area, mean (lowest) | PR area, mean (lowest) | exact | forward equivalents | not exact |"
    sys.stdout.write(head + "\n|---|---|---|---|---|---|\n")
    for name in chosen or SOLVERS:
        sys.stdout.write(tally(SOLVERS[name], SETTINGS[setting]).row(name) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
