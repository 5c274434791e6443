"""A circuit: its set algebra, what it says about itself, its use as hooks, and paths in files."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from oracles import Plain, pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build, random_gpt2

API = "bridge" if HAS_BRIDGE else "hooked"
model_of = cache(lambda: build(f"{API}-gpt2", torch.float64))
EXAMPLES = random_examples(4, seed=5)
HELD_OUT = random_examples(3, seed=6)


@cache
def searched() -> mt.SubsetPath:
    model = model_of()
    groups = mt.heads(model) + mt.mlps(model) + mt.residual(model, [1], positions=["subject", "last"])
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups, metric=mt.OddsRatio())
    return mt.select(tracer, range(1, 5), mt.Greedy(), held_out=pairs_of(HELD_OUT), seed=3)


def circuit_of(*indices: int, n: int = 6, effect: float = 1.0, **options: Any) -> mt.Circuit:
    return mt.Circuit(mt.heads(model_of())[list(indices)], indices, n, effect, **options)


# ------------------------------------------------------------------------------------------------------- the set
def test_set_algebra() -> None:
    a, b = circuit_of(0, 2, 5), circuit_of(5, 1)
    assert (a | b).labels == ["L0H0", "L0H2", "L1H1", "L0H1"]
    assert (a | b).indices == (0, 2, 5, 1)
    assert (a & b).labels == ["L1H1"]
    assert (a - b).labels == ["L0H0", "L0H2"]
    assert ((a - b) & b).labels == []
    assert a.jaccard(b) == 1 / 4
    assert a.jaccard(a) == 1
    assert (a & (a - a)).jaccard(a - a) == 1  # both empty
    assert a.mask.tolist() == [1, 0, 1, 0, 0, 1]
    assert "L0H2" in a and mt.Component("head", 1, 1) in a and "L0H1" not in a
    assert [c.label for c in a] == a.labels
    derived = a | b
    assert math.isnan(derived.effect) and derived.score is None and not derived.marginals
    assert derived.provenance["derived"] == "union"


def test_circuits_of_different_searches_do_not_unite() -> None:
    with pytest.raises(ValueError, match=r"chosen from 6 and 9 hook groups.*Search both over the same groups"):
        circuit_of(0) | circuit_of(1, n=9)
    neurons = mt.Circuit(mt.neurons(model_of())[:1], (0,), 6, 1.0)
    with pytest.raises(ValueError, match="one mask entry would stand for two components"):
        circuit_of(0) | neurons
    moved = mt.Circuit(mt.heads(model_of())[[0, 1]], (1, 0), 6, 1.0)
    with pytest.raises(ValueError, match="chosen from different hook groups"):
        circuit_of(0) | moved


def test_impossible_circuits() -> None:
    groups = mt.heads(model_of())[:2]
    with pytest.raises(ValueError, match="1 indices for 2 components"):
        mt.Circuit(groups, (0,), 6, 1.0)
    with pytest.raises(ValueError, match="3 marginal effects for 2 components"):
        mt.Circuit(groups, (0, 1), 6, 1.0, marginals=(1.0, 2.0, 3.0))


# ---------------------------------------------------------------------------------------------- what it knows
def test_a_chosen_circuit_is_measured() -> None:
    path, circuit = searched(), searched()[3]
    model, loop = model_of(), Plain(model_of(), EXAMPLES, searched().groups.sites)
    effect = loop.effect(circuit.mask, oracles.odds_ratio)
    assert circuit.effect == pytest.approx(float(effect.mean()), rel=1e-8)
    assert circuit.score is not None and circuit.held_out is not None and circuit.chance is not None
    assert circuit.score.median == pytest.approx(float(effect.quantile(0.5)), rel=1e-8)
    assert circuit.score.low <= circuit.score.mean <= circuit.score.high
    assert circuit.score.log == pytest.approx(float(effect.log1p().mean()), rel=1e-8)
    held = Plain(model, HELD_OUT, searched().groups.sites).effect(circuit.mask, oracles.odds_ratio)
    assert circuit.held_out.mean == pytest.approx(float(held.mean()), rel=1e-8)
    whole = float(loop.effect(torch.ones(17), oracles.odds_ratio).mean())
    assert circuit.full_effect == pytest.approx(whole, rel=1e-8)
    assert circuit.full_score is not None and circuit.full_score.mean == circuit.full_effect
    assert circuit.share is None and circuit.full_score.low < 0 < circuit.full_score.high
    known = circuit.with_scores(full_score=None)  # as files of 0.1 have it
    assert known.share == pytest.approx(circuit.effect / whole)
    for c, marginal in zip(circuit.components, circuit.marginals, strict=True):
        without = circuit.mask.clone()
        without[path.groups.index(c)] = 0
        lost = circuit.effect - float(loop.effect(without, oracles.odds_ratio).mean())
        assert marginal == pytest.approx(lost, rel=1e-7, abs=1e-9)


def test_provenance_says_where_it_comes_from() -> None:
    facts = searched()[2].provenance
    assert (facts["metric"], facts["direction"], facts["seed"], facts["budget"]) == ("odds_ratio", "maximize", 3, 2)
    assert facts["solver"] == {"name": "greedy", "patience": 0}
    assert facts["intervention"]["name"] == "interchange"
    assert facts["prompts"] == {"n": 4, "digest": pairs_of(EXAMPLES).digest()}
    assert facts["model"]["digest"] == mt.ModelView(model_of()).digest()
    assert {"transformer_lens", "torch", "n_layers", "normalization"} <= set(facts["model"])
    assert facts["cost"]["equivalents"] == facts["cost"]["forwards"] > 10
    assert facts["tl_multitrace"] == mt.__version__


def test_repr_carries_its_own_quality_check() -> None:
    circuit = searched()[3]
    assert circuit.score and circuit.held_out and circuit.chance
    text = repr(circuit)
    for line in (
        f"Circuit of {len(circuit)} of 17 components",
        f"effect    {circuit.score.mean:.3g} [{circuit.score.low:.3g}, {circuit.score.high:.3g}]",
        f"held out  {circuit.held_out.mean:.3g} [",
        f"chance    {circuit.chance.mean:.3g} [",
        "random sets of this size",
        f"{circuit.provenance['cost']['equivalents']:.0f} forward equivalents",
        "odds_ratio, maximize, interchange",
        f"choice    {circuit.certificate}",
    ):
        assert line in text, line
    assert all(label in text for label in circuit.labels)
    html = circuit._repr_html_()
    assert all(label in html for label in circuit.labels)
    bare = repr(circuit_of(0, 1))
    assert bare.count("not measured") == 2


def test_html_escapes_what_comes_from_outside() -> None:
    evil = circuit_of(0, provenance={"model": {"name": "<script>alert(1)</script>"}, "metric": "<b>x</b>"})
    assert "<script>" not in evil._repr_html_()
    assert "&lt;script&gt;" in evil._repr_html_()


def test_table_is_sorted_by_marginal_effect() -> None:
    up = circuit_of(0, 1, 2, marginals=(0.1, 0.5, -0.2), effect=2.0).to_dataframe()
    assert up.component.tolist() == ["L0H1", "L0H0", "L0H2"]
    assert up.share.tolist() == pytest.approx([0.25, 0.05, -0.1])
    down = circuit_of(0, 1, 2, marginals=(0.1, 0.5, -0.2), provenance={"direction": "minimize"}).to_dataframe()
    assert down.component.tolist() == ["L0H2", "L0H0", "L0H1"]
    assert circuit_of(0, 2).to_dataframe().marginal.isna().all()
    assert circuit_of().to_dataframe().empty


# -------------------------------------------------------------------------------------------------- as hooks
def test_hooks_in_a_users_run_equal_the_tracers_effect() -> None:
    """``run_with_cache`` and ``run_with_hooks``, answers read at the last real token of each padded prompt."""
    model, pairs, circuit = model_of(), pairs_of(EXAMPLES), searched()[4]
    attended = (torch.arange(8) < pairs.lengths[:, None]).long()
    rows = torch.arange(4)

    def log_odds(logits: torch.Tensor) -> torch.Tensor:
        last = logits[rows, pairs.lengths - 1]
        return last[rows, pairs.candidates[:, 0, 0]] - last[rows, pairs.candidates[:, 1, 0]]

    with torch.no_grad():
        _, source = model.run_with_cache(
            pairs.source_tokens, names_filter=circuit.groups.names_filter, attention_mask=attended
        )
        assert type(source).__name__ == "ActivationCache"
        plain = log_odds(model(pairs.base_tokens, attention_mask=attended))
        hooks = circuit.fwd_hooks(source, pairs=pairs)
        patched = log_odds(model.run_with_hooks(pairs.base_tokens, fwd_hooks=hooks, attention_mask=attended))
        with circuit.hooks(model, source, pairs=pairs):
            inside = log_odds(model(pairs.base_tokens, attention_mask=attended))
        half = circuit.fwd_hooks(source, strength=0.5, pairs=pairs)
        mixed = log_odds(model.run_with_hooks(pairs.base_tokens, fwd_hooks=half, attention_mask=attended))
    tracer = mt.Tracer(model, pairs, searched().groups, metric=mt.OddsRatio())
    wanted = tracer.effect(circuit.mask)
    torch.testing.assert_close((patched - plain).expm1(), wanted, rtol=1e-8, atol=1e-9)
    assert torch.equal(inside, patched)
    torch.testing.assert_close((mixed - plain).expm1(), tracer.effect(0.5 * circuit.mask), rtol=1e-8, atol=1e-9)


def test_a_circuit_of_another_model_is_refused() -> None:
    circuit = searched()[2]
    other = random_gpt2(2, 4, 32, 128, 32)
    with pytest.raises(ValueError, match=r"this circuit is of .* \(n_layers 3\), not of .* \(n_layers 2\)"):
        circuit.check_model(other)
    with pytest.raises(ValueError, match="Load the model it was found on"), circuit.hooks(other, {}):
        raise AssertionError("the hooks of another model's circuit were attached")
    circuit.check_model(build(f"{API}-gpt2", seed=1))  # other weights of the same shape: allowed, a fine-tuned model
    bare = mt.Circuit(mt.heads(model_of())[[11]], (11,), 12, 1.0)  # says nothing about its model
    with pytest.raises(ValueError, match="L2H3 is outside"):
        bare.check_model(other)


# ------------------------------------------------------------------------------------------------------- paths
def test_a_path_comes_back_as_it_was(tmp_path: Path) -> None:
    path = searched()
    path[2]
    again = mt.SubsetPath.load(path.save(tmp_path / "path.json"))
    assert again.choices == path.choices
    assert (again.sizes, again.effects, again.notes, again.full_effect) == (
        path.sizes,
        path.effects,
        path.notes,
        path.full_effect,
    )
    assert again.groups == path.groups
    assert again.cost == path.cost
    assert again[3].components == path[3].components
    assert again[3].marginals == ()  # needs the model, which a file does not hold
    assert again.to_dataframe().equals(path.to_dataframe())
    with pytest.raises(FileExistsError, match="overwrite=True"):
        path.save(tmp_path / "path.json")
    with pytest.raises(ValueError, match=r"is not a tl_multitrace.circuit file \(format: 'tl_multitrace.path'\)"):
        mt.Circuit.load(tmp_path / "path.json")


def test_a_path_knows_its_budgets() -> None:
    path = searched()
    assert len(path) == 4
    assert path[3] is path[3]
    with pytest.raises(KeyError, match="budget 9 was not asked for; this path has 1-4"):
        path[9]
    frame = path.to_dataframe()
    assert frame.budget.tolist() == [1, 2, 3, 4]
    assert frame.effect.tolist() == path.effects
    assert frame.components[1] == " ".join(path.groups.labels[i] for i in path.choice(2).members)
    text = repr(path)
    assert "SubsetPath by greedy: budgets 1-4 of 17 components" in text
    assert f"whole mask {path.full_effect:.3g}" in text
    assert "<pre>" in path._repr_html_()
