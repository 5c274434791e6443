"""Several goals at once: numbers against their formulas, derivatives against differences, choices against all sets."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from oracles import pairs_of, random_examples, soft_mask

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.objective import aim_of
from tl_multitrace.objective.predict import changes_of, switched
from tl_multitrace.solvers.path import chance_score

LABELS = ("f/1", "m/1", "f/0", "m/0", "f/1", "m/0")
model_of = cache(lambda: build(MODEL_NAMES[0], torch.float64))


def tracer_of(metric: mt.Metric, seed: int = 0, groups: Any = None, n: int = 6) -> mt.Tracer:
    model = model_of()
    pairs = pairs_of(random_examples(n, seed=seed), labels=LABELS[:n])
    return mt.Tracer(model, pairs, mt.heads(model) if groups is None else groups, metric)


@cache
def first() -> mt.Tracer:
    return tracer_of(mt.LogitDiff())


@cache
def second() -> mt.Tracer:
    return tracer_of(mt.ChoiceProb(), seed=1, n=4)


@cache
def full() -> float:
    return float(first().effect(torch.ones(len(first().groups))).mean())


def objectives() -> dict[str, mt.Objective]:
    up, down = mt.Goal("up", first(), weight=2.0), mt.Goal("down", second(), weight=3.0, direction="minimize")
    gap = mt.Goal("gap", tracer_of(mt.ChoiceProb()), mt.DemographicParityGap(), direction="minimize")
    odds = mt.Goal("odds", tracer_of(mt.LogitDiff(), seed=3), mt.EqualizedOddsGap())
    tight = mt.Constraint("kept", second(), at_most=1e-6)
    sure = mt.Constraint("sure", tracer_of(mt.KLDivergence(), seed=5), at_most=1e-4, confidence=0.9)
    return {
        "one": mt.Objective([up]),
        "two": mt.Objective([up, down]),
        "gaps": mt.Objective([gap, odds]),
        "bounds": mt.Objective([up], [tight, sure]),
        "everything": mt.Objective([up, gap], [tight]),
    }


every_objective = pytest.mark.parametrize("name", objectives())


def members_of(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


# ------------------------------------------------------------------------------------------------- numbers
def test_changes_are_means_of_effects_or_of_gaps() -> None:
    tracer = tracer_of(mt.ChoiceProb())
    mask = oracles.binary_mask(len(tracer.groups))
    effects, base = tracer.effect(mask).numpy(), tracer.base_metric.numpy()
    values = effects + base

    def gap(x: Any, groups: list[str]) -> float:
        means = [np.mean([v for v, g in zip(x, groups, strict=True) if g == name]) for name in sorted(set(groups))]
        return float(max(means) - min(means))

    def odds(x: Any) -> float:
        parts = [[i for i, label in enumerate(LABELS) if label[2] == outcome] for outcome in "01"]
        return max(gap(x[part], [LABELS[i][0] for i in part]) for part in parts)

    objective = mt.Objective(
        [
            mt.Goal("mean", tracer),
            mt.Goal("parity", tracer, mt.DemographicParityGap()),
            mt.Goal("odds", tracer, mt.EqualizedOddsGap()),
        ]
    )
    found = objective.changes([mask])
    assert found["mean"][0] == pytest.approx(effects.mean())
    assert found["parity"][0] == pytest.approx(gap(values, list(LABELS)) - gap(base, list(LABELS)))
    assert found["odds"][0] == pytest.approx(odds(values) - odds(base))
    assert len(objective.tracers) == 1


def test_the_score_is_the_weighted_sum_less_the_price_of_broken_bounds() -> None:
    objective = objectives()["everything"]
    masks = torch.stack([oracles.binary_mask(len(objective.groups), seed) for seed in range(4)])
    changes = objective.changes(masks)
    total = 2 * changes["up"] - changes["gap"]
    over = np.maximum(changes["kept"] - 1e-6 - 1e-9 - 1e-12, 0)
    wanted = total - objective.price * np.log1p(over / objective.scales["kept"])
    np.testing.assert_allclose(objective.means(masks), wanted, rtol=1e-9)
    np.testing.assert_allclose(objective.means(masks, pressure=0.0), total)
    assert [objective.holds(mask) for mask in masks] == [bool(o == 0) for o in over]
    assert objective.price >= abs(2 * full() - objective.changes([torch.ones(len(objective.groups))])["gap"][0]) - 1e-9


def test_nothing_changes_without_a_mask() -> None:
    for objective in objectives().values():
        none = torch.zeros(1, len(objective.groups))
        assert objective.means(none)[0] == pytest.approx(0, abs=1e-12)
        assert objective.holds(none[0])


def test_a_set_is_run_once_and_forgotten_on_demand() -> None:
    objective = mt.Objective([mt.Goal("a", first()), mt.Goal("b", first(), mt.DemographicParityGap())])
    mask = oracles.binary_mask(len(objective.groups))
    objective.changes([mask])
    spent = objective.cost.equivalents
    objective.changes([mask, mask])
    assert objective.cost.equivalents == spent
    objective.forget()
    objective.changes([mask])
    assert objective.cost.equivalents > spent


# ------------------------------------------------------------------------------------------------- derivatives
@every_objective
def test_slopes_are_those_of_the_score(name: str) -> None:
    objective = objectives()[name]
    z = soft_mask(len(objective.groups), seed=2)

    def score(mask: torch.Tensor) -> float:
        return float(objective.means(mask[None])[0])

    slope, step = objective.slope(z), 1e-5
    for i in range(len(z)):
        move = torch.zeros_like(z)
        move[i] = step
        assert slope[i] == pytest.approx((score(z + move) - score(z - move)) / (2 * step), rel=2e-4, abs=1e-7)


@every_objective
def test_loss_gradients_are_those_of_the_loss(name: str) -> None:
    objective = objectives()[name]
    z = soft_mask(len(objective.groups), seed=3)
    everyone = torch.arange(objective.n)
    slope, step = objective.loss_gradient(z, 1, everyone), 1e-5
    for i in range(0, len(z), 2):
        move = torch.zeros_like(z)
        move[i] = step
        wanted = (objective.loss(z + move, 1) - objective.loss(z - move, 1)) / (2 * step)
        assert float(slope[i]) == pytest.approx(wanted, rel=2e-4, abs=1e-7)


def test_predictions_are_a_tracers_own_for_a_single_goal() -> None:
    objective, aim = mt.Objective([mt.Goal("up", first(), weight=2.0)]), aim_of(first())
    mask = oracles.binary_mask(len(objective.groups), seed=1)
    np.testing.assert_allclose(objective.gains(mask, 1), 2 * aim.gains(mask, 1), rtol=1e-9)


def test_predictions_hold_for_small_steps() -> None:
    """At the base run the predicted effects are the run's own; moved ones differ where there is a slope."""
    tracer = second()
    here, moved = switched(tracer, torch.zeros(len(tracer.groups)), None)
    torch.testing.assert_close(here, torch.zeros_like(here), atol=1e-12, rtol=0)
    goal = mt.Goal("x", tracer)
    torch.testing.assert_close(changes_of(goal, moved), moved.mean(0))


# ------------------------------------------------------------------------------------------------- choices
@pytest.mark.parametrize("solver", [mt.ScreenedSearch(), mt.Greedy(), mt.TopK(), mt.PGBCT(epochs=3), mt.Exhaustive()])
def test_one_goal_is_the_tracers_own_search(solver: Any) -> None:
    groups = first().groups[:6]
    tracer = first().on(groups=groups)
    alone = mt.select(tracer, range(1, 4), solver)
    path = mt.select(mt.Objective([mt.Goal("up", tracer)]), range(1, 4), solver)
    assert [c.members for c in path.choices] == [c.members for c in alone.choices]
    assert path.effects == pytest.approx(alone.effects)
    assert path[2].marginals == pytest.approx(alone[2].marginals)
    assert path[2].tracer is tracer


SOLVERS = [
    mt.ScreenedSearch(),
    mt.Greedy(),
    mt.TopK(),
    mt.AttributionPatching(),
    mt.IntegratedGradients(),
    mt.PGBCT(epochs=3),
    mt.HardConcrete(steps=5, runs=2),
    mt.Exhaustive(),
    mt.RandomSubset(),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_no_solver_breaks_a_constraint(solver: Any) -> None:
    groups = first().groups[:6]
    tracers = [t.on(groups=groups) for t in (first(), second())]
    bound = 0.25 * abs(float(tracers[1].effect(torch.ones(6)).mean()))
    objective = mt.Objective([mt.Goal("up", tracers[0])], [mt.Constraint("kept", tracers[1], at_most=bound)])
    path = mt.select(objective, range(1, 5), solver)
    table = path.goals()
    assert table["kept"].dropna().astype(bool).all() and len(table) == 8
    assert all(objective.holds(torch.tensor([float(i in c.members) for i in range(6)])) for c in path.choices)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_the_default_finds_the_best_set_within_bounds(seed: int, share: float) -> None:
    """Eleven heads, sets of up to three, against all of them."""
    model = model_of()
    picks = np.random.default_rng(seed).permutation(len(mt.heads(model)))[:11].tolist()
    groups = mt.HookGroups.of(model, [(mt.heads(model) + mt.mlps(model))[i].components[0] for i in sorted(picks)])
    goal, kept = tracer_of(mt.LogitDiff(), seed, groups), tracer_of(mt.KLDivergence(), seed + 9, groups)
    bound = share * float(kept.effect(torch.ones(len(groups))).mean())
    objective = mt.Objective([mt.Goal("up", goal)], [mt.Constraint("kept", kept, at_most=bound)])
    path = mt.select(objective, range(1, 4))
    sets = [s for k in range(4) for s in itertools.combinations(range(len(groups)), k)]
    masks = torch.zeros(len(sets), len(groups))
    for row, chosen in zip(masks, sets, strict=True):
        row[list(chosen)] = 1.0
    amounts, allowed = objective.means(masks, pressure=0.0), np.array([objective.holds(m) for m in masks])
    for size in (1, 2, 3):
        best = max(a for a, s, ok in zip(amounts, sets, allowed, strict=True) if ok and len(s) <= size)
        assert path.choice(size).score.mean >= best - 0.01 * abs(best) - 1e-9


def test_held_out_prompts_by_goal_and_a_confidence_that_holds_there() -> None:
    objective = objectives()["bounds"]
    held = {"up": pairs_of(random_examples(5, seed=20)), "kept": pairs_of(random_examples(4, seed=21))}
    path = mt.select(objective, range(1, 3), held_out=held)
    table = path.goals().set_index(["budget", "goal"])
    mask = path[2].mask
    unseen = first().on(held["up"]).effect(mask).mean()
    assert table.loc[(2, "up"), "held_out"] == pytest.approx(float(unseen))
    assert table.loc[(2, "sure"), "bound"] == "<= 0.0001"
    loose, sure = (
        mt.Constraint("c", first(), at_most=0.1, confidence=confidence).judged.changes(first().effect(mask)[None])
        for confidence in (None, 0.95)
    )
    effects = first().effect(mask)
    assert float(loose) == pytest.approx(float(effects.mean()))
    assert float(sure) == pytest.approx(float(effects.mean()) + 1.6448536 * float(effects.std()) / 6**0.5, rel=1e-6)


def test_scores_resample_every_goal_on_its_own() -> None:
    objective = objectives()["two"]
    mask = oracles.binary_mask(len(objective.groups), seed=4)
    score, parts = objective.measure(mask, 1), objective.goal_scores(mask)
    assert score.mean == pytest.approx(2 * parts["up"].mean - 3 * parts["down"].mean)
    assert score.low < score.mean < score.high and parts["down"].n == 4
    assert score == objective.measure(mask, 1)


def test_accuracy_bounds_are_kept_without_a_gradient() -> None:
    groups = first().groups[:6]
    accuracy = tracer_of(mt.Accuracy(), seed=2, groups=groups)
    objective = mt.Objective(
        [mt.Goal("up", first().on(groups=groups))], [mt.Constraint("acc", accuracy, at_least=-0.01)]
    )
    path = mt.select(objective, range(1, 4))
    assert all(c.goals["acc"].mean >= -0.01 for c in path.choices)


def test_random_sets_keep_the_bounds_too() -> None:
    """The baseline of a bounded search are random sets that it could have chosen; none where hardly any keeps them."""
    groups = first().groups[:8]
    tracers = [t.on(groups=groups) for t in (first(), second())]
    ends = tracers[1].effects(torch.eye(8)).mean(-1)
    objective = mt.Objective(
        [mt.Goal("up", tracers[0])], [mt.Constraint("kept", tracers[1], at_most=max(0.0, float(ends.median())))]
    )
    found, free = chance_score(objective, (0,)), chance_score(tracers[0], (0,))
    assert found is not None and free is not None and found.n <= free.n == 20
    allowed = [
        float(e)
        for e, m in zip(tracers[0].effects(torch.eye(8)).mean(-1), torch.eye(8), strict=True)
        if objective.holds(m)
    ]
    assert min(allowed) - 1e-9 <= found.mean <= max(allowed) + 1e-9
    nothing = mt.Objective(
        [mt.Goal("up", tracers[0])],
        [mt.Constraint(name, tracers[1], at_most=most, at_least=least) for name, most, least in BOTH],
    )
    assert chance_score(nothing, (0, 1, 2)) is None


BOTH = (("up to", 1e-12, None), ("down to", None, -1e-12))


def test_a_path_with_goals_comes_back_from_its_file(tmp_path: Path) -> None:
    path = mt.select(objectives()["bounds"], [2], mt.TopK())
    back = mt.SubsetPath.load(path.save(tmp_path / "p.json"))
    assert back.choices == path.choices
    assert back.goals().equals(path.goals())
    assert [g["name"] for g in back.provenance["goals"]] == ["up"]
    assert mt.select(first(), [1], mt.TopK()).goals().empty


# ------------------------------------------------------------------------------------------------- errors
def test_what_cannot_be_an_objective() -> None:
    tracer = first()
    with pytest.raises(ValueError, match="at least one Goal"):
        mt.Objective([])
    with pytest.raises(ValueError, match="are called 'a'"):
        mt.Objective([mt.Goal("a", tracer), mt.Goal("a", second())])
    with pytest.raises(ValueError, match="different components"):
        mt.Objective([mt.Goal("a", tracer), mt.Goal("b", second().on(groups=tracer.groups[:3]))])
    with pytest.raises(ValueError, match="above 0, got -1"):
        mt.Goal("a", tracer, weight=-1.0)
    with pytest.raises(ValueError, match="one bound"):
        mt.Constraint("c", tracer)
    with pytest.raises(ValueError, match="one bound"):
        mt.Constraint("c", tracer, at_most=0.1, at_least=-0.1)
    with pytest.raises(ValueError, match="the unpatched model does not have"):
        mt.Constraint("c", tracer, at_least=0.5)
    with pytest.raises(ValueError, match="confidence is from"):
        mt.Constraint("c", tracer, at_most=0.5, confidence=1.5)
    with pytest.raises(ValueError, match="compares subgroups"):
        mt.Goal("a", tracer.on(pairs_of(random_examples(3))), mt.DemographicParityGap())
    with pytest.raises(ValueError, match="needs labels such as 'female/positive'"):
        mt.Goal("a", tracer.on(pairs_of(random_examples(2), labels=["x", "y"])), mt.EqualizedOddsGap())


def test_what_cannot_be_asked_of_one() -> None:
    objective = objectives()["one"]
    with pytest.raises(ValueError, match="an objective is maximised"):
        mt.select(objective, [1], direction="minimize")
    with oracles.unchecked(), pytest.raises(ValueError, match="dictionary by goal"):
        mt.select(objective, [1], mt.TopK(), held_out=pairs_of(random_examples(2)))
    with pytest.raises(ValueError, match="dictionary by goal"):
        objective.on({"nobody": pairs_of(random_examples(2))})
    with oracles.unchecked(), pytest.raises(TypeError, match="a Tracer or an Objective"):
        mt.select("gpt2", [1])  # type: ignore[arg-type]


def test_positions_may_differ_between_goals() -> None:
    groups = first().groups
    moved = second().on(groups=groups.at("everywhere"))
    objective = mt.Objective([mt.Goal("a", first()), mt.Goal("b", moved)])
    assert objective.groups is groups
    assert [c.position for c in moved.groups.components] == ["everywhere"] * len(groups)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_gradients_switched_off_for_a_whole_notebook(solver: Any) -> None:
    """``torch.set_grad_enabled(False)`` opens many a TransformerLens notebook, and stays as it was."""
    groups = first().groups[:5]
    tracers = [t.on(groups=groups) for t in (first(), second())]
    objective = mt.Objective([mt.Goal("up", tracers[0])], [mt.Constraint("kept", tracers[1], at_most=1.0)])
    wanted = mt.select(objective, [2], solver), mt.select(tracers[0], [2], solver)
    try:
        torch.set_grad_enabled(False)
        found = mt.select(objective, [2], solver), mt.select(tracers[0], [2], solver)
        slope = tracers[0].gradient(torch.zeros(5))
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    assert [p.choices for p in found] == [p.choices for p in wanted]
    torch.testing.assert_close(slope, tracers[0].gradient(torch.zeros(5)))
