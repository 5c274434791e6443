"""A trace as an object: its numbers, tables, files, pictures, and the circuit it gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build, word_tokenizer
from tl_multitrace.causal_trace import TokenReplacement, TraceGrid, causal_trace
from tl_multitrace.causal_trace.cells import SITE, Cells
from tl_multitrace.records import record
from trace_oracle import PlainTrace, window_cells

pytestmark = [
    pytest.mark.filterwarnings("ignore:the model does not predict", "ignore:window", "ignore:the corruption"),
]

TEXT, OTHER = "The old doctor said that", "The young nurse said that"


@cache
def model() -> Any:
    return build(MODEL_NAMES[0], tokenizer=word_tokenizer())


@cache
def traced(restore: Any = "resid", **options: Any) -> TraceGrid:
    return causal_trace(model(), TEXT, subject="old doctor", samples=4, restore=restore, window=2, **options)


def made(
    layers: int = 3, words: tuple[str, ...] = ("<s>", " Space", " Needle", " of"), units: int = 0, **fields: Any
) -> TraceGrid:
    """A grid of given size whose effects are drawn, without a model."""
    draw = torch.Generator().manual_seed(0)
    kind = fields.pop("kind", "head" if units else "resid")
    window = fields.pop("window", 1)
    cells = Cells(
        (kind,), tuple(range(len(words))), tuple(range(layers)), tuple(range(units)), window, layers, max(1, units)
    )
    restored = 0.9 * torch.rand(5, *cells.shape, generator=draw)
    known = {"restored": restored, "corrupted": torch.full((5,), 0.1), "clean": torch.full((5,), 0.95)}
    return TraceGrid(**{**known, "cells": cells, "tokens": words, "subject": (1, 3), "answer": " Seattle", **fields})


@pytest.fixture(autouse=True)
def no_figures_left() -> Any:
    yield
    plt.close("all")


# ---------------------------------------------------------------------------------------------------------- numbers
def test_effects_and_shares_are_what_they_say() -> None:
    grid = traced()
    assert grid.dims == ("sample", "position", "layer") and grid.kind == "resid"
    assert torch.allclose(grid.total_effect, grid.clean - grid.corrupted)
    assert torch.allclose(grid.indirect_effect, grid.restored - grid.corrupted[:, None, None])
    assert torch.allclose(grid.effect, grid.indirect_effect.mean(0))
    assert grid.total.mean == pytest.approx(float(grid.total_effect.mean()), rel=1e-6)
    frame = grid.to_dataframe()
    assert len(frame) == len(grid.tokens) * 3
    assert np.allclose(frame["share"], frame["effect"] / grid.total.mean, atol=1e-5)
    row = frame[(frame["position"] == 3) & (frame["layer"] == 1)].iloc[0]
    assert row["token"] == grid.tokens[3] and bool(row["subject"])
    assert row["effect"] == pytest.approx(float(grid.effect[3, 1])) and row["low"] <= row["effect"] <= row["high"]


def test_intervals_are_those_of_resampled_means() -> None:
    grid = made()
    low, high = grid.interval(seed=3)
    values = grid.indirect_effect.double().numpy()
    draws = np.random.default_rng(9).integers(0, len(values), (4000, len(values)))
    means = values[draws].mean(1)
    assert np.allclose(low, np.quantile(means, 0.025, axis=0), atol=0.03)
    assert np.allclose(high, np.quantile(means, 0.975, axis=0), atol=0.03)
    assert torch.equal(low, grid.interval(seed=3)[0])
    narrow = grid.interval(level=0.5)
    assert bool((narrow[0] > low).all()) and bool((narrow[1] < high).all())


def test_an_average_leaves_absent_tokens_out() -> None:
    grid = made(provenance={"facts": 5})
    restored = grid.restored.clone()
    restored[1:, 1], restored[:, 2] = torch.nan, torch.nan
    gaps = replace(grid, restored=restored)
    assert gaps.dims[0] == "fact" and gaps.averaged
    assert torch.allclose(gaps.effect[1], grid.indirect_effect[0, 1])
    low, high = gaps.interval()
    assert bool(low[1:3].isnan().all() and high[1:3].isnan().all())  # of one fact, as of none, there is no interval
    assert not low[0].isnan().any()
    assert gaps.to_dataframe()["effect"].isna().sum() == 3
    assert len(gaps.best(99)) == 9 and " (none)" in [t.get_text() for t in gaps.plot().axes[0].get_yticklabels()][2]


def test_the_best_cells_come_first() -> None:
    grid = traced("head")
    best = grid.best(5)
    flat = grid.effect.flatten().sort(descending=True).values
    assert np.allclose(best["effect"], flat[:5], atol=1e-7)
    first = best.iloc[0]
    assert float(grid.effect[first["position"], first["layer"], first["unit"]]) == pytest.approx(first["effect"])
    assert len(grid.best(10**6)) == len(grid.cells)
    with pytest.raises(ValueError, match="k from 1, got 0"):
        grid.best(0)


def test_the_text_says_what_was_done() -> None:
    grid = traced("mlp", severed="attn")
    for part in ("windows of 2 layers", "attn severed", "gaussian noise of 3 x", "whole embedding matrix", "4 samples"):
        assert part in repr(grid), part
    assert "<b>TraceGrid of" in grid._repr_html_() and grid._repr_html_().count("<tr") < 24
    evil = made(words=("<script>alert(1)</script>", "b", "c", "d"), notes=("<img src=x>",))
    assert "<script>" not in evil._repr_html_() and "<img" not in evil._repr_html_()


# -------------------------------------------------------------------------------------------------------- a circuit
@pytest.mark.parametrize(("restore", "window"), [("resid", 1), ("mlp", 2), (("mlp", "attn"), 2)], ids=str)
def test_the_circuit_restores_its_cells_together(restore: Any, window: int) -> None:
    corruption = TokenReplacement(OTHER)
    grid = causal_trace(model(), TEXT, subject="old doctor", restore=restore, window=window, corruption=corruption)
    ids, answer = grid.provenance["ids"], grid.provenance["answer_ids"]
    other = [ids[0], *model().tokenizer(OTHER)["input_ids"]]
    case = PlainTrace(model(), ids, grid.subject, answer, replaced=torch.tensor([other]))
    kinds = [restore] if isinstance(restore, str) else restore
    cells = window_cells(kinds, len(ids), 3, window)
    circuit = grid.as_circuit(k=3)
    together = [site for i in circuit.indices for site in cells[i]]
    assert circuit.effect == pytest.approx(case.restored(0, together) - case.corrupted(0), abs=1e-5)
    less = [site for i in circuit.indices[1:] for site in cells[i]]
    lost = circuit.effect - (case.restored(0, less) - case.corrupted(0))
    assert circuit.marginals[0] == pytest.approx(lost, abs=1e-5)
    assert abs(circuit.effect) > 1e-3
    if restore == "resid":  # all states restored: clean
        assert circuit.full_effect == pytest.approx(grid.total.mean, abs=1e-5)


def test_the_circuit_runs_as_hooks_in_a_users_own_analysis(tmp_path: Path) -> None:
    grid = causal_trace(model(), TEXT, subject="old doctor", corruption=TokenReplacement(OTHER))
    circuit = mt.Circuit.load(grid.as_circuit(k=1).save(tmp_path / "one.json"))
    clean = torch.tensor([grid.provenance["ids"]])
    corrupted = torch.tensor([[int(clean[0, 0]), *model().tokenizer(OTHER)["input_ids"]]])
    with torch.no_grad():
        _, cache = model().run_with_cache(clean, names_filter=circuit.groups.names_filter)
        logits = model().run_with_hooks(corrupted, fwd_hooks=circuit.fwd_hooks(cache))
    found = float(logits[0, -1].softmax(-1)[grid.provenance["answer_ids"][0]])
    assert found == pytest.approx(float(grid.restored.max()), abs=1e-5)
    assert circuit.provenance["trace"]["kind"] == "resid" and circuit.provenance["direction"] == "maximize"


def test_a_threshold_takes_every_cell_above_it() -> None:
    grid = traced()
    cut = float(grid.effect.flatten().sort(descending=True).values[4])
    circuit = grid.as_circuit(threshold=cut)
    assert len(circuit) == 5 and {i for i, e in enumerate(grid.effect.flatten()) if e >= cut} == set(circuit.indices)
    loaded = replace(grid, tracer=None).as_circuit(k=5)
    assert loaded.indices == circuit.indices and np.isnan(loaded.effect)
    for options, message in (
        ({}, "either k= "),
        ({"k": 2, "threshold": 0.1}, "either k= "),
        ({"k": 0}, "k must be from 1 to 18"),
        ({"threshold": 2.0}, "no cell has an effect of 2 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            grid.as_circuit(**options)
    with pytest.raises(ValueError, match="token classes, not positions"):
        made(provenance={"facts": 5}).as_circuit(k=1)


# ------------------------------------------------------------------------------------------------------------ files
NUMBERS = st.floats(0, 1, width=32)
TEXTS = st.text(max_size=6)


@st.composite
def grids(draw: Any) -> TraceGrid:
    kind = draw(st.sampled_from(sorted(SITE)))
    words = tuple(draw(st.lists(TEXTS, min_size=2, max_size=4)))
    positions = draw(st.permutations(range(len(words))))[: draw(st.integers(1, len(words)))]
    layers, units = draw(st.permutations(range(3)))[:2], (1, 0) if kind in ("head", "neuron") else ()
    own = mt.HookGroups.of(model(), mt.mlps(model(), positions=[1]).components) if draw(st.booleans()) else None
    cells = (
        Cells((kind,), tuple(positions), tuple(layers), units, draw(st.integers(1, 3)), 3, 2 if units else 1)
        if own is None
        else Cells((), (), (), n_layers=3, own=own)
    )
    n, numbers = draw(st.integers(1, 3)), np.random.default_rng(draw(st.integers(0, 99)))
    facts = draw(st.dictionaries(TEXTS, st.none() | NUMBERS | TEXTS, max_size=2).filter(lambda d: "facts" not in d))
    return TraceGrid(
        restored=torch.tensor(
            numbers.random((n, *cells.shape)), dtype=draw(st.sampled_from([torch.float32, torch.float64]))
        ),
        corrupted=torch.tensor(numbers.random(n)),
        clean=torch.tensor(numbers.random(n)),
        cells=cells,
        tokens=words,
        subject=(0, len(words)),
        answer=draw(TEXTS),
        severed=tuple(draw(st.sets(st.sampled_from(["mlp", "attn"])))),
        notes=tuple(draw(st.lists(TEXTS, max_size=2))),
        provenance=facts,
    )


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # which the shape checker does, to look at samples
@settings(max_examples=40, deadline=None)
@given(grid=grids())
def test_a_grid_comes_back_as_it_was(grid: TraceGrid, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("grid") / "deep" / "a.json"
    assert grid.save(path) == path and path.with_suffix(".safetensors").is_file()
    again = TraceGrid.load(path)
    for name in ("restored", "corrupted", "clean"):
        assert torch.equal(getattr(again, name), getattr(grid, name))
    for name in ("tokens", "subject", "answer", "severed", "notes", "provenance", "dims", "kind"):
        assert getattr(again, name) == getattr(grid, name)
    assert again.cells == grid.cells or again.cells.groups().labels == grid.cells.groups().labels


def test_a_traced_grid_comes_back_and_its_circuit_too(tmp_path: Path) -> None:
    for restore in ("resid", ("mlp", "attn"), "head"):
        grid = traced(restore)
        again = TraceGrid.load(grid.save(tmp_path / f"{grid.kind}.json"))
        assert repr(again) == repr(grid)
        assert again.as_circuit(k=4).components == grid.as_circuit(k=4).components
        with pytest.raises(FileExistsError, match="overwrite=True"):
            grid.save(tmp_path / f"{grid.kind}.json")


def _shape(record: dict[str, Any]) -> None:
    record["cells"]["positions"].pop()


BREAK: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another shape": (_shape, "cannot hold arrays of shape"),
    "a position outside": (lambda r: r["cells"]["positions"].__setitem__(0, 99), "lies outside 6 tokens"),
    "a layer outside": (lambda r: r["cells"]["layers"].__setitem__(0, 99), "lie outside a model of 3"),
    "an unknown kind": (lambda r: r["cells"].update(kinds=["soul"]), "unknown kind"),
    "no window": (lambda r: r["cells"].update(window=-3), "a window of -3"),
    "units outside": (lambda r: r["cells"].update(units=[7]), "lie outside layers of 1"),
    "a subject outside": (lambda r: r.update(subject=[3, 99]), "lies outside 6 tokens"),
    "a path": (lambda r: r.update(arrays="../secret.safetensors"), "not a plain file name"),
    "others' arrays": (lambda r: r.update(sha256="0" * 64), "is not the array file"),
    "another format": (lambda r: r.update(format="x"), "not a tl_multitrace.trace file"),
    "a newer version": (lambda r: r.update(version=99), "Upgrade"),
    "a field gone": (lambda r: r.pop("cells"), "cells"),
}


@pytest.mark.parametrize("how", BREAK)
def test_descriptions_that_cannot_be(how: str, tmp_path: Path) -> None:
    path = traced().save(tmp_path / "a.json")
    record = json.loads(path.read_text())
    BREAK[how][0](record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=BREAK[how][1]):
        TraceGrid.load(path)


def test_arrays_that_cannot_be(tmp_path: Path) -> None:
    path = traced().save(tmp_path / "a.json")
    arrays = path.with_suffix(".safetensors")
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="cut off, or of another trace"):
        TraceGrid.load(path)
    arrays.unlink()
    with pytest.raises(FileNotFoundError, match="arrays of"):
        TraceGrid.load(path)
    path.write_text(path.read_text()[:80])
    with pytest.raises(ValueError, match="not complete JSON"):
        TraceGrid.load(path)
    with pytest.raises(ValueError, match=r"give the JSON file, such as a\.json"):
        traced().save(tmp_path / "a.safetensors")
    for bad in (torch.nan, torch.inf):
        worse = replace(traced(), restored=torch.full_like(traced().restored, bad))
        with pytest.raises(ValueError, match="restored holds numbers that are no probabilities"):
            TraceGrid.load(worse.save(tmp_path / f"{bad}.json"))


@pytest.mark.parametrize("writer", ["write_bytes", "write_json"])
def test_where_the_description_is_the_trace_is_complete(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(record, writer, full)
        with pytest.raises(OSError, match="no space left"):
            traced().save(tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
    assert TraceGrid.load(traced().save(tmp_path / "a.json")).tokens == traced().tokens


# --------------------------------------------------------------------------------------------------------- pictures
def drawn(figure: Any) -> tuple[list[str], list[str], Any]:
    """Labels of tokens and layers, and the axes; none of them overlap another."""
    figure.canvas.draw()
    axes = figure.axes[0]
    for labels, side in ((axes.get_xticklabels(), "x"), (axes.get_yticklabels(), "y")):
        boxes = [label.get_window_extent() for label in labels]
        spans = sorted((b.x0, b.x1) if side == "x" else (b.y0, b.y1) for b in boxes)
        assert all(a[1] <= b[0] + 1.5 for a, b in pairwise(spans)), side
    return [t.get_text() for t in axes.get_yticklabels()], [t.get_text() for t in axes.get_xticklabels()], axes


@pytest.mark.parametrize("layers", [1, 2, 12, 96])
@pytest.mark.parametrize("tokens", [3, 9, 60, 300])
def test_maps_stay_readable(layers: int, tokens: int) -> None:
    grid = made(layers, tuple(f" word{i}" for i in range(tokens)))
    figure = grid.plot()
    words, numbers, axes = drawn(figure)
    assert numbers[0] == "0" and all(int(n) < layers for n in numbers) and len(numbers) <= 25
    assert "word1*" in words and not any(w.endswith("*") for w in words[3:])
    width, height = figure.get_size_inches()
    assert 3 < width <= 14 and 2 <= height <= 15
    assert np.allclose(axes.images[0].get_array(), grid.effect, atol=1e-7)
    assert axes.images[0].get_clim()[0] == 0.0


def test_what_a_map_says() -> None:
    grid = made(8, (" $x$", " Space", "\n", " of"), kind="mlp", window=3, answer=" $5", severed=("attn",))
    words, _, axes = drawn(grid.plot())
    assert words == [r"\$x\$", "Space*", r"\n*", "of"]
    assert axes.get_title(loc="left") == "Restoring 3 MLP outputs, attn severed\np 0.95 clean, 0.10 corrupted"
    assert axes.get_xlabel() == "centre of a window of 3 layers"
    assert axes.figure.axes[1].get_ylabel() == r"indirect effect on p(\$5)"


def test_negative_effects_have_a_colour_of_their_own() -> None:
    grid = made()
    image = replace(grid, restored=grid.restored - 0.5).plot().axes[0].images[0]
    assert image.get_clim()[0] == -image.get_clim()[1]


def test_heads_are_shown_by_their_largest_or_for_one_token() -> None:
    grid = made(6, units=8)
    assert np.allclose(drawn(grid.plot())[2].images[0].get_array(), grid.effect.amax(-1), atol=1e-7)
    axes = drawn(grid.plot(position=2))[2]
    assert (
        np.allclose(axes.images[0].get_array(), grid.effect[2], atol=1e-7) and axes.get_xlabel() == "head, at Needle*"
    )
    for options, message in (
        ({"position": 9}, "position 9 cannot be shown"),
        ({"lines": True}, "curves are drawn for"),
    ):
        with pytest.raises(ValueError, match=message):
            grid.plot(**options)
    with pytest.raises(ValueError, match="no heads or neurons"):
        made().plot(position=1)


def test_curves_and_bars() -> None:
    grid = made()
    lines = [line for line in grid.plot(lines=True).axes[0].lines if len(line.get_xdata()) == 3]
    assert np.allclose([line.get_ydata() for line in lines], grid.effect, atol=1e-7)
    own = causal_trace(model(), TEXT, subject="old doctor", restore=mt.mlps(model(), positions=[2, 3]))
    assert own.dims == ("sample", "group") and "group" in own.best(2)
    axes = own.plot().axes[0]
    assert np.allclose([bar.get_width() for bar in axes.patches], own.effect.sort(descending=True).values, atol=1e-7)
    with pytest.raises(ValueError, match="has no token view"):
        own.show()


def test_the_view_holds_every_number_and_no_script_of_a_token() -> None:
    grid = made(words=("</script><script>alert(1)</script>", " Space", " Needle", " of"))
    shown = grid.show()
    page = shown.html
    assert "ColoredTokensMulti" in page and "<script>alert(1)" not in page
    assert f"{float(grid.effect[2, 1]):.4g}" in page and "Needle*" in page and "layer 2" in page
    assert "iframe" in shown._repr_html_()


def test_a_view_is_saved(tmp_path: Path) -> None:
    path = made().show().save(tmp_path / "view.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(FileExistsError):
        made().show().save(path)
