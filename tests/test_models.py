"""Every kind of model: mask 0 changes nothing, masks do what a plain loop does, and the model comes back as it was."""

from __future__ import annotations

from functools import cache
from typing import Any

import oracles
import pytest
import torch
from oracles import Plain, binary_mask, pairs_of, random_examples, soft_mask

import tl_multitrace as mt
from tiny_models import (
    FAMILIES,
    HAS_BRIDGE,
    HAS_HOOKED,
    MODEL_NAMES,
    TL_MAJOR,
    build,
    build_pair,
    few,
    float64_is_exact,
)
from tl_multitrace.groups import SITES, SiteKind

pytestmark = pytest.mark.lens

every_model = pytest.mark.parametrize("name", MODEL_NAMES)
few_models = pytest.mark.parametrize("name", few())


@cache
def model_of(name: str) -> Any:
    """A model that tests share: that they leave it as it was is itself tested."""
    model = build(name, torch.float64)
    model(torch.tensor([[3, 4]]))  # a bridge adds hooks of its own in its first forward
    return model


EXAMPLES = random_examples(3)


def loses_patterns(name: str) -> bool:
    """TransformerLens 3's own architectures ignore edits of attention weights."""
    return TL_MAJOR == 3 and name.startswith("bridge-") and any(k in name for k in ("native", "attn-only"))


def some_groups(model: Any, *, pattern: bool = False) -> mt.HookGroups:
    """All kinds of groups, in all layers, ending with the last residual state."""
    mlp = bool(mt.ModelView(model).d_mlp)
    if pattern:
        groups = mt.heads(model, site="pattern") + mt.residual(model, [1], site="pre", positions="last")
        return groups + mt.mlp_dims(model, [0, 2])[5:45] if mlp else groups
    groups = mt.heads(model, [0, 2]) + mt.attn_layers(model, [1])
    if mlp:
        groups = groups + mt.neurons(model, [1])[:20] + mt.mlps(model, positions=[0, -1])
    return groups + mt.residual(model, [2], site="post")


def tolerance(name: str) -> float:
    return 1e-9 if float64_is_exact(name) else 1e-5


def close(name: str, ours: torch.Tensor, plain: torch.Tensor) -> None:
    torch.testing.assert_close(ours.double(), plain, rtol=tolerance(name), atol=tolerance(name))


# ------------------------------------------------------------------------------------------------- identities
@few_models
def test_mask_0_is_the_model_itself_to_the_bit(name: str) -> None:
    model, groups = model_of(name), some_groups(model_of(name))
    base, source = torch.tensor([EXAMPLES[0].base]), torch.tensor([EXAMPLES[0].source])
    with torch.no_grad():
        _, cache_ = model.run_with_cache(source, names_filter=groups.names_filter)
        zero, one = torch.zeros(len(groups)), torch.ones(len(groups))
        assert groups.fwd_hooks(zero, cache_) == []
        plain = model(base)
        # an entry of 1e-30 attaches every hook, and 1 - 1e-30 is 1: the mixing itself must be exact too
        for mask in (zero, torch.full_like(zero, 1e-30)):
            assert torch.equal(model.run_with_hooks(base, fwd_hooks=groups.fwd_hooks(mask, cache_)), plain)
        changed = model.run_with_hooks(base, fwd_hooks=groups.fwd_hooks(one, cache_))
    assert (changed - plain).abs().max() > 0.1
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups)
    assert torch.equal(tracer.effect(torch.zeros(len(groups))), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(tracer.effect(torch.full((len(groups),), 1e-30)), torch.zeros(3, dtype=torch.float64))


@few_models
def test_last_residual_gives_the_source_run(name: str) -> None:
    model, groups = model_of(name), mt.residual(model_of(name), [2], site="post")
    base, source = torch.tensor([EXAMPLES[0].base]), torch.tensor([EXAMPLES[0].source])
    with torch.no_grad():
        wanted, cache_ = model.run_with_cache(source, names_filter=groups.names_filter)
        patched = model.run_with_hooks(base, fwd_hooks=groups.fwd_hooks(torch.ones(1), cache_))
    assert torch.equal(patched, wanted)
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups)
    swapped = mt.Tracer(model, pairs_of(EXAMPLES).swap(), groups)
    close(name, tracer.effect([1.0]), swapped.base_metric - tracer.base_metric)


# ----------------------------------------------------------------------------------------------------- oracles
@every_model
@pytest.mark.parametrize("pattern", [False, True], ids=["z", "pattern"])
def test_effects_and_gradients_are_the_plain_loops(name: str, pattern: bool) -> None:
    if pattern and loses_patterns(name):
        pytest.skip("TransformerLens 3 ignores attention weights here; test_ignored_edits_are_refused")
    model = model_of(name)
    groups = some_groups(model, pattern=pattern)
    tracer, plain = mt.Tracer(model, pairs_of(EXAMPLES), groups), Plain(model, EXAMPLES, groups.sites)
    masks = [binary_mask(len(groups), seed) for seed in (1, 2)] + [soft_mask(len(groups))]
    if not pattern:
        for mask in masks:
            mask[-1] *= 0.5  # else the last residual hides everything before it
    for mask, ours in zip(masks, tracer.effects(masks), strict=True):
        theirs = plain.effect(mask, oracles.logit_diff)
        assert theirs.abs().max() > 1e-3
        close(name, ours, theirs)
    direction = torch.randn(len(groups), generator=oracles.generator(5), dtype=torch.float64)
    slope = plain.slope(masks[-1], direction / direction.norm(), oracles.logit_diff)
    ours = tracer.gradient(masks[-1]) @ (direction / direction.norm())
    atol = 1e-7 if float64_is_exact(name) else 3e-3
    torch.testing.assert_close(ours, slope, rtol=1e-6, atol=atol)
    assert slope.abs().max() > 10 * atol


@pytest.mark.skipif(not (HAS_HOOKED and HAS_BRIDGE), reason="needs a TransformerLens with both model classes (3.x)")
@pytest.mark.parametrize("family", FAMILIES)
def test_both_apis_give_the_same_effects(family: str) -> None:
    effects = []
    for model in build_pair(family):
        groups = some_groups(model)[:-1] + mt.residual(model, [1])
        tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups)
        masks = torch.stack([binary_mask(len(groups), seed, 0.3) for seed in range(6)])
        effects.append(tracer.effects(masks))
    scale = effects[0].abs().max()
    torch.testing.assert_close(effects[1], effects[0], rtol=1e-4, atol=1e-4 * float(scale))


# ---------------------------------------------------------------------------------------- the model comes back
def state_of(model: Any) -> dict[str, Any]:
    """All that a trace may touch: hooks, torch hooks, gradients' flags, modes, dtypes, configuration, weights."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    return {
        "hooks": {n: [len(p.fwd_hooks), len(p.bwd_hooks), len(p._forward_hooks)] for n, p in model.hook_dict.items()},
        "torch hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()},
        "shadowed": [n for n, m in model.named_modules() if "forward" in m.__dict__],
        "grad": {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "mode": {n: m.training for n, m in model.named_modules()},
        "dtype": {n: str(p.dtype) for n, p in model.named_parameters()},
        "cfg": {k: str(v) for k, v in vars(model.cfg).items()},
        "hf": None if config is None else config.to_dict(),
        "weights": {n: float(p.detach().double().sum()) for n, p in model.named_parameters()},
    }


def usual_work(model: Any, metric: Any = None) -> None:
    """Everything that runs the model: set-up, effects with restarts, gradients, a search."""
    groups = some_groups(model)[:-1]
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups, metric=metric)
    masks = torch.stack([binary_mask(len(groups), seed, 0.2) for seed in range(4)])
    masks[:2, : len(groups) // 2] = 0
    tracer.effects(masks, reference=masks[0])
    tracer.gradient(masks[0])
    mt.select(tracer, [1], mt.AttributionPatching())


@every_model
def test_model_comes_back_unchanged(name: str) -> None:
    model = build(name)  # its own: this one is set up unusually
    model(torch.tensor([[3, 4]]))  # a bridge adds hooks of its own in its first forward
    model.train()
    first = next(model.parameters())
    first.requires_grad_(False)
    seen: list[int] = []
    model.hook_dict["blocks.1.attn.hook_z"].add_hook(lambda act, hook: seen.append(1))
    before = state_of(model)
    with pytest.warns(UserWarning, match="train mode"):
        usual_work(model)
    assert state_of(model) == before
    assert seen  # the user's own hook stayed attached while tracing


def failing_metric(error: type[BaseException], calls: int) -> Any:
    """A metric that works ``calls`` times, then raises."""
    count = iter(range(10**6))

    def metric(out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        if next(count) >= calls:
            raise error("stop")
        return out.token_logp[:, 0, 0]

    return metric


@few_models
@pytest.mark.parametrize("calls", [0, 2])
def test_model_comes_back_after_an_exception_in_the_metric(name: str, calls: int) -> None:
    model = model_of(name)
    before = state_of(model)
    with pytest.raises(ZeroDivisionError):
        usual_work(model, failing_metric(ZeroDivisionError, calls))
    assert state_of(model) == before


# while hooks are checked, in the source run, later
@pytest.mark.parametrize(("name", "firing"), [*((name, 3) for name in few()), (few()[0], 1), (few()[0], 8)])
def test_model_comes_back_after_ctrl_c_inside_a_hook(name: str, firing: int) -> None:
    model = model_of(name)
    point = model.hook_dict["blocks.2.hook_attn_out"]
    fired: list[None] = []  # what a hook notes; an iterator would be something that it computes from

    def ctrl_c(act: torch.Tensor, hook: Any) -> None:
        fired.append(None)
        if len(fired) == firing + 1:
            raise KeyboardInterrupt

    before = state_of(model)
    point.add_hook(ctrl_c)
    handle = point.fwd_hooks[-1]
    try:
        with pytest.raises(KeyboardInterrupt):
            usual_work(model)
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)
    assert state_of(model) == before
    assert torch.equal(model(torch.tensor([EXAMPLES[0].base])), model(torch.tensor([EXAMPLES[0].base])))


# ------------------------------------------------------------------------------------------ hooks that are lost
@few_models
def test_a_hook_that_does_not_fire_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    before = state_of(model)
    # this point exists everywhere and is computed only where cfg.use_attn_result is on
    monkeypatch.setitem(SITES, ("head", "z"), SiteKind("blocks.{layer}.attn.hook_result", axis=2))
    with pytest.raises(mt.HookError, match=r"blocks\.0\.attn\.hook_result fired 0 times in a forward instead of once"):
        mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model))
    assert state_of(model) == before


@pytest.mark.parametrize("name", few("native"))
def test_edits_of_attention_weights_count_or_are_refused(name: str) -> None:
    model = model_of(name)
    if not loses_patterns(name):
        assert mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model, site="pattern")).effect(torch.ones(12)).all()
        return
    with pytest.raises(mt.HookError, match=r"ignores what a hook at blocks\.0\.attn\.hook_pattern returns.*site='z'"):
        mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model, site="pattern"))


@pytest.mark.parametrize("name", few("attn-only", "gpt2-compat"))
def test_facts_read_from_the_model(name: str) -> None:
    view = mt.ModelView(model_of(name))
    assert (view.n_layers, view.n_heads, view.d_model, view.d_head, view.d_vocab) == (3, 4, 32, 8, 128)
    assert view.d_mlp == (0 if "attn-only" in name else 64)
    assert (view.n_ctx, view.dtype, view.is_bridge) == (32, torch.float64, name.startswith("bridge"))
    facts = view.describe()
    assert facts["compatibility_mode"] == name.endswith("-compat")
    assert facts["digest"] == mt.ModelView(build(name, torch.float64)).digest()
    assert facts["digest"] != mt.ModelView(build(name, torch.float64, seed=1)).digest()
