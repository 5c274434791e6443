"""The report holds every number and component, runs nothing but its own scripts, and needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from render_cases import EVIL, EVIL_IMAGE, evil_run, measured, run

from tl_multitrace.render import Run, write_report
from tl_multitrace.render.embed import asset, bundle
from tl_multitrace.render.html import json_block, number, table, tag
from tl_multitrace.render.report import MAX_PAGE, report_html
from tl_multitrace.render.sections import sentence


class Page(HTMLParser):
    """The elements and the text of a page, as a browser's parser would split them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind, code = self.scripts[-1]
            self.scripts[-1] = (kind, code + data)
        elif self._inside != "style":
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def source() -> str:
    return report_html(measured())


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


# -------------------------------------------------------------------------------------------- what it says
def test_every_component_and_number_is_there(page: Page) -> None:
    known = measured()
    circuit = known.circuit
    for component, marginal in zip(circuit.components, circuit.marginals, strict=True):
        assert component.label in page.text
        assert number(marginal) in page.text
    for score in (circuit.score, circuit.held_out, circuit.chance):
        assert score is not None
        assert number(score.mean) in page.text
        assert f"{number(score.low)} to {number(score.high)}" in page.text
    assert known.effects is not None
    for effect in known.effects["effect"]:
        assert number(effect) in page.text
    for choice in known.path.choices:
        assert number(choice.score.mean) in page.text


def test_the_sentence_says_what_was_found_and_how_sure() -> None:
    circuit = run().circuit
    text = sentence(circuit)
    assert circuit.score is not None and circuit.chance is not None
    assert f"{len(circuit)} of {circuit.n_groups} components" in text
    assert number(circuit.score.mean) in text and number(circuit.chance.mean) in text
    assert "not tested on held-out prompts" in sentence(replace(circuit, held_out=None))
    worse = replace(circuit, held_out=replace(circuit.score, mean=circuit.chance.mean - 1))
    assert "no more than chance" in sentence(worse)
    assert "no more than chance" not in text


def test_the_held_out_effect_is_measured_where_the_circuit_lacks_it() -> None:
    without = replace(run(), circuit=replace(run().circuit, held_out=None))
    assert without.measured().circuit.held_out == run().circuit.held_out


def test_sections_without_content_are_left_out(source: str) -> None:
    known = measured()
    assert known.effects is not None
    effects = known.effects.assign(label="")
    bare = report_html(replace(known, tracer=None, views=None, effects=effects))
    assert 'id="subgroups"' in source and 'id="views"' in source
    assert 'id="subgroups"' not in bare and 'id="views"' not in bare and 'href="#views"' not in bare
    assert bundle() not in bare and len(bare) < 300_000


# -------------------------------------------------------------------------------------------- how it is made
def test_the_page_is_for_everyone(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.elements if tag in ("header", "nav", "main", "footer")] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(svg.get("role") == "img" and svg.get("aria-labelledby") for svg in page.all("svg"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for a in page.all("a") if (a["href"] or "").startswith("#")]
    assert all((t or "#")[1:] in ids for t in targets)
    assert page.all("noscript")


def test_every_table_that_sorts_can_be_saved_whole(page: Page) -> None:
    saved = {a["download"]: a["href"] or "" for a in page.all("a") if "download" in a}
    assert len(saved) == len([t for t in page.all("table") if "data-sort" in t])
    assert {"budgets.csv", "subgroups.csv", "components.csv", "effects.csv"} <= set(saved)
    told = base64.b64decode(saved["budgets.csv"].partition("base64,")[2]).decode()
    frame = pd.read_csv(io.StringIO(told))
    assert frame["effect"].tolist() == pytest.approx(measured().path.effects)
    subgroups = pd.read_csv(io.StringIO(base64.b64decode(saved["subgroups.csv"].partition("base64,")[2]).decode()))
    assert set(subgroups) == {"subgroup", "split", "effect", "low", "high", "median", "prompts"} and len(subgroups)


def test_numbers_are_for_reading() -> None:
    told = [number(x) for x in (1234.5, 685.2, 0.00071, -1e-5, 3.2e7, -2500, 0, None, float("nan"))]
    assert told == ["1,230", "685", "0.00071", "−1e−05", "3.2e+07", "−2,500", "0", "–", "–"]


def test_figures_follow_the_readers_colours(source: str) -> None:
    assert "currentColor" in source and "#010203" not in source
    assert "prefers-color-scheme: dark" in source and "@media print" in source


def test_the_page_asks_for_nothing(page: Page, source: str) -> None:
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "http" not in policy
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("#", "data:")), (name, value)
    assert not re.search(r"https?://|@import", source.replace(bundle(), ""))
    assert len(source) < MAX_PAGE


def test_only_the_scripts_that_the_policy_names_can_run(page: Page) -> None:
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy") or ""
    running = [code for kind, code in page.scripts if kind.get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in running]
    assert running == [bundle(), asset("report.js")]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests


def test_text_from_prompts_stays_text() -> None:
    made = report_html(evil_run())
    hostile = Page(made)
    assert EVIL in hostile.text and EVIL_IMAGE in hostile.text
    assert not hostile.all("img")
    assert [code for kind, code in hostile.scripts if kind.get("type") != "application/json"] == [
        bundle(),
        asset("report.js"),
    ]
    told = [json.loads(code) for kind, code in hostile.scripts if kind.get("type") == "application/json"]
    assert told[0]["tokens"][:2] == [EVIL, EVIL_IMAGE]
    assert not any("onerror" in attributes for _, attributes in hostile.elements)


def test_escaping_is_by_construction() -> None:
    assert tag("p", "<b>", title='"><x') == '<p title="&quot;&gt;&lt;x">&lt;b&gt;</p>'
    assert tag("p", tag("b", "a & b"), ["<", None]) == "<p><b>a &amp; b</b>&lt;</p>"
    assert tag("td", 0) == "<td>0</td>" and tag("td", data_v=0.0) == '<td data-v="0.0"></td>'
    block = json_block(["</script><!--", "a&b"])
    assert "</script><" not in block and "<!--" not in block
    assert json.loads(block.partition(">")[2].rpartition("<")[0]) == ["</script><!--", "a&b"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_block([float("nan")])
    cells = Page(table(["a", "b"], [["x", 1.5], ["y", None]], caption="c"))
    assert [t.get("class") for t in cells.all("th")] == [None, "n", None, None]
    assert cells.all("td") == [{"class": "n", "data-v": "1.5"}, {"class": "n"}]


# -------------------------------------------------------------------------------------------- files
def test_the_report_is_rewritten_from_its_folder_without_a_model(tmp_path: Path) -> None:
    saved = run().save(tmp_path / "job")
    names = sorted(p.name for p in (tmp_path / "job").iterdir())
    assert names == [
        "circuit.json",
        "circuit.svg",
        "effects.csv",
        "path-1.json",
        "path.json",
        "path.svg",
        "subgroups.svg",
        "views.json",
    ]
    first = write_report(saved, tmp_path / "first.html")
    read = Run.from_folder(tmp_path / "job", title="A small run")
    assert read.tracer is None
    second = write_report(read, tmp_path / "second.html")
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    place.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_report(measured(), place)
    assert place.read_text() == "mine"
    write_report(measured(), place, overwrite=True)
    assert place.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "effects.csv").write_text("mine")
    with pytest.raises(FileExistsError):
        run().save(tmp_path / "job")
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["effects.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("pair,effect\n1,2\n", "not a table of effects"), ("", "not a table of effects"), ("a\x00b", "not a table")],
)
def test_a_broken_table_of_effects_is_refused(tmp_path: Path, content: str, message: str) -> None:
    run().save(tmp_path)
    (tmp_path / "effects.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        Run.from_folder(tmp_path)


def test_an_effect_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    run().save(tmp_path)
    place = tmp_path / "effects.csv"
    place.write_text(re.sub(r",[-\d.e]+\n$", ",inf\n", place.read_text()))
    with pytest.raises(ValueError, match="not finite"):
        Run.from_folder(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Run.from_folder(tmp_path)


def test_the_effects_are_the_tracers() -> None:
    known = measured()
    assert known.effects is not None and known.tracer is not None
    search = known.effects[known.effects["split"] == "search"]
    assert search["effect"].tolist() == known.tracer.effect(known.circuit.mask).double().tolist()
    assert search["label"].tolist() == list(known.tracer.pairs.labels)
    held = known.effects[known.effects["split"] == "held out"]
    assert known.circuit.held_out is not None
    assert held["effect"].mean() == pytest.approx(known.circuit.held_out.mean)


def test_the_sentence_does_not_hide_doubt() -> None:
    circuit = run().circuit
    assert circuit.score is not None
    unsure = replace(circuit.score, mean=0.4, low=-0.2, high=0.9)
    assert "−0.2 to 0.9, which includes 0" in sentence(replace(circuit, held_out=unsure))
    circuit = replace(circuit, full_score=None)
    against = sentence(replace(circuit, full_effect=-circuit.effect))
    assert f"patching all of them changes it by {number(-circuit.effect)}" in against and "% of what" not in against
    assert "50% of what" in sentence(replace(circuit, full_effect=2 * circuit.effect))
