"""The graph of direct effects: planted circuits show their edges and no others, effects add up where they must."""

from __future__ import annotations

from functools import cache
from typing import Any

import networkx as nx
import pytest
import torch
from oracles import pairs_of, plain_logits, random_examples
from test_flow import APIS, MODELS, components, model_of

import tl_multitrace as mt
from planted import UNIT, Direction, PlantedCircuit
from planted import build as build_anew
from tiny_models import NATIVE, _bridge_native, _hooked, randomise
from tl_multitrace.flow import expected_cost
from tl_multitrace.flow.nodes import Nodes
from tl_multitrace.flow.patching import PathPatching

planted = cache(build_anew)
Ties = dict[tuple[str, str, str], float]

KINDS = {
    "head": lambda layer, i: mt.Component("head", layer, i),
    "pattern": lambda layer, i: mt.Component("head", layer, i, site="pattern"),
    "neuron": lambda layer, i: mt.Component("neuron", layer, i),
    "mlp": lambda layer, i: mt.Component("mlp", layer),
}


def groups_of(circuit: PlantedCircuit, extra: mt.HookGroups | None = None) -> mt.HookGroups:
    """All candidates of a planted circuit, so that edges to idle ones would show; of a large one every sixth."""
    members = set().union(*circuit.minimal["restoring"])
    every = circuit.components if len(circuit.components) < 40 else [*members, *set(circuit.components[::6]) - members]
    groups = mt.HookGroups.of(circuit.model, [KINDS[kind](layer, i) for kind, layer, i in every])
    return groups if extra is None else groups + extra


def tracer_of(circuit: PlantedCircuit, direction: Direction, groups: mt.HookGroups) -> mt.Tracer:
    pairs = mt.PromptPairs.from_tokens(
        *circuit.tokens(direction), circuit.answers.tolist(), circuit.wrong_answers.tolist()
    )
    return mt.Tracer(circuit.model, pairs, groups)


def ties(graph: Any) -> Ties:
    return {(a, b, x): edge["effect"] / UNIT for a, b, x, edge in graph.edges(keys=True, data=True)}


def edges(name: str, direction: Direction, extra: mt.HookGroups | None = None, **options: Any) -> Ties:
    """Edges worth more than a leak, in units."""
    circuit = planted(name)
    groups = groups_of(circuit, extra)
    graph = mt.information_flow(groups, tracer_of(circuit, direction, groups), min_share=0.0, **options)
    return {edge: effect for edge, effect in ties(graph).items() if abs(effect) > 0.05}


def label(component: tuple[str, int, int | None]) -> str:
    return KINDS[component[0]](*component[1:]).label


# --------------------------------------------------------------------------------------------- planted circuits
@pytest.mark.parametrize(
    ("setting", "direction", "sign"),
    [
        ("small", "restoring", 1),
        ("small", "noising", -1),
        ("small-rotated-leaks", "restoring", 1),
        ("large", "restoring", 1),
    ],
)
def test_induction(setting: str, direction: Direction, sign: int) -> None:
    circuit = planted(f"induction-{setting}")
    previous, copy = sorted(map(label, set().union(*circuit.minimal["restoring"])))
    wanted = {("@1", previous, "v"): sign, (previous, copy, "k"): sign, (copy, "answer", "out"): sign}
    assert edges(circuit.name, direction) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("setting", ["small", "small-rotated-leaks"])
def test_two_sites_meet_in_the_extractors(setting: str) -> None:
    """Noising, either loss shows by itself; restoring, an edge shows once the other site's component is patched."""
    circuit = planted(f"two_site-{setting}")
    pair, extractors = sorted(circuit.minimal["restoring"], key=lambda s: any(kind == "mlp" for kind, *_ in s))[::-1]
    lookup = next(label(c) for c in pair if c[0] == "mlp")
    relation = next(label(c) for c in pair if c[0] == "head")
    readers = [label(c) for c in extractors]
    inner = {(lookup, r, "v"): 0.5 for r in readers} | {(relation, r, "q"): 0.5 for r in readers}
    out = {(r, "answer", "out"): 0.5 for r in readers}
    tokens = {("@1", lookup, "in"): 1.0, ("@2", relation, "v"): 1.0}
    lost = {edge: -units for edge, units in (inner | out | tokens).items()}
    assert edges(circuit.name, "noising") == pytest.approx(lost, abs=1e-4)
    assert edges(circuit.name, "restoring") == pytest.approx(out, abs=1e-4)
    joint = edges(circuit.name, "restoring", patched=[lookup, relation])
    assert {edge: joint[edge] for edge in inner} == pytest.approx(inner, abs=1e-4)
    assert not {edge for edge in joint if edge[1] in (lookup, relation)}


@pytest.mark.parametrize("direction", ["restoring", "noising"])
def test_query_and_key_meet_in_a_score(direction: Direction) -> None:
    """Neither flag does anything alone; with both heads patched, one edge by the query and one by the key."""
    circuit = planted("key_query_and-small")
    flags, readers = sorted(circuit.minimal[direction], key=len)
    wanted = 1 / 3 if direction == "restoring" else -1 / 3
    assert not {edge for edge in edges(circuit.name, direction) if edge[0] in map(label, flags)}
    found = edges(circuit.name, direction, patched=list(map(label, flags)), tokens=False)
    inner = {edge: units for edge, units in found.items() if edge[1] != "answer"}
    assert {a for a, _, _ in inner} == set(map(label, flags))
    assert {b for _, b, _ in inner} == set(map(label, readers))
    assert {(a, x) for a, _, x in inner} in [{(a, "q"), (b, "k")} for a in map(label, flags) for b in map(label, flags)]
    assert list(inner.values()) == pytest.approx([wanted] * 6, abs=1e-4)


def test_a_gate_reads_its_heads_and_writes_the_answer() -> None:
    circuit = planted("and2_hard-small-rotated")
    heads = [label(c) for c in set().union(*circuit.minimal["restoring"])]
    found = edges(circuit.name, "noising", mt.neurons(circuit.model), tokens=False)
    gates = {a for a, b, _ in found if b == "answer"}
    assert len(gates) == 3 and all("N" in gate for gate in gates)  # one per answer class
    assert set(found) == {(h, g, "in") for h in heads for g in gates} | {(g, "answer", "out") for g in gates}
    assert sum(units for (a, _, _), units in found.items() if a == heads[0]) == pytest.approx(-1.0, abs=1e-4)


def test_a_backup_is_woken_through_its_query() -> None:
    circuit = planted("backup-small")
    main, second = sorted(map(label, circuit.optimal["noising"][2]))
    found = edges(circuit.name, "noising", mt.neurons(circuit.model), tokens=False)
    (silence,) = {b for a, b, x in found if a == main and x == "in"}
    wanted = {(main, "answer", "out"): -1, (main, silence, "in"): 1, (silence, second, "q"): 1}
    assert found == pytest.approx(wanted, abs=1e-4)


# ------------------------------------------------------------------------------------------------- adding up
def linear_model(attn_only: bool) -> Any:
    """No normalisation: logits are the sum of what embeddings and components write."""
    fields = {**NATIVE["native"], "normalization_type": None, "attn_only": attn_only}
    make = {"hooked": _hooked, "bridge": _bridge_native}[APIS[-1]]
    model = make(fields, torch.float64, 0, None)
    randomise(model, 0)
    return model


INTERVENTIONS = [
    mt.Interchange(),
    mt.ZeroAblation(),
    mt.MeanAblation(),
    mt.NoiseCorruption(noise=1.0),
    mt.NoiseCorruption(noise=1.0, restore=True),
]


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=lambda i: f"{i.name}{getattr(i, 'restore', '')}")
@pytest.mark.parametrize("attn_only", [True, False])
def test_direct_effects_on_the_answer_add_up_to_the_whole(intervention: mt.Intervention, attn_only: bool) -> None:
    """Without normalisation the logits are linear in everything that is written to the residual stream."""
    model, pairs = linear_model(attn_only), pairs_of(random_examples(4, seed=2, equal=True, longest=5))
    groups = mt.heads(model) if attn_only else mt.heads(model) + mt.mlps(model)
    nodes = Nodes.of(model, groups.components, list(range(5)))
    runs = PathPatching(mt.Tracer(model, pairs, groups, intervention=intervention), nodes, pairs)
    direct = sum(effect for edge, effect in runs.direct_effects().items() if edge.receiver is None)
    torch.testing.assert_close(direct, runs.tracer.effect(torch.ones(len(nodes.groups))), rtol=1e-8, atol=1e-8)


def test_effects_by_values_add_up() -> None:
    """With its attention kept, a head of the last layer is linear in its values, and so is the metric in it."""
    model, examples = linear_model(attn_only=True), random_examples(2, seed=4, equal=True, longest=5)
    pairs, head = pairs_of(examples), mt.Component("head", 2, 1)
    nodes = Nodes.of(model, [*mt.heads(model, [0, 1]).components, head], list(range(5)))
    runs = PathPatching(mt.Tracer(model, pairs, mt.heads(model)), nodes, pairs)
    by_value = [v for e, v in runs.direct_effects().items() if e.input == "v" and e.receiver == nodes.components[-1]]
    for i, e in enumerate(examples):
        seen: dict[str, torch.Tensor] = {}
        name = "blocks.2.attn.hook_v"
        plain_logits(model, e.source, [(name, lambda act, hook, s=seen: s.__setitem__("v", act.clone()))])

        def values(act: torch.Tensor, hook: Any, s: Any = seen) -> torch.Tensor:
            act = act.clone()
            act[:, :, 1] = s["v"][:, :, 1]
            return act

        changed = (plain_logits(model, e.base, [(name, values)]) - plain_logits(model, e.base))[-1]
        wanted = changed[e.answers[0][0]] - changed[e.wrong[0][0]]
        torch.testing.assert_close(sum(v[i] for v in by_value), wanted.detach(), rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------------- the graph itself
@cache
def tiny() -> tuple[mt.Tracer, Any]:
    model = model_of(MODELS[0])
    tracer = mt.Tracer(model, pairs_of(random_examples(6, seed=1, equal=True)), mt.heads(model) + mt.mlps(model))
    return tracer, mt.information_flow(["L0H1", "L1MLP", "L2H3"], tracer, min_share=0.0)


def test_what_nodes_and_edges_carry() -> None:
    tracer, graph = tiny()
    assert isinstance(graph, nx.DiGraph)
    assert nx.is_directed_acyclic_graph(nx.DiGraph(graph))
    assert graph.nodes["L1MLP"] == {"kind": "mlp", "layer": 1, "label": "L1MLP", "site": "out", "chosen": True}
    assert graph.nodes["@3"] == {"kind": "token", "layer": -1, "label": "@3", "position": "3"}
    assert graph.nodes["answer"]["layer"] == 3
    assert set(graph["L0H1"]) == {"L1MLP", "L2H3", "answer"}
    assert set(graph["L0H1"]["L2H3"]) == {"q", "k", "v"}
    nodes = Nodes.of(tracer.model, [tracer.groups.components[i] for i in (1, 13, 11)], list(range(8)))
    per_prompt = PathPatching(tracer, nodes, tracer.pairs).direct_effects()
    whole = mt.Score.of(tracer.effect(["L0H1", "L1MLP", "L2H3"]).numpy())
    assert graph.number_of_edges() == sum(bool(v.abs().max() > 1e-9) for v in per_prompt.values())
    for edge, effects in per_prompt.items():
        if effects.abs().max() < 1e-9:  # only the last token is read by the answer itself, and by a last query
            assert edge.sender in nodes.tokens and edge.input in ("q", "out")
            continue
        found = graph[nodes.name(edge.sender)][nodes.name(edge.receiver)][edge.input]
        score = mt.Score.of(effects.numpy())
        assert (found["effect"], found["low"], found["high"]) == (score.mean, score.low, score.high)
        assert found["n"] == 6 and found["unit"] == "nats" and found["input"] == edge.input
        assert found["significant"] == (score.low > 0 or score.high < 0)
        assert ("share" in found) == whole.clear
        if whole.clear:
            assert found["share"] == pytest.approx(score.mean / graph.graph["circuit_effect"])
    assert graph.graph["circuit_effect"] == pytest.approx(float(tracer.effect(["L0H1", "L1MLP", "L2H3"]).mean()))


def test_weak_and_doubtful_edges_can_be_left_out() -> None:
    tracer, graph = tiny()
    strong = mt.information_flow(["L0H1", "L1MLP", "L2H3"], tracer, min_share=0.2)
    clear = mt.information_flow(["L0H1", "L1MLP", "L2H3"], tracer, min_share=0.0, significant=True)
    least = 0.2 * abs(graph.graph["circuit_effect"])
    every = ties(graph)
    assert ties(strong) == {e: v for e, v in every.items() if abs(v) * UNIT >= least} != every
    assert set(ties(clear)) == {(a, b, x) for a, b, x, d in graph.edges(keys=True, data=True) if d["significant"]}
    assert set(strong) >= {"L0H1", "L1MLP", "L2H3", "answer"}, "components stay, with or without edges"


def test_edges_through_components_that_were_not_chosen() -> None:
    tracer, _ = tiny()
    bare = mt.information_flow(["L0H1", "L2H3"], tracer, min_share=0.0)
    graph = mt.information_flow(["L0H1", "L2H3"], tracer, min_share=0.0, through=mt.mlps(tracer.model))
    assert {n for n, d in graph.nodes(data=True) if d.get("chosen") is False} == {"L0MLP", "L1MLP", "L2MLP"}
    assert graph.graph["circuit_effect"] == pytest.approx(bare.graph["circuit_effect"], rel=1e-12)
    assert ties(bare) == pytest.approx(
        {edge: effect for edge, effect in ties(graph).items() if set(edge[:2]) <= set(bare)}
    )
    both = mt.information_flow(["L0H1", "L1MLP"], tracer, min_share=0.0, through=mt.mlps(tracer.model))
    assert both.nodes["L1MLP"]["chosen"] and not both.nodes["L2MLP"]["chosen"]


def test_the_expected_cost_is_near_what_it_takes() -> None:
    tracer, _ = tiny()
    for labels, through in ([["L0H1", "L1MLP", "L2H3"], None], [["L0H1", "L2H3"], mt.mlps(tracer.model)]):
        spent = mt.information_flow(labels, tracer, through=through).graph["forward_equivalents"]
        assert 0.6 * spent < expected_cost(labels, tracer, through) < 1.5 * spent


def test_cost_is_counted_and_shared_between_receivers() -> None:
    tracer, graph = tiny()
    first = mt.information_flow(["L0H1"], tracer, tokens=False).graph["forward_equivalents"]
    assert graph.graph["forward_equivalents"] > first
    heads = mt.information_flow([f"L{i}H0" for i in range(3)], tracer, tokens=False).graph["forward_equivalents"]
    assert heads < 25  # five edges by three inputs each, three to the answer, base and source runs


def test_tokens_that_are_the_same_are_no_nodes() -> None:
    examples = [e.__class__(e.base, e.base[:2] + e.source[2:3] + e.base[3:], e.answers, e.wrong) for e in EXAMPLES]
    model = model_of(MODELS[0])
    tracer = mt.Tracer(model, pairs_of(examples), mt.heads(model))
    graph = mt.information_flow(mt.heads(model, [2]), tracer, min_share=0.0)
    assert {n for n, d in graph.nodes(data=True) if d["kind"] == "token"} == {"@2"}


EXAMPLES = random_examples(3, seed=9, equal=True, longest=6)


@pytest.mark.parametrize("tokens", ["subject", "last", 2, [0, (1, 3)], ["subject"]])
def test_tokens_by_place(tokens: Any) -> None:
    tracer, _ = tiny()
    graph = mt.information_flow(["L2H3"], tracer, tokens=tokens, min_share=0.0)
    asked = tokens if isinstance(tokens, list) else [tokens]
    names = {"@" + (f"{p[0]}:{p[1]}" if isinstance(p, tuple) else str(p)) for p in asked}
    assert {n for n, d in graph.nodes(data=True) if d["kind"] == "token"} == names


def test_a_circuit_with_its_own_tracer_and_other_prompts() -> None:
    tracer, _ = tiny()
    circuit = mt.select(tracer, 3, mt.TopK())[3]
    graph, other = mt.information_flow(circuit), mt.information_flow(circuit, pairs=tracer.pairs[:2])
    assert set(circuit.labels) <= set(graph) and graph.graph["n"] == 6 and other.graph["n"] == 2
    assert graph.graph["prompts"] == tracer.pairs.digest() != other.graph["prompts"]


# --------------------------------------------------------------------------------------- errors, leaving no trace
def hooks_of(model: Any) -> int:
    return sum(len(point.fwd_hooks) for point in model.hook_dict.values())


def test_the_model_is_as_before_also_after_an_error() -> None:
    model = model_of(MODELS[0])
    pairs = pairs_of(EXAMPLES)
    state = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    before = hooks_of(model), model.training, [p.requires_grad for p in model.parameters()]
    left = [1000]

    def failing(out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("stop here")
        return out.scores()[:, 0]

    tracer = mt.Tracer(model, pairs, mt.heads(model), failing)
    left[0] = 1000
    mt.information_flow(mt.heads(model), tracer)
    left[0] = 998 - left[0]  # all that it takes but two
    with pytest.raises(RuntimeError, match="stop here"):
        mt.information_flow(mt.heads(model), tracer)
    assert before == (hooks_of(model), model.training, [p.requires_grad for p in model.parameters()])
    mt.information_flow(mt.heads(model, [0]), mt.Tracer(model, pairs, mt.heads(model)))
    assert before == (hooks_of(model), model.training, [p.requires_grad for p in model.parameters()])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_bad_input() -> None:
    tracer, _ = tiny()
    model = tracer.model
    windows = mt.mlps(model).joined([[0, 1], [1, 2]])
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (mt.residual(model, [1]), {}, ValueError, "residual state"),
        (windows, {}, ValueError, "2 sites"),
        ([], {}, ValueError, "no components"),
        (["L9H9"], {}, KeyError, "L9H9"),
        (["L0H1"], {"min_share": 2.0}, ValueError, "min_share must lie in"),
        (["L0H1"], {"patched": ["L1H1"]}, ValueError, "patched='L1H1' is not in the circuit"),
        (["L0H1"], {"tokens": ["nowhere"]}, ValueError, "nowhere"),
    ]
    for circuit, options, error, text in cases:
        with pytest.raises(error, match=text):
            mt.information_flow(circuit, tracer, **options)
    with pytest.raises(ValueError, match="there is no tracer"):
        mt.information_flow(mt.heads(model))


def test_a_model_that_ignores_edits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer, _ = tiny()
    real = mt.ModelView.attached

    def unheard(fn: Any) -> Any:
        def at_point(act: torch.Tensor, hook: Any) -> None:
            fn(act, hook)

        return at_point

    def deaf(view: Any, hooks: Any) -> Any:
        """The points that attention reads from keep what they had."""
        return real(view, [(n, unheard(f) if n.endswith(("hook_q", "hook_k", "hook_v")) else f) for n, f in hooks])

    monkeypatch.setattr(mt.ModelView, "attached", deaf)
    with pytest.raises(mt.HookError, match=r"ignores what a hook at blocks\.2\.attn\.hook_q"):
        mt.information_flow(["L2H3"], tracer)


def test_every_kind_of_component_has_a_name() -> None:
    nodes = Nodes.of(model_of(MODELS[0]), components(MODELS[0]), [0, "last"])
    names = [nodes.name(i) for i in range(len(nodes.groups))]
    assert len(set(names)) == len(names)
    assert names[-2:] == ["@0", "@last"] and nodes.name(None) == "answer"
