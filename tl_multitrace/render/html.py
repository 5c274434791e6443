"""HTML that cannot be injected into: whatever is not already markup is escaped when it is put into a tag."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from itertools import zip_longest
from typing import Any

UNBROKEN = 22
"""Characters up to which the cells of a column stay on one line: an interval does."""

VOID = frozenset({"meta", "br", "hr", "img"})


class Markup(str):
    """Text that is HTML already; made by :func:`tag` alone, or from files of this package."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element; children and attribute values that are not :class:`Markup` are escaped.

    Args:
        name: of the element.
        children: text, markup, or lists of them; None is left out.
        attributes: ``class_`` is ``class``, ``data_x`` is ``data-x``; None and False are left out, True has no value.
    """
    written = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    head = f"<{name}{written}>"
    return Markup(head if name in VOID else f"{head}{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Children one after the other, escaped where they are text."""
    return Markup("".join(_child(c) for c in children))


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return escape(str(child))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def json_block(content: Any, **attributes: Any) -> Markup:
    """Data for a script, in an element that does not run.

    ``<``, ``>`` and ``&`` are written as escapes, so that no text in it can end the element or open a comment.

    Raises:
        ValueError: NaN or infinity, which is not JSON.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return tag("script", Markup(text), type="application/json", **attributes)


class Percent(float):
    """A share that a table shows in percent."""


def between(low: float | None, high: float | None) -> str:
    """An interval for reading; a dash where there is none."""
    known = low is not None and high is not None and low == low
    return f"{number(low)} to {number(high)}" if known else "–"


def number(value: Any, spec: str = ".3g") -> str:
    """A number for reading; a dash where there is none; thousands in full, not as a power of ten."""
    if value is None or value != value:
        return "–"
    text = format(value, spec)
    if "e+0" in text and abs(value) < 1e6:
        text = format(float(text), ",.0f")
    return text.replace("-", "−")


def table(
    columns: Iterable[str], rows: Iterable[Iterable[Any]], *, caption: str, sort: bool = False, hidden: bool = False
) -> Markup:
    """A table with a caption; the first cell of a row names it, numbers are aligned right.

    Args:
        columns: headings.
        rows: cells: text, markup, numbers or None.
        caption: what the table holds.
        sort: let the reader sort it by a column (where scripts run).
        hidden: show the caption to screen readers only.
    """
    cells = [list(row) for row in rows]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(cells[0]) if cells else 0)]
    long = [any(isinstance(row[i], str) and len(row[i]) > 24 for row in cells) for i in range(len(numeric))]
    short = [i > 0 and all(len(str(row[i])) <= UNBROKEN for row in cells) for i in range(len(numeric))]
    sides = ["n" if n else "t" if t else "w" if s else None for n, t, s in zip(numeric, long, short, strict=True)]
    above = [None if side == "w" else side for side in sides]
    head = tag("tr", [tag("th", c, scope="col", class_=side) for c, side in zip_longest(columns, above)])
    body = [tag("tr", [_cell(v, i == 0, sides[i]) for i, v in enumerate(row)]) for row in cells]
    made = tag(
        "table",
        tag("caption", caption, class_="unseen" if hidden else None),
        tag("thead", head),
        tag("tbody", body),
        data_sort=sort,
    )
    return tag(
        "div", made, class_="wide long" if len(cells) > 15 else "wide", tabindex="0", role="region", aria_label=caption
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any, first: bool, side: str | None) -> Markup:
    numeric = _is_number(value)
    spec = "d" if isinstance(value, int) else ".0%" if isinstance(value, Percent) else ".3g"
    key = float(value) if numeric and value is not None and value == value else None
    kind, scope = ("th", "row") if first else ("td", None)
    shown = number(value, spec) if numeric else value
    return tag(kind, shown, scope=scope, class_=side, data_v=key)
