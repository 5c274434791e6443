"""Graphs of other tools and our circuits: what is chosen, what runs, what is said to be left out."""

from __future__ import annotations

import json
import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from oracles import Plain, pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, N_HEADS, N_LAYERS, build, random_gpt2
from tl_multitrace.interop import FORMATS, Edge, Mark, NodeMark, Shape, write_circuit

API = "bridge" if HAS_BRIDGE else "hooked"
model_of = cache(lambda: build(f"{API}-gpt2", torch.float64))
EXAMPLES = random_examples(4, seed=5)
TINY = Shape(N_LAYERS, N_HEADS, 32)


def circuit_of(groups: mt.HookGroups, **options: Any) -> mt.Circuit:
    return mt.Circuit(groups, tuple(range(len(groups))), len(groups), 1.0, **options)


def some_components() -> mt.HookGroups:
    return mt.HookGroups.of(
        model_of(), [mt.Component("head", 0, 1), mt.Component("head", 2, 3), mt.Component("mlp", 1)]
    )


# ------------------------------------------------------------------------------------------- the published file
def test_the_published_circuit_loads_and_comes_back(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "mib_circuit" / "ioi-eap-ig.json"
    graph, content = mt.from_eap_ig(path), json.loads(path.read_text())
    assert graph.shape == Shape(12, 12, 768)
    assert (len(graph.nodes), len(graph.edges)) == (158, 32491)
    assert sum(bool(mark.in_graph) for mark in graph.edges.values()) == 756
    assert graph.edges[Edge("input", "a0.h1", "q")] == (-0.03757336363196373, True)
    assert [edge.name for edge in graph.shape.edges()] == list(content["edges"])  # the whole graph, in its order
    with warnings.catch_warnings():
        warnings.simplefilter("error", mt.LeftOut)
        mt.to_eap_ig(graph, tmp_path / "a.json")
        mt.to_eap_ig(graph, tmp_path / "a.pt")
    assert json.loads((tmp_path / "a.json").read_text()) == content
    assert list(json.loads((tmp_path / "a.json").read_text())["edges"]) == list(content["edges"])
    assert mt.from_eap_ig(tmp_path / "a.pt") == graph


@pytest.mark.slow
def test_the_published_circuit_runs(shared_data: Path, tmp_path: Path) -> None:
    content = json.loads((shared_data / "mib_circuit" / "ioi-eap-ig.json").read_text())
    model = random_gpt2(d_vocab=64, n_ctx=16)
    with pytest.warns(mt.LeftOut, match=r"a Circuit cannot hold: edges \(32491, 756 of them in the circuit\)"):
        circuit = mt.from_eap_ig(shared_data / "mib_circuit" / "ioi-eap-ig.json").to_circuit(model)
    theirs = {name for name, node in content["nodes"].items() if node["in_graph"]} - {"input", "logits"}
    assert {f"a{c.layer}.h{c.index}" if c.kind == "head" else f"m{c.layer}" for c in circuit} == theirs
    groups = mt.heads(model) + mt.mlps(model)
    assert groups[list(circuit.indices)].components == circuit.components and circuit.n_groups == len(groups)
    examples = random_examples(2, seed=1)
    effect = mt.Tracer(model, pairs_of(examples), groups).effect(circuit.mask)
    expected = Plain(model, examples, groups.sites).effect(circuit.mask, oracles.logit_diff)
    assert torch.allclose(effect.double(), expected.double(), atol=1e-3, rtol=1e-3) and float(effect.abs().min()) > 1e-2
    again = mt.Circuit.load(circuit.save(tmp_path / "ioi.circuit.json"))
    assert again.components == circuit.components
    again.check_model(model)


@pytest.mark.parametrize(
    ("layers", "heads", "edges"),
    [(12, 12, 32491), (24, 14, 179749), (26, 8, 74218), (16, 32, 386713), (32, 32, 1592881)],
    ids=["GPT-2 small", "Qwen2.5-0.5B", "Gemma-2-2b", "Llama-3.2-1B", "Llama-3.1-8B"],
)
def test_numbers_of_edges_of_known_models(layers: int, heads: int, edges: int) -> None:
    shape = Shape(layers, heads)
    assert sum(1 for _ in shape.edges()) == edges
    assert (shape.n_sources, shape.n_inputs) == (1 + layers * (heads + 1), layers * (3 * heads + 1) + 1)


def test_edges_of_other_architectures() -> None:
    parallel, only = Shape(1, 1, parallel_attn_mlp=True), Shape(1, 1, attn_only=True)
    assert [e.name for e in parallel.edges() if e.target == "m0"] == ["input->m0"]
    assert [e.name for e in Shape(1, 1).edges() if e.target == "m0"] == ["input->m0", "a0.h0->m0"]
    assert [e.name for e in only.edges() if not e.input] == ["input->logits", "a0.h0->logits"]
    assert not parallel.has_edge(Edge("a0.h0", "m0")) and not only.holds("m0")


# -------------------------------------------------------------------------------------------------- what is chosen
def test_nodes_are_chosen_by_flag_else_by_edges() -> None:
    kept, dropped = Mark(in_graph=True), Mark(in_graph=False)
    edges = {
        Edge("input", "a0.h0", "q"): kept,
        Edge("a0.h0", "m1"): kept,
        Edge("m1", "logits"): dropped,
        Edge("input", "m2"): kept,  # nothing leaves m2
        Edge("a1.h1", "logits"): kept,  # nothing enters a1.h1
    }
    graph = mt.CircuitGraph(TINY, edges=edges)
    assert set(graph.chosen) == {"input", "a0.h0", "logits"}
    flagged = mt.CircuitGraph(TINY, {"m2": NodeMark(in_graph=True), "a0.h0": NodeMark(in_graph=False)}, edges)
    assert flagged.chosen == ("m2",)
    with pytest.raises(ValueError, match=r"holds scores but says of no node or edge.*graph.keep\(edges=200\)"):
        _ = mt.CircuitGraph(TINY, edges={Edge("m0", "m1"): Mark(1.0)}).chosen


def test_keeping_the_best() -> None:
    edges = {Edge("input", "m0"): Mark(1.0), Edge("m0", "logits"): Mark(-3.0), Edge("m1", "logits"): Mark(2.0)}
    graph = mt.CircuitGraph(
        TINY, {"m0": NodeMark(score=1.0), "m1": NodeMark(score=-2.0), "input": NodeMark(9.0)}, edges
    )
    assert [e.name for e, m in graph.keep(edges=2).edges.items() if m.in_graph] == ["m0->logits", "m1->logits"]
    assert [e.name for e, m in graph.keep(edges=2, signed=True).edges.items() if m.in_graph] == [
        "input->m0",
        "m1->logits",
    ]
    assert set(graph.keep(edges=3).chosen) == {"m0", "input", "logits"}  # m1 is entered by none
    one = graph.keep(nodes=1)
    assert one.chosen == ("m1", "input")
    assert [e.name for e, m in one.edges.items() if m.in_graph] == ["m1->logits"]
    assert graph.keep(nodes=1, signed=True).chosen == ("m0", "input")
    with pytest.raises(ValueError, match="3 heads and MLPs cannot be kept: 2 have a score"):
        graph.keep(nodes=3)
    with pytest.raises(ValueError, match="give one of edges= and nodes="):
        graph.keep()


def test_an_imported_circuit_has_the_effect_of_its_components() -> None:
    model, pairs = model_of(), pairs_of(EXAMPLES)
    nodes = {"a0.h1": NodeMark(0.5, True), "m1": NodeMark(-1.0, True), "a2.h3": NodeMark(2.0, False)}
    circuit = mt.CircuitGraph(Shape.of(model), nodes, format="eap-ig").to_circuit(model)
    assert circuit.labels == ["L0H1", "L1MLP"] and math.isnan(circuit.effect)
    assert circuit.provenance["imported"]["scores"] == {"L0H1": 0.5, "L1MLP": -1.0, "L2H3": 2.0}
    tracer = mt.Tracer(model, pairs, circuit.groups)
    expected = Plain(model, EXAMPLES, circuit.groups.sites).effect(torch.ones(2), oracles.logit_diff)
    assert torch.allclose(tracer.effect(torch.ones(2)), expected)
    groups = mt.heads(model) + mt.mlps(model)
    assert circuit.n_groups == len(groups)
    assert torch.allclose(mt.Tracer(model, pairs, groups).effect(circuit.mask), expected)


def test_positions_and_dimensions_become_components() -> None:
    model = model_of()
    dims = tuple(i in (3, 7) for i in range(32))
    nodes = {
        "a0.h1@2": NodeMark(in_graph=True),
        "m1": NodeMark(None, True, dims),
        "m2": NodeMark(None, True, (True,) * 32),
    }
    circuit = mt.CircuitGraph(Shape.of(model), nodes).to_circuit(model)
    assert circuit.labels == ["L2MLP", "L0H1@2", "L1D3", "L1D7"]
    assert circuit.n_groups == 2 * (N_LAYERS * (N_HEADS + 1)) + 32
    part = (True, *(False,) * 31)
    with pytest.warns(mt.LeftOut, match="output dimensions of 1 heads or embeddings"):
        whole = mt.CircuitGraph(Shape.of(model), {"a0.h0": NodeMark(None, True, part)}).to_circuit(model)
    assert whole.labels == ["L0H0"]


def test_a_circuit_of_another_model_is_refused() -> None:
    graph = mt.CircuitGraph(Shape(N_LAYERS, N_HEADS, 64), {"m0": NodeMark(in_graph=True)})
    with pytest.raises(ValueError, match=r"3 layers of 4 heads, d_model 64, not of .*3 layers of 4 heads, d_model 32"):
        graph.to_circuit(model_of())
    guessed = mt.CircuitGraph(Shape(1, 1, exact=False), {"m0": NodeMark(in_graph=True)})
    assert guessed.to_circuit(model_of()).n_groups == N_LAYERS * (N_HEADS + 1)
    with pytest.raises(ValueError, match="at least 9 layers of 1 heads, not of"):
        mt.CircuitGraph(Shape(9, 1, exact=False), {"m8": NodeMark(in_graph=True)}).to_circuit(model_of())
    with pytest.raises(ValueError, match=r"node 'a0\.h4' is outside a model of 3 layers of 4 heads"):
        mt.CircuitGraph(TINY, {"a0.h4": NodeMark()})


# ------------------------------------------------------------------------------------------------- from a circuit
@pytest.mark.parametrize("name", FORMATS)
def test_the_components_of_a_circuit_come_back(name: str, tmp_path: Path) -> None:
    model, path = model_of(), tmp_path / ("a.pt" if name in ("auto-circuit", "acdc") else "a.json")
    circuit = circuit_of(some_components())
    if name == "dcm":
        with pytest.warns(mt.LeftOut, match=r"dcm cannot hold: 1 MLPs \(m1\)"):
            write_circuit(circuit, path, name, shape=model)
        assert json.loads(path.read_text()) == {"circuit": [[0, 1], [2, 3]]}
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", mt.LeftOut)
        write_circuit(circuit, path, name, shape=model)
    graph = FORMATS[name].read(path)
    if name == "auto-circuit":  # which has scores and no flags: 1 on an edge between chosen nodes
        assert sorted({mark.score for mark in graph.edges.values()}) == [0.0, 1.0]
        graph = graph.keep(edges=sum(mark.score == 1.0 for mark in graph.edges.values()))
    with warnings.catch_warnings():
        # edges that only follow from the nodes are not missed; scores of 1 are
        warnings.simplefilter("ignore" if name == "auto-circuit" else "error", mt.LeftOut)
        again = graph.to_circuit(model)
    assert set(again.components) == set(circuit.components)


def test_edges_stand_where_both_ends_do() -> None:
    ends = {"input", "a0.h1", "m1", "a2.h3", "logits"}
    graph = mt.CircuitGraph.from_circuit(circuit_of(some_components()), model_of()).with_edges()
    assert set(graph.edges) == {e for e in graph.shape.edges() if {e.source, e.target} <= ends}
    assert {e.name for e in graph.edges if e.source == "m1"} == {*(f"m1->a2.h3<{x}>" for x in "qkv"), "m1->logits"}
    assert all(mark == (None, True) for mark in graph.edges.values())


def test_a_saved_circuit_knows_whether_mlps_read_their_layers_heads(tmp_path: Path) -> None:
    model = build(f"{API}-neox")
    groups = mt.HookGroups.of(model, [mt.Component("head", 1, 0), mt.Component("mlp", 1)])
    tracer = mt.Tracer(model, pairs_of(EXAMPLES), groups)
    found = mt.select(tracer, [1], mt.Exhaustive(), forced=["L1MLP"])[1]
    circuit = mt.Circuit.load(circuit_of(groups, provenance=found.provenance).save(tmp_path / "a.json"))
    edges = mt.CircuitGraph.from_circuit(circuit).with_edges().edges
    assert Edge("input", "m1") in edges and Edge("a1.h0", "m1") not in edges


def test_what_has_no_node_is_said() -> None:
    model = model_of()
    parts = [
        mt.Component("neuron", 0, 5),
        mt.Component("neuron", 0, 9),
        mt.Component("resid", 1, None, "last"),
        mt.Component("attn", 2),
        mt.Component("head", 1, 0, "last", "pattern"),
        mt.Component("head", 1, 1, 4),
        mt.Component("mlp_dim", 1, 3),
    ]
    graph = mt.CircuitGraph.from_circuit(circuit_of(mt.HookGroups.of(model, parts)), model)
    assert set(graph.chosen) == {"input", "logits", "m0", "m1", "a1.h0", "a1.h1@4", *(f"a2.h{h}" for h in range(4))}
    assert graph.nodes["m1"].dims == tuple(i == 3 for i in range(32))
    assert graph.left_out == (
        "neurons (their MLP stands for them): L0N5, L0N9",
        "attention layers as one (all their heads stand for them): L2ATTN",
        "residual states: L1@last",
        "positions other than single ones: L1H0@last",
        "that only the attention pattern is patched: L1H0@last",
    )
    joint = mt.heads(model).joined([[0, 1, 2]])
    assert mt.CircuitGraph.from_circuit(circuit_of(joint), model).left_out == (
        "which sites are switched together: L0H1",
    )


def test_neurons_are_named_on_export(tmp_path: Path) -> None:
    model = model_of()
    circuit = circuit_of(mt.HookGroups.of(model, [mt.Component("neuron", 0, 5), mt.Component("head", 0, 0, 3)]))
    with pytest.warns(mt.LeftOut) as said:
        mt.to_eap_ig(circuit, tmp_path / "a.json", shape=model)
    assert len(said) == 1
    assert str(said[0].message) == (
        "eap-ig cannot hold: neurons (their MLP stands for them): L0N5; the positions of 1 nodes and edges (the "
        "strongest stands for all)."
    )
    nodes = json.loads((tmp_path / "a.json").read_text())["nodes"]
    assert {name for name, node in nodes.items() if node["in_graph"]} == {"input", "logits", "m0", "a0.h0"}


def test_output_dimensions_are_the_neurons_of_eap_ig(tmp_path: Path) -> None:
    model = model_of()
    parts = [mt.Component("mlp_dim", 1, 3), mt.Component("mlp_dim", 1, 7), mt.Component("head", 0, 2)]
    circuit = circuit_of(mt.HookGroups.of(model, parts))
    for name in ("a.json", "a.pt"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", mt.LeftOut)
            graph = mt.from_eap_ig(mt.to_eap_ig(circuit, tmp_path / name, shape=model))
            assert graph.nodes["a0.h2"].dims == (True,) * 32
            assert set(graph.to_circuit(model).components) == set(parts)
    with pytest.warns(mt.LeftOut, match="acdc cannot hold: the chosen output dimensions of 1 nodes"):
        mt.to_acdc(circuit, tmp_path / "a.pth", shape=model)


def test_marginal_effects_are_node_scores(tmp_path: Path) -> None:
    model = model_of()
    circuit = circuit_of(some_components(), marginals=(0.5, -2.0, 3.0))
    graph = mt.from_eap_ig(mt.to_eap_ig(circuit, tmp_path / "a.json", shape=model))
    assert {n: m.score for n, m in graph.nodes.items() if m.score is not None} == {
        "a0.h1": 0.5,
        "a2.h3": -2.0,
        "m1": 3.0,
    }
    imported = graph.to_circuit(model)
    assert mt.CircuitGraph.from_circuit(imported).nodes["a2.h3"].score == -2.0  # also without the model at hand


def test_marginal_effects_of_dimensions_are_scores_of_neurons(tmp_path: Path) -> None:
    model = model_of()
    parts = [mt.Component("mlp_dim", 1, 3), mt.Component("mlp_dim", 1, 7)]
    circuit = circuit_of(mt.HookGroups.of(model, parts), marginals=(0.5, -2.0))
    mt.to_eap_ig(circuit, tmp_path / "a.pt", shape=model)
    graph = mt.from_eap_ig(tmp_path / "a.pt")
    expected = {3: 0.5, 7: -2.0}
    assert {i: s for i, s in enumerate(graph.nodes["m1"].dim_scores or ()) if s is not None} == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error", mt.LeftOut)
        imported = graph.to_circuit(model)
    assert imported.provenance["imported"]["scores"] == {"L1D3": 0.5, "L1D7": -2.0}
    again = mt.CircuitGraph.from_circuit(imported).nodes["m1"]
    assert again.dims == graph.nodes["m1"].dims and again.dim_scores == graph.nodes["m1"].dim_scores
    narrow = mt.CircuitGraph.from_circuit(circuit, Shape(3, 4))
    assert narrow.left_out == ("MLP output dimensions (the width of the model is not known: pass shape=): L1D3, L1D7",)


def test_a_shape_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text('{"movers": [[9, 6], [9, 9]], "early": [[0, 1]]}')
    graph = mt.from_head_lists(tmp_path / "heads.json")
    assert graph.groups == {"movers": ("a9.h6", "a9.h9"), "early": ("a0.h1",)}
    assert graph.shape == Shape(10, 10, exact=False)
    with pytest.raises(ValueError, match="needs the model's d_model, which dcm does not tell: pass shape="):
        mt.to_eap_ig(graph, tmp_path / "a.json")
    with pytest.warns(mt.LeftOut, match="eap-ig cannot hold: the names of 2 groups of nodes"):
        mt.to_eap_ig(graph, tmp_path / "a.json", shape=Shape(12, 12, 768))
    assert mt.from_eap_ig(tmp_path / "a.json").shape == Shape(12, 12, 768)
    with pytest.raises(ValueError, match="an empty circuit of an unknown model has no shape"):
        mt.CircuitGraph.from_circuit(circuit_of(mt.heads(model_of())[[]]))
    assert not (tmp_path / "b.json").exists()


def test_published_head_lists_are_read(shared_data: Path, tmp_path: Path) -> None:
    lists = json.loads((shared_data / "published_circuits" / "circuits.json").read_text())
    for name, heads, mlps in (("ioi_gpt2_small", 26, 0), ("greaterthan_gpt2_small", 9, 8)):
        (tmp_path / "a.json").write_text(json.dumps(lists[name]))
        graph = mt.from_head_lists(tmp_path / "a.json", shape=Shape(12, 12, 768))
        kinds = [c.kind for c in graph.to_circuit()]
        assert (kinds.count("head"), kinds.count("mlp")) == (heads, mlps)


# --------------------------------------------------------------------------------------------- between the others
def test_embeddings_are_one_node_or_two(tmp_path: Path) -> None:
    edges = {Edge("tok_embeds", "m0"): Mark(in_graph=True), Edge("m0", "logits"): Mark(in_graph=True)}
    graph = mt.CircuitGraph(TINY, edges=edges)
    with pytest.warns(mt.LeftOut, match="the difference between token and position embeddings"):
        mt.to_eap_ig(graph, tmp_path / "a.json")
    merged = mt.from_eap_ig(tmp_path / "a.json")
    assert {e.name for e, m in merged.edges.items() if m.in_graph} == {"input->m0", "m0->logits"}
    with pytest.warns(mt.LeftOut, match="the scores of 2 edges"):  # EAP-IG has a score on every edge, 0 by default
        mt.to_edge_pruning(merged, tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == [
        ["tok_embeds", "m0"],
        ["pos_embeds", "m0"],
        ["m0", "resid_post"],
    ]


def test_positions_merge_and_strange_links_are_named(tmp_path: Path) -> None:
    edges = {
        Edge("input@0", "m0@0"): Mark(-3.0, False),
        Edge("input@1", "m0@1"): Mark(2.0, True),
        Edge("m0@0", "a1.h0@1"): Mark(1.0, True),  # into the head as a whole
        Edge("m0@0", "m0@1"): Mark(1.0, True),  # through attention, at no position
        Edge("id:5_77_1", "m1@1"): Mark(1.0, True),
    }
    graph = mt.CircuitGraph(TINY, {"id:5_77_1": NodeMark(in_graph=True), "m0@1": NodeMark(1.0, True)}, edges)
    with pytest.warns(mt.LeftOut) as said:
        mt.to_eap_ig(graph, tmp_path / "a.json")
    message = str(said[0].message)
    for part in (
        "the positions of 5 nodes and edges",
        "1 nodes that are no heads or MLPs (id:5_77_1)",
        "the weights of 1 edges to heads as a whole",
        "1 edges between nodes that do not feed each other",
    ):
        assert part in message
    flat = mt.from_eap_ig(tmp_path / "a.json")
    assert flat.edges[Edge("input", "m0")] == (-3.0, True)
    assert [e.name for e in flat.edges] == ["input->m0", *(f"m0->a1.h0<{x}>" for x in "qkv")]


def test_formats_without_flags_or_scores_say_so(tmp_path: Path) -> None:
    edges = {Edge("input", "m0"): Mark(2.0, True), Edge("m0", "logits"): Mark(1.0, False)}
    graph = mt.CircuitGraph(TINY, edges=edges)
    with pytest.warns(mt.LeftOut, match="auto-circuit cannot hold: which 1 edges are in the circuit"):
        mt.to_auto_circuit(graph, tmp_path / "a.pt")
    scores = torch.load(tmp_path / "a.pt", weights_only=True)["circuit"]["tl_multitrace"]
    assert scores["blocks.0.hook_mlp_in"].tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]
    assert scores["blocks.2.hook_resid_post"][5] == 1.0 and scores["blocks.2.hook_resid_post"].shape == (16,)
    with pytest.warns(mt.LeftOut, match=r"edge-pruning cannot hold: the scores of 2 edges; which 1 edges were looked"):
        mt.to_edge_pruning(graph, tmp_path / "a.json")
    unflagged = mt.CircuitGraph(TINY, edges={Edge("input", "m0"): Mark(2.0)})
    for write in (mt.to_edge_pruning, mt.to_acdc, mt.to_eap_ig):
        with pytest.raises(ValueError, match="Choose first"):
            write(unflagged, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_links_of_a_head_add_up(tmp_path: Path) -> None:
    edges = {Edge("m0", "a1.h0", x): Mark(score, True) for x, score in zip("qkv", (1.0, 2.0, -0.5), strict=True)}
    graph = mt.CircuitGraph(TINY, {}, {**edges, Edge("m1", "m2"): Mark(9.0, False)}, {"role": ("m0",)})
    with pytest.warns(mt.LeftOut, match=r"which of q, k and v 1 links enter \(scores are added\); 1 nodes and edges"):
        mt.to_neuronpedia(graph, tmp_path / "a.json", prompt_tokens=["<s>", "The"], scan="gpt2")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["links"] == [{"source": "0_4_all", "target": "1_0_all", "weight": 2.5}]
    assert content["metadata"]["prompt"] == "<s>The" and content["qParams"]["supernodes"] == [["role", "0_4_all"]]
    again = mt.from_neuronpedia(tmp_path / "a.json")
    assert set(again.nodes) == {"m0", "a1.h0"} and again.groups == {"role": ("m0",)}
    assert again.shape == Shape(2, 4, exact=False)
