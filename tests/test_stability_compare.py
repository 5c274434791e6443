"""Stability over resampled prompts, and two circuits side by side."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Plain, logit_diff, odds_ratio, pairs_of, random_examples
from scipy import stats
from simulated_tasks import circuit_of

import tl_multitrace as mt
from planted import build as planted
from tiny_models import HAS_BRIDGE, build
from tl_multitrace.evaluation.stability import chance_jaccard

NAME = f"{'bridge' if HAS_BRIDGE else 'hooked'}-gpt2"
ON_A, ON_B = random_examples(5, seed=1), random_examples(6, seed=2)


@cache
def model(seed: int = 0) -> Any:
    return build(NAME, torch.float64, seed)


def tracer(seed: int = 0, examples: Any = None, **options: Any) -> mt.Tracer:
    return mt.Tracer(model(seed), pairs_of(ON_A if examples is None else examples), mt.heads(model(seed)), **options)


@cache
def repeated() -> mt.Stability:
    return mt.stability(tracer(), mt.TopK(), 6, [0, 1], budget=3, threshold=0.3)


# -------------------------------------------------------------------------------------------------------- stability
def test_frequencies_and_intervals_count_the_runs() -> None:
    found = repeated()
    assert len(found.sets) == 12
    assert len(set(found.sets)) > 1
    counts = Counter(i for s in found.sets for i in s)
    assert dict(zip(found.indices, (f.value for f in found.frequencies), strict=True)) == {
        i: c / 12 for i, c in counts.items()
    }
    assert found.components == tracer().groups[list(found.indices)].components
    for f in found.frequencies:
        centre, half = wilson(round(f.value * 12), 12)
        assert (f.low, f.high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-6)


def wilson(k: int, n: int) -> tuple[float, float]:
    """Centre and half width of Wilson's interval, from the textbook."""
    z, p = stats.norm.ppf(0.975), k / n
    scale = 1 / (1 + z * z / n)
    return scale * (p + z * z / (2 * n)), scale * z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))


def test_jaccard_is_the_mean_over_pairs_of_runs() -> None:
    overlaps = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in itertools.combinations(repeated().sets, 2)]
    assert repeated().jaccard == pytest.approx(np.mean(overlaps))
    assert repeated().jaccard_low == pytest.approx(min(overlaps))


def test_chance_jaccard_is_that_of_all_pairs_of_sets() -> None:
    sets = [set(s) for s in itertools.combinations(range(6), 2)]
    every = [len(a & b) / len(a | b) for a in sets for b in sets]
    assert chance_jaccard(2, 6) == pytest.approx(np.mean(every))
    assert chance_jaccard(6, 6) == pytest.approx(1.0)


def test_each_run_has_prompts_and_a_seed_of_its_own() -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    class Watching(mt.TopK):
        name = "watching"

        def search(self, search: Any) -> None:
            tokens = search.tracer.pairs.base_tokens[:, 0].tolist()
            seen.append((search.seed, tuple(ON_A_FIRST.index(t) for t in tokens)))
            super().search(search)

    mt.stability(tracer(), Watching(), 4, [3, 5], budget=2)
    assert [seed for seed, _ in seen] == [3] * 4 + [5] * 4
    assert len({draw for _, draw in seen}) > 6
    assert all(len(draw) == 5 for _, draw in seen)
    assert any(len(set(draw)) < 5 for _, draw in seen)  # with replacement


ON_A_FIRST = [e.base[0] for e in ON_A]


def test_resampled_prompts_always_find_others_of_their_length() -> None:
    pairs = pairs_of(random_examples(8, seed=6))  # two prompts of each length
    tracer = mt.Tracer(model(), pairs, mt.heads(model()), intervention=mt.ResampleAblation())
    found = mt.stability(tracer, mt.TopK(), 8, budget=2)
    assert (len(found.sets), found.intervention) == (8, mt.ResampleAblation().describe())


def test_the_same_seeds_give_the_same_result() -> None:
    again = mt.stability(tracer(), mt.TopK(), 6, [0, 1], budget=3, threshold=0.3)
    assert again == repeated()
    assert again.sets != mt.stability(tracer(), mt.TopK(), 6, [2, 3], budget=3).sets


def test_the_stable_circuit_is_measured() -> None:
    found = repeated()
    circuit = found.circuit(tracer())
    often = {c for c, f in zip(found.components, found.frequencies, strict=True) if f.value >= 0.3}
    assert set(found.stable) == set(circuit.components) == often
    assert 0 < len(circuit) < len(found.components)
    assert list(circuit.indices) == sorted(circuit.indices)
    assert circuit.effect == pytest.approx(float(tracer().effect(circuit.mask).mean()))
    assert len(circuit.marginals) == len(circuit)
    assert mt.evaluate(circuit, pairs_of(ON_B), draws=0).components == circuit.components
    with pytest.raises(ValueError, match="are not the 12 groups that were searched"):
        found.circuit(mt.Tracer(model(), pairs_of(ON_A), mt.heads(model(), layers=[0])))


def test_a_planted_circuit_is_found_every_time() -> None:
    circuit = planted("and2_hard-small")
    found = mt.stability(circuit.tracer("restoring"), resamples=5, budget=2)
    assert {(c.layer, c.index) for c in found.stable} == {(layer, i) for _, layer, i in circuit.minimal["restoring"][0]}
    assert (found.jaccard, found.solver, found.notes) == (1.0, "screened search", ())


def test_runs_that_find_nothing_are_pointed_out() -> None:
    nothing = mt.stability(tracer(metric=mt.KLDivergence()), mt.TopK(), 3, budget=2, direction="minimize")
    assert nothing.components == ()
    assert nothing.jaccard == 1.0
    assert nothing.notes == ("3 of 3 runs found no set better than the empty one",)
    assert len(nothing.circuit(tracer())) == 0


def test_default_budget_and_what_is_refused() -> None:
    small = mt.Tracer(model(), pairs_of(ON_A), mt.heads(model(), layers=[0]))
    assert mt.stability(small, mt.TopK(), 2).budget == 4
    for options in ({"resamples": 1}, {"threshold": 0.0}, {"threshold": 1.1}):
        with pytest.raises(ValueError, match="need 2 runs or more and a threshold up to 1"):
            mt.stability(small, mt.TopK(), **options)  # type: ignore[arg-type]
    frame = mt.stability(small, mt.TopK(), 2, direction="minimize").to_dataframe()
    assert set(frame["direction"]) == {"minimize"}
    assert {"ablation", "metric", "low", "high"} <= set(frame)


# ------------------------------------------------------------------------------------------------------- comparison
def plain(members: list[int], examples: Any, seed: int, metric: Any = logit_diff) -> np.ndarray:
    groups = mt.heads(model(seed))
    mask = torch.tensor([float(i in members) for i in range(len(groups))])
    return Plain(model(seed), examples, groups.sites).effect(mask, metric).numpy()


def test_overlap_and_its_chance() -> None:
    a, b = circuit_of(tracer(), [1, 2, 5]), circuit_of(tracer(), [2, 5, 7, 8])
    found = mt.compare(a, b)
    assert [c.label for c in found.shared] == ["L0H2", "L1H1"]
    assert [[c.label for c in s] for s in (found.only_a, found.only_b)] == [["L0H1"], ["L1H3", "L2H0"]]
    assert found.jaccard == 2 / 5
    sets = [set(s) for s in itertools.combinations(range(12), 4)]
    assert found.overlap_p == pytest.approx(np.mean([len({1, 2, 5} & s) >= 2 for s in sets]))
    frame = found.to_dataframe()
    assert list(frame["in"]) == ["both", "both", "a", "b", "b"]


def test_transfer_to_the_others_prompts_and_metric() -> None:
    a = circuit_of(tracer(), [1, 2, 5])
    b = circuit_of(tracer(examples=ON_B, metric=mt.OddsRatio()), [7, 9], "minimize")
    found = mt.compare(a, b)
    on_a = [plain(m, ON_A, 0) for m in ([1, 2, 5], [7, 9])]
    on_b = [plain(m, ON_B, 0, odds_ratio) for m in ([7, 9], [1, 2, 5])]
    for transfer, (own, other) in ((found["a"], on_a), (found["b"], on_b)):
        assert (transfer.own.mean, transfer.other.mean) == pytest.approx((own.mean(), other.mean()))
        assert (transfer.ratio is None) == (not transfer.own.clear)
        if transfer.ratio is not None:
            assert transfer.ratio.value == pytest.approx(other.mean() / own.mean())
    assert found["a"].ratio is None and found["b"].ratio is not None
    assert "undefined: the own circuit's effect may be 0" in repr(found)
    assert (found["a"].metric, found["b"].metric, found["b"].direction) == ("logit_diff", "odds_ratio", "minimize")
    table = found.transfer_table()
    assert list(zip(table["ground"], table["circuit"], strict=True)) == [("a", "a"), ("a", "b"), ("b", "b"), ("b", "a")]


def test_transfer_to_another_model() -> None:
    """As between a base model and its fine-tuned version: same shape, other weights."""
    a, b = circuit_of(tracer(), [1, 2]), circuit_of(tracer(seed=1), [2, 9])
    found = mt.compare(a, b, pairs_a=pairs_of(ON_B), pairs_b=pairs_of(ON_B))
    for ground, seed, own, other in (("a", 0, [1, 2], [2, 9]), ("b", 1, [2, 9], [1, 2])):
        transfer = found[ground]
        assert transfer.own.mean == pytest.approx(plain(own, ON_B, seed).mean())
        assert transfer.other.mean == pytest.approx(plain(other, ON_B, seed).mean())
    assert found["a"].own.n == 6


def test_what_moves_is_the_share() -> None:
    first, second = (mt.select(tracer(examples=e), [3], mt.TopK())[3] for e in (ON_A, ON_B))
    found = mt.compare(first, second)
    frame = found.to_dataframe().set_index("component")
    for label in {c.label for c in found.shared}:
        a, b = (dict(zip(c.labels, np.array(c.marginals) / c.effect, strict=True))[label] for c in (first, second))
        assert (frame.loc[label, "share_a"], frame.loc[label, "moved"]) == pytest.approx((a, b - a))
    assert frame.loc[[c.label for c in found.only_a], "moved"].isna().all()


def test_a_circuit_from_a_file_is_no_ground(tmp_path: Any) -> None:
    a, b = circuit_of(tracer(), [1, 2]), circuit_of(tracer(), [2])
    place = b.save(tmp_path / "b.json")
    found = mt.compare(a, mt.Circuit.load(place))
    assert [t.ground for t in found.transfers] == ["a"]
    assert any("circuit b carries no tracer: pass tracer_b=" in note for note in found.notes)
    with pytest.raises(KeyError, match="no transfer to 'b'"):
        found["b"]
    with pytest.raises(ValueError, match="carries no model to run pairs_b on: pass tracer_b="):
        mt.compare(a, mt.Circuit.load(place), pairs_b=pairs_of(ON_B))
    again = mt.compare(a, mt.Circuit.load(place), tracer_b=tracer())
    assert again.transfers == mt.compare(a, b).transfers


def test_a_component_that_the_other_model_lacks_is_refused() -> None:
    of = build(NAME.replace("gpt2", "attn-only"), torch.float64)
    mlp = mt.Tracer(model(), pairs_of(ON_A), mt.mlps(model()))
    bare = mt.Tracer(of, pairs_of(ON_A), mt.heads(of, layers=[0]))
    with pytest.raises((ValueError, KeyError, mt.HookError)):  # by the version of TransformerLens
        mt.compare(circuit_of(mlp, [1]), circuit_of(bare, [1]))


def test_an_objective_is_searched_on_draws_of_all_its_prompts() -> None:
    """Every goal's and constraint's prompts are redrawn; what shares a tracer shares the draw; bounds are kept."""
    up = tracer()
    other = up.on(up.pairs[[0, 2, 1]], metric=mt.KLDivergence())
    bound = 0.5 * float(other.effect(torch.ones(len(other.groups))).mean())
    objective = mt.Objective(
        [mt.Goal("up", up), mt.Goal("again", up, weight=0.5)], [mt.Constraint("kept", other, at_most=bound)]
    )
    seen = []

    class Watch:
        name = "watch"

        def search(self, search: Any) -> None:
            drawn = search.tracer
            assert drawn.goals[0].tracer is drawn.goals[1].tracer is not up
            seen.append((drawn.goals[0].tracer.pairs.digest(), drawn.constraints[0].tracer.pairs.digest()))
            search.scores([[i] for i in search.candidates])

    found = mt.stability(objective, Watch(), 3, budget=1)
    assert len(set(seen)) == 3 and len(found.sets) == 3
    assert [g["name"] for g in found.provenance["goals"]] == ["up", "again"]
