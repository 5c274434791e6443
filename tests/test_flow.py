"""Direct effects between components: each equals plain path patching, and nothing is left behind."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from flow_oracle import PlainFlow
from oracles import Example, pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, HAS_HOOKED, TL_MAJOR, build
from tl_multitrace.flow.nodes import Nodes
from tl_multitrace.flow.patching import PathPatching

pytestmark = pytest.mark.lens

FAMILIES = ("gpt2", "llama", "neox", "gemma2", "native-gqa", "attn-only")
APIS = [*(["hooked"] if HAS_HOOKED else []), *(["bridge"] if HAS_BRIDGE else [])]
MODELS = [f"{api}-{family}" for api in APIS for family in FAMILIES]
MODELS += [f"bridge-{family}-compat" for family in ("gpt2", "llama") if HAS_BRIDGE]
EXAMPLES = random_examples(3, seed=5, longest=6)
LONG = random_examples(3, seed=6, longest=5, right=1, wrong=2, tokens=3)

PATTERNS = TL_MAJOR >= 4  # before, native bridges ignore what is put in for attention weights
model_of = cache(lambda name: build(name, torch.float64))
C = mt.Component


def components(name: str) -> list[mt.Component]:
    """Every kind that can be a node, some of them in one layer, some at single positions."""
    heads = [C("head", 0, 1), C("head", 0, 2, site="pattern"), C("head", 1, 0), C("head", 1, 3, "last")]
    heads += [C("head", 2, 2), C("head", 2, 3, site="pattern"), C("attn", 0), C("attn", 1), C("attn", 2, None, "last")]
    if name in ("bridge-native-gqa", "bridge-attn-only") and not PATTERNS:
        heads = [h for h in heads if h.site != "pattern"]
    if "attn-only" in name:
        return heads
    mlps = [C("mlp", 0), C("mlp", 1, None, (1, 3)), C("mlp_dim", 0, 3), C("neuron", 1, 5), C("neuron", 2, 7, "last")]
    return [*heads, *mlps]


def nodes_of(name: str) -> Nodes:
    return Nodes.of(model_of(name), components(name), [0, "last", "subject"])


def paths(name: str, examples: list[Example], patched: tuple[int, ...] = (), **options: Any) -> PathPatching:
    model = model_of(name)
    pairs = pairs_of(examples)
    tracer = mt.Tracer(model, pairs, mt.heads(model, [0]), **options)
    return PathPatching(tracer, nodes_of(name), pairs, patched)


def plain(name: str, examples: list[Example], on: tuple[mt.Component, ...] = ()) -> PlainFlow:
    return PlainFlow(model_of(name), examples, "neox" in name, "attn-only" not in name, on)


def check(name: str, examples: list[Example], most: int | None, patched: tuple[int, ...] = (), **options: Any) -> None:
    runs = paths(name, examples, patched, **options)
    found, nodes = runs.direct_effects(), runs.nodes
    oracle = plain(name, examples, tuple(nodes[i] for i in patched))
    edges = nodes.edges(range(len(nodes.groups)))
    assert set(found) <= set(edges)
    order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(0)).tolist()
    tolerance = {"rtol": 1e-7, "atol": 1e-8} if "gpt2" in name or "hooked" in name else {"rtol": 1e-4, "atol": 2e-5}
    for edge in [edges[i] for i in order[:most]]:
        receiver = None if edge.receiver is None else nodes[edge.receiver]
        wanted = oracle.edge(nodes[edge.sender], receiver, edge.input)
        ours = found.get(edge, torch.zeros(len(examples), dtype=torch.float64))
        where = f"{nodes.name(edge.sender)} to {nodes.name(edge.receiver)} by {edge.input}"
        torch.testing.assert_close(ours, wanted, **tolerance, msg=lambda text, where=where: f"{where}: {text}")
    assert {x for e, v in found.items() if float(v.abs().max()) > 0.01 for x in (e.input,)} >= {"q", "k", "v", "out"}


@pytest.mark.parametrize("name", MODELS)
def test_edges_are_plain_path_patching(name: str) -> None:
    check(name, EXAMPLES, 120 if name == MODELS[0] else 30)


@pytest.mark.parametrize("patched", [(0, 2, 6), (1, 12, 13)], ids=["heads", "attention weights and neurons"])
def test_edges_of_a_run_in_which_components_are_patched(patched: tuple[int, ...]) -> None:
    check(MODELS[0], EXAMPLES, 60, patched)


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"memory_limit": 0}, {"memory_limit": 0, "batch_size": 1}])
def test_answers_of_several_tokens_however_the_work_is_cut_up(options: dict[str, Any]) -> None:
    check(MODELS[1], LONG, 25, **options)


def test_a_blocks_mlp_sees_its_attention_unless_they_are_parallel() -> None:
    for name in MODELS:
        if "attn-only" in name:
            continue
        nodes = Nodes.of(
            model_of(name), [C("head", 1, 0), C("attn", 1), C("mlp", 1), C("neuron", 1, 0), C("head", 2, 0)], [0]
        )
        inside = [] if "neox" in name else [2, 3]
        assert [nodes.receivers(i) for i in (0, 1)] == [[*inside, 4]] * 2
        assert [nodes.receivers(i) for i in (2, 3, 4, 5)] == [[4], [4], [], [0, 1, 2, 3, 4]]
