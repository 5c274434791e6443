"""Solvers on small problems whose optimum is known by brute force, and on a real tiny model against plain loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from oracles import Plain, pairs_of, random_examples
from torch import Tensor
from toy_tracer import Toy, model_of

import tl_multitrace as mt
from tl_multitrace.solvers.path import chance_score, marginal_effects
from tl_multitrace.solvers.ranking import integrated_gradients
from tl_multitrace.solvers.search import Search

N = 8


# --------------------------------------------------------------------------------------------------- toy problems
def additive(m: Tensor) -> Tensor:
    return m @ torch.tensor([0.5, -0.4, 0.9, 0.05, -0.1, 0.3, 0.7, -0.9], dtype=m.dtype)


def redundant(m: Tensor) -> Tensor:
    """Three copies of one thing, and two smaller things: ranking single effects takes the copies."""
    return 1 - (1 - m[0]) * (1 - m[3]) * (1 - m[5]) + 0.6 * m[1] + 0.5 * m[6]


def conjunction(m: Tensor) -> Tensor:
    """Two components that only work together, beside small ones that work alone."""
    return 2 * m[2] * m[7] + 0.1 * m[0] + 0.05 * m[1] - 0.2 * m[4]


def harmful(m: Tensor) -> Tensor:
    """One component spoils the others: the whole set is worse than a part."""
    return (m[0] + m[1] + m[2]) * (1 - 0.9 * m[3]) + 0.2 * m[3]


def tangled(m: Tensor) -> Tensor:
    """Random pairwise interactions of both signs."""
    weights = torch.randn(N, N, generator=oracles.generator(3), dtype=torch.float64)
    return torch.triu(weights).to(m) @ m @ m


PROBLEMS: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__: f for f in (additive, redundant, conjunction, harmful, tangled)
}


def value(problem: str, members: Iterable[int]) -> float:
    mask = torch.zeros(N, dtype=torch.float64)
    mask[list(members)] = 1
    return float(PROBLEMS[problem](mask))


def optimum(
    problem: str, size: int, sign: int = 1, forced: tuple[int, ...] = (), forbidden: tuple[int, ...] = ()
) -> float:
    free = [i for i in range(N) if i not in (*forced, *forbidden)]
    sizes = range(size - len(forced) + 1)
    sets = itertools.chain.from_iterable(itertools.combinations(free, k) for k in sizes)
    return sign * max(sign * value(problem, (*s, *forced)) for s in sets)


def naive_greedy(problem: str, steps: int) -> list[float]:
    """Best value seen with at most k components, adding the best one each time."""
    chosen: list[int] = []
    best = [value(problem, [])]
    for _ in range(steps):
        chosen.append(max((i for i in range(N) if i not in chosen), key=lambda i: value(problem, [*chosen, i])))
        best.append(max(best[-1], value(problem, chosen)))
    return best[1:]


SOLVERS: dict[str, Any] = {
    "exhaustive": mt.Exhaustive(),
    "greedy": mt.Greedy(),
    "top-k": mt.TopK(),
    "attribution": mt.AttributionPatching(),
    "integrated": mt.IntegratedGradients(),
    "PGB-CT": mt.PGBCT(sweep=(0.2, 1.0, 3.0), epochs=8),
    "random": mt.RandomSubset(draws=5),
    "default": None,
}
every_solver = pytest.mark.parametrize("solver", SOLVERS)
every_problem = pytest.mark.parametrize("problem", PROBLEMS)


# ------------------------------------------------------------------------------------------------- what is found
@pytest.mark.parametrize("solver", ["exhaustive", "greedy", "top-k", "attribution", "integrated", "default"])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_additive_effects_are_easy(solver: str, direction: Any) -> None:
    path = mt.select(Toy(additive), range(1, N + 1), SOLVERS[solver], direction=direction)
    sign = 1 if direction == "maximize" else -1
    assert path.effects == pytest.approx([optimum("additive", k, sign) for k in path.sizes])
    assert path.choices[-1].members == ((0, 2, 3, 5, 6) if sign > 0 else (1, 4, 7))


def test_pgbct_finds_the_helpful_components() -> None:
    """One run gives one size; where effects add up and the size penalty is off, that is the optimum."""
    path = mt.select(Toy(additive), range(1, N + 1), mt.PGBCT(lr=0.1, epochs=20, l1=0.0, l2=0.0))
    assert path.choices[-1].members == (0, 2, 3, 5, 6)
    assert path.effects[:4] == [0.0] * 4  # smaller sizes were not asked of it and not seen
    strict = mt.select(Toy(additive), range(1, N + 1), mt.PGBCT(lr=0.1, epochs=5, l1=0.02, l2=0.0))
    assert 0 < len(strict.choices[-1].members) < 5


@every_problem
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_exhaustive_is_brute_force(problem: str, direction: Any) -> None:
    sign = 1 if direction == "maximize" else -1
    path = mt.select(Toy(PROBLEMS[problem]), range(1, N + 1), mt.Exhaustive(), direction=direction)
    assert path.effects == pytest.approx([optimum(problem, k, sign) for k in path.sizes])
    assert all(c.certificate == "optimal (exhaustive, 256 subsets)" for c in path.choices)


@every_problem
def test_greedy_is_naive_greedy(problem: str) -> None:
    path = mt.select(Toy(PROBLEMS[problem]), range(1, N + 1), mt.Greedy())
    assert path.effects == pytest.approx(naive_greedy(problem, N))


def test_greedy_may_stop_early() -> None:
    path = mt.select(Toy(additive), N, mt.Greedy(patience=1))
    assert path.choices[0].members == (0, 2, 3, 5, 6)
    assert path.notes == ("greedy stopped at 6: no gain in 1 steps",)


def test_ranking_misses_what_acts_together() -> None:
    """Documented blindness: copies of one thing are all taken, and a pair that works jointly is not seen."""
    copies = mt.select(Toy(redundant), 3, mt.TopK())
    assert copies.choices[0].members in ((0, 3, 5), (0,))
    assert copies.effects[0] < optimum("redundant", 3) - 0.5
    pair = mt.select(Toy(conjunction), 2, mt.TopK())
    assert pair.effects[0] < optimum("conjunction", 2) / 2


# ----------------------------------------------------------------------------------------------- what is promised
@every_solver
@every_problem
def test_paths_are_within_budget_and_never_get_worse(solver: str, problem: str) -> None:
    toy = Toy(PROBLEMS[problem])
    for direction, sign in (("maximize", 1), ("minimize", -1)):
        path = mt.select(toy, [1, 2, 4, 7], SOLVERS[solver], direction=direction)  # type: ignore[arg-type]
        assert path.sizes == [1, 2, 4, 7]
        for c in path.choices:
            assert len(c.members) <= c.size
            assert c.score.mean == pytest.approx(value(problem, c.members), abs=1e-9)
            assert sign * c.score.mean <= sign * optimum(problem, c.size, sign) + 1e-9
        signed = [sign * e for e in path.effects]
        assert signed == sorted(signed)
        assert signed[0] >= -1e-9  # the empty set is always a choice
        assert path.full_effect == pytest.approx(value(problem, range(N)))


@every_solver
def test_forced_and_forbidden(solver: str) -> None:
    options = {"forced": ["L0H1", 4], "forbidden": [mt.Component("head", 0, 2)]}
    for problem in ("additive", "tangled"):
        path = mt.select(Toy(PROBLEMS[problem]), range(2, N), SOLVERS[solver], **options)
        for c in path.choices:
            assert {1, 4} <= set(c.members)
            assert 2 not in c.members
            assert len(c.members) <= c.size
        if (
            solver in ("exhaustive", "greedy", "top-k", "attribution", "integrated", "default")
            and problem == "additive"
        ):
            wanted = [optimum("additive", k, 1, (1, 4), (2,)) for k in path.sizes]
            assert path.effects == pytest.approx(wanted)


def test_pgbct_holds_forced_groups_on_and_forbidden_ones_off(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []
    plain = Toy.loss_gradient
    monkeypatch.setattr(
        Toy, "loss_gradient", lambda self, z, *rest: (masks.append(z.clone()), plain(self, z, *rest))[1]
    )
    mt.select(Toy(additive), [3], mt.PGBCT(epochs=3), forced=[7], forbidden=[2])
    assert len(masks) == 3
    assert all(z[7] == 1 and z[2] == 0 for z in masks)


@every_solver
@every_problem
def test_no_subset_is_evaluated_twice(solver: str, problem: str) -> None:
    toy = Toy(PROBLEMS[problem])
    search = Search(tracer=toy, budgets=(2, 3, 5), sign=1, seed=0, allowed=np.ones(N, dtype=bool))
    from tl_multitrace.solvers.select import default_solver

    search.score(())
    (SOLVERS[solver] or default_solver()).search(search)
    assert len(toy.asked) == len(set(toy.asked)) >= 2
    assert search.best_within(5)[0] == pytest.approx(max(value(problem, s) for s in toy.asked if len(s) <= 5))
    before = len(toy.asked)
    assert search.known(toy.asked[-1]) == search.score(toy.asked[-1])
    assert len(toy.asked) == before


@every_solver
def test_same_seed_same_path(solver: str) -> None:
    paths = [mt.select(Toy(tangled), range(1, 6), SOLVERS[solver], seed=seed) for seed in (4, 4)]
    assert [c.members for c in paths[0].choices] == [c.members for c in paths[1].choices]
    assert [c.score for c in paths[0].choices] == [c.score for c in paths[1].choices]


def test_another_seed_draws_other_sets() -> None:
    found = set()
    for seed in range(8):
        toy = Toy(tangled)
        mt.select(toy, [3], mt.RandomSubset(draws=1), seed=seed)
        found |= {s for s in toy.asked if len(s) == 3}
    assert len(found) > 5


def test_random_sets_have_the_size_that_was_asked_for() -> None:
    toy = Toy(additive)
    mt.select(toy, [2, 5], mt.RandomSubset(draws=6), forced=[1])
    drawn = [s for s in toy.asked if len(s) in (2, 5)]
    assert {len(s) for s in drawn} == {2, 5}
    assert all(1 in s for s in drawn)


# ------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (0, r"budget 0 is outside 1 to 8, the number of hook groups. Ask for range\(1, 9\)"),
        (9, r"budget 9 is outside 1 to 8"),
        (range(0, 3), r"budget 0 is outside 1 to 8"),
        ([3, 20], r"budget 20 is outside 1 to 8"),
        ([], r"budgets must be whole numbers such as 10 or range\(1, 26\), got \[\]"),
        ([1.5], r"budgets must be whole numbers"),
    ],
)
def test_impossible_budgets(budgets: Any, message: str) -> None:
    with oracles.unchecked(), pytest.raises(ValueError, match=message):
        mt.select(Toy(additive), budgets, mt.TopK())


def test_impossible_searches() -> None:
    toy = Toy(additive)
    with oracles.unchecked(), pytest.raises(ValueError, match="direction must be 'maximize' or 'minimize', got 'up'"):
        mt.select(toy, 2, mt.TopK(), direction="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="L0H1 is both forced and forbidden"):
        mt.select(toy, 2, mt.TopK(), forced=[1], forbidden=["L0H1"])
    with pytest.raises(ValueError, match="2 forced groups do not fit the smallest budget 1"):
        mt.select(toy, [1, 4], mt.TopK(), forced=[1, 2])
    with pytest.raises(KeyError, match="L5H0 is not among these 8 groups"):
        mt.select(toy, 2, mt.TopK(), forced=["L5H0"])
    with pytest.raises(ValueError, match=r"Exhaustive would evaluate 256 subsets of 8 components \(limit 100\)"):
        mt.select(toy, 8, mt.Exhaustive(limit=100))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        mt.IntegratedGradients(steps=0)


# ---------------------------------------------------------------------------------------------- on a real model
@cache
def real() -> tuple[mt.Tracer, Plain]:
    model, examples = model_of(), random_examples(3, seed=5)
    groups = mt.heads(model)
    return mt.Tracer(model, pairs_of(examples), groups), Plain(model, examples, groups.sites)


def test_top_k_is_the_ranking_of_exact_single_effects() -> None:
    tracer, loop = real()
    singles = [float(loop.effect(torch.eye(12)[i], oracles.logit_diff).mean()) for i in range(12)]
    order = np.argsort(singles)[::-1]
    path = mt.select(tracer, range(1, 5), mt.TopK())
    assert path.choices[0].members == (int(order[0]),)
    assert path.effects[0] == pytest.approx(max(singles), rel=1e-8)
    for k in range(2, 5):
        mask = torch.zeros(12)
        mask[order[:k].copy()] = 1
        assert path.effects[k - 1] >= float(loop.effect(mask, oracles.logit_diff).mean()) - 1e-8


def test_exhaustive_is_brute_force_on_a_model() -> None:
    tracer, loop = real()
    path = mt.select(tracer, [1, 2], mt.Exhaustive())
    pairs = torch.stack([torch.eye(12)[[i, j]].sum(0) for i, j in itertools.combinations(range(12), 2)])
    best = max(float(loop.effect(m, oracles.logit_diff).mean()) for m in pairs[::3])  # a third of them, by plain loops
    assert path.effects[1] >= best - 1e-8
    assert path.effects[1] == pytest.approx(float(tracer.effects(torch.cat([pairs, torch.eye(12)])).mean(1).max()))


def test_integrated_gradients_are_complete() -> None:
    """Their sum is the effect of the whole mask, the better the more steps."""
    tracer, loop = real()
    search = Search(tracer=tracer, budgets=(1,), sign=1, seed=0, allowed=np.ones(12, dtype=bool))
    whole = float(loop.effect(torch.ones(12), oracles.logit_diff).mean())
    errors = [abs(integrated_gradients(search, steps).sum() - whole) for steps in (1, 10, 100)]
    assert errors[2] < 1e-3 * abs(whole) < errors[0]
    assert errors[2] < errors[1] < errors[0]


def test_attribution_is_the_slope_at_the_empty_mask() -> None:
    tracer, _ = real()
    path = mt.select(tracer, 1, mt.AttributionPatching())
    steps = (tracer.effects(1e-5 * torch.eye(12, dtype=torch.float64)).mean(1) / 1e-5).tolist()
    assert path.choices[0].members in ((int(np.argmax(steps)),), ())
    far = mt.select(tracer, range(1, 13), mt.AttributionPatching(at=1.0), direction="minimize")
    assert len(far) == 12


def test_a_path_is_monotone_on_every_metric() -> None:
    model = model_of()
    for metric in (mt.OddsRatio(), mt.AnswerProb(), mt.KLDivergence(), mt.Accuracy()):
        tracer = mt.Tracer(model, pairs_of(random_examples(3, seed=5)), mt.heads(model), metric=metric)
        for direction in ("maximize", "minimize"):
            path = mt.select(tracer, [1, 3, 6], mt.IntegratedGradients(steps=2), direction=direction)  # type: ignore[arg-type]
            sign = 1 if direction == "maximize" else -1
            assert [sign * e for e in path.effects] == sorted(sign * e for e in path.effects)
            log = path.choices[-1].score.log
            assert (log is not None) == (metric.name == "odds_ratio")


# ---------------------------------------------------------------------------------------------- what a path tells
def test_marginal_and_chance_effects() -> None:
    toy = Toy(tangled)
    members = (0, 3, 6)
    wanted = [value("tangled", members) - value("tangled", set(members) - {i}) for i in members]
    assert marginal_effects(toy, members) == pytest.approx(wanted)
    assert marginal_effects(toy, ()) == ()
    toy.asked.clear()
    chance = chance_score(toy, members, seed=1)
    assert {len(s) for s in toy.asked} == {3}
    assert chance.mean == pytest.approx(np.mean([value("tangled", s) for s in toy.asked]))
    assert chance.low <= chance.mean <= chance.high
    assert chance.n == len(toy.asked) == 20


def test_held_out_prompts_score_but_do_not_choose() -> None:
    tracer, _ = real()
    other = pairs_of(random_examples(5, seed=31))
    plain = mt.select(tracer, [1, 3], mt.TopK())
    path = mt.select(tracer, [1, 3], mt.TopK(), held_out=other)
    assert [c.members for c in path.choices] == [c.members for c in plain.choices]
    held = mt.Tracer(model_of(), other, tracer.groups)
    for c in path.choices:
        assert c.held_out is not None
        assert c.held_out.mean == pytest.approx(float(held.effect([tracer.groups.labels[i] for i in c.members]).mean()))
        assert c.held_out.n == 5


def test_the_cost_of_a_search_is_its_own() -> None:
    tracer, _ = real()
    tracer.effects(torch.eye(12))  # spent before
    path = mt.select(tracer, [12], mt.TopK())
    sweep = sum(4 * (3 - layer) / 3 for layer in range(3))
    assert path.cost["forwards"] == pytest.approx(sweep + 1)  # singles, then the whole set
    assert path.cost["backwards"] == 0
    gradient = mt.select(tracer, [1], mt.AttributionPatching())
    assert gradient.cost["backwards"] == 1
