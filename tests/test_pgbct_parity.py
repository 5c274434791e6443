"""PGB-CT against the published objective as a plain loop, mask entry by mask entry, after every step.

The loop recomputes base and source in each step, runs every pair and candidate alone with full logits, adds both
penalties, steps ``torch.optim.Adam`` and clamps. Nothing of the package is used in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from oracles import Example, pairs_of, random_examples
from torch import Tensor

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.solvers.search import Search

model_of = cache(lambda: build(MODEL_NAMES[0], torch.float64))
LAYERS, HEADS, WIDTH = 3, 4, 32


def two_subgroups(tokens: int) -> list[Example]:
    """Seven pairs; in every other one the odds stand the other way up: answer and wrong answer are exchanged."""
    drawn = random_examples(7, seed=8, longest=7, tokens=tokens)
    return [
        Example(e.base, e.source, *((e.wrong, e.answers) if i % 2 else (e.answers, e.wrong)))
        for i, e in enumerate(drawn)
    ]


# ---------------------------------------------------------------------------------------------- the published loop
def run(model: Any, tokens: list[int], hooks: Any = ()) -> Tensor:
    return model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=list(hooks))[0].log_softmax(-1)


def probability(logp: Tensor, prompt: list[int], continuation: list[int]) -> Tensor:
    rows = logp[len(prompt) - 1 : len(prompt) - 1 + len(continuation)]
    return rows.gather(-1, torch.tensor(continuation)[:, None]).mean().exp()


def mixing_hooks(model: Any, kind: str, source: list[int], n: int, z: Tensor) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks that mix the source run's attention weights or MLP outputs into the first ``n`` positions."""
    name = "blocks.{}.attn.hook_pattern" if kind == "head" else "blocks.{}.hook_mlp_out"
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        return lambda act, hook: kept.__setitem__(layer, act.detach().clone())

    with torch.no_grad():
        run(model, source, [(name.format(layer), keep(layer)) for layer in range(LAYERS)])

    def mix(layer: int) -> Callable[..., Tensor]:
        def hook_fn(act: Tensor, hook: Any) -> Tensor:
            out, there = act.clone(), kept[layer]
            if kind == "head":
                share = z.reshape(LAYERS, HEADS)[layer][:, None, None]
                out[0, :, :n, :n] = (1 - share) * act[0, :, :n, :n] + share * there[0, :, :n, :n]
            else:
                share = z.reshape(LAYERS, WIDTH)[layer]
                out[0, :n] = (1 - share) * act[0, :n] + share * there[0, :n]
            return out

        return hook_fn

    return [(name.format(layer), mix(layer)) for layer in range(LAYERS)]


def odds(model: Any, e: Example, kind: str | None, z: Tensor) -> Tensor:
    """p(answer) / p(wrong) with one forward per candidate."""
    values = []
    for continuation in (e.answers[0], e.wrong[0]):
        hooks = [] if kind is None else mixing_hooks(model, kind, e.source, len(e.base), z)
        values.append(probability(run(model, e.base + continuation, hooks), e.base, continuation))
    return values[0] / values[1]


def published(
    examples: list[Example], kind: str, *, lr: float, l1: float, l2: float, batch: int, epochs: int, sign: int
) -> list[Tensor]:
    model, n = model_of(), LAYERS * (HEADS if kind == "head" else WIDTH)
    z = torch.full((n,), 0.5, dtype=torch.float64, requires_grad=True)
    optimiser, trace = torch.optim.Adam([z], lr=lr), []
    for epoch in range(epochs):
        for first in range(0, len(examples), batch):
            losses = []
            for e in examples[first : first + batch]:
                effect = odds(model, e, kind, z) / odds(model, e, None, z).detach() - 1
                losses.append(1 / (1 + effect) if sign > 0 else 1 + effect)
            weight = epoch + 1
            loss = torch.stack(losses).mean() + l1 * weight * z.abs().sum() + l2 * weight * (z * (1 - z)).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                z.clamp_(0, 1)
            trace.append(z.detach().clone())
    return trace


# -------------------------------------------------------------------------------------------------------- ours
def recorded(tracer: mt.Tracer, solver: mt.PGBCT, sign: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The mask before every step of ours but the first, which starts from ``start`` everywhere."""
    trace: list[Tensor] = []
    plain = mt.PGBCT.step_gradient

    def noting(self: mt.PGBCT, search: Search, z: Tensor, *rest: Any) -> Tensor:
        trace.append(z.clone())
        return plain(self, search, z, *rest)

    monkeypatch.setattr(mt.PGBCT, "step_gradient", noting)
    mt.select(tracer, [len(tracer.groups)], solver, direction="maximize" if sign == 1 else "minimize")
    assert (trace[0] == solver.start).all()
    return trace[1:]


@pytest.mark.parametrize("kind", ["head", "mlp_dim"])
@pytest.mark.parametrize("tokens", [1, 3], ids=["single", "several"])
@pytest.mark.parametrize("sign", [1, -1], ids=["maximize", "minimize"])
def test_every_step_is_the_published_one(kind: str, tokens: int, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = model_of(), two_subgroups(tokens)
    settings = {"lr": 0.1 if kind == "head" else 0.5, "l1": 0.05, "l2": 0.05}
    theirs = published(examples, kind, **settings, batch=4, epochs=3, sign=sign)
    groups = mt.heads(model, site="pattern") if kind == "head" else mt.mlp_dims(model)
    tracer = mt.Tracer(model, pairs_of(examples), groups, metric=mt.OddsRatio())
    # a further epoch shows what the third one ended with
    ours = recorded(tracer, mt.PGBCT(batch_size=4, epochs=4), sign, monkeypatch)[:6]
    assert len(theirs) == 6  # two minibatches, of four and of three pairs, in each epoch
    for step, (mine, plain) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(mine.double(), plain, rtol=0, atol=1e-5, msg=lambda m, s=step: f"step {s}: {m}")
    assert 0 < int((theirs[-1] >= 0.5).sum()) < len(groups)  # else the masks would say little
    assert len({tuple(t.tolist()) for t in theirs}) > 3


@pytest.mark.parametrize("batch_size", [2, 3])
def test_forwards_may_hold_fewer_pairs_than_a_step(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = model_of(), two_subgroups(3)
    theirs = published(examples, "head", lr=0.1, l1=0.05, l2=0.05, batch=7, epochs=2, sign=1)
    groups = mt.heads(model, site="pattern")
    tracer = mt.Tracer(model, pairs_of(examples), groups, metric=mt.OddsRatio(), batch_size=batch_size)
    ours = recorded(tracer, mt.PGBCT(batch_size=7, epochs=3), 1, monkeypatch)[:2]
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), plain, rtol=0, atol=1e-5)


def test_the_chosen_set_is_the_loops() -> None:
    model, examples = model_of(), two_subgroups(1)
    theirs = published(examples, "head", lr=0.1, l1=0.02, l2=0.05, batch=32, epochs=15, sign=1)[-1]
    groups = mt.heads(model, site="pattern")
    tracer = mt.Tracer(model, pairs_of(examples), groups, metric=mt.OddsRatio())
    solver = mt.PGBCT(l1=0.02)  # learning rate, epochs and batches by default: the paper's
    chosen = (theirs >= 0.5).nonzero().flatten().tolist()
    assert 0 < len(chosen) < 12
    path = mt.select(tracer, range(1, 13), solver)
    effect = float(tracer.effect((theirs >= 0.5).double()).mean())
    seen = {c.members: c.score.mean for c in path.choices}
    if effect > 0:
        assert seen[tuple(chosen)] == pytest.approx(effect)
    else:  # worse than nothing: the best set seen is the empty one
        assert set(seen) == {()}


def test_settings_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    for groups, rate in (
        (mt.heads(model), 0.1),
        (mt.mlp_dims(model), 0.5),
        (mt.heads(model) + mt.neurons(model), None),
    ):
        tracer = mt.Tracer(model, pairs_of(two_subgroups(1)), groups, metric=mt.OddsRatio())
        first, *_ = recorded(tracer, mt.PGBCT(epochs=2, start=0.5), 1, monkeypatch)
        wanted = [0.1 if kind == "head" else 0.5 for kind in groups.kinds]
        assert (first - 0.5).abs().tolist() == pytest.approx(wanted, abs=1e-4)  # Adam's first step is the rate itself
        assert rate is None or set(wanted) == {rate}
    assert (mt.PGBCT().l1, mt.PGBCT().l2, mt.PGBCT().batch_size) == (0.05, 0.05, 32)
    with pytest.raises(ValueError, match=r"PGBCT needs batch_size.*of at least 1"):
        mt.PGBCT(epochs=0)
