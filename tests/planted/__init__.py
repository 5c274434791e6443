"""Small transformers with hand-set weights whose causally relevant components are known by construction.

What a search should find in a trained model, nobody knows. Here it is known, so a solver can be held against it; each
circuit is one way in which ranking components by their single effects goes wrong.

    >>> import tl_multitrace as mt
    >>> import planted
    >>> circuit = planted.build("and2_hard-small")
    >>> path = mt.select(circuit.tracer("restoring"), [1, 2])
    >>> sorted(path[2].labels) == circuit.labels(circuit.optimal["restoring"][2])
    True

``cases()`` gives the ids, also to parametrise the test of a solver with. Circuits of one's own are drawn up with a
``Blueprint`` and made into a model by ``boot``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from . import gates, routing
from .blueprint import Blueprint, Shape, Weights, at_position
from .boot import Backend, boot, default_backend
from .case import DIRECTIONS, REACH, UNIT, Component, Direction, PlantedCircuit, Subset, with_leaks
from .plan import CLASSES, Plan

__all__ = [
    "DIRECTIONS",
    "REACH",
    "UNIT",
    "Blueprint",
    "Component",
    "Direction",
    "PlantedCircuit",
    "Shape",
    "Subset",
    "Weights",
    "at_position",
    "boot",
    "build",
    "cases",
]

Size = Literal["small", "large"]
HEADS_SMALL, HEADS_LARGE = Shape(3, 3, 16), Shape(6, 16, 32)  # 9 and 96 heads
NEURONS_SMALL, NEURONS_LARGE = Shape(3, 2, 4), Shape(3, 4, 700)  # 12 and 2100 neurons
LEAKING_NEURONS = 60  # of thousands: if all leaked, their sum would drown the circuit


@dataclass(frozen=True)
class Recipe:
    """A circuit and the sizes of model it is put in."""

    plan: Callable[[Blueprint], Plan]
    small: Shape = HEADS_SMALL
    large: Shape = HEADS_LARGE
    large_plan: Callable[[Blueprint], Plan] | None = None


def _smooth(shape: Shape) -> Shape:
    return Shape(shape.n_layers, shape.n_heads, shape.d_mlp, act_fn="gelu")


_SMOOTH = (_smooth(HEADS_SMALL), _smooth(HEADS_LARGE))
_RECIPES = {
    "induction": Recipe(routing.induction),
    "and2_hard": Recipe(partial(gates.and_hard, members=2)),
    "and3_hard": Recipe(partial(gates.and_hard, members=3)),
    "and2_soft": Recipe(gates.and2_soft, *_SMOOTH),
    "and3_soft": Recipe(gates.and3_soft, *_SMOOTH),
    "or2": Recipe(partial(gates.or_hard, members=2)),
    "or3": Recipe(partial(gates.or_hard, members=3)),
    "and_of_ors": Recipe(gates.and_of_ors),
    "backup": Recipe(routing.backup),
    "decoys": Recipe(gates.decoys),
    "inhibitor": Recipe(gates.inhibitor),
    "harmful_xor": Recipe(gates.harmful_xor),
    "key_query_and": Recipe(routing.key_query_and),
    "majority": Recipe(
        partial(routing.majority, voters=5), NEURONS_SMALL, NEURONS_LARGE, partial(routing.majority, voters=9)
    ),
    "two_site": Recipe(routing.two_site),
    "mini_ioi": Recipe(routing.mini_ioi, Shape(3, 4, 16)),
}


def cases(size: Size = "small", rotated: bool = False, leaks: bool = False) -> list[str]:
    """Ids of every circuit in one setting.

    Args:
        size: ``small`` has 9 or 12 candidates, few enough for all subsets; ``large`` 96 heads (one circuit with 6 MLPs
            besides) or 2100 neurons.
        rotated: put the residual stream, and each head's values, in a random basis.
        leaks: give every idle head (60 idle neurons) a small effect of its own, 1-2 % of a unit, of either sign.

    Returns:
        Ids for ``build``, such as ``"and2_hard-small-rotated-leaks"``.

    Examples:
        >>> from planted import cases
        >>> cases("large")[:3]
        ['induction-large', 'and2_hard-large', 'and3_hard-large']
    """
    options = [size, *["rotated"] * rotated, *["leaks"] * leaks]
    return ["-".join([name, *options]) for name in _RECIPES]


def build(case: str, backend: Backend | None = None, dtype: torch.dtype = torch.float32) -> PlantedCircuit:
    """Build one circuit. The same id gives the same weights, on every version of TransformerLens.

    Args:
        case: an id from ``cases``.
        backend: the model class; by default the newest that the installed TransformerLens has and the case works on.
        dtype: of the model.

    Raises:
        ValueError: the id is none of those that ``cases`` gives.

    Examples:
        >>> from planted import build
        >>> circuit = build("backup-large")
        >>> len(circuit.components), circuit.best["noising"][2]
        (96, -2.0)
        >>> circuit.labels(circuit.optimal["noising"][2])
        ['L0H11', 'L5H2']
    """
    name, size, options = _parse(case)
    recipe, small = _RECIPES[name], size == "small"
    blueprint = Blueprint(recipe.small if small else recipe.large, seed=zlib.crc32(name.encode()))
    plan = (recipe.plan if small else recipe.large_plan or recipe.plan)(blueprint)
    leaks = _add_leaks(blueprint, plan) if "leaks" in options else {}
    weights = blueprint.weights()
    if "rotated" in options:
        weights = weights.rotated(blueprint.generator)
    model = boot(weights, backend or default_backend(plan.kind == "pattern"), dtype)
    return _assemble(case, blueprint, plan, model, leaks)


def _parse(case: str) -> tuple[str, str, list[str]]:
    name, _, setting = case.partition("-")
    size, *options = setting.split("-")
    if name not in _RECIPES or size not in ("small", "large") or not set(options) <= {"rotated", "leaks"}:
        raise ValueError(f"no planted circuit {case!r}: take an id from cases(), such as {cases()[0]!r}")
    return name, size, options


def _add_leaks(bp: Blueprint, plan: Plan) -> dict[Component, float]:
    free = bp.free_neurons() if plan.kind == "neuron" else bp.free_heads()
    chosen = torch.randperm(len(free), generator=bp.generator).tolist()
    leaks: dict[Component, float] = {}
    for rank, position in enumerate(chosen[:LEAKING_NEURONS] if plan.kind == "neuron" else chosen):
        strength = UNIT * (0.01 + 0.01 * float(torch.rand((), generator=bp.generator)))
        value = strength if rank % 2 else -strength
        leaks[_leak(bp, plan, free[position], rank, value)] = value
    return leaks


def _leak(bp: Blueprint, plan: Plan, slot: tuple[int, int], rank: int, value: float) -> Component:
    """Let an idle component write the answer a little, by a path of its own, so that leaks add up exactly."""
    if plan.kind == "neuron":  # reads one class, so it speaks up on one prompt in three
        k = rank % len(CLASSES)
        return bp.place_neuron(slot, {plan.leak.reads[k]: 1.0}, {f"out{k}": value * len(CLASSES)})
    carry = {read: {f"out{k}": value} for k, read in enumerate(plan.leak.reads)}
    kind, layer, index = bp.place_head(slot, plan.leak.attend, carry)
    return ("pattern" if plan.kind == "pattern" else kind, layer, index)


def _candidates(shape: Shape, kind: str) -> list[Component]:
    width = shape.d_mlp if kind == "neuron" else shape.n_heads
    label = "head" if kind == "mixed" else kind
    single = [(label, layer, index) for layer in range(shape.n_layers) for index in range(width)]
    whole: list[Component] = [("mlp", layer, None) for layer in range(shape.n_layers)] if kind == "mixed" else []
    return [*single, *whole]


def _assemble(case: str, bp: Blueprint, plan: Plan, model: object, leaks: dict[Component, float]) -> PlantedCircuit:
    def ids(rows: list[list[str]]) -> torch.Tensor:
        return torch.tensor([[bp.vocabulary[name] for name in row] for row in rows])

    optima = {way: with_leaks(truth, leaks) for way, truth in plan.truth.items()}
    signs = {"noising": -1.0, "restoring": 1.0}
    return PlantedCircuit(
        name=case,
        model=model,
        base_tokens=ids([list(prompt.clean) for prompt in plan.prompts]),
        source_tokens=ids([list(prompt.corrupted) for prompt in plan.prompts]),
        answers=ids([[f"ANSWER{prompt.answer}"] for prompt in plan.prompts])[:, 0],
        wrong_answers=ids([[f"ANSWER{prompt.wrong}"] for prompt in plan.prompts])[:, 0],
        kind=plan.kind,
        components=_candidates(bp.shape, plan.kind),
        minimal={way: list(truth.minimal) for way, truth in plan.truth.items()},
        best={way: {s: signs[way] * row[0] for s, row in enumerate(rows, 1)} for way, rows in optima.items()},
        optimal={way: {s: row[1] for s, row in enumerate(rows, 1)} for way, rows in optima.items()},
        target={way: signs[way] * truth.optimal[-1][0] for way, truth in plan.truth.items()},
        silent={way: truth.silent for way, truth in plan.truth.items()},
        leaks=leaks,
    )
