"""Hook groups: what a mask entry switches, at which positions, how groups overlap, and their use in a user's run."""

from __future__ import annotations

from functools import cache
from typing import Any

import oracles
import pytest
import torch
from oracles import Example, Plain, binary_mask, pairs_of, random_examples, soft_mask, unequal_pairs

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build
from tl_multitrace.groups import Component

pytestmark = pytest.mark.lens

API = "bridge" if HAS_BRIDGE else "hooked"
model_of = cache(lambda family: build(f"{API}-{family}", torch.float64))
EXAMPLES = random_examples(4, tokens=3)  # 8, 7, 6 and 5 tokens


def gpt2() -> Any:
    return model_of("gpt2")


def plain_equals_engine(groups: mt.HookGroups, examples: list[Example] = EXAMPLES, mask: Any = None) -> torch.Tensor:
    mask = soft_mask(len(groups)) if mask is None else mask
    ours = mt.Tracer(gpt2(), pairs_of(examples), groups).effect(mask)
    theirs = Plain(gpt2(), examples, groups.sites).effect(mask, oracles.logit_diff)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    return theirs


# ---------------------------------------------------------------------------------------------------- positions
POSITIONS = [
    "all",
    "last",
    "everywhere",
    "subject",
    0,
    6,  # outside the shorter prompts
    -1,
    -6,
    slice(1, 3),
    slice(3, 20),
    slice(-3, -1),
    slice(-7, 0),  # 0 after a negative start is the end
    slice(1, -1),
    slice(-2, 4),
    [1, -7, "last", 4],  # in prompts of 8 and 5 tokens two of these are one place
]


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@pytest.mark.parametrize("site", ["z", "pattern"])
def test_positions(positions: Any, site: str) -> None:
    groups = mt.heads(gpt2(), [0, 1], site=site, positions=positions) + mt.mlps(gpt2(), 1, positions=positions)
    effect = plain_equals_engine(groups)
    assert effect.abs().max() > 1e-3


def test_everywhere_reaches_answers_and_all_does_not() -> None:
    """The last residual state of prompt and answer decides all: patched everywhere, it gives the source scores."""
    example = Example([5, 6, 7], [5, 6, 40], [[8, 9, 10]], [[11, 12]])
    turned = Example(example.source, example.base, example.answers, example.wrong)
    with torch.no_grad():
        base, source = (Plain(gpt2(), [e], []).read(0) for e in (example, turned))
    whole = float(oracles.logit_diff(source, source) - oracles.logit_diff(base, base))
    for positions, reached in (("all", False), ("everywhere", True)):
        groups = mt.residual(gpt2(), [2], site="post", positions=positions)
        assert (abs(float(plain_equals_engine(groups, [example], torch.ones(1))) - whole) < 1e-9) == reached


def test_pattern_masks_stay_inside_the_prompt() -> None:
    """Attention weights are mixed between prompt positions only: a row of an answer token, or its column, is not."""
    groups = mt.heads(gpt2(), [0], site="pattern")
    example = EXAMPLES[3]
    prefix = max(example.candidates, key=len)[:-1]
    assert prefix
    seen = {}
    hooks = Plain(gpt2(), [example], groups.sites).hooks(0, example, prefix, torch.ones(4))
    name = groups.names_filter[0]
    plain = [*hooks, (name, lambda act, hook: seen.__setitem__("mixed", act.clone()))]
    oracles.plain_logits(gpt2(), example.base + prefix, plain)
    running = oracles.activations(gpt2(), example.base + prefix, [name])[name]
    n = len(example.base)
    assert torch.equal(seen["mixed"][..., n:, :], running[..., n:, :])
    assert not torch.equal(seen["mixed"][..., :n, :n], running[..., :n, :n])
    plain_equals_engine(groups, [example], torch.ones(4))


@pytest.mark.parametrize("positions", [slice(1, None), slice(None, 3), slice(0, 4, 2)])
def test_open_slices_are_refused(positions: slice) -> None:
    with pytest.raises(ValueError, match=r"positions must be a slice with start and stop, got slice"):
        mt.heads(gpt2(), positions=positions)


# ------------------------------------------------------------------------------------------------------ overlap
def mixed_share(groups: mt.HookGroups, mask: list[float], name: str) -> torch.Tensor:
    """How much of the source arrives at a hook point, from the activations themselves."""
    base, source = torch.tensor([EXAMPLES[0].base]), torch.tensor([EXAMPLES[0].source])
    with torch.no_grad():
        _, source_cache = gpt2().run_with_cache(source, names_filter=groups.names_filter)
        _, base_cache = gpt2().run_with_cache(base, names_filter=groups.names_filter)
        (hook,) = [fn for at, fn in groups.fwd_hooks(mask, source_cache) if at == name]
        running, wanted = base_cache[name].clone(), source_cache[name]
    return (hook(running.clone(), None) - running) / (wanted - running)


def test_overlapping_groups_unite() -> None:
    a, b, c = 0.3, 0.6, 0.5
    groups = mt.mlps(gpt2(), 0) + mt.mlp_dims(gpt2(), 0)[:1] + mt.mlps(gpt2(), 0, positions="last")
    share = mixed_share(groups, [a, b, c], "blocks.0.hook_mlp_out")[0]
    expected = torch.full_like(share, a)
    expected[:, 0] = 1 - (1 - a) * (1 - b)
    expected[-1] = 1 - (1 - a) * (1 - c)
    expected[-1, 0] = 1 - (1 - a) * (1 - b) * (1 - c)
    torch.testing.assert_close(share, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_equal_mixing_one_after_the_other(seed: int) -> None:
    groups = (
        mt.mlps(gpt2(), positions="all")
        + mt.mlp_dims(gpt2(), [0, 1])[10:40]
        + mt.mlps(gpt2(), [0, 2], positions=["last", "subject", 2])
        + mt.heads(gpt2(), 1, positions="last")
        + mt.heads(gpt2(), 1, positions="everywhere")
    )
    mask = binary_mask(len(groups), seed) * soft_mask(len(groups), seed)
    plain_equals_engine(groups, mask=mask)


def test_joined_windows_switch_their_members() -> None:
    layers = mt.mlps(gpt2(), positions=["subject", "last"])
    names = [Component("mlp", layer, position=p) for layer in range(2) for p in ("subject", "last")]
    windows = layers.joined([[0, 2], [1, 3], [2, 4], [3, 5]], names)
    assert windows.labels == ["L0MLP@subject", "L0MLP@last", "L1MLP@subject", "L1MLP@last"]
    assert windows.first_layers.tolist() == [0, 0, 1, 1]
    plain_equals_engine(windows)
    tracer = mt.Tracer(gpt2(), pairs_of(EXAMPLES), windows)
    single = mt.Tracer(gpt2(), pairs_of(EXAMPLES), layers)
    both = single.effect(["L0MLP@subject", "L1MLP@subject"])
    torch.testing.assert_close(tracer.effect([1, 0, 0, 0]), both, rtol=1e-9, atol=1e-9)
    assert layers.joined([[0, 2, 4]]).labels == ["L1MLP@subject"]


# ----------------------------------------------------------------------------------- components, set operations
@pytest.mark.parametrize(
    ("component", "label"),
    [
        (Component("head", 9, 6), "L9H6"),
        (Component("head", 9, 6, site="pattern"), "L9H6"),
        (Component("neuron", 3, 120), "L3N120"),
        (Component("mlp", 5), "L5MLP"),
        (Component("attn", 5), "L5ATTN"),
        (Component("mlp_dim", 2, 7), "L2D7"),
        (Component("resid", 4, position=3), "L4@3"),
        (Component("resid", 4), "L4RESID"),
        (Component("head", 0, 1, "last"), "L0H1@last"),
        (Component("mlp", 0, None, (2, 5)), "L0MLP@2:5"),
    ],
)
def test_labels(component: Component, label: str) -> None:
    assert component.label == label


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("expert", 0), "unknown kind 'expert': use one of head, neuron, mlp_dim, mlp, attn, resid"),
        (("head", 0, 1, None, "mid"), "a head has no site 'mid': use one of z, pattern"),
        (("head", 0), "a head needs index, got None"),
        (("mlp", 0, 3), "a mlp has no index, got 3"),
        (("head", -1, 0), "layer and index count from 0, got layer -1, index 0"),
    ],
)
def test_impossible_components(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Component(*arguments)


def test_constructors_go_layer_by_layer() -> None:
    model = gpt2()
    assert mt.heads(model, [2, 0]).labels == [f"L{layer}H{h}" for layer in (2, 0) for h in range(4)]
    assert mt.neurons(model, 1).labels[-1] == "L1N63"
    assert mt.mlp_dims(model, range(2)).labels[32] == "L1D0"
    assert mt.attn_layers(model).labels == ["L0ATTN", "L1ATTN", "L2ATTN"]
    assert mt.residual(model, 1, positions=[0, "last"]).labels == ["L1@0", "L1@last"]
    assert [len(f(model)) for f in (mt.heads, mt.neurons, mt.mlp_dims, mt.mlps)] == [12, 192, 96, 3]
    assert len(mt.heads(model_of("llama"))) == 12  # query heads, not the two key-value heads


def test_groups_add_pick_and_find() -> None:
    groups = mt.heads(gpt2(), 0) + mt.mlps(gpt2())
    assert groups.labels == ["L0H0", "L0H1", "L0H2", "L0H3", "L0MLP", "L1MLP", "L2MLP"]
    assert repr(groups) == "HookGroups(7: 4 head, 3 mlp)"
    assert groups[[5, 0]].labels == ["L1MLP", "L0H0"]
    assert groups[-1].labels == groups[torch.arange(7) == 6].labels == ["L2MLP"]
    assert [c.label for c in groups[1:3]] == ["L0H1", "L0H2"]
    assert groups.index("L1MLP") == groups.index(Component("mlp", 1)) == 5
    assert groups.names_filter == ["blocks.0.attn.hook_z", *[f"blocks.{i}.hook_mlp_out" for i in range(3)]]
    with pytest.raises(KeyError, match=r"L9H9 is not among these 7 groups \(first: L0H0, L0H1, L0H2"):
        groups.index("L9H9")
    with pytest.raises(ValueError, match="L0H1 stands twice in the hook groups"):
        groups + mt.heads(gpt2(), 0)[1:2]


def test_groups_outside_the_model() -> None:
    with pytest.raises(ValueError, match=r"layer 3 is outside .*, which has layers 0 to 2"):
        mt.heads(gpt2(), [0, 3])
    with pytest.raises(ValueError, match=r"L0H4 is outside .*, which has 3 layers of 4 heads"):
        mt.HookGroups.of(gpt2(), [Component("head", 0, 4)])
    with pytest.raises(ValueError, match=r"L5MLP is outside .*, which has 3 layers"):
        mt.HookGroups.of(gpt2(), [Component("mlp", 5)])
    for made in (mt.neurons, mt.mlps, mt.mlp_dims):
        with pytest.raises(ValueError, match=r"has no (neurons|MLP layers|MLP output dimensions) to hook"):
            made(model_of("attn-only"))
    with pytest.raises(mt.HookError, match=r"no hook point blocks\.0\.hook_resid_mid there\. Use .*residual\(model\)"):
        mt.residual(model_of("neox"), site="mid")  # attention and MLP run side by side: nothing is between them


# --------------------------------------------------------------------------------------- in a user's own analysis
@pytest.mark.parametrize("site", ["z", "pattern"])
def test_user_hooks_equal_the_plain_loop(site: str) -> None:
    """``run_with_cache``, ``fwd_hooks``, ``run_with_hooks``: a padded batch, spans, one-token answers."""
    examples = random_examples(4, seed=3)
    pairs = pairs_of(examples)
    groups = mt.heads(gpt2(), site=site, positions="subject") + mt.mlps(gpt2(), positions=["last", -3])
    mask, attended = soft_mask(len(groups)), (torch.arange(8) < pairs.lengths[:, None]).long()
    with torch.no_grad():
        _, source = gpt2().run_with_cache(
            pairs.source_tokens, names_filter=groups.names_filter, attention_mask=attended
        )
        logits = gpt2().run_with_hooks(
            pairs.base_tokens, fwd_hooks=groups.fwd_hooks(mask, source, pairs), attention_mask=attended
        )
        again = logits.clone()
        with groups.hooks(gpt2(), mask, source, pairs) as hooked:
            again = hooked(pairs.base_tokens, attention_mask=attended)
    assert torch.equal(again, logits)
    plain = Plain(gpt2(), examples, groups.sites)
    logp = logits[torch.arange(4), pairs.lengths - 1].log_softmax(-1)
    for i in range(4):
        with torch.no_grad():
            wanted = plain.read(i, mask.tolist()).last
        torch.testing.assert_close(logp[i], wanted, rtol=1e-9, atol=1e-9)


def test_user_hooks_have_gradients_and_leave_the_cache_alone() -> None:
    groups = mt.heads(gpt2())
    base, source = torch.tensor([EXAMPLES[0].base]), torch.tensor([EXAMPLES[0].source])
    with torch.no_grad():
        _, cached = gpt2().run_with_cache(source, names_filter=groups.names_filter)
    before = {k: cached[k].clone() for k in groups.names_filter}
    mask = soft_mask(12).requires_grad_()
    logits = gpt2().run_with_hooks(base, fwd_hooks=groups.fwd_hooks(mask, cached))
    (gradient,) = torch.autograd.grad(logits[0, -1, 5], mask)
    assert (gradient != 0).all()
    assert all(torch.equal(cached[k], v) for k, v in before.items())


def test_hooks_are_removed_after_an_exception() -> None:
    groups = mt.heads(gpt2())
    with torch.no_grad():
        _, cached = gpt2().run_with_cache(torch.tensor([EXAMPLES[0].source]), names_filter=groups.names_filter)
    counts = {n: len(p.fwd_hooks) for n, p in gpt2().hook_dict.items()}
    with pytest.raises(ZeroDivisionError), groups.hooks(gpt2(), torch.ones(12), cached):
        assert {n: len(p.fwd_hooks) for n, p in gpt2().hook_dict.items()} != counts
        raise ZeroDivisionError
    assert {n: len(p.fwd_hooks) for n, p in gpt2().hook_dict.items()} == counts


def test_user_hooks_refuse_what_does_not_fit() -> None:
    groups = mt.heads(gpt2(), positions="subject")
    pairs = pairs_of(EXAMPLES)
    source = torch.tensor([EXAMPLES[0].source])
    with torch.no_grad():
        _, cached = gpt2().run_with_cache(source, names_filter=groups.names_filter)
    with pytest.raises(KeyError, match=r"the cache has no 'blocks.0.attn.hook_z'.*names_filter=groups.names_filter"):
        groups.fwd_hooks(torch.ones(12), {})
    hooks = mt.heads(gpt2()).fwd_hooks(torch.ones(12), cached)
    with pytest.raises(ValueError, match=r"running activation is \(1, 5, 4, 8\), the cached one \(1, 8, 4, 8\)"):
        gpt2().run_with_hooks(source[:, :5], fwd_hooks=hooks)
    with pytest.raises(ValueError, match=r"the prompts have no span 'subject' \(named spans: none\)"):
        gpt2().run_with_hooks(source, fwd_hooks=groups.fwd_hooks(torch.ones(12), cached))
    with pytest.raises(ValueError, match=r"4 prompt pairs were given, but 1 prompts are running"):
        gpt2().run_with_hooks(source, fwd_hooks=groups.fwd_hooks(torch.ones(12), cached, pairs))


def test_user_hooks_refuse_pairs_that_line_up_elsewhere() -> None:
    """The hooks mix position by position; pairs aligned at the right would be mixed one token off."""
    sides = [([5, 6, 7, 8], [5, 6, 7]), ([5, 6, 7], [5, 6, 7, 8])]
    pairs = unequal_pairs([Example(*side, [[9]], [[10]]) for side in sides], "right")
    groups = mt.heads(gpt2())
    with torch.no_grad():
        _, cached = gpt2().run_with_cache(pairs.source_tokens, names_filter=groups.names_filter)
    with pytest.raises(ValueError, match=r"pair 0: base and source prompt are aligned 1 token\(s\) apart.*Tracer"):
        groups.fwd_hooks(torch.ones(12), cached, pairs)


def test_user_hooks_leave_tokens_without_a_partner() -> None:
    """Where a source prompt is shorter, what stands behind it is padding and must not be mixed in."""
    sides = [([5, 6, 7, 8], [9, 10]), ([5, 6, 7, 8], [9, 10, 11, 12])]
    pairs = unequal_pairs([Example(*side, [[9]], [[10]]) for side in sides], "left")
    groups, model = mt.residual(gpt2(), [1]), gpt2()
    with torch.no_grad():
        _, cached = model.run_with_cache(pairs.source_tokens, names_filter=groups.names_filter)
        logits = model.run_with_hooks(pairs.base_tokens, fwd_hooks=groups.fwd_hooks(torch.ones(1), cached, pairs))
        example = Example([5, 6, 7, 8], [9, 10], [[9]], [[10]])
        wanted = Plain(model, [example], groups.sites).read(0, [1.0]).last
    torch.testing.assert_close(logits[0, -1].log_softmax(-1), wanted, rtol=1e-9, atol=1e-9)
