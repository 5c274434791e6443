"""A found set switched off or pushed: against hand-written hooks, against the tracer, and while text is generated."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples, unchecked

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, TL_MAJOR, build, few, word_tokenizer
from tl_multitrace.demo import load_demo_model
from tl_multitrace.switching import Switch

pytestmark = pytest.mark.lens

MODELS = few("native-gqa")
PAIRS = pairs_of(random_examples(5, seed=5))
TOKENS = torch.tensor([[0, 5, 9, 17, 33, 4], [0, 8, 21, 3, 40, 11]])
CACHED = pytest.mark.parametrize("use_past_kv_cache", [True, False])


@cache
def tiny(name: str) -> Any:
    return build(name, tokenizer=word_tokenizer())


def mixed_circuit(model: Any) -> mt.Circuit:
    """Every kind of component at least once."""
    groups = mt.heads(model)[[1, 6]] + mt.neurons(model, 1)[[3, 40]] + mt.mlp_dims(model, 0)[[2, 7]]
    groups = groups + mt.mlps(model, 2) + mt.attn_layers(model, 1) + mt.residual(model, 1)
    return mt.Circuit(groups, tuple(range(len(groups))), len(groups), 1.0)


def logits(model: Any, tokens: Any, hooks: list[Any] | None = None) -> torch.Tensor:
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks or [], attention_mask=mask)


def cache_means(model: Any, tokens: Any, lengths: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Mean activation over real tokens, prompt by prompt without padding, by TransformerLens' own cache."""
    rows = []
    for row, n in zip(tokens, lengths.tolist(), strict=True):
        with torch.no_grad():
            kept = model.run_with_cache(row[None, :n], names_filter=names)[1]
        rows.append({name: kept[name][0] for name in names})
    return {name: torch.cat([r[name] for r in rows]).mean(0) for name in names}


def hand_written(circuit: mt.Circuit, edit: Any) -> list[tuple[str, Any]]:
    """One hook per component, as a user of TransformerLens writes them."""
    hooks = []
    for c in circuit:

        def hook(act: Any, hook: Any, c: Any = c) -> Any:
            out = act.clone()
            place = (slice(None), slice(None)) if c.index is None else (slice(None), slice(None), c.index)
            out[place] = edit(c, act[place])
            return out

        hooks.append((c.hook_name, hook))
    return hooks


def part(values: dict[str, torch.Tensor], c: Any) -> torch.Tensor:
    return values[c.hook_name] if c.index is None else values[c.hook_name][c.index]


# ------------------------------------------------------------------------------------------------ what the hooks do
@pytest.mark.parametrize("name", MODELS)
def test_hand_written_hooks_do_the_same(name: str) -> None:
    model = tiny(name)
    circuit = mixed_circuit(model)
    names = circuit.groups.names_filter
    source = cache_means(model, PAIRS.source_tokens, PAIRS.source_lengths, names)
    base = cache_means(model, PAIRS.base_tokens, PAIRS.lengths, names)
    cases = {
        circuit.ablate(model, "zero"): lambda c, act: torch.zeros_like(act),
        circuit.ablate(model, reference=PAIRS): lambda c, act: part(source, c).expand_as(act),
        circuit.steer(model, -1.5, PAIRS): lambda c, act: act - 1.5 * (part(source, c) - part(base, c)),
    }
    plain = logits(model, TOKENS)
    for switch, edit in cases.items():
        wanted = logits(model, TOKENS, hand_written(circuit, edit))
        found = logits(model, TOKENS, switch.fwd_hooks)
        assert not torch.allclose(wanted, plain, atol=1e-2)
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)
        with switch as switched, torch.no_grad():
            assert switched is model
            torch.testing.assert_close(model(TOKENS, attention_mask=torch.ones_like(TOKENS)), found)
        torch.testing.assert_close(logits(model, TOKENS), plain, atol=0, rtol=0)


@pytest.mark.parametrize("name", MODELS[:1] + [n for n in MODELS if "llama" in n])
@pytest.mark.parametrize("how", ["mean", "zero"])
def test_ablation_is_the_tracers_ablation_everywhere(name: str, how: Any) -> None:
    model = tiny(name)
    groups = (mt.heads(model) + mt.neurons(model, 1) + mt.mlps(model, 0)).at("everywhere")
    intervention = mt.MeanAblation() if how == "mean" else mt.ZeroAblation()
    tracer = mt.Tracer(model, PAIRS, groups, metric=mt.AnswerLogProb(), intervention=intervention)
    chosen = (0, 5, 20, 12 + 64)
    circuit = mt.Circuit(groups[list(chosen)], chosen, len(groups), 0.0, tracer=tracer)
    traced = tracer.effect(circuit.mask)
    with circuit.ablate(model, how):
        switched = mt.Tracer(model, PAIRS, groups, metric=mt.AnswerLogProb(), intervention=mt.ZeroAblation())
    torch.testing.assert_close(switched.base_metric - tracer.base_metric, traced, atol=2e-4, rtol=1e-3)
    assert float(traced.abs().max()) > 0.1


def test_heads_found_at_their_pattern_are_switched_at_their_output() -> None:
    model = tiny(MODELS[0])
    places = [1, 6]
    by_pattern = mt.Circuit(mt.heads(model, site="pattern")[places], (1, 6), 12, 1.0)
    by_output = mt.Circuit(mt.heads(model)[places], (1, 6), 12, 1.0)
    found = [logits(model, TOKENS, c.ablate(model, reference=PAIRS).fwd_hooks) for c in (by_pattern, by_output)]
    assert torch.equal(*found)


def test_a_place_that_two_components_cover_is_moved_once() -> None:
    model = tiny(MODELS[0])
    both = mt.Circuit(mt.mlps(model, 1) + mt.mlp_dims(model, 1)[[3]], (0, 1), 9, 1.0)
    whole = mt.Circuit(mt.mlps(model, 1), (0,), 9, 1.0)
    found = [logits(model, TOKENS, c.steer(model, 1.0, PAIRS).fwd_hooks) for c in (both, whole)]
    assert torch.equal(*found)


def test_steering_goes_towards_the_source_and_scales() -> None:
    model = load_demo_model()
    task = mt.task("professions", model, n=80)
    tracer = mt.Tracer(model, task.pairs, mt.heads(model) + mt.mlps(model), task.metric)
    circuit = mt.select(tracer, [6])[6]
    one_way = [i for i, label in enumerate(task.pairs.labels) if label == task.pairs.labels[0]]
    pairs = task.pairs[one_way]

    def preference(switch: Switch | None) -> float:
        hooks = [] if switch is None else switch.fwd_hooks
        last = model.run_with_hooks(pairs.base_tokens, fwd_hooks=hooks)[range(len(pairs)), pairs.lengths - 1]
        scores = last.gather(-1, pairs.candidates[:, :, 0].clamp_min(0))
        right, wrong = pairs.right, pairs.candidates[:, :, 0].ge(0) & ~pairs.right
        return float(((scores * right).sum(-1) / right.sum(-1) - (scores * wrong).sum(-1) / wrong.sum(-1)).mean())

    with torch.no_grad():
        values = [preference(circuit.steer(model, s, pairs)) for s in (-2.0, -1.0, 0.0, 1.0, 2.0)]
        assert values[2] == pytest.approx(preference(None), abs=1e-5)
    assert values == sorted(values)


# ------------------------------------------------------------------------------------------------------ generating
@CACHED
def test_generation_changes_and_comes_back(use_past_kv_cache: bool) -> None:
    model = load_demo_model()
    task = mt.task("facts", model, n=24)
    tracer = mt.Tracer(model, task.pairs, mt.heads(model) + mt.mlps(model), task.metric)
    circuit = mt.select(tracer, [5])[5]
    prompts = task.pairs.base_tokens[task.pairs.lengths == task.pairs.lengths[0]][:3]

    def say() -> list[list[int]]:
        options = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
        found = model.generate(prompts, max_new_tokens=5, use_past_kv_cache=use_past_kv_cache, **options)
        return found[:, prompts.shape[1] :].tolist()

    plain = say()
    pushed = circuit.steer(model, 2.0, task.pairs[:1])  # over many facts, the differences would cancel
    for switch in (circuit.ablate(model), circuit.ablate(model, "zero"), pushed):
        with switch:
            switched = say()
        assert switched != plain, switch
        assert switched == step_by_step(model, prompts, 5, switch), switch
        assert say() == plain


def step_by_step(model: Any, tokens: Any, n: int, switch: Switch) -> list[list[int]]:
    """Greedy text by whole forwards under the switch's hooks: no cache, no generation code."""
    start = tokens.shape[1]
    for _ in range(n):
        tokens = torch.cat([tokens, logits(model, tokens, switch.fwd_hooks)[:, -1].argmax(-1, keepdim=True)], -1)
    return tokens[:, start:].tolist()


@pytest.mark.skipif(not HAS_BRIDGE, reason="TransformerLens 2 loads models by its own names only")
def test_a_real_models_stories_change_alike_alone_and_in_a_padded_batch(shared_data: Path) -> None:
    """Grouped queries, prompts of unequal length: the vectors hold at every position, so padding does not matter."""
    model = mt.load_model(str(shared_data / "stories260K"), "cpu")
    texts = ["Once upon a time, there was a little girl named", "One day, Tom"]
    circuit = mt.Circuit(mt.heads(model)[[3, 9, 17, 30]] + mt.mlps(model, 2), (3, 9, 17, 30, 40), 45, 0.0)
    plain, alone = tell(model, texts), [tell(model, [text])[0] for text in texts]
    assert plain == alone
    with circuit.ablate(model, "zero"):
        switched, alone = tell(model, texts), [tell(model, [text])[0] for text in texts]
    assert switched == alone and switched != plain
    assert tell(model, texts) == plain


def tell(model: Any, texts: list[str]) -> list[str]:
    found = model.generate(texts, max_new_tokens=8, do_sample=False, verbose=False)
    return [found] if isinstance(found, str) else list(found)


def test_both_model_classes_are_switched_alike() -> None:
    if TL_MAJOR != 3:
        pytest.skip("only TransformerLens 3 has both model classes")
    models = [tiny("hooked-llama"), tiny("bridge-llama")]
    found = [logits(m, TOKENS, mixed_circuit(m).ablate(m, reference=PAIRS).fwd_hooks) for m in models]
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)


# ----------------------------------------------------------------------------------------------- what stays, what not
def hook_count(model: Any) -> int:
    points = {id(point): point for point in model.hook_dict.values()}  # on a bridge some stand under two names
    return sum(len(point.fwd_hooks) for point in points.values())


def test_other_hooks_stay_and_an_exception_leaves_nothing() -> None:
    model = tiny(MODELS[0])
    circuit, seen = mixed_circuit(model), []
    name = circuit.groups.names_filter[0]

    def watch(act: Any, hook: Any) -> None:
        seen.append(name)

    model.hook_dict[name].add_hook(watch)
    try:
        before = hook_count(model)
        switch = circuit.ablate(model, "zero")
        assert hook_count(model) == before
        with pytest.raises(RuntimeError, match="half way"), switch:
            assert hook_count(model) == before + len(switch.fwd_hooks)
            raise RuntimeError("half way")
        assert hook_count(model) == before
        with switch, circuit.steer(model, 1.0, PAIRS), switch:
            pass
        assert hook_count(model) == before
        logits(model, TOKENS)
        assert seen
    finally:
        model.reset_hooks()


def test_the_model_is_left_as_it_was() -> None:
    model = tiny(MODELS[0])
    flags, mode = [p.requires_grad for p in model.parameters()], model.training
    mixed_circuit(model).steer(model, 1.0, PAIRS)
    assert [p.requires_grad for p in model.parameters()] == flags and model.training == mode


def test_a_loaded_circuit_needs_reference_prompts(tmp_path: Path) -> None:
    model = tiny(MODELS[0])
    loaded = mt.Circuit.load(mixed_circuit(model).save(tmp_path / "c.json"))
    for make in (lambda: loaded.ablate(model), lambda: loaded.steer(model, 1.0)):
        with pytest.raises(ValueError, match=r"carries none .*pass reference=pairs"):
            make()
    assert "zero ablation of 9 components" in repr(loaded.ablate(model, "zero"))
    assert loaded.ablate(model, reference=PAIRS).fwd_hooks


def test_positions_are_refused_or_dropped_on_demand() -> None:
    model = tiny(MODELS[0])
    circuit = mt.Circuit(mt.heads(model, 0, positions="last")[[1]], (1,), 4, 1.0)
    with pytest.raises(ValueError, match=r"L0H1@last is restricted to position 'last'.*everywhere=True"):
        circuit.ablate(model, "zero")
    free = mt.Circuit(mt.heads(model, 0)[[1]], (1,), 4, 1.0)
    found = [
        logits(model, TOKENS, s.fwd_hooks)
        for s in (circuit.ablate(model, "zero", everywhere=True), free.ablate(model, "zero"))
    ]
    assert torch.equal(*found)


def test_what_cannot_be_switched_is_said() -> None:
    model = tiny(MODELS[0])
    circuit = mixed_circuit(model)
    how: Any = "off"
    with unchecked(), pytest.raises(ValueError, match="unknown ablation 'off': use 'mean' or 'zero'"):
        circuit.ablate(model, how)
    with pytest.raises(ValueError, match="strength must be a finite number, got nan"):
        circuit.steer(model, float("nan"), PAIRS)
    same = mt.PromptPairs.from_tokens(PAIRS.base_tokens, PAIRS.base_tokens, [[3]] * 5, lengths=PAIRS.lengths)
    with pytest.raises(ValueError, match="no direction to steer in"):
        circuit.steer(model, 1.0, same)
    with pytest.raises(ValueError, match="nothing to switch"):
        (circuit - circuit).ablate(model, "zero")
    foreign = mt.PromptPairs.from_tokens(torch.tensor([[0, 900]]), torch.tensor([[0, 901]]), [[3]])
    with pytest.raises(ValueError, match="has 128 tokens"):
        circuit.ablate(model, reference=foreign)
