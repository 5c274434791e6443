"""The views hold what the model computes, and their file refuses what it cannot be."""

from __future__ import annotations

import html
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from render_cases import chosen, model, prompts, run, tracer_of

import tl_multitrace as mt
from tl_multitrace.groups import Component
from tl_multitrace.render import Views, load_views, save_views, show
from tl_multitrace.render.capture import choose_examples, make_views
from tl_multitrace.render.embed import answer_view, attention_views, bundle, neuron_view
from tl_multitrace.render.views import trim

Change = Callable[[dict[str, Any]], object]


def cached(tokens: torch.Tensor, component: Component) -> torch.Tensor:
    _, cache = model().run_with_cache(tokens[None], names_filter=[component.hook_name])
    return cache[component.hook_name][0]


def pattern(tokens: torch.Tensor, layer: int, head: int) -> torch.Tensor:
    return cached(tokens, Component("head", layer, head, site="pattern"))[head]


def close(found: Any, expected: torch.Tensor, tolerance: float = 6e-4) -> bool:
    return bool(torch.allclose(torch.tensor(found), expected.float(), atol=tolerance))


# -------------------------------------------------------------------------------------------- the numbers
def test_a_patched_pattern_head_shows_the_source_pattern() -> None:
    tracer = tracer_of(mt.heads(model(), site="pattern"))
    circuit = chosen(tracer, [tracer.groups.index("L1H2")])
    views = make_views(circuit, tracer, examples=[3])
    runs, pairs = views.examples[0].runs, tracer.pairs
    assert views.heads == ["L1H2"]
    assert close(runs["base"].attention[0], pattern(pairs.base_tokens[3], 1, 2))
    assert close(runs["source"].attention[0], pattern(pairs.source_tokens[3], 1, 2))
    assert runs["patched"].attention == runs["source"].attention
    assert runs["patched"].attention != runs["base"].attention


def test_a_patched_output_head_keeps_its_own_pattern_and_changes_later_ones() -> None:
    tracer = tracer_of(mt.heads(model()))
    circuit = chosen(tracer, [tracer.groups.index("L0H1"), tracer.groups.index("L2H0")])
    runs, heads = (views := make_views(circuit, tracer, examples=[0])).examples[0].runs, views.heads
    first, later = heads.index("L0H1"), heads.index("L2H0")
    assert runs["patched"].attention[first] == runs["base"].attention[first]
    assert runs["patched"].attention[later] != runs["base"].attention[later]


def test_neuron_activations_are_the_models() -> None:
    tracer = tracer_of(mt.neurons(model(), layers=[1]))
    circuit = chosen(tracer, [3, 7])
    views = make_views(circuit, tracer, examples=[5], neurons=1)
    neuron = Component("neuron", 1, int(views.neurons[0].partition("N")[2]))
    runs, pairs = views.examples[0].runs, tracer.pairs
    for name, tokens in (("base", pairs.base_tokens[5]), ("source", pairs.source_tokens[5])):
        assert close([row[0] for row in runs[name].neurons], cached(tokens, neuron)[:, neuron.index], 1e-3)
    assert runs["patched"].neurons == runs["source"].neurons
    assert len(views.left_out) == 1 and "1 more component" in views.left_out[0]


NOISE = mt.NoiseCorruption(restore=True, std=1.0)
INTERVENTIONS = [mt.Interchange(), mt.ZeroAblation(), mt.MeanAblation(), mt.ResampleAblation(), NOISE]


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=lambda i: i.name)
def test_answer_probabilities_are_the_tracers(intervention: mt.Intervention) -> None:
    groups = mt.heads(model()) + mt.mlps(model())
    tracer = tracer_of(groups, metric=mt.AnswerProb(), intervention=intervention)
    circuit = chosen(tracer, [1, 6, 12])
    example = make_views(circuit, tracer, examples=[4]).examples[0]
    before, change = tracer.base_metric[4].item(), tracer.effect(circuit.mask)[4].item()
    assert example.answers[0].strip() == "she" and example.n_right == 1
    assert example.runs["base"].answers[example.read][0] == pytest.approx(before, rel=1e-3)
    assert example.runs["patched"].answers[example.read][0] == pytest.approx(before + change, rel=1e-3)
    assert ("source" in example.runs) == (intervention.name == "interchange")


def test_prompts_of_unequal_length_and_answers_of_two_tokens() -> None:
    base = ["The old doctor said that", "The nurse said that"]
    source = ["The woman said that", "The young man said that"]
    pairs = mt.PromptPairs.from_text(model(), base, source, [" she is", " he"], [" he", " she"], align="right")
    tracer = tracer_of(mt.heads(model()), pairs, metric=mt.AnswerProb())
    circuit = chosen(tracer, [0, 5, 9])
    for i, example in enumerate(make_views(circuit, tracer, examples=[0, 1]).examples):
        words = {name: "".join(r.words) for name, r in example.runs.items()}
        assert words["base"].endswith(base[i]) and words["source"].endswith(source[i])
        logits = model()(pairs.source_tokens[i : i + 1, : pairs.source_lengths[i]])
        wanted = logits[0, -1].softmax(-1)[pairs.candidates[i, 0, 0]].item()
        assert example.runs["source"].answers[-1][0] == pytest.approx(wanted, rel=1e-3)
    single = make_views(circuit, tracer, examples=[1]).examples[0]
    expected = (tracer.base_metric + tracer.effect(circuit.mask))[1].item()
    assert single.runs["patched"].answers[single.read][0] == pytest.approx(expected, rel=1e-3)


def test_prompts_given_as_token_ids_are_shown_by_number() -> None:
    pairs = prompts()
    bare = mt.PromptPairs.from_tokens(pairs.base_tokens, pairs.source_tokens, pairs.candidates[:, 0, 0])
    tracer = tracer_of(mt.heads(model()), bare, metric=mt.AnswerLogProb())
    example = make_views(chosen(tracer, [2]), tracer, examples=[0]).examples[0]
    assert example.runs["base"].words[0] == f"#{int(pairs.base_tokens[0, 0])}"
    assert example.answers == [f"#{int(pairs.candidates[0, 0, 0])}"]


def test_the_model_is_left_as_it_was() -> None:
    tracer = tracer_of(mt.heads(model()))
    circuit = chosen(tracer, [2])
    before = {n: p.requires_grad for n, p in model().named_parameters()}
    make_views(circuit, tracer, examples=1)
    assert {n: p.requires_grad for n, p in model().named_parameters()} == before
    assert not any(point.fwd_hooks for point in model().hook_dict.values())


def test_examples_range_from_the_largest_effect_to_the_smallest() -> None:
    effects = np.array([0.0, 5.0, -2.0, 3.0, 1.0])
    assert choose_examples(effects, 3) == [1, 4, 2]
    assert choose_examples(effects, 9) == [1, 3, 4, 0, 2]
    assert choose_examples(effects, [2, 2]) == [2, 2]
    with pytest.raises(ValueError, match="pair 7"):
        choose_examples(effects, [7])


def test_a_circuit_of_another_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="pass the tracer it was found with"):
        make_views(run().circuit, tracer_of(mt.mlps(model())))


# -------------------------------------------------------------------------------------------- the file
def some_views() -> Views:
    known = run()
    assert known.tracer is not None
    return make_views(known.circuit, known.tracer)


def test_views_come_back_from_their_file(tmp_path: Path) -> None:
    views = some_views()
    assert views.heads and views.neurons and len(views.examples) == 3
    place = save_views(views, tmp_path / "views.json")
    assert load_views(place) == views
    with pytest.raises(FileExistsError):
        save_views(views, place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(version=99), "version 99"),
        (lambda v: v.update(format="other"), "is not a tl_multitrace.views file"),
        (lambda v: v["examples"][0]["runs"].pop("patched"), "patched run is missing"),
        (lambda v: v["examples"][0]["runs"]["base"]["words"].pop(), "not 5 by 5|not of 5|number of tokens"),
        (lambda v: v["heads"].append("L9H9"), "patterns of"),
        (lambda v: v["examples"][0]["runs"]["base"]["attention"][0][0].__setitem__(0, 7.0), "less than or equal to 1"),
        (lambda v: v["examples"][0].update(read=99), "outside the prompt"),
        (lambda v: v["examples"][0]["answers"].append("x"), "probabilities are not of"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    content = some_views().content()
    change(content)
    place = tmp_path / "views.json"
    place.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_views(place)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "views.json"
    place.write_text(re.sub(r'"effect": [-\d.e]+', '"effect": NaN', json.dumps(some_views().content()), count=1))
    with pytest.raises(ValueError, match="finite"):
        load_views(place)


def test_what_is_too_large_is_left_out_and_named() -> None:
    views = some_views()
    smaller = trim(views, views.size() * 2 // 3)
    assert smaller.size() < views.size() and len(smaller.examples) < 3
    assert f"pair {views.examples[-1].pair}" in smaller.left_out[0]
    tiny = trim(views, 10)
    assert tiny.heads == [] and len(tiny.examples) == 1
    assert all(not r.attention for r in tiny.examples[0].runs.values())
    assert "too long" in tiny.left_out[-1]
    assert trim(views) == views


# -------------------------------------------------------------------------------------------- what circuitsvis gets
def props(markup: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(rf'data-view="{name}"[^>]*>(.*?)</script>', markup)]


def test_circuitsvis_gets_the_shapes_it_wants() -> None:
    views = some_views()
    example = views.examples[0]
    made = props(str(attention_views(views, example, "v")), "AttentionHeads")
    n = len(example.runs["base"].words)
    assert len(made) == 3
    for prop in made:
        assert np.array(prop["attention"]).shape == (len(views.heads), n, n)
        assert prop["attentionHeadNames"] == views.heads and len(prop["tokens"]) == n
    (answers,) = props(str(answer_view(example, "v")), "ColoredTokensMulti")
    assert np.array(answers["values"]).shape == (n, len(answers["labels"]))
    (neurons,) = props(str(neuron_view(views, "v")), "TextNeuronActivations")
    assert {np.array(a).shape for a in neurons["activations"]} == {(n + 1, 1, len(views.neurons))}
    assert [len(t) for t in neurons["tokens"]] == [len(a) for a in neurons["activations"]]


def test_answer_values_are_patched_base_and_change() -> None:
    example = some_views().examples[0]
    (made,) = props(str(answer_view(example, "v")), "ColoredTokensMulti")
    row = made["values"][example.read]
    patched, base = example.runs["patched"].answers[-1], example.runs["base"].answers[-1]
    assert row[:3] == pytest.approx([patched[0], base[0], patched[0] - base[0]], abs=1e-4)


# -------------------------------------------------------------------------------------------- in a notebook
def no_network(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a view asked for a network connection")


def test_show_embeds_the_local_bundle_and_asks_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    circuit = run().circuit
    shown = show(circuit, model(), prompts(), examples=[0, 7])
    frame = shown._repr_html_()
    inside = html.unescape(re.findall(r'srcdoc="(.*?)" sandbox', frame, re.DOTALL)[0])
    assert inside == shown.html
    assert bundle() in inside and "unpkg.com" not in inside
    assert [e.pair for e in shown.views.examples] == [0, 7]
    assert "allow-same-origin" not in frame


def test_show_takes_the_tracer_and_finds_the_same() -> None:
    known = run()
    assert known.tracer is not None
    by_tracer = show(known.circuit, known.tracer, examples=[1]).views
    by_model = show(known.circuit, model(), known.tracer.pairs, examples=[1]).views
    assert by_tracer.examples[0].runs == by_model.examples[0].runs


def test_show_says_what_it_needs(tmp_path: Path) -> None:
    circuit = mt.Circuit.load(run().circuit.save(tmp_path / "c.json"))
    with pytest.raises(ValueError, match=r"circuit\.show\(model, pairs\)"):
        show(circuit)
    with pytest.raises(ValueError, match="prompts"):
        show(circuit, model())


def test_show_works_from_a_file(tmp_path: Path) -> None:
    circuit = mt.Circuit.load(run().circuit.save(tmp_path / "c.json"))
    shown = show(circuit, model(), prompts(), examples=1)
    assert shown.views.heads and "2.0" not in shown.title
    place = shown.save(tmp_path / "views.html")
    assert place.read_text(encoding="utf-8") == shown.html
