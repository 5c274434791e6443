"""``evaluate`` against plain loops: every score by its definition, and what the report makes of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Plain, activations, logit_diff, odds_ratio, pairs_of, random_examples, unchecked
from simulated_tasks import circuit_of

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build, few
from tl_multitrace.evaluation import random_sets
from tl_multitrace.groups import Component
from tl_multitrace.objective import aim_of

API = "bridge" if HAS_BRIDGE else "hooked"
NAME = f"{API}-gpt2"
TRAIN, HELD = random_examples(5, seed=1), random_examples(6, seed=2)
LABELS = ["a", "b", "a", "b", "a", "a"]
CHOSEN = [1, 6, 13]


@cache
def model(name: str = NAME) -> Any:
    return build(name, torch.float64)


def groups(of: Any = None) -> mt.HookGroups:
    of = model() if of is None else of
    return mt.heads(of) + (mt.mlps(of) if mt.ModelView(of).d_mlp else mt.attn_layers(of))


def circuit(members: list[int] | None = None, of: Any = None, **options: Any) -> mt.Circuit:
    of = model() if of is None else of
    tracer = mt.Tracer(of, pairs_of(TRAIN), groups(of), **options)
    return circuit_of(tracer, CHOSEN if members is None else members)


@cache
def held_out() -> mt.PromptPairs:
    return pairs_of(HELD, labels=LABELS)


@cache
def report(**options: Any) -> mt.CircuitReport:
    return mt.evaluate(circuit(), held_out(), draws=12, **options)


def plain_effect(patched: list[int], metric: Any = logit_diff, of: Any = None, **options: Any) -> np.ndarray:
    """Per-example effect of patching some groups, by hand-written hooks."""
    of = model() if of is None else of
    mask = torch.zeros(len(groups(of)))
    mask[patched] = 1.0
    return Plain(of, HELD, groups(of).sites, **options).effect(mask, metric).numpy()


def kept_metric(kept: list[int], **options: Any) -> float:
    """Mean metric where some groups keep their activations and all the others are replaced, up to a constant."""
    rest = [i for i in range(len(groups())) if i not in kept]
    return float(plain_effect(rest, **options).mean())


def plain_faithfulness(kept: list[int], **options: Any) -> float:
    """``(M(C) - M(empty)) / (M(full) - M(empty))``, as it is written."""
    everything = list(range(len(groups())))
    empty = kept_metric([], **options)
    return (kept_metric(kept, **options) - empty) / (kept_metric(everything, **options) - empty)


# ------------------------------------------------------------------------------------------- the scores themselves
@pytest.mark.lens
@pytest.mark.parametrize("name", few())
def test_effects_equal_plain_hooks_on_every_model(name: str) -> None:
    of = build(name)
    found = mt.evaluate(circuit(of=of), held_out(), draws=0)
    wanted = plain_effect(CHOSEN, of=of)
    assert found.ablations[0].effects == pytest.approx(wanted.tolist(), rel=2e-3, abs=2e-3)
    full = plain_effect(list(range(len(groups(of)))), of=of)
    if bool(found.ablations[0].undefined):  # random models: the full effect may have either sign
        assert found.completeness is None and found.full_effect.low <= 0 <= found.full_effect.high
    else:
        assert found.completeness.value == pytest.approx(wanted.mean() / full.mean(), rel=5e-3)


def test_faithfulness_completeness_and_minimality_are_as_defined() -> None:
    found, everything = report(), set(range(len(groups())))
    assert found.faithfulness is not None
    assert found.completeness is not None
    assert found.faithfulness.value == pytest.approx(plain_faithfulness(CHOSEN))
    assert found.completeness.value == pytest.approx(1 - plain_faithfulness(sorted(everything - set(CHOSEN))))
    assert list(found.minimality) == groups()[CHOSEN].labels
    for member, drop in zip(CHOSEN, found.minimality.values(), strict=True):
        without = [i for i in CHOSEN if i != member]
        assert drop is not None
        assert drop.value == pytest.approx(plain_faithfulness(CHOSEN) - plain_faithfulness(without))


def test_share_is_the_effect_over_the_full_effect() -> None:
    found = report()
    assert found.share is not None
    assert found.share.value == pytest.approx(found.effect.mean / found.full_effect.mean)
    assert found.share == found.completeness


@pytest.mark.parametrize("intervention", [mt.Interchange(), mt.ZeroAblation(), mt.MeanAblation()])
def test_the_ends_of_the_scale(intervention: mt.Intervention) -> None:
    """Everything kept is fully faithful and complete; nothing kept is neither."""
    full = mt.evaluate(circuit(list(range(len(groups())))), held_out(), interventions=intervention, draws=5)
    empty = mt.evaluate(circuit([]), held_out(), interventions=intervention, draws=5)
    for found, value in ((full, 1.0), (empty, 0.0)):
        for score in (found.faithfulness, found.completeness):
            if found.ablations[0].undefined:
                assert score is None and intervention != mt.Interchange()
            else:
                assert (score.value, score.low, score.high) == pytest.approx((value,) * 3, abs=1e-9)
        assert found.percentile == 50.0
        assert found.ablations[0].p_chance == 1.0


def test_the_random_sets_are_of_the_same_size_and_kinds_and_are_measured() -> None:
    every = groups()
    masks = random_sets(every, tuple(CHOSEN), 12)
    kinds = np.array(every.kinds)
    for row in masks.bool().numpy():
        assert sorted(kinds[row]) == sorted(kinds[CHOSEN])
    assert len(np.unique(masks.numpy(), axis=0)) > 6
    drawn = np.array([plain_effect(row.nonzero().flatten().tolist()).mean() for row in masks])
    scores, observed = report().ablations[0], plain_effect(CHOSEN).mean()
    assert scores.chance is not None
    assert scores.chance.mean == pytest.approx(drawn.mean())
    assert scores.percentile == pytest.approx(100 * (drawn < observed).mean())
    assert scores.p_chance == pytest.approx((1 + (drawn >= observed).sum()) / 13)


def test_the_zero_test_takes_every_flip_of_signs() -> None:
    effects = plain_effect(CHOSEN)
    flips = np.array(list(itertools.product([1, -1], repeat=len(effects)))) @ effects
    assert report().ablations[0].p_zero == pytest.approx(np.mean(flips >= effects.sum() - 1e-9))


def test_the_zero_test_of_odds_is_on_their_log_scale() -> None:
    found = mt.evaluate(circuit(metric=mt.OddsRatio()), held_out(), draws=5)
    effects = plain_effect(CHOSEN, odds_ratio)
    assert found.ablations[0].effects == pytest.approx(effects.tolist())
    logged = np.log1p(effects)
    assert found.effect.log == pytest.approx(logged.mean())
    flips = np.array(list(itertools.product([1, -1], repeat=len(effects)))) @ logged
    assert found.ablations[0].p_zero == pytest.approx(np.mean(flips >= logged.sum() - 1e-9))


def test_minimising_turns_percentile_and_p_values_round() -> None:
    down = mt.evaluate(circuit(), held_out(), draws=12, direction="minimize")
    assert (down.percentile or 0) + (report().percentile or 0) == pytest.approx(100)
    effects = plain_effect(CHOSEN)
    flips = np.array(list(itertools.product([1, -1], repeat=len(effects)))) @ effects
    assert down.ablations[0].p_zero == pytest.approx(np.mean(flips <= effects.sum() + 1e-9))


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    found = report()
    rest = [i for i in range(len(groups())) if i not in CHOSEN]
    kept, full, effect = plain_effect(rest), plain_effect(list(range(len(groups())))), plain_effect(CHOSEN)
    index = np.random.default_rng(9).integers(0, 6, (20000, 6))
    ratio = 1 - kept[index].mean(1) / full[index].mean(1)
    assert found.faithfulness is not None
    for score, draws in ((found.faithfulness, ratio), (found.effect, effect[index].mean(1))):
        low, high = np.quantile(draws, [0.025, 0.975])
        assert (score.low, score.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_subgroups_are_measured_on_their_own_prompts() -> None:
    effects = plain_effect(CHOSEN)
    for name, score in report().subgroups.items():
        own = effects[[label == name for label in LABELS]]
        assert (score.mean, score.n) == (pytest.approx(own.mean()), len(own))
    assert set(report().subgroups) == {"a", "b"}


# ---------------------------------------------------------------------------------------------- several ablations
def test_several_ablations_at_once() -> None:
    found = mt.evaluate(circuit(), held_out(), interventions=[mt.Interchange(), mt.ZeroAblation()], draws=0)

    def nothing(i: int, e: Any, prefix: list[int], names: list[str]) -> dict[str, torch.Tensor]:
        return {k: torch.zeros_like(v) for k, v in activations(model(), e.base + prefix, names).items()}

    zero = found["zero"]
    assert found.ablations[0].effects == pytest.approx(report().ablations[0].effects)
    assert zero.effects == pytest.approx(plain_effect(CHOSEN, source=nothing).tolist())
    assert zero.faithfulness is None and zero.full_effect.low < 0 < zero.full_effect.high
    kept = plain_effect([i for i in range(len(groups())) if i not in CHOSEN], source=nothing)
    assert zero.kept_effects == pytest.approx(kept.tolist())
    assert f"zero: faithfulness, completeness and minimality are {zero.undefined}" in found.notes
    with pytest.raises(KeyError, match="no ablation 'mean': this report has interchange, zero"):
        found["mean"]


def test_two_ablations_of_one_name_are_told_apart() -> None:
    both = [mt.MeanAblation(), mt.MeanAblation(per_position=True)]
    found = mt.evaluate(circuit(), pairs_of(random_examples(6, equal=True)), interventions=both, draws=0)
    assert [a.name for a in found.ablations] == ["mean", "mean (per_position=True)"]
    assert found["mean (per_position=True)"] is found.ablations[1]
    assert found["mean"] is found.ablations[0]


def test_every_record_names_ablation_direction_and_metric() -> None:
    found = mt.evaluate(circuit(), held_out(), interventions=[mt.Interchange(), mt.ZeroAblation()], draws=3)
    for frame in (found.to_dataframe(), found.per_example(), found.per_example("zero")):
        assert set(frame["direction"]) == {"maximize"}
        assert set(frame["metric"]) == {"logit_diff"}
    assert set(found.to_dataframe()["ablation"]) == {"interchange", "zero"}
    assert set(found.per_example("zero")["ablation"]) == {"zero"}
    told = [value for name, value in found.summary() if name == "ablation"]
    assert told == ["interchange, maximize logit_diff", "zero, maximize logit_diff"]


# ------------------------------------------------------------------------------------------------- what it points out
def test_prompts_that_the_circuit_does_not_explain() -> None:
    effect, full = plain_effect(CHOSEN), plain_effect(list(range(len(groups()))))
    frame = report().per_example()
    for row in frame.to_dict("records"):
        i = row["pair"]
        if full[i] <= 0:
            assert row["explained"] is not True
            assert np.isnan(row["share"])
        else:
            assert row["explained"] == (effect[i] / full[i] >= 0.5)
    left = report().unexplained()
    wanted = {i for i in range(len(HELD)) if full[i] > 0 and effect[i] < 0.5 * full[i]}
    assert set(left["pair"]) == wanted
    assert left["share"].is_monotonic_increasing


def test_a_subgroup_that_goes_the_other_way_is_pointed_out() -> None:
    singles = ((i, plain_effect([i])) for i in range(len(groups())))
    member, effects = next((i, e) for i, e in singles if e.min() < 0 < e.max())
    signs = ["with" if e * effects.mean() > 0 else "against" for e in effects]
    found = mt.evaluate(circuit([member]), pairs_of(HELD, labels=signs), draws=0)
    assert found.ablations[0].reversed_subgroups == ("against",)
    assert any("in subgroup 'against' the effect" in note for note in found.notes)
    alike = mt.evaluate(circuit([member]), pairs_of(HELD, labels=["one"] * 6), draws=0)
    assert not any("subgroup" in note for note in alike.notes)


def test_prompts_of_the_search_are_pointed_out() -> None:
    chosen = circuit()
    facts = {**chosen.provenance, **aim_of(chosen.tracer).provenance()}
    searched = chosen.with_scores(provenance=facts)
    same = mt.evaluate(searched, pairs_of(TRAIN), draws=0)
    some = mt.evaluate(searched, pairs_of([*HELD[:3], *TRAIN[:2]]), draws=0)
    assert any("these are the prompts of the search" in note for note in same.notes)
    assert any("2 of 5 prompts were also in the search" in note for note in some.notes)
    assert not any("search" in note for note in mt.evaluate(searched, held_out(), draws=0).notes)


def test_no_effect_of_everything_leaves_ratios_undefined() -> None:
    same = replace(held_out(), source_tokens=held_out().base_tokens)
    found = mt.evaluate(circuit(), same, draws=5)
    assert set(found.ablations[0].full_effects) == {0.0}
    assert found.faithfulness is None
    assert found.completeness is None
    assert list(found.minimality.values()) == [None] * 3
    assert found.ablations[0].p_zero == 1.0
    assert any("are undefined: patching everything changes nothing" in note for note in found.notes)
    assert "undefined" in repr(found)


# -------------------------------------------------------------------------------------- where the pieces come from
def test_a_path_is_judged_at_a_budget() -> None:
    tracer = mt.Tracer(model(), pairs_of(TRAIN), groups())
    path = mt.select(tracer, [1, 3], mt.TopK())
    for size in (1, 3):
        of_path, of_circuit = (
            mt.evaluate(x, held_out(), draws=3, **o) for x, o in ((path, {"budget": size}), (path[size], {}))
        )
        assert of_path.ablations == of_circuit.ablations
        assert of_path.components == path[size].components
    assert mt.evaluate(path, held_out(), draws=0).components == path[3].components
    with pytest.raises(KeyError, match="budget 2 was not asked for"):
        mt.evaluate(path, held_out(), budget=2)


def test_loaded_circuits_and_paths_need_a_model(tmp_path: Any) -> None:
    tracer = mt.Tracer(model(), pairs_of(TRAIN), groups(), mt.OddsRatio(), mt.ZeroAblation())
    path = mt.select(tracer, [3], mt.TopK(), direction="minimize")
    wanted = mt.evaluate(path[3], held_out(), draws=4)
    path[3].save(tmp_path / "c.json")
    path.save(tmp_path / "p.json")
    loaded, loaded_path = mt.Circuit.load(tmp_path / "c.json"), mt.SubsetPath.load(tmp_path / "p.json")
    assert mt.evaluate(loaded, held_out(), model=model(), groups=groups(), draws=4).ablations == wanted.ablations
    assert mt.evaluate(loaded, held_out(), tracer=tracer, draws=4).ablations == wanted.ablations
    assert mt.evaluate(loaded_path, held_out(), model=model(), draws=4).ablations == wanted.ablations
    assert wanted.direction == "minimize"
    with pytest.raises(ValueError, match="carries no model"):
        mt.evaluate(loaded, held_out())
    with pytest.raises(ValueError, match=r"Pass groups=, such as heads\(model\)"):
        mt.evaluate(loaded, held_out(), model=model())


def test_groups_that_are_not_those_of_the_search_are_refused() -> None:
    with pytest.raises(ValueError, match=r"L0MLP is not among the 12 hook groups|L1MLP is not among"):
        mt.evaluate(circuit([12]), held_out(), groups=mt.heads(model()))
    with pytest.raises(ValueError, match=r"L0H1 patches L0H1 \(z\) in the circuit, but L0H1 \(pattern\)"):
        mt.evaluate(circuit([1]), held_out(), groups=mt.heads(model(), site="pattern"))


def test_places_among_other_groups_are_found_by_component() -> None:
    """The same components in another order: nothing but the random sets may change."""
    order = list(range(len(groups())))[::-1]
    turned = mt.evaluate(circuit(), held_out(), groups=groups()[order], draws=0)
    by_label = {k: v and v.value for k, v in report().minimality.items()}
    assert {k: v and v.value for k, v in turned.minimality.items()} == pytest.approx(by_label)
    assert turned.ablations[0].effects == pytest.approx(report().ablations[0].effects)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"metric": "mine"}, "names the metric 'mine'.*Pass metric="),
        ({"metric": "logit_diff", "intervention": {"name": "other"}}, "'other', which cannot be made.*interventions="),
        (
            {"metric": "logit_diff", "intervention": {"name": "mean", "per_position": False}},
            "'mean' intervention had a reference of its own.*Pass interventions=, with reference=",
        ),
    ],
)
def test_what_a_file_cannot_hold_is_asked_for(facts: dict[str, Any], message: str) -> None:
    alone = circuit().with_scores(tracer=None, provenance=facts)
    with pytest.raises(ValueError, match=message):
        mt.evaluate(alone, held_out(), model=model(), groups=groups())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="draws must be 0 or more, got -1"):
        mt.evaluate(circuit(), held_out(), draws=-1)
    with pytest.raises(TypeError, match="expected a Circuit or a SubsetPath, got list"):
        with unchecked():
            mt.evaluate([1], held_out())
    with pytest.raises(ValueError, match=r"interventions must be one or several, such as \[MeanAblation\(\)\]"):
        mt.evaluate(circuit(), held_out(), interventions=[])


def test_one_prompt_and_single_components() -> None:
    found = mt.evaluate(circuit([2]), held_out()[:1], draws=20)
    assert (found.effect.low, found.effect.high, found.effect.n) == (None, None, 1)
    assert found.completeness is not None and found.completeness.low is None
    assert found.ablations[0].p_zero == 1.0
    assert "one distinct prompt: no interval" in " ".join(found.notes)
    assert isinstance(found.components[0], Component)
