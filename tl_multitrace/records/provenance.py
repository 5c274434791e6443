"""Where a result comes from, as it stands in files: free, but for the entries that tables and figures rely on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from tl_multitrace.records.read import MAX_NUMBER, short

MAX_AXIS, MAX_WIDTH = 1 << 14, 1 << 24
"""More layers or heads, and neurons or words, than any model has."""


def known_facts(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Provenance whose well-known entries are what tables and figures take them for.

    Raises:
        ValueError: one of them is something else.
    """
    for name, fits in _FACTS.items():
        if facts.get(name) is not None and not fits(facts[name]):
            raise ValueError(f"provenance has no such {name}: {short(facts[name])}")
    return facts


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_number, value.values()))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shape(value: Any) -> bool:
    """A model's facts; its numbers are the sizes of figures."""
    sizes = [value.get(f"n_{x}") for x in ("layers", "heads")] if isinstance(value, Mapping) else [""]
    widths = [value.get(x) for x in ("d_model", "d_mlp", "d_vocab")] if isinstance(value, Mapping) else []
    return all(_whole(n, MAX_AXIS) for n in sizes) and all(_whole(n, MAX_WIDTH) for n in widths)


def _whole(value: Any, most: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most)


def _goals(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_goal(v) for v in value)


def _goal(value: Any) -> bool:
    bounds = [value.get(k, 0.0) for k in ("at_most", "at_least")] if isinstance(value, Mapping) else [""]
    return all(map(_number, bounds)) and isinstance(value.get("name"), str)


_FACTS: dict[str, Callable[[Any], bool]] = {
    "model": _shape,
    "cost": _numbers,
    "goals": _goals,
    "constraints": _goals,
    "solver": lambda value: isinstance(value, Mapping),
    "outcome": lambda value: isinstance(value, Mapping),
    "prompts": lambda value: isinstance(value, Mapping),
    "intervention": lambda value: isinstance(value, Mapping | str),
    "seed": lambda value: _whole(value, MAX_NUMBER),
}
Provenance = Annotated[Mapping[str, Any], AfterValidator(known_facts)]
"""Where a result comes from, as it stands in files."""
