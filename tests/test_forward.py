"""One run of the model: what happens at a hook point in which order, where a run starts, and what is left behind."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.engine.forward import Forward, Start, padded, run
from tl_multitrace.engine.past import Past

NAMES = [n for n in MODEL_NAMES if "compat" not in n]
POINT, OTHER = "blocks.1.attn.hook_z", "blocks.2.attn.hook_z"
ROWS = [[11, 12, 13, 14, 15], [21, 22, 23], [31, 32, 33, 34]]
model_of = cache(lambda name=MODEL_NAMES[0]: build(name, torch.float64))


def view(name: str = MODEL_NAMES[0]) -> mt.ModelView:
    return mt.ModelView(model_of(name))


def plain(name: str = MODEL_NAMES[0]) -> Forward:
    return padded(ROWS, view(name).device)


def close(a: Tensor, b: Tensor, name: str = "") -> None:
    near = {"rtol": 1e-4, "atol": 1e-5} if name and "gpt2" not in name else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(a, b, **near)


def real(logits: Tensor, forward: Forward) -> Tensor:
    """Logits at real tokens."""
    return logits[forward.attention.mask[:, -logits.shape[1] :].bool()]


def everywhere(share: float) -> Tensor:
    return torch.full((1,), share, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------- one point
def test_kept_then_put_then_kept_then_hidden() -> None:
    act = run(view(), replace(plain(), keep=frozenset([POINT]))).kept[POINT]
    first, second, shown = (
        torch.randn(act.shape, generator=torch.Generator().manual_seed(i)).to(act) for i in range(3)
    )
    put = {POINT: [(first, everywhere(0.5)), (second, everywhere(0.25))]}
    points = frozenset([POINT])
    ran = run(view(), replace(plain(), keep=points, put=put, keep_after=points, hide={POINT: shown}))
    assert torch.equal(ran.kept[POINT], act)
    close(ran.kept_after[POINT], 0.75 * (0.5 * act + 0.5 * first) + 0.25 * second)
    assert torch.equal(ran.logits, run(view(), replace(plain(), hide={POINT: shown})).logits)
    assert not torch.equal(ran.logits, run(view(), replace(plain(), put=put)).logits)


def test_what_is_kept_is_in_the_order_in_which_the_hooks_fired_and_a_copy() -> None:
    ran = run(
        view(), replace(plain(), keep=frozenset([OTHER, POINT]), put={POINT: [(torch.zeros(1), everywhere(1.0))]})
    )
    assert list(ran.kept) == [POINT, OTHER]
    assert bool((ran.kept[POINT] != 0).any())


def test_a_share_of_one_and_of_none_are_exact() -> None:
    act = run(view(), replace(plain(), keep=frozenset([POINT]))).kept[POINT]
    for share, wanted in ((0.0, act), (1.0, 2 * act + 1)):
        put = {POINT: [(2 * act + 1, everywhere(share))]}
        ran = run(view(), replace(plain(), put=put, keep_after=frozenset([POINT])))
        assert torch.equal(ran.kept_after[POINT], wanted)


def test_a_row_that_is_hidden_behind_serves_every_copy() -> None:
    forward, k = plain(), 2
    shown = torch.randn(len(ROWS), 5, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twice = replace(forward, tokens=forward.tokens.repeat(k, 1), attention=forward.attention.repeated(k))
    once = run(view(), replace(forward, hide={POINT: shown})).logits
    close(run(view(), replace(twice, hide={POINT: shown})).logits, once.repeat(k, 1, 1))


@pytest.mark.parametrize("times", [0, 2])
def test_a_point_that_does_not_fire_once_is_refused(times: int) -> None:
    model = build(MODEL_NAMES[0])
    kind = type(model.blocks[1])

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        found = args[0] if args else options["hidden_states"]
        for _ in range(times):
            found = kind.forward(self, *args, **options)
        return found

    model.blocks[1].__class__ = type("Again", (kind,), {"forward": forward})
    asked = padded(ROWS, torch.device("cpu"))
    for given in ({"keep": frozenset([POINT])}, {"put": {POINT: [(torch.zeros(1), torch.ones(1))]}}):
        with pytest.raises(mt.HookError, match=rf"{POINT} fired {times} times in a forward instead of once"):
            run(mt.ModelView(model), replace(asked, **given))
    run(mt.ModelView(model), replace(asked, keep=frozenset([OTHER])))
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


# ------------------------------------------------------------------------------------------------------ where it starts
@pytest.mark.parametrize("name", NAMES)
def test_from_a_block_on(name: str) -> None:
    inputs = {i: f"blocks.{i}.hook_resid_pre" for i in (1, 2)}
    whole = run(view(name), replace(plain(name), keep=frozenset(inputs.values())))
    for layer, at in inputs.items():
        part = run(view(name), replace(plain(name), start=Start(layer, whole.kept[at])))
        close(real(part.logits, plain(name)), real(whole.logits, plain(name)), name)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(("bridge-native", "bridge-attn-only"))])
@pytest.mark.parametrize("column", [1, 2])
def test_from_a_token_on(name: str, column: int) -> None:
    forward, at = plain(name), "blocks.1.hook_resid_pre"
    whole = run(view(name), replace(forward, keep=frozenset([at])))
    past = Past.record(view(name), len(ROWS), lambda empty: run(view(name), replace(forward, start=Start(past=empty))))
    late = replace(forward, tokens=forward.tokens[:, column:])
    wanted = real(whole.logits[:, column:], forward)
    part = run(view(name), replace(late, start=Start(column=column, past=past.cache(slice(None), column, 1))))
    close(real(part.logits, forward), wanted, name)
    start = Start(1, whole.kept[at][:, column:], column, past.cache(slice(None), column, 1))
    close(real(run(view(name), replace(late, start=start)).logits, forward), wanted, name)


@pytest.mark.parametrize("name", NAMES)
def test_logits_at_the_reads_alone(name: str) -> None:
    rows, columns = torch.tensor([0, 0, 2, 1]), torch.tensor([4, 1, 3, 2])
    found = run(view(name), replace(plain(name), reads=(rows, columns))).logits
    assert found.shape[:2] == (1, 4)
    close(found[0], run(view(name), plain(name)).logits[rows, columns], name)


def test_noise_is_added_to_the_embeddings_or_put_in_their_place() -> None:
    forward = plain()
    d_model = view().d_model
    noise = torch.randn(*forward.tokens.shape, d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = [[t + 1 for t in row] for row in ROWS]
    embedded = view().embed(padded(other, view().device).tokens.flatten()).unflatten(0, forward.tokens.shape)
    there = torch.ones_like(forward.tokens, dtype=torch.bool)
    replaced = run(view(), replace(forward, noise=embedded, replaced=there))
    close(real(replaced.logits, forward), real(run(view(), padded(other, view().device)).logits, forward))
    assert not torch.equal(run(view(), replace(forward, noise=noise)).logits, run(view(), forward).logits)


# ------------------------------------------------------------------------------------------------ what is left behind
@pytest.mark.parametrize("start", [False, True])
def test_nothing_is_left_behind_where_a_run_fails(start: bool) -> None:
    model = build(MODEL_NAMES[0]).train()
    here, forward = mt.ModelView(model), padded(ROWS, torch.device("cpu"))
    at = "blocks.1.hook_resid_pre"
    residual = run(here, replace(forward, keep=frozenset([at]))).kept[at]
    begin = Start(1, residual) if start else Start()
    wanted = run(here, forward).logits
    wrong = {OTHER: [(torch.zeros(7, 7, 7, 7), torch.ones(1))]}
    with pytest.raises(RuntimeError):
        run(here, replace(forward, put=wrong, keep=frozenset([POINT]), start=begin))
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not any("forward" in block.__dict__ for block in model.blocks)
    assert torch.equal(run(here, forward).logits, wanted)


def test_the_users_own_hooks_stay_and_act() -> None:
    model = build(MODEL_NAMES[0])
    here, forward = mt.ModelView(model), padded(ROWS, torch.device("cpu"))
    before, seen = run(here, forward).logits, []
    model.hook_dict[POINT].add_hook(lambda act, hook: seen.append(1) or act * 0)
    assert not torch.equal(run(here, replace(forward, keep=frozenset([POINT]))).logits, before)
    assert len(seen) == 1 and len(model.hook_dict[POINT].fwd_hooks) == 1
