"""Graphs in files and figures: nothing is lost, nothing runs, nothing is hidden."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import PathPatch
from render_cases import EVIL, EVIL_IMAGE, measured, run
from test_flow_graph import tiny
from test_report import Page

import tl_multitrace as mt
from tl_multitrace.flow import to_dot, to_graphml
from tl_multitrace.render import Run, plot_flow, write_report
from tl_multitrace.render.html import number
from tl_multitrace.render.layers import NODE, WAYPOINT, layout, step
from tl_multitrace.render.report import report_html


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def same(a: Any, b: Any) -> bool:
    return bool(nx.utils.graphs_equal(a, b))


def small(**edge: Any) -> Any:
    """Two heads, a neuron and the answer, made by hand."""
    graph = nx.MultiDiGraph(unit="nats", n=3)
    graph.add_node("@2", kind="token", layer=-1, label="@2", position="2", text="nurse / man")
    for name, kind, layer in (("L0H1", "head", 0), ("L1H0", "head", 1), ("L1N7", "neuron", 1), ("answer", "answer", 2)):
        graph.add_node(name, kind=kind, layer=layer, label=name)
    facts = {"low": -1.0, "high": 2.0, "significant": False, "n": 3, **edge}
    ties = [
        ("@2", "L0H1", "v", 1.0),
        ("L0H1", "L1H0", "q", -0.5),
        ("L0H1", "L1H0", "k", 0.25),
        ("L1H0", "L1N7", "in", 0.1),
    ]
    for a, b, x, effect in [*ties, ("L0H1", "answer", "out", 2.0), ("L1N7", "answer", "out", -1e-7)]:
        graph.add_edge(a, b, key=x, input=x, effect=effect, **facts)
    return graph


# ------------------------------------------------------------------------------------------------------- files
texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
values = st.one_of(st.booleans(), st.integers(-(2**31), 2**31), st.floats(allow_nan=False, allow_infinity=False), texts)
names = st.text(string.ascii_letters, min_size=1, max_size=6)
attributes = st.dictionaries(names.filter(lambda n: n not in ("source", "target", "key", "self")), values, max_size=3)


@st.composite
def graphs(draw: Any) -> Any:
    graph = nx.MultiDiGraph(**draw(attributes)) if draw(st.booleans()) else nx.Graph(**draw(attributes))
    nodes = draw(st.lists(texts, min_size=1, max_size=4, unique=True))
    for node in nodes:
        graph.add_node(node, **draw(attributes))
    for _ in range(draw(st.integers(0, 5))):
        key = {"key": draw(texts)} if graph.is_multigraph() else {}
        graph.add_edge(draw(st.sampled_from(nodes)), draw(st.sampled_from(nodes)), **key, **draw(attributes))
    return graph


@settings(max_examples=60, deadline=None)
@given(graph=graphs())
def test_json_holds_everything(graph: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("graph") / "graph.json"
    mt.save_graph(graph, place)
    assert same(mt.load_graph(place), graph)


@settings(max_examples=60, deadline=None)
@given(graph=graphs())
def test_any_graph_is_written_for_other_programs(graph: Any) -> None:
    read = nx.parse_graphml(to_graphml(graph), force_multigraph=True)
    assert read.number_of_edges() == graph.number_of_edges()
    dot = re.sub(r'"(?:[^"\\]|\\.)*"', "Q", to_dot(graph))  # whatever is quoted stays inside its quotes
    assert set(re.sub(r"Q|=|\[|\]|\s|;|,|-[->]", "", dot.partition("{")[2])) <= set(
        "}{rankdirLRnodeshapeboxstylroundfm"
    )


def test_graphml_is_read_by_networkx_with_every_attribute() -> None:
    graph = tiny()[1]
    read = nx.parse_graphml(to_graphml(graph), force_multigraph=True)
    assert dict(read.nodes(data=True)) == dict(graph.nodes(data=True))
    assert read.graph | graph.graph == read.graph
    ids = [key for *_, key in read.edges(keys=True)]
    assert len(set(ids)) == len(ids) == graph.number_of_edges()
    edges = {(a, b, d["input"]): d for a, b, d in read.edges(data=True)}
    for a, b, x, d in graph.edges(keys=True, data=True):
        found = edges[a, b, x]
        found.pop("id", None)
        assert found == d


def test_dot_names_every_node_and_edge() -> None:
    graph = small()
    graph.add_node("L1H3", kind="head", layer=1, label="L1H3")
    dot = to_dot(graph)
    assert dot.startswith("digraph {") and dot.endswith("}\n")
    assert '"L0H1" -> "L1H0" [' in dot and '"label"="q -0.5"' in dot
    assert '"label"="@2\\nnurse / man"' in dot
    assert '{ rank=same; "L1H0" "L1H3" };' in dot
    assert dot.count("->") == 6
    assert to_dot(nx.Graph([("a", "b")])).count("--") == 1


def test_text_in_files_stays_text() -> None:
    graph = small()
    graph.add_node('x"]; evil [a="', kind="token", layer=-1, label='\\"\n' + EVIL, text=EVIL_IMAGE + "\x00\x0b")
    quoted = re.sub(r'"(?:[^"\\]|\\.)*"', "Q", to_dot(graph))
    assert "evil" not in quoted and "script" not in quoted
    assert nx.parse_graphml(to_graphml(graph)).number_of_nodes() == 6


@pytest.mark.parametrize("ending", ["json", "graphml", "dot", "gv"])
def test_files_are_kept_unless_asked(tmp_path: Path, ending: str) -> None:
    place = mt.save_graph(small(), tmp_path / f"flow.{ending}")
    before = place.read_text()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        mt.save_graph(small(), place)
    assert mt.save_graph(small(), place, overwrite=True).read_text() == before


def test_what_cannot_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end the name in \.json, \.graphml or \.dot"):
        mt.save_graph(small(), tmp_path / "flow.png")
    for ending in ("json", "graphml", "dot"):
        with pytest.raises(ValueError, match="was not written"):
            mt.save_graph(small(share=float("nan")), tmp_path / f"flow.{ending}")
        with pytest.raises(ValueError, match="was not written"):
            mt.save_graph(small(share=[1, 2]), tmp_path / f"flow.{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="tl_multitrace.circuit"), "is not a tl_multitrace.graph file"),
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d["edges"][0].update(target="nobody"), "'nobody', which is not among the nodes"),
        (lambda d: d["nodes"][0].update(attributes={"layer": [1]}), "nodes.0.attributes"),
        (lambda d: d.pop("edges"), "edges"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    place = mt.save_graph(small(), tmp_path / "flow.json")
    content = json.loads(place.read_text())
    change(content)
    place.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        mt.load_graph(place)


# ----------------------------------------------------------------------------------------------------- figure
def curves(figure: Any) -> dict[str, PathPatch]:
    return {str(p.get_gid()): p for p in figure.axes[0].patches if isinstance(p, PathPatch) and p.get_gid()}


def test_every_edge_is_drawn_by_size_and_sign() -> None:
    found = curves(plot_flow(small()))
    assert len(found) == 6
    widths = {name: p.get_linewidth() for name, p in found.items()}
    assert widths["edge-L0H1-answer-out"] == pytest.approx(2 * widths["edge-@2-L0H1-v"])
    assert widths["edge-L0H1-L1H0-q"] == pytest.approx(2 * widths["edge-L0H1-L1H0-k"], rel=0.3)
    assert widths["edge-L1N7-answer-out"] > 0.3, "the weakest can still be seen"
    colours = {name: p.get_edgecolor()[:3] for name, p in found.items()}
    up, down = colours["edge-@2-L0H1-v"], colours["edge-L0H1-L1H0-q"]
    assert up != down == colours["edge-L1N7-answer-out"]


def test_components_outside_the_circuit_are_grey() -> None:
    graph = small()
    graph.nodes["L1N7"]["chosen"] = False
    faces = {t.get_text(): t.get_bbox_patch().get_facecolor() for t in plot_flow(graph).axes[0].texts}
    assert faces["L1N7"] != faces["L1H0"] == faces["answer"]


def test_what_is_left_out_is_said() -> None:
    figure = plot_flow(small(), most=2)
    assert set(curves(figure)) == {"edge-L0H1-answer-out", "edge-@2-L0H1-v"}
    assert figure.axes[0].get_title("left") == "Direct effects, the 2 strongest of 6 edges"
    assert len(curves(plot_flow(small(), min_share=0.2))) == 3
    assert plot_flow(small()).axes[0].get_title("left") == "Direct effects, 6 edges"


def test_all_nodes_are_named_in_the_order_of_computation() -> None:
    figure = plot_flow(small())
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert {"@2\nnurse / man", "L0H1", "L1H0", "L1N7", "answer"} <= set(texts)
    columns = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert columns == ["tokens", "layer 0\nattention", "layer 1\nattention", "layer 1\nMLP", ""]


@pytest.mark.parametrize("make", [small, lambda: tiny()[1]])
def test_nodes_and_edges_keep_their_distance(make: Any) -> None:
    from tl_multitrace.render.flow import strongest

    graph = make()
    places, ways = layout(graph, strongest(graph, 0.0, 40))
    taken = {(round(x), y): NODE for x, y in places.values()}
    for (a, b), way in ways.items():
        assert way[0] == places[a] and way[-1] == places[b]
        assert [x for x, _ in way] == list(range(int(way[0][0]), int(way[-1][0]) + 1))
        taken |= {(round(x), y): WAYPOINT for x, y in way[1:-1]}
    assert len(taken) == len(places) + sum(len(way) - 2 for way in ways.values())
    for (x1, y1), size1 in taken.items():
        for (x2, y2), size2 in taken.items():
            assert (x1, y1) == (x2, y2) or x1 != x2 or abs(y1 - y2) > (size1 + size2) / 2 - 1e-9
    order = sorted(places, key=lambda n: places[n][0])
    assert [step(graph.nodes[n]) for n in order] == sorted(step(graph.nodes[n]) for n in order)


def test_a_circuit_without_edges_is_drawn_too() -> None:
    graph = small()
    graph.remove_edges_from(list(graph.edges(keys=True)))
    figure = plot_flow(graph)
    assert not curves(figure) and {"L0H1", "answer"} <= {t.get_text() for t in figure.axes[0].texts}
    graph.add_nodes_from((f"L0N{i}", {"kind": "neuron", "layer": 0, "label": f"L0N{i}"}) for i in range(50))
    assert [t.get_text() for t in plot_flow(graph).axes[0].texts] == ["answer"]


def test_other_graphs_are_no_flow() -> None:
    knowledge = nx.Graph([("fact 0", "L0H1")])
    backwards = small()
    backwards.add_edge("answer", "L0H1", key="q", input="q", effect=1.0, low=0.0, high=1.0)
    bare = small()
    del bare["L0H1"]["L1H0"]["q"]["low"]
    for graph in (knowledge, nx.MultiDiGraph([("a", "answer")]), backwards, bare):
        with pytest.raises(ValueError, match="not a graph of information_flow"):
            plot_flow(graph)


# ----------------------------------------------------------------------------------------------------- report
@pytest.fixture(scope="module")
def flow() -> Any:
    return mt.information_flow(run().circuit, min_share=0.0)


def test_the_report_has_every_edge(flow: Any) -> None:
    page = Page(report_html(replace(measured(), flow=flow)))
    assert {"id": "flow", "aria-labelledby": "flow-title"} in page.all("section")
    for a, b, d in flow.edges(data=True):
        assert f"{a} → {b}" in page.text and number(d["effect"]) in page.text
        assert f"{number(d['low'])} to {number(d['high'])}" in page.text
    assert 'id="flow"' not in report_html(measured()) and 'href="#flow"' not in report_html(measured())


def test_a_graph_can_be_given_to_the_report(flow: Any, tmp_path: Path) -> None:
    given = write_report(measured(), tmp_path / "given.html", flow=flow)
    own = write_report(replace(measured(), flow=flow), tmp_path / "own.html")
    assert given.read_text(encoding="utf-8") == own.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not a graph of information_flow"):
        write_report(measured(), tmp_path / "none.html", flow=nx.Graph())
    assert not (tmp_path / "none.html").exists()


def test_the_flow_comes_back_from_the_folder(flow: Any, tmp_path: Path) -> None:
    saved = replace(measured(), flow=flow).save(tmp_path / "job")
    assert {p.name for p in (tmp_path / "job").glob("flow.*")} == {"flow.json", "flow.graphml", "flow.dot", "flow.svg"}
    read = Run.from_folder(tmp_path / "job", title=saved.title)
    assert same(read.flow, flow)
    first, second = write_report(saved, tmp_path / "a.html"), write_report(read, tmp_path / "b.html")
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")
    (tmp_path / "job" / "flow.json").write_text(mt.save_graph(nx.Graph(), tmp_path / "k.json").read_text())
    with pytest.raises(ValueError, match=r"flow\.json: not a graph of information_flow"):
        Run.from_folder(tmp_path / "job")


def test_hostile_text_in_a_flow_stays_text() -> None:
    graph = small()
    graph.graph["unit"] = EVIL + " $x^$"
    graph.nodes["@2"].update(text=EVIL_IMAGE, label=EVIL + " $x$")
    nx.relabel_nodes(graph, {"L0H1": EVIL_IMAGE}, copy=False)
    page = Page(report_html(replace(measured(), flow=graph)))
    assert EVIL_IMAGE in page.text and not page.all("img")
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert not any("pwned" in code for kind, code in page.scripts if kind.get("type") != "application/json")
