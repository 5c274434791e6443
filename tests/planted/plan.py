"""What a circuit function hands over, and the prompts that most circuits share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Literal

from .blueprint import Attend, Blueprint, at_position
from .case import UNIT, Component, Direction, Subset, Truth

CLASSES = range(3)
SITES = (1, 2, 3)  # positions that tell the answer class in clean prompts and nothing in corrupted ones


@dataclass(frozen=True)
class Prompt:
    """One pair of prompts, token by token, and the classes it is scored on."""

    clean: Sequence[str]
    corrupted: Sequence[str]
    answer: int
    wrong: int


@dataclass(frozen=True)
class Leak:
    """How an idle component can be given a small effect: what it looks at, and which directions tell the class."""

    attend: Attend = field(default_factory=lambda: at_position(SITES[0]))
    reads: Sequence[str] = tuple(f"signal{k}" for k in CLASSES)


@dataclass(frozen=True)
class Plan:
    """A circuit's prompts and its known answer."""

    prompts: list[Prompt]
    truth: dict[Direction, Truth]
    kind: Literal["head", "pattern", "neuron", "mixed"] = "head"
    leak: Leak = field(default_factory=Leak)


def vocabulary(bp: Blueprint) -> None:
    """The shared tokens: a start, fillers, an end, signals of each class, a neutral one, and the answers."""
    for name in ("START", "f0", "f1", "f2", "f3", "END", "NEUTRAL"):
        bp.token(name)
    for k in CLASSES:
        bp.token(f"SIGNAL{k}", f"signal{k}")
        bp.output(f"ANSWER{k}", f"out{k}")


def class_pairs() -> list[tuple[int, int]]:
    """Every ordered pair of an answer class and a wrong one: six prompts."""
    return list(permutations(CLASSES, 2))


def signal_prompts(bp: Blueprint) -> list[Prompt]:
    """``START s s s filler END`` with the answer's signal at each site when clean, a neutral token when corrupted."""
    vocabulary(bp)
    prompts = []
    for number, (k, wrong) in enumerate(class_pairs()):
        tail = [f"f{number % 4}", "END"]
        clean = ["START", *[f"SIGNAL{k}"] * 3, *tail]
        prompts.append(Prompt(clean, ["START", *["NEUTRAL"] * 3, *tail], k, wrong))
    return prompts


def messenger(bp: Blueprint, stage: int, name: str, site: int = 0, **extra: float) -> Component:
    """A head that brings the class at a site to the last position.

    Args:
        bp: the blueprint to add it to.
        stage: where it goes.
        name: the directions it writes are ``name0``, ``name1``, ...; ``out`` are the logits.
        site: which of the sites it looks at.
        extra: directions to write besides, whatever the class; ``scale`` sets the strength of the message instead.
    """
    scale = extra.pop("scale", 1.0)
    carry = {f"signal{k}": {f"{name}{k}": scale, **extra} for k in CLASSES}
    return bp.head(stage, at_position(SITES[site % len(SITES)]), carry)


def sets(*members: Iterable[Component]) -> tuple[Subset, ...]:
    """Several sets of components."""
    return tuple(frozenset(group) for group in members)


def steps(*entries: tuple[float, Iterable[Component]]) -> tuple[tuple[float, Subset], ...]:
    """``optimal`` of a ``Truth``, movements given in units."""
    return tuple((UNIT * units, frozenset(members)) for units, members in entries)


def gelu(x: float) -> float:
    """The exact GELU, for stating what a smooth gate gives."""
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def sigmoid(x: float) -> float:
    """The logistic function, for stating what an attention gate gives."""
    return 1 / (1 + math.exp(-x))
