"""Facts and their mediators: edges are single effects, shared mediators show, doubtful ones do not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from oracles import pairs_of, random_examples
from test_flow import MODELS, model_of
from test_flow_graph import label, planted, tracer_of

import tl_multitrace as mt
from planted import UNIT
from tiny_models import build, word_tokenizer

FACTS = [
    ("The doctor said that", "doctor", " she"),
    ("The nurse said that", "nurse", " he"),
    ("The farmer said that", "farmer", " she"),
]


@cache
def speaking() -> Any:
    return build(MODELS[0], tokenizer=word_tokenizer(leading_space=True))


def edges(graph: Any) -> dict[tuple[str, str], float]:
    return {(a, b) if a.startswith("fact") else (b, a): d["effect"] for a, b, d in graph.edges(data=True)}


def test_facts_of_one_answer_share_all_but_their_own_neuron() -> None:
    """In the planted fact circuit a neuron looks up each class, and the heads serve all of them."""
    circuit = planted("two_site-small")
    tracer = tracer_of(circuit, "noising", mt.heads(circuit.model) + mt.neurons(circuit.model, [0]))
    answers = circuit.answers.tolist()
    graph = mt.knowledge_graph(tracer, [f"class {sorted(set(answers)).index(a)}" for a in answers])
    heads = {label(c) for c in set().union(*circuit.minimal["restoring"]) if c[0] == "head"}
    shared = {n for n, d in graph.nodes(data=True) if d.get("facts", 0) == 3}
    own = {n for n, d in graph.nodes(data=True) if d.get("facts", 0) == 1}
    assert shared == heads and len(own) == 3 and all("N" in n for n in own)
    found = edges(graph)
    for i in range(3):
        mine = {b: units / UNIT for (a, b), units in found.items() if a == f"fact class {i}"}
        assert sorted(mine[h] for h in heads) == pytest.approx([-1, -0.5, -0.5], abs=1e-3)
        assert [mine[n] for n in own & set(mine)] == pytest.approx([-1], abs=1e-3)


def test_a_tracers_edges_are_its_single_effects() -> None:
    model = model_of(MODELS[0])
    tracer = mt.Tracer(model, pairs_of(random_examples(4, seed=3)), mt.heads(model))
    graph = mt.knowledge_graph(tracer, top=100, min_share=0.0)
    assert nx.is_bipartite(graph) and {d["bipartite"] for _, d in graph.nodes(data=True)} == {0, 1}
    found = edges(graph)
    for g, name in enumerate(tracer.groups.labels):
        effects = tracer.effect([name])
        for i in range(4):
            assert found.get((f"fact {i}", name), 0.0) == pytest.approx(float(effects[i]), abs=1e-9), (g, i)
    assert graph.nodes["fact 2"]["total"] == pytest.approx(float(tracer.effect([1.0] * 12)[2]))
    assert graph.graph["unit"] == "nats"


def test_a_models_edges_are_causal_traces() -> None:
    model = speaking()
    groups = mt.heads(model) + mt.mlps(model)
    graph = mt.knowledge_graph(
        model, FACTS, groups=groups, corruption="fixed", known_only=False, top=100, min_share=0.0
    )
    found = edges(graph)
    for i, (prompt, subject, answer) in enumerate(FACTS):
        with pytest.warns(UserWarning):
            grid = mt.causal_trace(model, prompt, subject=subject, answer=answer, restore=groups, corruption="fixed")
        for name, effect in zip(groups.labels, grid.effect.tolist(), strict=True):
            assert found.get((f"fact {i}", name), 0.0) == pytest.approx(effect, abs=1e-7)
        node = graph.nodes[f"fact {i}"]
        assert node["total"] == pytest.approx(grid.total.mean) and node["label"] == prompt + answer
    assert graph.graph["unit"] == "probability"


def test_few_and_clear_mediators() -> None:
    model = speaking()
    options: dict[str, Any] = {"known_only": False, "samples": 6}
    every = mt.knowledge_graph(model, FACTS, top=100, min_share=0.0, **options)
    few = mt.knowledge_graph(model, FACTS, top=2, min_share=0.0, **options)
    strong = mt.knowledge_graph(model, FACTS, top=100, min_share=0.5, **options)
    known = edges(every)
    assert all(d["low"] * d["high"] > 0 and d["n"] == 6 for *_, d in every.edges(data=True))
    for i in range(3):
        mine = sorted((abs(v), b) for (a, b), v in known.items() if a == f"fact {i}")
        assert {b for a, b in edges(few) if a == f"fact {i}"} == {name for _, name in mine[-2:]}
        least = 0.5 * abs(every.nodes[f"fact {i}"]["total"])
        assert {b for a, b in edges(strong) if a == f"fact {i}"} == {b for v, b in mine if v >= least}
    for node, d in every.nodes(data=True):
        assert d["bipartite"] == 0 or d["facts"] == len({a for a, b in known if b == node})
    assert edges(mt.knowledge_graph(model, FACTS, top=100, min_share=0.0, **options)) == known


def test_traces_are_kept_and_the_graph_is_written(tmp_path: Path) -> None:
    options: dict[str, Any] = {"known_only": False, "samples": 3, "folder": tmp_path / "traces", "min_share": 0.0}
    graph = mt.knowledge_graph(speaking(), FACTS, **options)
    assert len(list((tmp_path / "traces" / "facts").glob("*.json"))) == 3
    assert edges(mt.knowledge_graph(speaking(), FACTS, **options)) == edges(graph)
    back = mt.load_graph(mt.save_graph(graph, tmp_path / "facts.json"))
    assert nx.utils.graphs_equal(back, graph)
    assert "graph {" in mt.save_graph(graph, tmp_path / "facts.dot").read_text()


def test_bad_input() -> None:
    model = speaking()
    tracer = mt.Tracer(model_of(MODELS[0]), pairs_of(random_examples(3, seed=3)), mt.heads(model))
    for subject, facts, options, text in [
        (model, None, {}, "there are no facts"),
        (model, [], {}, "there are no facts"),
        (model, FACTS, {"top": 0}, "top must be at least 1"),
        (model, FACTS, {"min_share": -1.0}, "min_share in"),
        (tracer, ["a", "b"], {}, "2 names of facts for 3 prompt pairs"),
        (tracer, None, {"groups": tracer.groups}, "brings its own hook groups"),
        (model, [("The doctor said that", "nurse", " she")], {}, "no fact is left of 1"),
    ]:
        with pytest.raises(ValueError, match=text):
            mt.knowledge_graph(subject, facts, **options)
