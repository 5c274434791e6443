"""Solvers by name, for the command line and for files."""

from __future__ import annotations

import difflib
from typing import Any

from tl_multitrace.solvers.exact import Exhaustive, Greedy, RandomSubset
from tl_multitrace.solvers.hard_concrete import HardConcrete
from tl_multitrace.solvers.pgbct import PGBCT
from tl_multitrace.solvers.ranking import AttributionPatching, IntegratedGradients, TopK
from tl_multitrace.solvers.screened import ScreenedSearch
from tl_multitrace.solvers.select import Solver

SOLVERS: dict[str, type[Any]] = {
    "screened": ScreenedSearch,
    "pgbct": PGBCT,
    "hard-concrete": HardConcrete,
    "greedy": Greedy,
    "top-k": TopK,
    "attribution": AttributionPatching,
    "integrated-gradients": IntegratedGradients,
    "exhaustive": Exhaustive,
    "random": RandomSubset,
}
"""Short names; the class's name and the name that results carry serve as well.

Examples:
    >>> from tl_multitrace.solvers import SOLVERS
    >>> SOLVERS["greedy"].__name__, len(SOLVERS)
    ('Greedy', 9)
"""


def solver_by_name(name: str, **options: Any) -> Solver:
    """The solver that is called ``name``: a key of ``SOLVERS``, its class's name, or its ``name``.

    Args:
        name: case, spaces and dashes don't matter: ``"top-k"`` and ``"TopK"`` are one.
        options: its hyperparameters.

    Raises:
        ValueError: no such solver.
        TypeError: an option it does not have.

    Examples:
        >>> from tl_multitrace.solvers import solver_by_name
        >>> solver_by_name("integrated-gradients", steps=10)
        IntegratedGradients(steps=10)
    """
    known = {_plain(alias): kind for key, kind in SOLVERS.items() for alias in (key, kind.__name__, kind.name)}
    if _plain(name) not in known:
        close = difflib.get_close_matches(_plain(name), [_plain(key) for key in SOLVERS], 1)
        hint = next((f" Did you mean {key!r}?" for key in SOLVERS if close and _plain(key) == close[0]), "")
        raise ValueError(f"unknown solver {name!r}.{hint} Use one of {', '.join(SOLVERS)}.")
    made: Solver = known[_plain(name)](**options)
    return made


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
