"""Searches on planted circuits, and the budgets at which they fell short of the known best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import pytest

import tl_multitrace as mt
from planted import Direction, PlantedCircuit
from planted import build as build_anew

SLACK = 0.01
"""Share of the target by which an effect may fall short of the best and still count as the best."""

HARD = ("and_of_ors", "key_query_and", "decoys", "mini_ioi", "and3_soft", "majority")
"""Circuits that at least one solver misses at every size of model."""

build = cache(build_anew)  # no search changes a model


def nightly_but(kept: Collection[str], names: Sequence[str]) -> list[Any]:
    """Parameters for every name, of which those not ``kept`` wait for ``-m nightly``."""
    return [name if name in kept else pytest.param(name, marks=pytest.mark.nightly) for name in names]


def search(circuit: PlantedCircuit, direction: Direction, solver: Any = None, **options: Any) -> mt.SubsetPath:
    """The path over every size whose best effect is known; noising pushes the metric down, restoring up."""
    tracer = circuit.tracer(direction)
    largest = min(max(circuit.best[direction]), len(tracer.groups))
    way = "minimize" if direction == "noising" else "maximize"
    return mt.select(tracer, range(1, largest + 1), solver, direction=way, **options)


def missed(circuit: PlantedCircuit, direction: Direction, path: mt.SubsetPath) -> dict[int, tuple[float, float]]:
    """Budgets whose effect is worse than the best by more than ``SLACK`` of the target: ``{S: (found, best)}``."""
    sign = -1 if direction == "noising" else 1
    found = dict(zip(path.sizes, path.effects, strict=True))
    best = {size: effect for size, effect in circuit.best[direction].items() if size in found}
    short = {size: sign * (effect - found[size]) for size, effect in best.items()}
    slack = SLACK * abs(circuit.target[direction])
    return {size: (found[size], best[size]) for size, gap in short.items() if gap > slack}
