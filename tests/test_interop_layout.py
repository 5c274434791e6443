"""The layout of what is written, field by field, from the formats' own formulas."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import interop_cases as cases
import pytest
import torch

import tl_multitrace as mt
from tl_multitrace.interop import Edge, Mark, NodeMark, Shape

CFG = {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": False, "d_model": 4}
SHAPE = Shape(2, 3, 4)
PARALLEL = Shape(2, 3, 4, parallel_attn_mlp=True)


def graph(shape: Shape = SHAPE) -> mt.CircuitGraph:
    """Every edge with a score of its own, a flag on some, and dimensions on one node."""
    edges = {e: Mark(i + 0.5, i % 3 == 0) for i, e in enumerate(shape.edges())}
    nodes = {name: NodeMark(float(i), i % 2 == 0) for i, name in enumerate(shape.sources())}
    nodes["m1"] = nodes["m1"]._replace(dims=(True, False, True, True), dim_scores=(1.0, 2.0, 3.0, 4.0))
    return mt.CircuitGraph(shape, {**nodes, "logits": NodeMark(in_graph=True)}, edges)


def written(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)


def test_eap_ig_json(tmp_path: Path) -> None:
    content = written(mt.to_eap_ig(graph(), tmp_path / "a.json"))
    assert list(content) == ["cfg", "nodes", "edges"]
    assert content["cfg"] == CFG
    assert list(content["nodes"]) == [*cases.forward_names(CFG), "logits"]
    assert content["nodes"]["a0.h1"] == {"in_graph": True, "score": 2.0, "neurons": [True] * 4}
    assert content["nodes"]["a0.h0"] == {"in_graph": False, "score": 1.0, "neurons": [False] * 4}
    assert content["nodes"]["m1"]["neurons"] == [True, False, True, True]
    assert content["nodes"]["m1"]["neurons_scores"] == [1.0, 2.0, 3.0, 4.0]
    assert content["nodes"]["logits"] == {"in_graph": True}
    assert set(content["edges"]) == {f"{s}->{d}" for s, d in cases.real_edges(CFG)}
    assert content["edges"]["input->a0.h0<q>"] == {"score": 0.5, "in_graph": True}
    assert all(set(edge) == {"score", "in_graph"} for edge in content["edges"].values())


@pytest.mark.parametrize("shape", [SHAPE, PARALLEL], ids=["sequential", "parallel"])
def test_eap_ig_tensors(shape: Shape, tmp_path: Path) -> None:
    given = graph(shape)
    content = written(mt.to_eap_ig(given, tmp_path / "a.pt"))
    cfg = {**CFG, "parallel_attn_mlp": shape.parallel_attn_mlp}
    assert content["cfg"] == cfg
    assert content["src_nodes"] == cases.forward_names(cfg)
    assert (content["dst_nodes"][0], content["dst_nodes"][3]) == ("a0.h0<q>", "a0.h0<k>")
    assert (content["dst_nodes"][9], content["dst_nodes"][-1]) == ("m0", "logits")
    sources, destinations = 1 + 2 * (3 + 1), 2 * (3 * 3 + 1) + 1
    for key, size, dtype in (
        ("edges_scores", (sources, destinations), torch.float32),
        ("edges_in_graph", (sources, destinations), torch.bool),
        ("nodes_in_graph", (sources,), torch.bool),
        ("nodes_scores", (sources,), torch.float32),
        ("neurons_in_graph", (sources, 4), torch.bool),
        ("neurons_scores", (sources, 4), torch.float32),
    ):
        assert tuple(content[key].shape) == size and content[key].dtype == dtype
    names = {f"{s}->{d}": (cases.forward_index(cfg, s), cases.backward_index(cfg, d)) for s, d in cases.real_edges(cfg)}
    assert {e.name for e in given.edges} == set(names)
    for edge, mark in given.edges.items():
        assert content["edges_scores"][names[edge.name]] == mark.score
        assert content["edges_in_graph"][names[edge.name]] == mark.in_graph
    elsewhere = torch.ones(sources, destinations, dtype=torch.bool)
    elsewhere[tuple(zip(*names.values(), strict=True))] = False
    assert not content["edges_scores"][elsewhere].any() and not content["edges_in_graph"][elsewhere].any()
    for name in cases.forward_names(cfg):
        index = cases.forward_index(cfg, name)
        assert content["nodes_scores"][index] == given.nodes[name].score
        assert content["nodes_in_graph"][index] == given.nodes[name].in_graph
    assert content["neurons_scores"][cases.forward_index(cfg, "m1")].tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
def test_auto_circuit(tmp_path: Path) -> None:
    given = graph()
    content = written(mt.to_auto_circuit(given, tmp_path / "a.pt"))["circuit"]["tl_multitrace"]
    assert list(content) == [
        *(f"blocks.0.hook_{x}_input" for x in "qkv"),
        "blocks.0.hook_mlp_in",
        *(f"blocks.1.hook_{x}_input" for x in "qkv"),
        "blocks.1.hook_mlp_in",
        "blocks.1.hook_resid_post",
    ]
    sources = cases.forward_names(CFG)
    assert tuple(content["blocks.1.hook_k_input"].shape) == (3, 5)
    assert tuple(content["blocks.1.hook_mlp_in"].shape) == (8,) and tuple(
        content["blocks.1.hook_resid_post"].shape
    ) == (9,)
    for edge, mark in given.edges.items():
        source = sources.index(edge.source)
        layer, _, head = edge.target[1:].partition(".h")
        if edge.target == "logits":
            found = content["blocks.1.hook_resid_post"][source]
        elif edge.input:
            found = content[f"blocks.{layer}.hook_{edge.input}_input"][int(head), source]
        else:
            found = content[f"blocks.{layer}.hook_mlp_in"][source]
        assert found == mark.score


@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
def test_acdc(tmp_path: Path) -> None:
    given = graph()
    content = written(mt.to_acdc(given, tmp_path / "a.pth"))
    assert isinstance(content, OrderedDict) and all(type(v) is bool for v in content.values())
    key = ("blocks.1.hook_q_input", (None, None, 2), "blocks.0.attn.hook_result", (None, None, 1))
    assert content[key] == given.edges[Edge("a0.h1", "a1.h2", "q")].in_graph
    key = ("blocks.1.hook_mlp_in", (None,), "blocks.0.hook_mlp_out", (None,))
    assert content[key] == given.edges[Edge("m0", "m1")].in_graph
    key = ("blocks.1.hook_resid_post", (None,), "blocks.0.hook_resid_pre", (None,))
    assert content[key] == given.edges[Edge("input", "logits")].in_graph
    inside = [
        ("blocks.0.attn.hook_v", (None, None, 1), "blocks.0.hook_v_input", (None, None, 1)),
        ("blocks.0.attn.hook_result", (None, None, 1), "blocks.0.attn.hook_v", (None, None, 1)),
        ("blocks.1.hook_mlp_out", (None,), "blocks.1.hook_mlp_in", (None,)),
    ]
    assert [content[key] for key in inside] == [True, True, True]
    assert set(content) == set(cases.acdc_keys(CFG))  # the tool reads a file only if it has exactly these


@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
def test_edge_pruning_and_head_lists(tmp_path: Path) -> None:
    edges = [Edge("input", "a0.h1", "q"), Edge("a0.h1", "m0"), Edge("m0", "a1.h2", "v"), Edge("m1", "logits")]
    given = mt.CircuitGraph(SHAPE, edges={e: Mark(in_graph=True) for e in edges})
    assert written(mt.to_edge_pruning(given, tmp_path / "edges.json")) == [
        ["tok_embeds", "a0.h1.q"],
        ["pos_embeds", "a0.h1.q"],
        ["a0.h1", "m0"],
        ["m0", "a1.h2.v"],
        ["m1", "resid_post"],
    ]
    nodes = {name: NodeMark(in_graph=True) for name in ("a0.h1", "a1.h2")}
    roles = mt.CircuitGraph(SHAPE, nodes, groups={"early": ("a0.h1",), "late": ("a1.h2", "a0.h1")})
    assert written(mt.to_head_lists(roles, tmp_path / "heads.json")) == {"early": [[0, 1]], "late": [[1, 2], [0, 1]]}


@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
def test_neuronpedia(tmp_path: Path) -> None:
    edges = {Edge("input@0", "a0.h1@0", "q"): Mark(0.5, True), Edge("a0.h1@0", "m1@0"): Mark(-2.0, True)}
    given = mt.CircuitGraph(SHAPE, {"m1@0": NodeMark(0.25, True), "logits": NodeMark(None, True)}, edges)
    content = written(
        mt.to_neuronpedia(given, tmp_path / "a.json", prompt_tokens=["The", " man"], slug="x", scan="gpt2")
    )
    assert list(content) == ["metadata", "qParams", "nodes", "links"]
    assert content["metadata"] == {
        "slug": "x",
        "scan": "gpt2",
        "transcoder_list": [],
        "prompt_tokens": ["The", " man"],
        "prompt": "The man",
        "node_threshold": None,
        "schema_version": 1,
    }
    assert set(content["qParams"]) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    nodes = {node["clerp"]: node for node in content["nodes"]}
    fields = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "influence")
    assert {name: tuple(node[f] for f in fields) for name, node in nodes.items()} == {
        "m1@0": ("1_3_0", 3, "1", 0, "mlp", 0.25),
        "logits": ("2_-1_all", -1, "2", 1, "logit", None),
        "input@0": ("E_0_0", 0, "E", 0, "embedding", None),
        "a0.h1@0": ("0_1_0", 1, "0", 0, "attention head", None),
    }
    required = {"token_prob": 0.0, "is_target_logit": False, "activation": None}
    assert all(required.items() <= node.items() for node in content["nodes"])
    assert content["links"] == [
        {"source": "E_0_0", "target": "0_1_0", "weight": 0.5},
        {"source": "0_1_0", "target": "1_3_0", "weight": -2.0},
    ]
