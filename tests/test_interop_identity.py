"""Reading, writing and reading again is the identity on what each format holds."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import interop_cases as cases
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tl_multitrace as mt

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # which the shape checker does
Reader, Writer = Callable[..., mt.CircuitGraph], Callable[..., Path]

FORMATS: dict[str, tuple[Any, str, Reader, Writer]] = {
    "EAP-IG JSON": (cases.eap_ig_contents(), "json", mt.from_eap_ig, mt.to_eap_ig),
    "EAP-IG pt": (cases.eap_ig_tensors(), "pt", mt.from_eap_ig, mt.to_eap_ig),
    "auto-circuit": (cases.prune_scores(), "pt", mt.from_auto_circuit, mt.to_auto_circuit),
    "ACDC": (cases.acdc_edges(), "pth", mt.from_acdc, mt.to_acdc),
    "Edge Pruning": (cases.kept_edges(), "json", mt.from_edge_pruning, mt.to_edge_pruning),
    "head lists": (cases.head_groups(), "json", mt.from_head_lists, mt.to_head_lists),
    "Neuronpedia": (cases.graph_documents(), "json", mt.from_neuronpedia, mt.to_neuronpedia),
}


def written(content: Any, path: Path) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)
    return path


def loaded(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return torch.load(path, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Equal, tensors by value and NaN to itself."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.allclose(a, b, 0, 0, equal_nan=True)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_file_comes_back_as_it_was(name: str, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    strategy, suffix, read, write = FORMATS[name]
    content, folder = data.draw(strategy), tmp_path_factory.mktemp("identity")
    graph = read(written(content, folder / f"theirs.{suffix}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", mt.LeftOut)  # a format holds all that came from it
        ours = write(graph, folder / f"ours.{suffix}")
    assert read(ours) == graph
    assert same(loaded(ours), content)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
def test_every_format_goes_into_every_other(name: str, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Written and readable, once, or refused for a reason that is said."""
    strategy, suffix, read, _ = FORMATS[name]
    folder = tmp_path_factory.mktemp("across")
    graph = read(written(data.draw(strategy), folder / f"theirs.{suffix}"))
    if name == "auto-circuit":
        graph = graph.keep(edges=data.draw(st.integers(1, len(graph.edges))))
    graph = graph.with_shape(replace(graph.shape, d_model=graph.shape.d_model or 4))
    for other, (_, ending, back, write) in FORMATS.items():
        try:
            ours = write(graph, folder / f"{other}.{ending}")
        except ValueError as error:
            assert re.search("parallel|own layer's heads|Choose first", str(error)), error
            continue
        try:
            assert isinstance(back(ours), mt.CircuitGraph)
        except ValueError as error:  # a circuit of no heads tells no shape
            assert "names no head and no MLP" in str(error)


def test_the_comparison_itself() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert same({"a": nan}, {"a": nan.clone()})
    assert not same({"a": nan}, {"a": nan.double()})
    assert not same({"a": nan}, {"a": torch.tensor([0.0, 1.0])})
    assert not same({"a": 1}, {"a": 1, "b": 2})


@settings(max_examples=40, deadline=None)
@given(content=cases.eap_ig_tensors())
def test_both_forms_of_eap_ig_hold_the_same(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("forms")
    content["edges_scores"].nan_to_num_()  # JSON has no word for an edge without a score
    graph = mt.from_eap_ig(written(content, folder / "a.pt"))
    again = mt.from_eap_ig(mt.to_eap_ig(graph, folder / "a.json"))
    assert again == graph
    assert mt.from_eap_ig(mt.to_eap_ig(again, folder / "b.pt")) == graph


def test_nan_is_not_scored_and_is_not_written(tmp_path: Path) -> None:
    nodes = '{"input": {"in_graph": true, "score": NaN}, "a0.h0": {"in_graph": true, "score": 2}}'
    edges = '{"input->a0.h0<q>": {"score": NaN, "in_graph": true}, "input->logits": {"score": 1.5, "in_graph": false}}'
    cfg = '{"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": false, "d_model": 2}'
    (tmp_path / "a.json").write_text(f'{{"cfg": {cfg}, "nodes": {nodes}, "edges": {edges}}}')
    graph = mt.from_eap_ig(tmp_path / "a.json")
    assert graph.nodes["input"].score is None and graph.nodes["a0.h0"].score == 2
    assert [mark.score for mark in graph.edges.values()] == [None, 1.5]
    with pytest.warns(mt.LeftOut, match=r"that 1 edges have no score \(0 is written\)"):
        mt.to_eap_ig(graph, tmp_path / "b.json")
    assert "NaN" not in (tmp_path / "b.json").read_text()
    assert "score" not in json.loads((tmp_path / "b.json").read_text())["nodes"]["input"]
    mt.to_eap_ig(graph, tmp_path / "b.pt")  # which has NaN
    tensors = torch.load(tmp_path / "b.pt", weights_only=True)
    assert bool(tensors["nodes_scores"].isnan()[0]) and bool(tensors["edges_scores"][0, 0].isnan())


def test_one_task_and_algorithm_is_named(tmp_path: Path) -> None:
    sizes = {"blocks.0.hook_mlp_in": (2,), "blocks.0.hook_resid_post": (3,)}
    sizes |= {f"blocks.0.hook_{x}_input": (1, 1) for x in "qkv"}
    scores = {name: torch.ones(size) for name, size in sizes.items()}
    twice = {name: 2 * tensor for name, tensor in scores.items()}
    written({"IOI": {"ACDC": scores, "EAP": twice}, "GT": {"EAP": twice}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"name one task with task=: the file has GT, IOI"):
        mt.from_auto_circuit(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"name one algorithm with algorithm=: the file has ACDC, EAP"):
        mt.from_auto_circuit(tmp_path / "a.pt", task="IOI", algorithm="Edge")
    graph = mt.from_auto_circuit(tmp_path / "a.pt", task="IOI", algorithm="EAP")
    assert {mark.score for mark in graph.edges.values()} == {2.0}
    assert loaded(mt.to_auto_circuit(graph, tmp_path / "b.pt")).keys() == {"IOI"}
