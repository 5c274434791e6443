"""What every result of the evaluation can do: tables, text, files, figures, a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from render_cases import EVIL, EVIL_IMAGE, prompts, run

import tl_multitrace as mt
from tl_multitrace.records.record import Result
from tl_multitrace.render import Run
from tl_multitrace.render.report import report_html

KINDS = ("report", "mib", "recovery", "significance", "stability", "comparison")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@cache
def result(kind: str) -> Any:
    found, held_out = run(), run().held_out
    assert held_out is not None
    circuit = found.path[4]
    assert found.tracer is not None
    if kind == "report":
        ablations = [mt.Interchange(), mt.ZeroAblation()]
        return mt.evaluate(circuit, held_out, interventions=ablations, draws=20)
    if kind == "mib":
        return mt.cpr_cmd(np.arange(len(found.tracer.groups)), tracer=found.tracer)
    if kind == "recovery":
        return mt.recovery(found.path, circuit.components[:3])
    if kind == "significance":
        return mt.significance(circuit, held_out, draws=19, replacements=19)
    if kind == "stability":
        return mt.stability(found.tracer, mt.TopK(), 3, budget=4)
    return mt.compare(circuit, found.others[0][4])


def tables(value: Result) -> list[Any]:
    frames = [value.to_dataframe()]
    if isinstance(value, mt.CircuitReport):
        frames += [value.per_example(), value.per_example("zero"), value.unexplained()]
    return [*frames, value.transfer_table()] if isinstance(value, mt.CircuitComparison) else frames


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_back_the_result(kind: str, tmp_path: Path) -> None:
    value = result(kind)
    place = value.save(tmp_path / "x.json")
    assert type(value).load(place) == value
    assert all(f.equals(g) for f, g in zip(tables(value), tables(type(value).load(place)), strict=True))
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        value.save(place)
    value.save(place, overwrite=True)
    assert json.loads(place.read_text())["version"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_refused(kind: str, tmp_path: Path) -> None:
    value = result(kind)
    place = value.save(tmp_path / "x.json")
    content = json.loads(place.read_text())
    name = next(iter(content["result"]))
    broken = {
        "cut": place.read_text()[:-40],
        "format": json.dumps({**content, "format": "other"}),
        "newer": json.dumps({**content, "version": 99}),
        "field": json.dumps({**content, "result": {k: v for k, v in content["result"].items() if k != name}}),
        "type": json.dumps({**content, "result": {**content["result"], name: {"no": "such"}}}),
    }
    for what, text in broken.items():
        (tmp_path / f"{what}.json").write_text(text)
        with pytest.raises(ValueError, match=what):
            type(value).load(tmp_path / f"{what}.json")


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_frozen_and_show_themselves(kind: str) -> None:
    value = result(kind)
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)
    assert repr(value).startswith(value.headline())
    assert all(told in repr(value) for _, told in value.summary())
    assert "<table" in value._repr_html_()
    assert len(value.to_dataframe())


@pytest.mark.parametrize("kind", KINDS)
def test_every_result_draws_itself(kind: str) -> None:
    from matplotlib.figure import Figure

    figure = result(kind).plot()
    assert isinstance(figure, Figure)
    assert all(ax.has_data() for ax in figure.axes)


def points(ax: Any) -> list[float]:
    """Positions of the markers of every error bar on an axis."""
    return [float(x) for container in ax.containers for x in container.lines[0].get_xdata()]


def test_the_reports_figure_shows_its_numbers() -> None:
    value = result("report")
    effects, ablations, *minimality = value.plot().axes
    first = value.ablations[0]
    shown = [first.effect, *first.subgroups.values(), first.full_effect, first.chance]
    assert points(effects) == pytest.approx([s.mean for s in shown])
    known = [a for a in value.ablations if not a.undefined]
    assert points(ablations) == pytest.approx(
        [a.faithfulness.value for a in known] + [a.completeness.value for a in known]
    )
    assert [t.get_text() for t in ablations.get_yticklabels()] == [
        a.name if a in known else f"{a.name} (undefined)" for a in value.ablations
    ]
    assert bool(minimality) == (not first.undefined)
    for ax in minimality:
        assert points(ax) == pytest.approx([m.value for m in value.minimality.values()])
        assert [t.get_text() for t in ax.get_yticklabels()] == list(value.minimality)


def test_the_other_figures_show_their_numbers() -> None:
    stable, scores = result("stability"), result("mib")
    assert points(stable.plot().axes[0]) == pytest.approx([f.value for f in stable.frequencies])
    drawn = {line.get_label(): line.get_ydata() for line in scores.plot().axes[0].lines}
    for curve in scores.curves:
        own = next(y for label, y in drawn.items() if label.startswith(curve.ranking))
        wanted = [np.nan if f is None else f for f in curve.faithfulness]
        assert list(own) == pytest.approx(wanted, nan_ok=True)
    both = result("comparison")
    for ax, transfer in zip(both.plot().axes, both.transfers, strict=True):
        assert points(ax) == pytest.approx([transfer.own.mean, transfer.other.mean])
    with pytest.raises(ValueError, match="no transfer was measured"):
        dataclasses.replace(both, transfers=()).plot()


# -------------------------------------------------------------------------------------------------------- the page
class Page(HTMLParser):
    """Ids, scripts and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []  # type: ignore[list-item]
        self.links += [str(v) for k, v in attrs if k in ("href", "src") and v]
        self.scripts += tag == "script"


def test_the_page_holds_the_scores_and_fetches_nothing(tmp_path: Path) -> None:
    value = result("report")
    text = value.write_html(tmp_path / "e.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {"evaluation", "explained"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not [link for link in page.links if not link.startswith(("#", "data:"))]
    assert all(note.split(":")[0] in text for note in value.notes)
    for word in ("faithfulness", "minimality", "interchange", "zero", "percentile"):
        assert word in text
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        value.write_html(tmp_path / "e.html")


def test_a_runs_report_and_folder_hold_evaluation_and_stability(tmp_path: Path) -> None:
    judged = dataclasses.replace(run(), evaluation=result("report"), stability=result("stability"))
    judged.save(tmp_path / "run")
    again = Run.from_folder(tmp_path / "run")
    assert (again.evaluation, again.stability) == (judged.evaluation, judged.stability)
    assert {"evaluation", "stability"} <= set(again.figures())
    page = Page(report_html(again))
    assert {"evaluation", "stability"} <= set(page.ids)
    assert {"#evaluation", "#stability"} <= set(page.links)
    assert len(page.ids) == len(set(page.ids))
    bare = Page(report_html(dataclasses.replace(again, evaluation=None, stability=None)))
    assert not {"evaluation", "stability", "#evaluation", "#stability"} & {*bare.ids, *bare.links}


def test_text_of_prompts_cannot_inject() -> None:
    from tl_multitrace.render.evaluation_page import evaluation_section, examples_section

    evil = dataclasses.replace(
        result("report"), prompts=(EVIL,) * len(result("report").prompts), notes=(EVIL_IMAGE,), metric_unit=EVIL
    )
    page = evaluation_section(evil) + examples_section(evil)
    assert "<script>window" not in page
    assert "<img src=x" not in page
    assert "<script>window" not in evil._repr_html_()
    assert Page(page).scripts == 0


def test_labels_with_dollar_signs_are_no_mathematics() -> None:
    value = mt.evaluate(run().path[4], prompts()[:6], draws=0)
    scores = dataclasses.replace(value.ablations[0], subgroups={"cost $x$ and $": value.effect})
    dataclasses.replace(value, ablations=(scores,)).plot().canvas.draw()


def test_public_names() -> None:
    import tl_multitrace

    assert callable(tl_multitrace.evaluate)
    names = ["evaluate", "CircuitReport", "cpr_cmd", "recovery", "stability", "compare", "significance"]
    assert set(names) <= set(tl_multitrace.__all__)
