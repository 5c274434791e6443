"""MIB's score under MIB's name: against its own evaluation, written out; scores by label, and of a file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Example, oriented, pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build
from tl_multitrace.evaluation import FRACTIONS

COARSE = (0.1, 0.3, 0.5, 1.0)


@cache
def model() -> Any:
    return build(f"{'bridge' if HAS_BRIDGE else 'hooked'}-gpt2", torch.float64)


def groups_of(kind: str) -> mt.HookGroups:
    return mt.heads(model()) if kind == "head" else mt.mib_groups(model())


@cache
def examples(kind: str = "head") -> list[Example]:
    return oriented(random_examples(5, seed=3), model(), groups_of(kind))


@cache
def tracer(kind: str = "head") -> mt.Tracer:
    return mt.Tracer(model(), pairs_of(examples(kind)), groups_of(kind))


# -------------------------------------------------------------------------------------------------------- MIB's own
def mib_by_hand(scores: list[float | None], absolute: bool) -> tuple[float, float, list[float]]:
    """MIB's ``evaluate_area_under_curve`` at the level of nodes, with TransformerLens' hooks alone.

    Kept nodes run, all others write what they write in the source run; prompts one by one.
    """
    names = ["blocks.0.hook_resid_pre"]
    nodes: list[tuple[str, int | None]] = [(names[0], None)]
    cfg = model().cfg
    for layer in range(cfg.n_layers):
        nodes += [(f"blocks.{layer}.attn.hook_z", head) for head in range(cfg.n_heads)]
        nodes += [(f"blocks.{layer}.hook_mlp_out", None)]

    def metric(example: Example, kept: set[int]) -> float:
        wanted = {name for name, _ in nodes}
        _, cache = model().run_with_cache(torch.tensor([example.source]), names_filter=lambda n: n in wanted)

        def hook(name: str) -> Any:
            def replace_outputs(value: torch.Tensor, hook: Any) -> torch.Tensor:
                value = value.clone()
                for i, (own, head) in enumerate(nodes):
                    if own == name and i not in kept:
                        here = slice(None) if head is None else (slice(None), slice(None), head)
                        value[here] = cache[name][here]
                return value

            return replace_outputs

        hooks = [(name, hook(name)) for name in wanted]
        logits = model().run_with_hooks(torch.tensor([example.base]), fwd_hooks=hooks)[0, -1]
        return float(logits[example.answers[0][0]] - logits[example.wrong[0][0]])

    def mean(kept: set[int]) -> float:
        return float(np.mean([metric(e, kept) for e in examples("mib")]))

    always = {i for i, s in enumerate(scores) if s is None}
    size = [abs(s) if absolute else s for s in scores if s is not None]
    order = [i for i, s in enumerate(scores) if s is not None]
    order = [order[j] for j in sorted(range(len(size)), key=lambda j: -size[j])]
    baseline, corrupted = mean(set(range(len(nodes)))), mean(set())
    f = [(mean(always | set(order[: int(p * len(order))])) - corrupted) / (baseline - corrupted) for p in FRACTIONS]
    steps = [(FRACTIONS[i + 1] - FRACTIONS[i], f[i], f[i + 1]) for i in range(len(f) - 1)]
    area = sum(width * (a + b) / 2 for width, a, b in steps)
    return area, sum(width * (abs(1 - a) + abs(1 - b)) / 2 for width, a, b in steps), f


@pytest.mark.parametrize("seed", range(3))
def test_mib_scores_are_mibs_own(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=len(groups_of("mib"))).tolist()
    found = mt.cpr_cmd(values, tracer=tracer("mib"))
    for name, absolute in (("signed", False), ("absolute", True)):
        cpr, cmd, f = mib_by_hand(values, absolute)
        curve = found[name]
        assert curve.cpr is not None and curve.cmd is not None
        assert (curve.cpr.value, curve.cmd.value) == pytest.approx((cpr, cmd), abs=1e-6)
        assert curve.faithfulness == pytest.approx(f, abs=1e-6)
    assert not any("MIB" in note for note in found.notes)


def test_a_mib_file_is_scored(tmp_path: Path) -> None:
    """Node scores of a file; nodes without one are always kept, as MIB keeps them."""
    groups, rng = groups_of("mib"), np.random.default_rng(5)
    values = [None if i in (0, 4) else float(v) for i, v in enumerate(rng.normal(size=len(groups)))]
    cfg = model().cfg
    shape = {"n_layers": cfg.n_layers, "n_heads": cfg.n_heads, "parallel_attn_mlp": False, "d_model": cfg.d_model}
    names = ["input", *[f"a{c.layer}.h{c.index}" if c.kind == "head" else f"m{c.layer}" for c in groups.components[1:]]]
    nodes = {n: {"in_graph": False} | ({} if v is None else {"score": v}) for n, v in zip(names, values, strict=True)}
    file = tmp_path / "nodes.json"
    file.write_text(json.dumps({"cfg": shape, "nodes": nodes, "edges": {}}))
    graph = mt.from_eap_ig(file)
    found = mt.cpr_cmd(graph, tracer=tracer("mib"))
    cpr, cmd, _ = mib_by_hand(values, absolute=False)
    assert found["signed"].cpr is not None
    assert (found["signed"].cpr.value, found["signed"].cmd.value) == pytest.approx((cpr, cmd), abs=1e-6)
    assert found.notes[0] == f"2 of {len(groups)} components have no score: they are always kept"
    with pytest.raises(ValueError, match=r"name no hook group: L0RESID, L0MLP.*mib_groups\(model\)"):
        mt.cpr_cmd(graph, tracer=tracer("head"))
    unscored = mt.CircuitGraph(graph.shape, {name: mark._replace(score=None) for name, mark in graph.nodes.items()})
    with pytest.raises(ValueError, match="the graph scores no node"):
        mt.cpr_cmd(unscored, tracer=tracer("mib"))


def test_other_groups_are_not_called_mibs() -> None:
    for groups in (mt.heads(model()), mt.heads(model()) + mt.mlps(model()), groups_of("mib").at("last")):
        on = mt.Tracer(model(), pairs_of(examples()), groups)
        assert any("not MIB's numbers" in note and "mib_groups(model)" in note for note in _mib_notes(on))
    same = groups_of("mib")[list(range(len(groups_of("mib"))))[::-1]]
    assert not any("MIB" in note for note in _mib_notes(mt.Tracer(model(), pairs_of(examples()), same)))
    assert groups_of("mib").labels[:2] == ["L0RESID", "L0H0"]
    assert groups_of("mib")[:1].sites == mt.residual(model(), [0]).sites


def _mib_notes(on: mt.Tracer) -> tuple[str, ...]:
    return mt.cpr_cmd(np.arange(len(on.groups)), tracer=on, fractions=COARSE).notes


def test_scores_by_label_are_scores_by_place() -> None:
    values, groups = np.random.default_rng(6).normal(size=12), tracer().groups
    by_label = dict(zip(groups.labels, values.tolist(), strict=True))
    turned = dict(reversed(by_label.items()))
    assert mt.recovery(turned, ["L0H3", "L1H0"], groups=groups) == mt.recovery(values, ["L0H3", "L1H0"], groups=groups)
    assert mt.cpr_cmd(turned, tracer=tracer(), fractions=COARSE) == mt.cpr_cmd(
        values, tracer=tracer(), fractions=COARSE
    )
    for wrong, message in (
        ({"L0H3": 1.0}, r"scores miss hook groups: L0H0, L0H1.*\(11\)"),
        (by_label | {"L9H9": 1.0}, r"scores name no hook group: L9H9 \(1\)"),
        (by_label | {"L0H0": float("inf")}, "scores must be finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            mt.recovery(wrong, ["L0H3"], groups=groups)
