"""What a search over several goals did to each of them, budget by budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from tl_multitrace.solvers.path import Choice, SubsetPath

COLUMNS = "budget goal role unit change low high held_out held_out_low held_out_high bound kept kept_held_out".split()


def goal_table(path: SubsetPath) -> pd.DataFrame:
    """One row per budget and goal; see :meth:`SubsetPath.goals`."""
    import pandas as pd

    facts = {g["name"]: (g, role) for role in ("goal", "constraint") for g in path.provenance.get(f"{role}s", [])}
    rows = [_row(choice, name, *facts[name]) for choice in path.choices for name in choice.goals if name in facts]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(choice: Choice, name: str, facts: Mapping[str, Any], role: str) -> list[Any]:
    scores = choice.goals[name], choice.held_out_goals.get(name)
    numbers = [(s.mean, s.low, s.high) if s is not None else (None, None, None) for s in scores]
    sign, way = (1, "at_most") if "at_most" in facts else (-1, "at_least")
    kept: list[bool | None] = [None, None]
    shown = ""
    if way in facts:
        bound = facts[way]
        tolerance = 1e-6 * (1 + abs(bound))
        kept = [None if s is None else bool(sign * (s.mean - bound) <= tolerance) for s in scores]
        shown = f"{'<=' if sign > 0 else '>='} {bound:g}"
    return [choice.size, name, role, facts.get("unit", ""), *numbers[0], *numbers[1], shown, *kept]
