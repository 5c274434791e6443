"""The L0 relaxation against its formulas, and the sweeps that soft-mask solvers share."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracles import pairs_of, random_examples
from torch import Tensor

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.solvers.hard_concrete import draw, open_probability
from tl_multitrace.solvers.search import Search
from tl_multitrace.solvers.soft import Run, bracket, fill, sweep


@cache
def problem() -> mt.Tracer:
    model = build(MODEL_NAMES[0], torch.float64)
    return mt.Tracer(model, pairs_of(random_examples(5, seed=2)), mt.heads(model))


def search_of(budgets: tuple[int, ...], **options: Any) -> Search:
    allowed = np.ones(12, dtype=bool)
    return Search(problem(), budgets, sign=1, seed=0, **{"allowed": allowed, **options})


# ------------------------------------------------------------------------------------------------------- formulas
@pytest.mark.parametrize("location", [-2.0, 0.0, 1.5])
def test_gates_have_the_published_distribution(location: float) -> None:
    """Shares of exact zeros and ones, and of gates above a half, among many draws."""
    many = draw(torch.full((200_000,), location, dtype=torch.float64), torch.Generator().manual_seed(0))
    beta, low, high = 2 / 3, -0.1, 1.1
    shut = 1 / (1 + math.exp(location - beta * math.log(-low / high)))
    wide = 1 / (1 + math.exp(-(location - beta * math.log((1 - low) / (high - 1)))))
    assert float((many == 0).double().mean()) == pytest.approx(shut, abs=0.005)
    assert float((many == 1).double().mean()) == pytest.approx(wide, abs=0.005)
    assert float((many > 0.5).double().mean()) == pytest.approx(1 / (1 + math.exp(-location)), abs=0.005)
    assert float(open_probability(torch.tensor([location]))) == pytest.approx(1 - shut)
    assert 0 <= float(many.min()) and float(many.max()) <= 1


def test_the_gradient_is_that_of_the_penalised_loss() -> None:
    """Against central differences of loss plus penalty, with the same draws."""
    solver, search = mt.HardConcrete(), search_of((3,))
    location = torch.linspace(-1, 1, 12, dtype=torch.float64).requires_grad_()
    examples, weight = torch.arange(5), 0.03
    found = solver.step_gradient(search, location, examples, weight, torch.Generator().manual_seed(4))

    def value(at: Tensor) -> float:
        effect = problem().effect(draw(at, torch.Generator().manual_seed(4)))
        return float(problem().metric.loss(effect).mean() + weight * open_probability(at).sum())

    steps = 1e-5 * torch.eye(12, dtype=torch.float64)
    wanted = [(value(location.detach() + s) - value(location.detach() - s)) / 2e-5 for s in steps]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    assert found.abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------- searching
def test_it_fills_every_budget_and_tells_how() -> None:
    path = mt.select(problem(), range(1, 9), mt.HardConcrete(steps=15), seed=1)
    assert path.effects == sorted(path.effects) and path.effects[-1] > 0
    assert all(len(c.members) <= c.size for c in path.choices)
    (note,) = path.notes
    assert "sets that a run ended at: budgets" in note and "cut from gate probabilities" in note
    again = mt.select(problem(), range(1, 9), mt.HardConcrete(steps=15), seed=1)
    assert [c.members for c in again.choices] == [c.members for c in path.choices]
    other = mt.select(problem(), range(1, 9), mt.HardConcrete(steps=15), seed=2)
    assert other.cost["backwards"] > 0


def test_a_heavier_penalty_gives_a_smaller_set(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: dict[float, list[Tensor]] = {}
    plain = mt.HardConcrete.step_gradient

    def noting(self: Any, search: Search, location: Tensor, examples: Tensor, weight: float, generator: Any) -> Tensor:
        passed.setdefault(weight, []).append(location.detach().clone())
        return plain(self, search, location, examples, weight, generator)

    monkeypatch.setattr(mt.HardConcrete, "step_gradient", noting)
    mt.select(problem(), [2, 6], mt.HardConcrete(weights=(0.3, 0.0001, 0.03)))
    assert list(passed) == [0.0001, 0.03, 0.3]  # lightest first
    assert int((passed[0.0001][-1] > 0).sum()) > int((passed[0.3][-1] > 0).sum())
    assert not passed[0.0001][0].any() and passed[0.03][0].any()  # from even odds, then from where the last one ended


def test_forced_forbidden_and_direction() -> None:
    path = mt.select(problem(), [3, 5], mt.HardConcrete(steps=8), direction="minimize", forced=[4], forbidden=[0, 1])
    assert all(4 in c.members and not {0, 1} & set(c.members) for c in path.choices)
    assert path.effects[1] <= path.effects[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps and batch_size of at least 1"),
        ({"lr": 0.0}, "lr above 0"),
        ({"start": 1.0}, "between 0 and 1, got 1.0"),
        ({"weights": ()}, "positive penalties"),
        ({"weights": (0.1, -1.0)}, "positive penalties"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mt.HardConcrete(**options)


# ------------------------------------------------------------------------------------------------ sweeps and filling
def fake(size_at: Any, asked: list[tuple[float, float | None]]) -> Any:
    """A run whose set has ``size_at(weight)`` members: the lowest numbers."""

    def run(weight: float, earlier: Run | None) -> Run:
        asked.append((weight, None if earlier is None else earlier.weight))
        return Run(weight, torch.zeros(12), -np.arange(12.0), tuple(range(size_at(weight))))

    return run


def test_weights_are_sought_until_the_budgets_are_bracketed() -> None:
    asked: list[tuple[float, float | None]] = []
    runs = bracket(search_of((1, 2, 3, 4, 5)), fake(lambda w: min(12, int(4 / w)), asked), 1.0, 8)
    sizes = [len(r.members) for r in runs]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] >= 5 and sizes[-1] <= 1
    assert {2, 3, 4, 5} & set(sizes) and len(runs) <= 8
    assert [r.weight for r in runs] == sorted(r.weight for r in runs)
    assert all(earlier is None or earlier < weight for weight, earlier in asked)  # warm starts from larger sets


def test_a_size_that_no_weight_gives_is_not_sought_for_ever() -> None:
    asked: list[tuple[float, float | None]] = []
    bracket(search_of((2, 6)), fake(lambda w: 4, asked), 1.0, 20)
    assert len(asked) == 7  # three steps outwards to either side


def test_a_run_that_ended_empty_starts_nothing() -> None:
    asked: list[tuple[float, float | None]] = []
    sweep(search_of((2,)), fake(lambda w: 0 if w > 1 else 3, asked), (0.5, 2.0, 3.0))
    assert asked == [(0.5, None), (2.0, 0.5), (3.0, None)]


def test_budgets_between_are_cut_from_the_neighbours() -> None:
    search = search_of((2, 3, 5))
    runs = [
        Run(0.1, torch.zeros(12), -np.arange(12.0), (0, 1, 2, 3, 4, 5)),
        Run(1.0, torch.zeros(12), np.arange(12.0), (8, 9)),
    ]
    origin = fill(search, runs)
    assert set(origin) >= {(0, 1, 2), (9, 10, 11), (8, 9), (0, 1, 2, 3, 4)}
    assert all(search.known(members) is not None for members in origin)


def test_pgbct_gives_a_whole_path() -> None:
    tracer = problem()
    single = mt.select(tracer, range(1, 9), mt.PGBCT(epochs=4))
    path = mt.select(tracer, range(1, 9), mt.PGBCT(epochs=4, path=True))
    assert all(a >= b - 1e-9 for a, b in zip(path.effects, single.effects, strict=True))
    assert path.effects[0] > single.effects[0] == 0.0  # a single run's set has another size
    assert "cut from the mask's average over a run's steps" in path.notes[0]
    steps = 4  # five pairs are one batch
    assert path.cost["backwards"] <= 8 * steps and single.cost["backwards"] == steps
    with pytest.raises(ValueError, match="runs of at least 1"):
        mt.PGBCT(path=True, runs=0)
