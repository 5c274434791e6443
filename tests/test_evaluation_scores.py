"""MIB scores, recovery, significance: each against a second way to get the same number."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Example, Plain, logit_diff, oriented, pairs_of, random_examples, unchecked
from planted_searches import build as planted
from planted_searches import search
from scipy.integrate import trapezoid
from simulated_tasks import circuit_of

import tl_multitrace as mt
from planted import DIRECTIONS, Direction, PlantedCircuit, cases
from tiny_models import HAS_BRIDGE, build
from tl_multitrace.evaluation import FRACTIONS, kept_counts, read_truth
from tl_multitrace.evaluation.recovery import components_of

API = "bridge" if HAS_BRIDGE else "hooked"
COARSE = (0.1, 0.3, 0.5, 1.0)


@cache
def model() -> Any:
    return build(f"{API}-gpt2", torch.float64)


def groups_of(kind: str) -> mt.HookGroups:
    made = {"head": mt.heads, "neuron": lambda m: mt.neurons(m, layers=[1])}
    return made[kind](model())


@cache
def examples(kind: str = "head") -> list[Example]:
    return oriented(random_examples(5, seed=3), model(), groups_of(kind))


@cache
def tracer(kind: str = "head") -> mt.Tracer:
    return mt.Tracer(model(), pairs_of(examples(kind)), groups_of(kind))


def plain_means(sets: list[list[int]], kind: str = "head") -> list[float]:
    """Mean effect of patching each set, by hand-written hooks."""
    plain = Plain(model(), examples(kind), tracer(kind).groups.sites)
    masks = [torch.tensor([float(i in s) for i in range(len(tracer(kind).groups))]) for s in sets]
    return [float(plain.effect(m, logit_diff).mean()) for m in masks]


# ------------------------------------------------------------------------------------------------------ CPR and CMD
def test_kept_counts_are_those_of_the_benchmark() -> None:
    assert kept_counts(157) == [0, 0, 0, 1, 3, 7, 15, 31, 78, 157]
    assert kept_counts(1000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert FRACTIONS == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def plain_areas(importance: list[float], kind: str, fractions: tuple[float, ...]) -> tuple[list[float], float, float]:
    """Faithfulness at each fraction, and both areas by the rule of the trapezoid, written out."""
    n = len(importance)
    order = sorted(range(n), key=lambda i: -importance[i])
    rest = [[i for i in range(n) if i not in order[: int(fraction * n)]] for fraction in fractions]
    everything, *found = plain_means([list(range(n)), *rest], kind)
    f = [(value - everything) / (0 - everything) for value in found]
    steps = [(fractions[i + 1] - fractions[i], i) for i in range(len(f) - 1)]
    cpr = sum(width * (f[i] + f[i + 1]) / 2 for width, i in steps)
    cmd = sum(width * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2 for width, i in steps)
    return f, cpr, cmd


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_scores_of_importances_equal_plain_loops(kind: str) -> None:
    values = np.random.default_rng(4).normal(size=len(tracer(kind).groups))
    found = mt.cpr_cmd(values, tracer=tracer(kind), fractions=COARSE)
    for name, ranked in (("signed", values), ("absolute", np.abs(values))):
        f, cpr, cmd = plain_areas(ranked.tolist(), kind, COARSE)
        curve = found[name]
        assert curve.kept == tuple(int(x * len(values)) for x in COARSE)
        assert curve.faithfulness == pytest.approx(f, abs=1e-9)
        assert (curve.cpr.value, curve.cmd.value) == pytest.approx((cpr, cmd))
        assert curve.cpr.low < cpr < curve.cpr.high
    assert found.cpr == found["signed"].cpr
    assert found.cmd == found["absolute"].cmd
    assert found["signed"].faithfulness[-1] == pytest.approx(1.0)


def test_the_logarithmic_companion_is_a_mean() -> None:
    values = np.random.default_rng(4).normal(size=12)
    found = mt.cpr_cmd(values, tracer=tracer(), fractions=COARSE)
    f = np.array(found["signed"].faithfulness)
    widths = np.diff(np.log(COARSE))
    assert found.log_cpr.value == pytest.approx(np.sum(widths * (f[1:] + f[:-1]) / 2) / np.sum(widths))
    g = np.abs(1 - np.array(found["absolute"].faithfulness))
    assert found.log_cmd.value == pytest.approx(np.sum(widths * (g[1:] + g[:-1]) / 2) / np.sum(widths))


def test_a_path_is_scored_by_its_own_sets() -> None:
    path = mt.select(tracer(), [1, 3, 6], mt.Greedy())
    found = mt.cpr_cmd(path, fractions=COARSE)
    kept = [path[1].indices, path[3].indices, path[6].indices, range(12)]
    everything, *rest = plain_means([list(range(12)), *[[i for i in range(12) if i not in k] for k in kept]])
    assert found["path"].kept == (1, 3, len(path[6]), 12)
    assert found["path"].faithfulness == pytest.approx([1 - r / everything for r in rest], abs=1e-9)
    assert found.cpr == found["path"].cpr
    assert found.notes == mt.cpr_cmd(list(range(12)), tracer=tracer(), fractions=COARSE).notes
    short = mt.cpr_cmd(mt.select(tracer(), [2], mt.Greedy()), fractions=COARSE)
    assert short["path"].kept == (0, 2, 2, 12)
    assert short.notes[0] == "the path ends at 2 of 12 components, which is what it keeps at fractions [0.3, 0.5] too"


def test_scores_on_other_prompts_and_other_ablations() -> None:
    values = list(range(12))
    other = pairs_of(random_examples(4, seed=8))
    found = mt.cpr_cmd(values, other, tracer=tracer(), interventions=mt.ZeroAblation(), fractions=COARSE)
    again = mt.Tracer(model(), other, tracer().groups, intervention=mt.ZeroAblation())
    assert found.curves == mt.cpr_cmd(values, tracer=again, fractions=COARSE).curves
    assert (found.n, found.intervention) == (4, {"name": "zero"})
    assert set(found.to_dataframe()["ablation"]) == {"zero"}
    assert set(found.to_dataframe()["ranking"]) == {"signed", "absolute"}


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0] * 11, {}, r"importances must be 12 finite numbers, one per group, got shape \(11,\)"),
        ([float("nan")] * 12, {}, "12 finite numbers"),
        ([1.0] * 12, {"tracer": None}, r"pass tracer="),
        ([1.0] * 12, {"fractions": (0.5, 0.2)}, r"fractions must ascend, above 0 and up to 1, got \[0.5, 0.2\]"),
        ([1.0] * 12, {"fractions": (0.5, 2.0)}, "up to 1"),
    ],
)
def test_what_cpr_cmd_refuses(values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), unchecked():
        mt.cpr_cmd(values, **{"tracer": tracer(), **options})


# --------------------------------------------------------------------------------------------------------- recovery
def plain_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties half."""
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def plain_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Average precision, threshold by threshold."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        new = (taken & positive).sum() / positive.sum()
        total += (new - recall) * (taken & positive).sum() / taken.sum()
        recall = new
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("absolute", [False, True])
def test_areas_of_scores_equal_plain_counting(seed: int, absolute: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, 12).astype(float)  # few values, so that there are ties
    truth = sorted(rng.choice(12, 4, replace=False).tolist())
    groups, positive = tracer().groups, np.isin(np.arange(12), truth)
    found = mt.recovery(scores, groups[truth].labels, groups=groups, absolute=absolute)
    used = np.abs(scores) if absolute else scores
    assert found.roc == pytest.approx(plain_roc(used, positive))
    assert found.pr == pytest.approx(plain_precision(used, positive))
    assert found.ranking == ("absolute scores" if absolute else "signed scores")
    fpr, tpr = np.array(found.roc_curve).T
    assert trapezoid(tpr, fpr) == pytest.approx(found.roc)


def test_a_circuit_is_found_or_not() -> None:
    groups = tracer().groups
    found = mt.recovery(circuit_of(tracer(), [1, 2, 5]), groups[[1, 2, 7, 9]].labels)
    assert (found.found, found.missed, found.extra) == (("L0H1", "L0H2"), ("L1H3", "L2H1"), ("L1H1",))
    assert (found.precision, found.recall, found.exact) == (2 / 3, 0.5, False)
    assert found.roc == pytest.approx((0.5 + 7 / 8) / 2)
    exact = mt.recovery(circuit_of(tracer(), [1, 2]), [(0, 1), (0, 2)])
    assert (exact.roc, exact.pr, exact.exact) == (1.0, 1.0, True)
    assert dict(exact.to_dataframe().values[:, :2]) == {"L0H1": "found", "L0H2": "found"}


def test_an_alternative_counts_where_it_is_met_better() -> None:
    groups, circuit = tracer().groups, circuit_of(tracer(), [3])
    assert not mt.recovery(circuit, [groups.components[2]]).exact
    assert mt.recovery(circuit, [groups.components[2]], alternatives=[["L0H3"], ["L0H1"]]).exact


def test_what_a_truth_may_be() -> None:
    assert [c.label for c in components_of({"a": [[9, 6], [0, None]], "b": [(9, 6)]})] == ["L9H6", "L0MLP"]
    kinds = ["L1H2", "L1N3", "L1D4", "L1MLP", "L1ATTN", mt.Component("resid", 1)]
    assert [c.label for c in components_of(kinds)] == [*kinds[:5], "L1RESID"]
    for bad, message in ([], "names no component"), (["X1"], "'X1' is no label"), ([1.5], "1.5 names no component"):
        with pytest.raises(ValueError, match=message):
            components_of(bad)


def test_positions_and_what_is_out_of_reach() -> None:
    placed = mt.heads(model(), layers=[0], positions=["last", 0])
    scores = np.array([1.0, 1, 0, 0, 0, 0, 0, 0])
    found = mt.recovery(scores, ["L0H0", "L5MLP"], groups=placed)
    assert (found.roc, found.found, found.outside) == (1.0, ("L0H0@last", "L0H0@0"), ("L5MLP",))
    assert "not among the hook groups, and not counted: L5MLP" in repr(found)
    with pytest.raises(ValueError, match="none of the 8 hook groups are of the truth"):
        mt.recovery(scores, ["L5MLP"], groups=placed)
    with pytest.raises(ValueError, match="pass groups="):
        mt.recovery(scores, ["L0H0"])


def test_published_circuits(shared_data: Path) -> None:
    place = shared_data / "published_circuits" / "circuits.json"
    ioi = read_truth(place, "ioi_gpt2_small")
    components = [mt.Component("head", layer, head) for layer in range(12) for head in range(12)]
    groups = mt.HookGroups(tuple(components), tuple((c,) for c in components), {("head", "z"): 12})
    named = {(9, 9): 3.0, (10, 0): 2.0, (9, 6): 1.0}
    scores = np.array([named.get((c.layer, c.index or 0), 0.0) for c in components])
    movers = mt.recovery(scores, ioi["name mover"], groups=groups)
    assert (movers.roc, movers.pr, movers.exact) == (1.0, 1.0, True)
    whole = mt.recovery(scores, ioi, groups=groups)
    assert (whole.recall, len(whole.missed) + len(whole.found)) == (1.0, 26)  # all the others tie for the top
    assert whole.roc == pytest.approx((3 + 23 * 0.5) / 26)
    late = mt.recovery(scores, read_truth(place, "greaterthan_gpt2_small"), groups=groups)
    assert late.outside == tuple(f"L{layer}MLP" for layer in (0, 1, 2, 3, 8, 9, 10, 11))
    with pytest.raises(
        ValueError, match=r"no circuit 'x': the file has \['ioi_gpt2_small', 'greaterthan_gpt2_small'\]"
    ):
        read_truth(place, "x")


@pytest.mark.parametrize("content", ["[1]", "{", '{"x": [1]}', '{"x": {"a": [[1]]}}', '{"x": {}}'])
def test_broken_truth_files(tmp_path: Path, content: str) -> None:
    place = tmp_path / "truth.json"
    place.write_text(content)
    with pytest.raises(ValueError, match=r"truth\.json|names no component"):
        read_truth(place, "x")


def truths(circuit: PlantedCircuit, direction: Direction) -> list[list[mt.Component]]:
    sets = [
        [mt.Component("head" if kind == "pattern" else kind, layer, index) for kind, layer, index in members]
        for members in circuit.minimal[direction]
    ]
    return sorted(sets, key=len)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", cases("small", rotated=True, leaks=True))
def test_the_default_solver_recovers_planted_circuits(name: str, direction: Direction) -> None:
    first, *others = truths(planted(name), direction)
    path = search(planted(name), direction)
    found = mt.recovery(path, first, alternatives=others)
    assert (found.roc, found.pr, found.exact) == (1.0, 1.0, True)


def test_single_effects_do_not_recover_them_all() -> None:
    """Else the area would prove nothing."""
    found = []
    for name in cases("small", rotated=True, leaks=True):
        first, *others = truths(planted(name), "noising")
        found.append(mt.recovery(search(planted(name), "noising", mt.TopK()), first, alternatives=others).roc)
    assert min(found) < 0.8


# ----------------------------------------------------------------------------------------------------- significance
def test_component_tests_equal_plain_loops() -> None:
    members = [1, 6, 9]
    found = mt.significance(circuit_of(tracer(), members), tracer().pairs, draws=19)
    whole = plain_means([members])[0]
    p_values = []
    for member, test in zip(members, found.tests, strict=True):
        without = [i for i in members if i != member]
        others = [i for i in range(12) if i not in members]
        alone, *instead = plain_means([without, *[[*without, other] for other in others]])
        assert test.drop == pytest.approx(whole - alone)
        assert test.p_chance == pytest.approx((1 + sum(e >= whole for e in instead)) / 10)
        drops = _plain_effects(members) - _plain_effects(without)
        flips = np.array(list(itertools.product([1, -1], repeat=5))) @ drops
        assert test.p_zero == pytest.approx(np.mean(flips >= drops.sum() - 1e-9))
        p_values.append(test.p_value)
    ranks = np.argsort(np.argsort(p_values, kind="stable")) + 1
    stepped = [min(3 * p / r for p, r in zip(p_values, ranks, strict=True) if r >= rank) for rank in ranks]
    assert [t.adjusted for t in found.tests] == pytest.approx(stepped)
    assert found.components(1.0) == tracer().groups[members].components
    assert found.p_value == max(found.p_zero, found.p_chance)


def _plain_effects(members: list[int]) -> np.ndarray:
    mask = torch.tensor([float(i in members) for i in range(12)])
    return Plain(model(), examples(), tracer().groups.sites).effect(mask, logit_diff).numpy()


def test_planted_components_are_significant_and_idle_ones_are_not() -> None:
    circuit = planted("and2_hard-large")
    tracer, truth = circuit.tracer("restoring"), truths(circuit, "restoring")[0]
    idle = next(i for i, c in enumerate(tracer.groups.components) if c not in truth)
    both = [tracer.groups.index(c) for c in truth]
    found = mt.significance(circuit_of(tracer, [*both, idle]), tracer.pairs, draws=199)
    assert found.significant()
    assert set(found.components()) == set(truth)


def test_significance_says_what_it_is_of() -> None:
    found = mt.significance(circuit_of(tracer(), [1]), tracer().pairs, draws=19, replacements=3)
    frame = found.to_dataframe()
    assert (frame["ablation"][0], frame["direction"][0], frame["metric"][0]) == (
        "interchange",
        "maximize",
        "logit_diff",
    )
    with pytest.raises(ValueError, match=r"18 random sets can't give a p-value below 0\.053"):
        mt.significance(circuit_of(tracer(), [1]), tracer().pairs, draws=18)
    assert mt.significance(circuit_of(tracer(), [1]), tracer().pairs, draws=19, replacements=0).tests == ()
    assert mt.significance(circuit_of(tracer(), []), tracer().pairs, draws=19).p_value == 1.0
