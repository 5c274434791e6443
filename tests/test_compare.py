"""``compare_solvers``: every number of its table against the searches done one by one."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.solvers.compare_solvers import COSTS

model_of = cache(lambda: build(MODEL_NAMES[0], torch.float64))
HELD_OUT = pairs_of(random_examples(4, seed=6))
BUDGETS = (1, 2, 4)
SOLVERS: dict[str, Any] = {"greedy": mt.Greedy(), "twenty draws": mt.RandomSubset(), "ranked": mt.IntegratedGradients()}


@cache
def tracer() -> mt.Tracer:
    return mt.Tracer(model_of(), pairs_of(random_examples(5, seed=5)), mt.heads(model_of()), metric=mt.OddsRatio())


@cache
def compared(direction: Any = "maximize") -> mt.SolverComparison:
    options: dict[str, Any] = {"direction": direction, "held_out": HELD_OUT, "seed": (0, 3)}
    return mt.compare_solvers(tracer(), BUDGETS, SOLVERS, **options)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_rows_are_the_searches_one_by_one(direction: Any) -> None:
    table = compared(direction).to_dataframe().set_index(["solver", "seed", "budget"])
    assert len(table) == 3 * 2 * 3
    for name, solver in SOLVERS.items():
        for seed in (0, 3):
            path = mt.select(tracer(), BUDGETS, solver, seed=seed, direction=direction, held_out=HELD_OUT)
            for choice in path.choices:
                row = table.loc[name, seed, choice.size]
                mask = torch.zeros(12).index_fill(0, torch.tensor(choice.members, dtype=torch.long), 1.0)
                effect = tracer().effect(mask)
                assert row["effect"] == pytest.approx(float(effect.mean()))
                loss = 1 / (1 + effect) if direction == "maximize" else 1 + effect
                assert row["loss"] == pytest.approx(float(loss.mean()))
                assert row["size"] == len(choice.members)
                assert choice.held_out is not None and row["held_out"] == pytest.approx(choice.held_out.mean)
                assert row["log_effect"] == pytest.approx(choice.score.log)
                assert row["low"] <= row["effect"] <= row["high"]
            assert row["equivalents"] == pytest.approx(row["forwards"] + row["backwards"])
            assert row["forwards"] == pytest.approx(path.cost["forwards"], rel=0.35)  # some runs are already stored


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_ratios_are_to_the_best_at_each_budget(direction: Any) -> None:
    table = compared(direction).to_dataframe()
    sign = 1 if direction == "maximize" else -1
    for _, rows in table.groupby("budget"):
        best = sign * max(sign * rows["effect"])
        assert rows["ratio"].tolist() == pytest.approx((rows["effect"] / best).tolist())
        assert rows["ratio"].max() == pytest.approx(1.0)


def test_no_ratio_where_nothing_moves() -> None:
    still = mt.compare_solvers(tracer(), [2], [mt.AttributionPatching()], forbidden=range(12))
    assert math.isnan(still.to_dataframe()["ratio"][0]) and "ratio_mean" not in repr(still)


def test_the_summary_by_hand() -> None:
    summary, table = compared().summary(), compared().to_dataframe()
    assert list(summary.index) == list(SOLVERS)
    areas = []
    for seed in (0, 3):
        rows = table[(table["solver"] == "twenty draws") & (table["seed"] == seed)]
        e = rows["effect"].tolist()
        areas.append(((e[0] + e[1]) / 2 * 1 + (e[1] + e[2]) / 2 * 2) / 3)
        log_area = ((e[0] + e[1]) / 2 + (e[1] + e[2]) / 2) / 2  # 1, 2 and 4 are evenly spaced
    row = summary.loc["twenty draws"]
    assert row["area"] == pytest.approx(sum(areas) / 2)
    assert row["spread"] == pytest.approx(abs(areas[0] - areas[1]) / math.sqrt(2))
    assert row["optimises"] == "effect" and summary.loc["ranked", "optimises"] == "path-averaged first-order effects"
    assert summary.loc["greedy", "spread"] == 0.0
    assert summary["cost_ratio"].min() == 1.0
    single = mt.compare_solvers(tracer(), [1, 2, 4], {"draws": mt.RandomSubset()}, seed=3).summary()
    assert single.loc["draws", "log_area"] == pytest.approx(log_area) and "spread" not in single


def test_effect_and_loss_stand_side_by_side() -> None:
    columns = list(compared().to_dataframe())
    assert columns.index("loss") - columns.index("effect") <= 5 and set(COSTS) <= set(columns)
    text = repr(compared())
    assert "loss: mean 1/(1+effect), what gradient solvers minimise" in text and "loss_area" in text
    assert "of the effect turned round" in repr(compared("minimize"))


def test_it_says_where_effect_and_loss_disagree() -> None:
    """Against the table itself, and on a problem where a few ratios carry the mean."""
    for comparison, sign in ((compared(), 1), (compared("minimize"), -1)):
        wanted = []
        for budget, rows in comparison.to_dataframe().groupby("budget"):
            best = rows.iloc[int((sign * rows["effect"]).argmax())]
            wanted += [budget] if rows["loss"].min() < best["loss"] * (1 - 1e-6) else []
        assert comparison.disagreements() == wanted
        assert bool(wanted) == ("the best effect and the best loss" in repr(comparison))
    assert compared().disagreements() and not compared("minimize").disagreements()


def test_files(tmp_path: Path) -> None:
    file = compared().save(tmp_path / "a.json")
    loaded = mt.SolverComparison.load(file)
    assert repr(loaded) == repr(compared())
    assert loaded.to_dataframe().equals(compared().to_dataframe())
    assert loaded["greedy"].choices == compared()["greedy"].choices
    with pytest.raises(FileExistsError):
        compared().save(file)
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="not complete JSON"):
        mt.SolverComparison.load(file)
    file.write_text(text.replace("tl_multitrace.comparison", "tl_multitrace.path"))
    with pytest.raises(ValueError, match="is not a tl_multitrace"):
        mt.SolverComparison.load(file)


def test_plot_and_notebook_view() -> None:
    from matplotlib import pyplot

    figure = compared().plot(log_scale=True)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert all(any(name in label for label in labels) for name in SOLVERS)
    assert "forward equivalents" in labels[0]
    pyplot.close(figure)
    assert "<table" in compared()._repr_html_() and "twenty draws" in compared()._repr_html_()


def test_names_and_mistakes() -> None:
    short = mt.compare_solvers(tracer(), 1, ["attribution"])
    assert list(short.paths) == ["attribution patching"] and len(short) == 1
    with pytest.raises(KeyError, match="no solver 'greedy' in this comparison: it has 'attribution patching'"):
        short["greedy"]
    for solvers, message in (
        ([], "no solvers to compare"),
        ([mt.Greedy(), mt.Greedy(patience=1)], "two solvers are called 'greedy'"),
        (["gready"], "unknown solver 'gready'. Did you mean 'greedy'"),
    ):
        with pytest.raises(ValueError, match=message):
            mt.compare_solvers(tracer(), 1, solvers)
    with pytest.raises(ValueError, match="several different ones"):
        mt.compare_solvers(tracer(), 1, ["greedy"], seed=(1, 1))
