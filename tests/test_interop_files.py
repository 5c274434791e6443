"""Broken and hostile files: a clear error, no code run, nothing half-written; and ``tl-multitrace convert``."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interop_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import unchecked
from test_interop_layout import SHAPE, graph
from typer.testing import CliRunner

import tl_multitrace as mt
from tl_multitrace.cli import app as cli
from tl_multitrace.interop import FORMATS, convert, write_circuit
from tl_multitrace.records import read, tensor_files

PT = {"eap-ig": ".pt", "auto-circuit": ".pt", "acdc": ".pth"}
JSON = ("eap-ig", "edge-pruning", "dcm", "neuronpedia")
GPT2 = {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 768}


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.marker,))


# --------------------------------------------------------------------------------------------------- hostile files
@pytest.mark.parametrize("name", PT)
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "inside"])
def test_code_in_a_file_is_not_run(name: str, how: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"a{PT[name]}"
    content: Any = {"cfg": GPT2, "edges_scores": Payload(marker)} if how == "inside" else Payload(marker)
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(ValueError, match=r"not a file of tensors and plain values.*Nothing in it was run"):
        FORMATS[name].read(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes()) if how == "pickle" else torch.load(path, weights_only=False)  # the trap works
    assert marker.exists()


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "3",
        '"text"',
        "[1, 2]",
        "[[1]]",
        '{"a": 1}',
        "\x00\x01",
        "[" * 5000 + "]" * 5000,
        "[" * 100000,
        '{"a":' * 50 + "1" + "}" * 50,
        '{"cfg": Infinity}',
        "9" * 5000,
    ],
    ids=lambda text: text[:10] + f" {len(text)}",
)
def test_what_is_no_such_json_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "a.json"))):
        FORMATS[name].read(tmp_path / "a.json")


@pytest.mark.parametrize("name", PT)
@pytest.mark.parametrize(
    "content",
    [None, 1, [], {}, {"a": 1}, {1: 2}, {"a": torch.ones(2)}, {"a": {"b": {}}}, {(1, 2): True}, {"cfg": [1]}],
    ids=str,
)
def test_what_is_no_such_tensor_file_is_refused(name: str, content: Any, tmp_path: Path) -> None:
    path = tmp_path / f"a{PT[name]}"
    torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        FORMATS[name].read(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"or is cut off"):
        FORMATS[name].read(path)


def test_a_missing_file_and_one_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FORMATS:
        with pytest.raises(FileNotFoundError, match="no file"):
            FORMATS[name].read(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{}" + " " * 100)
    monkeypatch.setattr(read, "MAX_BYTES", 50)
    with pytest.raises(ValueError, match="has 102 bytes; at most 50 are read"):
        mt.from_eap_ig(tmp_path / "a.json")


def test_a_file_that_unpacks_to_more_than_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 100000)
    monkeypatch.setattr(tensor_files, "MAX_BYTES", 50000)
    with pytest.raises(ValueError, match="100000 bytes when unpacked; at most 50000 are read"):
        mt.from_eap_ig(tmp_path / "a.pt")


def test_a_view_of_any_size_is_not_unfolded(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(10**9, 10**6)
    content = {"cfg": GPT2, "src_nodes": [], "dst_nodes": [], "edges_in_graph": huge, "nodes_in_graph": huge}
    torch.save({**content, "edges_scores": huge}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="src_nodes must be the 157 names"):
        mt.from_eap_ig(tmp_path / "a.pt")
    mt.to_eap_ig(graph(), tmp_path / "b.pt")
    torch.save({**torch.load(tmp_path / "b.pt", weights_only=True), "edges_scores": huge}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"edges_scores must have the shape \[9, 21\], got \[1000000000, 1000000\]"):
        mt.from_eap_ig(tmp_path / "a.pt")
    names = [f"blocks.0.hook_{x}_input" for x in "qkv"]
    scores = {name: torch.zeros(1).expand(10**9, 1, 1) for name in names}
    scores |= {"blocks.0.hook_mlp_in": torch.zeros(1).expand(10**9, 2)}
    torch.save({**scores, "blocks.0.hook_resid_post": torch.zeros(1).expand(10**9, 3)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="1000000000 positions of 1 layers of 1 heads give too many edges to hold"):
        mt.from_auto_circuit(tmp_path / "c.pt")


def eap(**changes: Any) -> dict[str, Any]:
    nodes = {"input": {"in_graph": True}, "a0.h0": {"in_graph": True}}
    edges = {"input->a0.h0<q>": {"score": 1.0, "in_graph": True}}
    cfg = {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 2}
    return {"cfg": cfg, "nodes": nodes, "edges": edges, **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cfg": {}, "nodes": {}}, "is not an EAP-IG circuit: it has no edges"),
        (eap(cfg={"n_layers": 1}), "cfg has no n_heads, parallel_attn_mlp, d_model"),
        (eap(cfg={**GPT2, "n_layers": 10**9}), "n_layers must be a whole number from 1 to 1024, got 1000000000"),
        (eap(cfg={**GPT2, "n_heads": "12"}), "cfg.n_heads must be a whole number from 0, got '12'"),
        (eap(cfg={**GPT2, "n_layers": 1024, "n_heads": 1024}), "give too many edges to hold"),
        (eap(cfg={**GPT2, "parallel_attn_mlp": 0}), "cfg.parallel_attn_mlp must be true or false, got 0"),
        (eap(nodes=[1]), "nodes must be a dictionary of names, got list"),
        (eap(nodes={"a0.h0": {}}), "node a0.h0 has no in_graph"),
        (eap(nodes={"a0.h0@1": {"in_graph": True}}), "unknown node 'a0.h0@1'"),
        (eap(nodes={"tok_embeds": {"in_graph": True}}), "unknown node 'tok_embeds'"),
        (eap(nodes={"a0.h1": {"in_graph": True}}), "node 'a0.h1' is outside a model of 1 layers of 1 heads"),
        (eap(nodes={"m0": {"in_graph": 1}}), "m0.in_graph must be true or false, got 1"),
        (eap(nodes={"m0": {"in_graph": True, "score": "x"}}), "m0.score must be a finite number or NaN, got 'x'"),
        (eap(nodes={"m0": {"in_graph": True, "score": 10**400}}), "holds a whole number above 3e+38"),
        (eap(nodes={"m0": {"in_graph": True, "neurons": [True]}}), "m0.neurons has 1 entries, and d_model is 2"),
        (eap(nodes={"m0": {"in_graph": True, "neurons": [1, 0]}}), "m0.neurons must be true or false, got 1"),
        (eap(edges={"input->m0<q>": {"in_graph": True}}), "q, k or v stands exactly where the target is a head"),
        (eap(edges={"input->a0.h0": {"in_graph": True}}), "q, k or v stands exactly where the target is a head"),
        (eap(edges={"input->a0.h0<x>": {"in_graph": True}}), "q, k or v stands exactly where the target is a head"),
        (eap(edges={"input a0.h0": {"in_graph": True}}), "unknown edge 'input a0.h0'"),
        (eap(edges={"m0->a0.h0<q>": {"in_graph": True}}), "the source does not come before the target"),
        (eap(edges={"m0->m0": {"in_graph": True}}), "the source does not come before the target"),
        (eap(edges={"logits->m0": {"in_graph": True}}), "the source does not come before the target"),
        (eap(edges={"input->m0": {"score": 1.0}}), "edge input->m0 has no in_graph"),
        (eap(edges={"input->m0": {"score": [1], "in_graph": True}}), "input->m0.score must be a finite number or NaN"),
        (eap(edges={"input->m0": 3}), "input->m0 must be a dictionary of names, got 3"),
    ],
)
def test_places_in_an_eap_ig_file(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        mt.from_eap_ig(tmp_path / "a.json")
    assert str(caught.value).startswith(str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text(json.dumps(eap()))
    mt.from_eap_ig(tmp_path / "b.json")  # without the fault it is read


def document(**changes: Any) -> dict[str, Any]:
    node = {"node_id": "0_1_0", "feature": 1, "layer": "0", "ctx_idx": 0, "feature_type": "attention head"}
    return {"metadata": {}, "qParams": {}, "nodes": [node], "links": [], **changes}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("edge-pruning", [["m0", "m1", "m2"]], "edge 0 must be [writer, reader], got 3 entries"),
        ("edge-pruning", [["m0", "m1"], ["m0", 3]], "edge 1 must be text, got 3"),
        ("edge-pruning", [["input", "m1"]], "unknown writer 'input'"),
        ("edge-pruning", [["m0", "logits"]], "unknown reader 'logits'"),
        ("edge-pruning", [["m0", "a1.h0.z"]], "unknown node 'a1.h0.z'"),
        ("edge-pruning", [["m1", "a1.h0.q"]], "the source does not come before the target"),
        ("edge-pruning", [["tok_embeds", "resid_post"]], "the file names no head and no MLP"),
        ("dcm", {"a": [[0]]}, "a: a head is [layer, head], got 1 entries"),
        ("dcm", {"a": [[0, -1]]}, "a: head must be a whole number from 0, got -1"),
        ("dcm", {"a": [[0, True]]}, "a: head must be a whole number from 0, got True"),
        ("dcm", {"a": [[0, 10**7]]}, "unknown node"),
        ("dcm", {"a": {"b": 1}}, "a must be a list, got dict"),
        ("neuronpedia", document(metadata={"schema_version": 2}), "schema_version 2 is not known"),
        ("neuronpedia", document(nodes=[{}]), "node 0: node_id must be text, got None"),
        ("neuronpedia", document(nodes=document()["nodes"] * 2), "node '0_1_0' stands twice"),
        ("neuronpedia", document(links=[{"source": "0_1_0", "target": "x", "weight": 1}]), "there is no node 'x'"),
        ("neuronpedia", document(links=[{"source": "0_1_0", "target": "0_1_0"}]), "link 0 has no weight"),
        (
            "neuronpedia",
            document(links=[{"source": "0_1_0", "target": "0_1_0", "weight": 1.0}] * 2),
            "link 1: '0_1_0' to '0_1_0' stands twice",
        ),
        (
            "neuronpedia",
            document(nodes=[{**document()["nodes"][0], "layer": "-1"}]),
            "node 0: layer must be a whole number from 0, got None",
        ),
    ],
)
def test_places_in_other_json_files(name: str, content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(message)):
        FORMATS[name].read(tmp_path / "a.json")


HEAD = (None, None, 0)
QUERY = ("blocks.0.hook_q_input", HEAD, "blocks.0.hook_resid_pre", (None,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({QUERY: 1}, "must be true or false, got 1"),
        ({QUERY[:3]: True}, "is no edge: (receiver hook, index, sender hook, index)"),
        ({("blocks.0.hook_x", *QUERY[1:]): True}, "unknown hook point 'blocks.0.hook_x'"),
        ({(QUERY[0], (None, 0), *QUERY[2:]): True}, "unknown index (None, 0)"),
        ({(QUERY[0], (None,), *QUERY[2:]): True}, "q_input at head None receives no edge"),
        ({(*QUERY[:2], "blocks.0.hook_q_input", HEAD): True}, "q_input at head 0 sends no edge"),
        ({("blocks.0.hook_mlp_in", HEAD, *QUERY[2:]): True}, "mlp_input at head 0 receives no edge"),
    ],
)
def test_places_in_an_acdc_file(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=re.escape(message)):
        mt.from_acdc(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes_in_graph": torch.ones(9)}, "nodes_in_graph must be boolean, got torch.float32"),
        ({"edges_scores": torch.full((9, 21), float("inf"))}, "edges_scores holds an infinite number"),
        ({"edges_scores": torch.ones(9, 21).to_sparse()}, "edges_scores must be a dense tensor"),
        ({"edges_scores": torch.ones(9, 21, dtype=torch.complex64)}, "edges_scores must be numbers"),
        ({"edges_scores": [[1.0]]}, "edges_scores must be a dense tensor, got list"),
        ({"neurons_scores": torch.ones(9, 3)}, "neurons_scores must have the shape [9, 4], got [9, 3]"),
        ({"dst_nodes": ["a"]}, "dst_nodes must be the 21 names of a model of 2 layers of 3 heads, d_model 4, in order"),
    ],
)
def test_places_in_a_tensor_file(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    mt.to_eap_ig(graph(), tmp_path / "a.pt")
    torch.save({**torch.load(tmp_path / "a.pt", weights_only=True), **changes}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        mt.from_eap_ig(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.hook_attn_in": torch.ones(3, 5)}, "unknown hook point 'blocks.1.hook_attn_in'"),
        ({"blocks.7.hook_mlp_in": torch.ones(3)}, "destination 'blocks.7.hook_mlp_in' is unknown"),
        ({"blocks.1.hook_mlp_in": torch.ones(7)}, "blocks.1.hook_mlp_in must have the shape [8], got [7]"),
        ({"blocks.1.hook_resid_post": torch.ones(2, 3, 4)}, "scores have 2 axes at heads and 3 at the end"),
        ({"blocks.1.hook_resid_post": None}, "these are no prune scores"),
    ],
)
@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
def test_places_in_prune_scores(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    mt.to_auto_circuit(graph(), tmp_path / "a.pt")
    scores = torch.load(tmp_path / "a.pt", weights_only=True)["circuit"]["tl_multitrace"]
    torch.save({**scores, **changes}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        mt.from_auto_circuit(tmp_path / "a.pt")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One value anywhere in a good file becomes something else: a graph or a ValueError, nothing else."""
    name = data.draw(st.sampled_from(JSON))
    good = {"eap-ig": cases.eap_ig_contents, "edge-pruning": cases.kept_edges, "dcm": cases.head_groups}
    content = data.draw(good.get(name, cases.graph_documents)())
    place = content
    while isinstance(place, dict | list) and len(place):
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(PLAIN)
            break
        place = place[key]
    path = tmp_path_factory.mktemp("damaged") / "a.json"
    path.write_text(json.dumps(content))
    try:
        assert isinstance(FORMATS[name].read(path), mt.CircuitGraph)
    except ValueError as error:
        assert str(path) in str(error)


# ------------------------------------------------------------------------------------------------------- writing
@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
@pytest.mark.parametrize("name", [*FORMATS, "circuit"])
def test_a_file_is_replaced_only_when_told_to(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{PT.get(name, '.json')}"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        write_circuit(graph(), path, name)
    assert path.read_text() == "mine"
    write_circuit(graph(), path, name, overwrite=True)
    assert path.read_bytes() != b"mine"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    bad = mt.CircuitGraph(SHAPE, {"m0": mt.interop.NodeMark(float("nan"), True)})
    with pytest.raises(ValueError, match="not written: it would hold a number that is not finite"):
        mt.to_eap_ig(bad, tmp_path / "a.json")
    with unchecked(), pytest.raises(TypeError, match="expected a Circuit or a CircuitGraph, got str"):
        mt.interop.circuit_conversion.as_graph("a.json")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------- command line
def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])


def test_the_command_converts(tmp_path: Path) -> None:
    mt.to_eap_ig(graph(), tmp_path / "a.json")
    result = call(tmp_path / "a.json", tmp_path / "b.json", "--from", "eap-ig", "--to", "circuit")
    assert result.exit_code == 0, result.output
    assert "Read CircuitGraph(eap-ig: 2 layers of 3 heads, d_model 4;" in result.output
    assert "Warning: a Circuit cannot hold: edges" in result.output and f"Wrote {tmp_path / 'b.json'}" in result.output
    circuit = mt.Circuit.load(tmp_path / "b.json")
    assert circuit.labels == ["L0H1", "L1H1", "L0MLP", "L1D0", "L1D2", "L1D3"]
    result = call(tmp_path / "b.json", tmp_path / "c.pth", "--from", "circuit", "--to", "acdc")
    assert result.exit_code == 0, result.output
    assert mt.from_acdc(tmp_path / "c.pth").shape.n_heads == 3


def test_the_command_takes_a_shape_and_keeps_the_best(tmp_path: Path) -> None:
    mt.to_auto_circuit(
        mt.CircuitGraph(SHAPE, {}, {e: m._replace(in_graph=None) for e, m in graph().edges.items()}), tmp_path / "a.pt"
    )
    arguments = (tmp_path / "a.pt", tmp_path / "b.json", "--from", "auto-circuit", "--to", "edge-pruning")
    result = call(*arguments)
    assert result.exit_code == 1 and "Choose first" in result.output and not (tmp_path / "b.json").exists()
    assert call(*arguments, "--edges", 5).exit_code == 0
    assert json.loads((tmp_path / "b.json").read_text())[0] == ["m0", "resid_post"]  # scores rise along the edges
    (tmp_path / "h.json").write_text('{"a": [[0, 1]]}')
    heads = (tmp_path / "h.json", tmp_path / "c.json", "--from", "dcm", "--to", "eap-ig")
    assert "pass shape=" in call(*heads).output
    assert call(*heads, "--shape", "2x3x4").exit_code == 0
    assert mt.from_eap_ig(tmp_path / "c.json").shape == SHAPE


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--from", "eap", "--to", "acdc"], 2, "unknown format 'eap': use circuit, eap-ig, auto-circuit"),
        (["--from", "eap-ig", "--to", "acdc", "--shape", "12"], 2, "a shape reads like 12x12x768"),
        (["--from", "eap-ig", "--to", "acdc", "--shape", "0x1"], 2, "n_layers must be a whole number from 1"),
        (["--from", "eap-ig", "--to", "acdc", "--edges", "1", "--nodes", "1"], 2, "give at most one of"),
        (["--from", "eap-ig"], 2, "--to"),
        (["--from", "eap-ig", "--to", "acdc"], 1, "Error: no file"),
    ],
)
def test_wrong_usage_of_the_command(options: list[str], code: int, message: str, tmp_path: Path) -> None:
    result = call(tmp_path / "none.json", tmp_path / "b.pth", *options)
    shown = re.sub(r"[\s│╭╮╰╯─]+", " ", result.output)
    assert (result.exit_code, message in shown) == (code, True), result.output
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / "b.pth").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        convert(tmp_path / "none.json", tmp_path / "b.pth", "eap-ig", "acdc")
