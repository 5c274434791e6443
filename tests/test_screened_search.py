"""The default solver: the planted circuits decide, then greedy on random models, then what a user may ask of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracles import pairs_of, random_examples
from planted_searches import HARD, build, missed, nightly_but, search

import tl_multitrace as mt
from planted import DIRECTIONS, Direction, cases
from tiny_models import random_gpt2

SETTINGS = [
    (size, rotated, leaks) for size in ("small", "large") for rotated in (False, True) for leaks in (False, True)
]
EVERY = [name for size, rotated, leaks in SETTINGS for name in cases(size, rotated, leaks)]  # type: ignore[arg-type]
LARGE = [f"{name}-large-rotated-leaks" for name in HARD]
CHOSEN = cases("small", rotated=True, leaks=True)


# ---------------------------------------------------------------------------------------------- planted circuits
@cache
def found(name: str, direction: Direction) -> mt.SubsetPath:
    return search(build(name), direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CHOSEN)
def test_the_best_effect_at_every_size(name: str, direction: Direction) -> None:
    assert not missed(build(name), direction, found(name, direction))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", nightly_but(["mini_ioi-large-rotated-leaks", "key_query_and-large-rotated-leaks"], LARGE)
)
def test_the_best_effect_in_large_models(name: str) -> None:
    for direction in DIRECTIONS:
        assert not missed(build(name), direction, found(name, direction))


@pytest.mark.nightly
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", [name for name in EVERY if name not in (*CHOSEN, *LARGE)])
def test_the_best_effect_in_every_setting(name: str, direction: Direction) -> None:
    assert not missed(build(name), direction, search(build(name), direction))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", LARGE)
def test_the_seed_does_not_decide(name: str, seed: int) -> None:
    for direction in DIRECTIONS:
        assert not missed(build(name), direction, search(build(name), direction, seed=seed))


def test_a_search_that_finds_little_is_told_apart() -> None:
    """The check itself: what a ranking by single effects misses is reported."""
    circuit = build("and_of_ors-large-rotated-leaks")
    short = missed(circuit, "restoring", search(circuit, "restoring", mt.TopK()))
    assert set(short) and all(found < best for found, best in short.values())


def test_it_says_when_group_testing_found_what_the_path_had_missed() -> None:
    notes = found("and_of_ors-large-rotated-leaks", "restoring").notes
    assert any("group testing found" in note for note in notes)


# ---------------------------------------------------------------------------------------------- against greedy
@cache
def random_problem(seed: int, odds: bool = False, boost: float = 8.0) -> mt.Tracer:
    """32 heads of a random model with strong interactions, on six prompts."""
    model = random_gpt2(4, 8, 64, 128, 32, seed=seed, boost=boost)
    metric = mt.OddsRatio() if odds else mt.LogitDiff()
    return mt.Tracer(model, pairs_of(random_examples(6, seed=seed)), mt.heads(model), metric=metric)


def ratios(tracer: mt.Tracer, direction: Any) -> Any:
    """Our effects over exact greedy's, budget by budget."""
    paths = [mt.select(tracer, range(1, 11), solver, direction=direction) for solver in (None, mt.Greedy())]
    ours, greedy = (np.array(path.effects) for path in paths)
    assert ((1 if direction == "maximize" else -1) * greedy > 0).all()
    return ours / greedy


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(
    ("seed", "odds"), [(2, False), *(pytest.param(s, True, marks=pytest.mark.nightly) for s in (1, 3))]
)
def test_never_worse_than_greedy(seed: int, odds: bool, direction: Any) -> None:
    ours = ratios(random_problem(seed, odds), direction)
    assert ours.min() >= 0.99 and ours.mean() >= 1.0


@pytest.mark.nightly
def test_rarely_worse_than_greedy_where_all_interact() -> None:
    """What screening cannot promise: over 24 searches, six in seven never worse, none by more than a twentieth."""
    all_of_them = [
        ratios(random_problem(seed, bool(seed % 2), boost), direction)
        for seed, boost in itertools.product(range(6), (4.0, 8.0))
        for direction in ("maximize", "minimize")
    ]
    assert np.mean([r.mean() for r in all_of_them]) >= 1.01
    assert np.mean([r.min() >= 0.99 for r in all_of_them]) >= 0.85 and min(r.min() for r in all_of_them) >= 0.95


def test_small_problems_are_solved() -> None:
    """Where all subsets are few, it takes them all, and says so."""
    tracer = mt.Tracer(random_problem(0).model, random_problem(0).pairs, random_problem(0).groups[:8])
    ours, exact = mt.select(tracer, [1, 2, 3]), mt.select(tracer, [1, 2, 3], mt.Exhaustive())
    assert ours.effects == pytest.approx(exact.effects)
    assert {c.certificate for c in ours.choices} == {c.certificate for c in exact.choices}


# ---------------------------------------------------------------------------------------------- what may be asked
def test_one_seed_one_result() -> None:
    first, again = (mt.select(random_problem(0), range(1, 9), seed=3) for _ in range(2))
    assert [c.members for c in first.choices] == [c.members for c in again.choices]
    assert first.effects == again.effects and first.notes == again.notes
    assert first.cost["forwards"] == again.cost["forwards"]


def test_screening_in_lower_precision() -> None:
    """Gradients differ by rounding, and nothing else: what is chosen is scored, and chosen, in full precision."""
    tracer = random_problem(3)
    mask = torch.full((len(tracer.groups),), 0.5)
    (_, exact), (_, low) = (tracer.effect_and_gradient(mask, dtype=d) for d in (None, torch.bfloat16))
    assert not torch.equal(exact, low)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), low.flatten(), dim=0) > 0.99
    path = mt.select(tracer, range(1, 9), mt.ScreenedSearch(screen_dtype="bfloat16"))
    plain = mt.select(tracer, range(1, 9))
    assert path.provenance["solver"]["screen_dtype"] == "bfloat16"
    for choice in path.choices:
        assert choice.score.mean == pytest.approx(float(tracer.effect(path[choice.size].mask).mean()), rel=1e-6)
    assert np.min(np.array(path.effects) / np.array(plain.effects)) >= 0.97
    assert tracer.effect_and_gradient(mask)[1].equal(exact)  # the precision is back
    with pytest.raises(ValueError, match="screen_dtype must be None or one of 'bfloat16', 'float16', got 'int8'"):
        mt.ScreenedSearch(screen_dtype="int8")


def test_more_effort_costs_more_and_finds_no_less() -> None:
    efforts: tuple[Any, ...] = ("low", "normal", "high")
    paths = [mt.select(random_problem(1), range(1, 7), mt.ScreenedSearch(effort=e)) for e in efforts]
    costs = [path.cost["equivalents"] for path in paths]
    assert costs == sorted(costs) and costs[0] < costs[2]
    assert paths[2].effects[-1] >= 0.99 * paths[0].effects[-1]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_forced_and_forbidden_groups(direction: Any) -> None:
    tracer = random_problem(3)
    wanted, unwanted = ["L1H3"], ["L0H0", "L2H5", "L3H7"]
    rule: dict[str, Any] = {"direction": direction, "forced": wanted, "forbidden": unwanted}
    ours, greedy = (mt.select(tracer, range(2, 7), solver, **rule) for solver in (None, mt.Greedy()))
    for choice in ours.choices:
        labels = {tracer.groups.labels[i] for i in choice.members}
        assert labels >= set(wanted) and not labels & set(unwanted) and len(labels) <= choice.size
    sign = 1 if direction == "maximize" else -1
    gaps = [sign * (a - b) for a, b in zip(ours.effects, greedy.effects, strict=True)]
    assert min(gaps) >= -0.01 * abs(greedy.effects[-1])


def test_budgets_per_kind() -> None:
    model, pairs = random_problem(0).model, random_problem(0).pairs
    tracer = mt.Tracer(model, pairs, mt.heads(model, layers=[1, 2]) + mt.neurons(model, layers=[1, 2])[:40])
    limits = {"head": 2, "neuron": 5}
    (ours,), (greedy,) = (mt.select(tracer, limits, s).choices for s in (None, mt.Greedy()))
    kinds = [tracer.groups.kinds[i] for i in ours.members]
    assert ours.size == 7 and kinds.count("head") <= 2 and kinds.count("neuron") <= 5
    assert "neuron" in kinds
    assert ours.score.mean >= 0.99 * greedy.score.mean
    only = mt.select(tracer, {"head": 3})
    assert {tracer.groups.kinds[i] for i in only.choices[0].members} == {"head"}


def half_right(out: Any, base: Any) -> torch.Tensor:
    """A metric of the user's own: the answer's log probability, capped."""
    return out.scores("sum")[:, 0].clamp(max=-0.5)


@pytest.mark.parametrize("metric", [mt.Accuracy(), half_right, mt.KLDivergence()], ids=["accuracy", "custom", "kl"])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_any_metric(metric: Callable[..., Any], direction: Any) -> None:
    tracer = mt.Tracer(random_problem(1).model, random_problem(1).pairs, random_problem(1).groups[8:24], metric=metric)
    ours = mt.select(tracer, range(1, 7), direction=direction)
    greedy = mt.select(tracer, range(1, 7), mt.Greedy(), direction=direction)
    sign = 1 if direction == "maximize" else -1
    slack = 0.01 * abs(greedy.effects[-1]) + 1e-9
    assert all(sign * (a - b) >= -slack for a, b in zip(ours.effects, greedy.effects, strict=True))
    assert ours.effects == sorted(ours.effects, key=lambda e: sign * e)


def test_thousands_of_neurons() -> None:
    """Multi-exchange: at least what integrated gradients rank first, at every size of the grid."""
    circuit = build("majority-large-leaks")
    tracer = circuit.tracer("restoring")
    assert len(tracer.groups) > 2000
    grid = [1, 4, 16, 64]
    ours, ranked = (mt.select(tracer, grid, solver) for solver in (None, mt.IntegratedGradients()))
    assert all(a >= b - 1e-6 for a, b in zip(ours.effects, ranked.effects, strict=True))
    assert ours.effects[-1] >= 0.99 * circuit.target["restoring"]
