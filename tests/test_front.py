"""Fronts: what is on one, against all pairs; what a search finds, against every set; its table, figure and file."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.evaluation.pareto import nondominated, thin

model_of = cache(lambda: build(MODEL_NAMES[0], torch.float64))


def objective_of(n: int = 7) -> mt.Objective:
    model = model_of()
    groups = mt.heads(model)[:n]
    goal = mt.Tracer(model, pairs_of(random_examples(5)), groups, mt.LogitDiff())
    kept = mt.Tracer(model, pairs_of(random_examples(4, seed=1)), groups, mt.KLDivergence())
    return mt.Objective([mt.Goal("up", goal)], [mt.Constraint("kept", kept, at_most=0.001)])


@pytest.mark.parametrize("axes", [2, 3])
def test_a_set_is_on_the_front_when_no_other_beats_it(axes: int) -> None:
    values = np.random.default_rng(axes).integers(0, 6, (60, axes)).astype(float)
    found = nondominated(values)
    for i, row in enumerate(values):
        beaten = any((o >= row).all() and (o > row).any() for o in values)
        assert not (beaten and found[i])
        if not beaten:
            assert any((values[j] == row).all() for j in np.flatnonzero(found))


def test_thinning_keeps_the_ends() -> None:
    x = np.linspace(0, 1, 50)
    values = np.stack([1 - x**2, x], axis=1)
    kept = thin(values, np.ones(50, dtype=bool), 7)
    assert kept[0] == 0 and kept[-1] == 49 and len(kept) == 7


def test_the_front_is_that_of_all_sets_where_all_were_seen() -> None:
    objective = objective_of()
    front = mt.pareto(objective, 2, solver=mt.Exhaustive())
    sets = [s for k in range(3) for s in itertools.combinations(range(7), k)]
    masks = torch.zeros(len(sets), 7)
    for row, chosen in zip(masks, sets, strict=True):
        row[list(chosen)] = 1.0
    changes = objective.changes(masks)
    best = nondominated(np.stack([changes["up"], -changes["kept"]], axis=1))
    assert {p.members for p in front} == {s for s, on in zip(sets, best, strict=True) if on}
    assert front.evaluated == len(sets)
    ups = [p.changes["up"].mean for p in front]
    assert ups == sorted(ups, reverse=True)


def test_a_search_finds_most_of_the_front() -> None:
    objective = objective_of(12)
    front = mt.pareto(objective, 3, most=100)
    every = mt.pareto(objective, 3, most=1000, solver=mt.Exhaustive())

    def area(points: mt.Front) -> float:
        xy = sorted((p.changes["kept"].mean, p.changes["up"].mean) for p in points)
        worst, best, total = max(p.changes["kept"].mean for p in every), 0.0, 0.0
        for (x, y), (after, _) in itertools.pairwise([*xy, (worst, 0.0)]):
            best = max(best, y)
            total += best * (min(after, worst) - min(x, worst))
        return total

    assert area(front) >= 0.97 * area(every)
    assert front.evaluated < every.evaluated


def test_two_goals_and_held_out_prompts() -> None:
    first = objective_of().goals[0]
    other = mt.Goal("down", first.tracer.on(pairs_of(random_examples(6, seed=8))), direction="minimize")
    front = mt.pareto(mt.Objective([first, other]), 2, held_out={"up": pairs_of(random_examples(3, seed=4))})
    assert [axis.better for axis in front.axes] == ["higher", "lower"]
    table = front.to_dataframe()
    assert list(table.columns)[:5] == ["size", "up", "up_low", "up_high", "up_held_out"]
    assert table["up_held_out"].notna().all()
    assert front[0].held_out["down"].n == 6  # prompts that were not replaced


def test_a_front_as_file_table_circuit_and_figure(tmp_path: Path) -> None:
    objective = objective_of()
    front = mt.pareto(objective, 2)
    back = mt.Front.load(front.save(tmp_path / "f.json"))
    assert back == front and repr(back) == repr(front)
    circuit = front.circuit(0, objective)
    assert circuit.labels == list(front[0].labels)
    assert circuit.effect == pytest.approx(front[0].changes["up"].mean)
    figure = front.plot()
    assert figure.axes[0].get_xlabel().startswith("kept, nats")
    assert "kept (lower is better)" in front._repr_html_()
    with pytest.raises(ValueError, match="the front has no 'bias'; it trades up, kept"):
        front.plot(x="bias")
    with pytest.raises(ValueError, match="pass the same groups"):
        front.circuit(0, objective_of(1))


def test_what_has_no_front() -> None:
    objective = objective_of()
    with pytest.raises(ValueError, match="nothing to trade"):
        mt.pareto(mt.Objective(objective.goals), 2)
    with pytest.raises(ValueError, match="levels is at least 1"):
        mt.pareto(objective, 2, levels=0)
    with pytest.raises(ValueError, match="budget 9 is outside"):
        mt.pareto(objective, 9)
