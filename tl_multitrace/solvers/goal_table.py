"""What a search over several goals did to each of them, budget by budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tl_multitrace.records.stats import Score

if TYPE_CHECKING:
    import pandas as pd

    from tl_multitrace.solvers.path import Choice, SubsetPath

COLUMNS = "budget goal role unit change low high held_out held_out_low held_out_high bound kept kept_held_out".split()


def goal_table(path: SubsetPath) -> pd.DataFrame:
    """One row per budget and goal; see :meth:`SubsetPath.goals`."""
    import pandas as pd

    facts = {g["name"]: (g, "goal") for g in path.provenance.get("goals", [])}
    facts |= {c["name"]: (c, "constraint") for c in path.provenance.get("constraints", [])}
    rows = [_row(choice, name, *facts[name]) for choice in path.choices for name in choice.goals if name in facts]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(choice: Choice, name: str, facts: Mapping[str, Any], role: str) -> dict[str, Any]:
    own, held = choice.goals[name], choice.held_out_goals.get(name)
    bound = facts.get("at_most", facts.get("at_least"))
    return {
        "budget": choice.size,
        "goal": name,
        "role": role,
        "unit": facts.get("unit", ""),
        "change": own.mean,
        "low": own.low,
        "high": own.high,
        "held_out": None if held is None else held.mean,
        "held_out_low": None if held is None else held.low,
        "held_out_high": None if held is None else held.high,
        "bound": _bound(facts),
        "kept": None if bound is None else within(own, facts),
        "kept_held_out": None if bound is None or held is None else within(held, facts),
    }


def _bound(facts: Mapping[str, Any]) -> str:
    if "at_most" in facts:
        return f"<= {facts['at_most']:g}"
    return f">= {facts['at_least']:g}" if "at_least" in facts else ""


def within(score: Score, facts: Mapping[str, Any]) -> bool:
    """Whether a mean change is within the bound of a constraint."""
    tolerance = 1e-6 * (1 + abs(facts.get("at_most", facts.get("at_least", 0.0))))
    if "at_most" in facts:
        return bool(score.mean <= facts["at_most"] + tolerance)
    return bool(score.mean >= facts["at_least"] - tolerance)
