"""Whether two printed outputs say the same, up to what rounding, library versions and the clock explain."""

from __future__ import annotations

import re

NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
TIMES = re.compile(r"\d+(\.\d+)? s\b")
RELATIVE, ABSOLUTE = 0.05, 0.05


def disagreement(printed: str, shown: str) -> str | None:
    """What differs between two outputs: a word, or a number by more than rounding and library versions explain."""
    lines = [[" ".join(line.split()) for line in TIMES.sub("0 s", t).strip().splitlines()] for t in (printed, shown)]
    if len(lines[0]) != len(lines[1]):
        return f"{len(lines[0])} lines printed, {len(lines[1])} shown"
    for got, want in zip(*lines, strict=True):
        if NUMBER.sub("#", got) != NUMBER.sub("#", want):
            return f"{got!r} is not {want!r}"
        for a, b in zip(NUMBER.findall(got), NUMBER.findall(want), strict=True):
            if abs(float(a) - float(b)) > ABSOLUTE + RELATIVE * abs(float(b)):
                return f"{a} is not {b} in {want!r}"
    return None
