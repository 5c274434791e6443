"""Figures of the evaluation: how good a circuit is, how stable, how it compares with another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_multitrace.evaluation.circuit_report import CircuitReport
from tl_multitrace.evaluation.compare import CircuitComparison
from tl_multitrace.evaluation.mib import MibScores
from tl_multitrace.evaluation.recovery import Recovery
from tl_multitrace.evaluation.side_effects import SideEffect, SideEffects
from tl_multitrace.evaluation.significance import Significance
from tl_multitrace.evaluation.stability import Stability
from tl_multitrace.records.record import draws
from tl_multitrace.records.stats import Estimate, Score
from tl_multitrace.render.style import COLOURS, GREY, MARKERS, bars, new_axes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 30
"""Components or subgroups that one figure names."""

Number = Score | Estimate


@draws(CircuitReport)
def plot_report(report: CircuitReport, *, fig: Figure | None = None) -> Figure:
    """Effect by subgroup, faithfulness and completeness by ablation, and minimality by component, with 95% intervals.

    Args:
        report: what :func:`tl_multitrace.evaluate` returned.
        fig: an empty figure to draw in; default: a new one.

    Returns:
        The matplotlib figure. Effects and minimality are those of the report's first ablation.

    Examples:
        >>> from tl_multitrace.render import plot_report
        >>> plot_report(mt.evaluate(circuit, task.pairs, draws=20)).savefig("report.png")
    """
    minimality = {k: v for k, v in list(report.minimality.items())[:MOST_ROWS] if v is not None}
    rows = max(len(report.subgroups) + 3, 2 * len(report.ablations), len(minimality))
    with styled():
        made = _figure(fig, 9.6, 1.6 + 0.26 * min(rows, MOST_ROWS))
        axes = made.subplots(1, 3 if minimality else 2, squeeze=False)[0]
        _draw_effects(axes[0], report)
        _draw_ablations(axes[1], report)
        if minimality:
            _draw_rows(axes[2], minimality, COLOURS[2])
            axes[2].set_xlabel("faithfulness lost without it")
            axes[2].set_title("Minimality", loc="left")
    return made


def _figure(figure: Figure | None, width: float, height: float) -> Figure:
    if figure is not None:
        return figure
    made, ax = new_axes(None, width, height)
    ax.remove()
    return made


def _draw_effects(ax: Axes, report: CircuitReport) -> None:
    scores = report.ablations[0]
    rows: dict[str, Number] = {f"all {scores.effect.n} prompts": scores.effect}
    rows |= {f"{name} ({s.n})": s for name, s in list(scores.subgroups.items())[: MOST_ROWS - 3]}
    rows["everything patched"] = scores.full_effect
    if scores.chance is not None:
        rows[f"{scores.chance.n} random sets"] = scores.chance
    _draw_rows(ax, rows, COLOURS[0])
    ax.set_xlabel(f"mean effect ({report.metric_unit or report.metric})")
    ax.set_title(f"Effect, {scores.name}", loc="left")


def _draw_ablations(ax: Axes, report: CircuitReport) -> None:
    for i, name in enumerate(("faithfulness", "completeness")):
        known = [(row, getattr(a, name)) for row, a in enumerate(report.ablations) if getattr(a, name) is not None]
        _draw_points(ax, [row + 0.12 * (2 * i - 1) for row, _ in known], [e for _, e in known], i, name)
    ax.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    ax.axvline(0, color=GREY, linewidth=0.8)
    _name_rows(ax, [a.name + " (undefined)" * bool(a.undefined) for a in report.ablations])
    ax.set_xlabel("1: all of the behaviour")
    ax.set_title("By ablation", loc="left")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _draw_rows(ax: Axes, rows: dict[str, Any], colour: str) -> None:
    ax.axvline(0, color=GREY, linewidth=0.8)
    _draw_points(ax, [float(i) for i in range(len(rows))], list(rows.values()), 0, None, colour)
    _name_rows(ax, list(rows))


def _draw_points(
    ax: Axes, y: Sequence[float], numbers: Sequence[Number], i: int, label: str | None, colour: str | None = None
) -> None:
    means = np.array([value_of(x) for x in numbers])
    style: dict[str, Any] = {"fmt": MARKERS[i], "color": colour or COLOURS[i], "capsize": 3, "markersize": 5}
    ax.errorbar(means, list(y), xerr=bars(numbers) if numbers else None, label=label, **style)


def value_of(number: Number) -> float:
    """The number itself, without its interval."""
    return number.mean if isinstance(number, Score) else number.value


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), [name.replace("$", r"\$")[:40] for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)


# ---------------------------------------------------------------------- the others


@draws(MibScores)
def plot_mib(scores: MibScores, *, ax: Axes | None = None) -> Figure:
    """Faithfulness against the kept fraction of components, one curve per ranking.

    Args:
        scores: what :func:`tl_multitrace.cpr_cmd` returned.
        ax: axes to draw in; default: a new figure.

    Examples:
        >>> from tl_multitrace.render import plot_mib
        >>> scores = mt.cpr_cmd(mt.ComponentScores.of(tracer).mean, tracer=tracer)
        >>> plot_mib(scores).savefig("mib.png")
    """
    with styled():
        figure, ax = new_axes(ax, 6.4, 3.8)
        for i, curve in enumerate(scores.curves):
            areas = "CPR and CMD undefined"
            if curve.cpr is not None and curve.cmd is not None:
                areas = f"CPR {curve.cpr.value:.3g}, CMD {curve.cmd.value:.3g}"
            label = f"{curve.ranking}: {areas}"
            style: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4}
            ax.plot(scores.fractions, np.array(curve.faithfulness, dtype=float), label=label, **style)
        for level in (0, 1):
            ax.axhline(level, color=GREY, linewidth=0.8, linestyle=":" if level else "-")
        ax.set_xscale("log")
        ax.set_xlabel(f"kept fraction of {scores.n_groups} components")
        ax.set_ylabel("faithfulness")
        ax.legend()
    return figure


@draws(Recovery)
def plot_recovery(found: Recovery, *, fig: Figure | None = None) -> Figure:
    """ROC and precision-recall curves.

    Args:
        found: what :func:`tl_multitrace.recovery` returned.
        fig: an empty figure to draw in; default: a new one.

    Examples:
        >>> from tl_multitrace.render import plot_recovery
        >>> plot_recovery(mt.recovery(circuit, truth=["L0H3"])).savefig("recovery.png")
    """
    with styled():
        made = _figure(fig, 7.2, 3.4)
        roc, pr = made.subplots(1, 2)
        roc.plot(*zip(*found.roc_curve, strict=True), color=COLOURS[0], marker="o", markersize=3)
        roc.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        roc.set(xlabel="false positive rate", ylabel="true positive rate")
        roc.set_title(f"ROC, area {found.roc:.3f}", loc="left")
        pr.step(*zip(*[(0.0, found.pr_curve[0][1]), *found.pr_curve], strict=True), color=COLOURS[0], where="pre")
        pr.set(xlabel="recall", ylabel="precision", ylim=(-0.02, 1.02))
        pr.set_title(f"Precision and recall, area {found.pr:.3f}", loc="left")
    return made


@draws(Stability)
def plot_stability(found: Stability, *, ax: Axes | None = None) -> Figure:
    """In which share of the searches each component was chosen, with 95% intervals; filled where it is stable.

    Args:
        found: what :func:`tl_multitrace.stability` returned.
        ax: axes to draw in; default: a new figure.

    Examples:
        >>> from tl_multitrace.render import plot_stability
        >>> found = mt.stability(tracer, mt.AttributionPatching(), resamples=3, budget=2)
        >>> plot_stability(found).savefig("stability.png")
    """
    shown = list(zip(found.components, found.frequencies, strict=True))[:MOST_ROWS]
    with styled():
        figure, ax = new_axes(ax, 5.6, 1.2 + 0.24 * max(1, len(shown)))
        for row, (_, f) in enumerate(shown):
            sure = f.value >= found.threshold
            style: dict[str, Any] = {"fmt": "o", "color": COLOURS[0], "capsize": 3, "markersize": 5}
            ax.errorbar([f.value], [row], xerr=bars([f]), markerfacecolor=COLOURS[0] if sure else "none", **style)
        ax.axvline(found.threshold, color=GREY, linestyle=":", linewidth=1)
        ax.set_xlim(-0.03, 1.03)
        _name_rows(ax, [c.label for c, _ in shown])
        ax.set_xlabel(f"share of {len(found.sets)} searches that chose it")
        ax.set_title(f"Stability, mean Jaccard {found.jaccard:.2f}", loc="left")
    return figure


@draws(CircuitComparison)
def plot_comparison(found: CircuitComparison, *, fig: Figure | None = None) -> Figure:
    """Effect of both circuits on each ground, with 95% intervals; one panel per ground, since units may differ.

    Args:
        found: what :func:`tl_multitrace.compare` returned, with tracers.
        fig: an empty figure to draw in; default: a new one.

    Raises:
        ValueError: no ground was measured.

    Examples:
        >>> from tl_multitrace.render import plot_comparison
        >>> path = mt.select(tracer, [1, 2], mt.Greedy())
        >>> plot_comparison(mt.compare(path[1], path[2])).savefig("comparison.png")
    """
    if not found.transfers:
        raise ValueError("no transfer was measured: give compare() tracers, or circuits that carry theirs.")
    with styled():
        made = _figure(fig, 4.4 * len(found.transfers), 2.2)
        for ax, t in zip(made.subplots(1, len(found.transfers), squeeze=False)[0], found.transfers, strict=True):
            _draw_rows(ax, {"its own circuit": t.own, "the other circuit": t.other}, COLOURS[0])
            ax.set_xlabel(f"mean effect ({t.metric})")
            ratio = ", ratio undefined" if t.ratio is None else f", ratio {t.ratio.value:.2f}"
            ax.set_title(f"On {t.ground}{ratio}", loc="left")
    return made


@draws(SideEffects)
def plot_side_effects(found: SideEffects, *, fig: Figure | None = None) -> Figure:
    """How far the next token moves in each behaviour, and each metric before and after; one panel per unit.

    Args:
        found: what :func:`tl_multitrace.side_effects` returned.
        fig: an empty figure to draw in; default: a new one.

    Examples:
        >>> from tl_multitrace.render import plot_side_effects
        >>> found = mt.side_effects(circuit, {"ioi": mt.task("ioi", model, n=8)})
        >>> plot_side_effects(found).savefig("side_effects.png")
    """
    shown = found.effects[:MOST_ROWS]
    units = {unit: [e for e in shown if e.unit == unit] for unit in dict.fromkeys(e.unit for e in shown)}
    with styled():
        made = _figure(fig, 9.6, 1.2 + 0.3 * len(shown) + 0.75 * len(units))
        grid = made.add_gridspec(len(units), 2, height_ratios=[0.75 + 0.3 * len(some) for some in units.values()])
        first = made.add_subplot(grid[:, 0])
        _draw_rows(first, {e.name: e.kl for e in shown}, COLOURS[2])
        first.set_xlabel("KL of the next token (nats)")
        first.set_title("How much moves", loc="left")
        for row, (unit, some) in enumerate(units.items()):
            ax = made.add_subplot(grid[row, 1])
            _draw_before_after(ax, some, unit)
            if row == 0:
                ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return made


def _draw_before_after(ax: Axes, effects: Sequence[SideEffect], unit: str) -> None:
    ax.axvline(0, color=GREY, linewidth=0.8)
    for i, when in enumerate(("before", "after")):
        _draw_points(
            ax, [row + 0.16 * (2 * i - 1) for row in range(len(effects))], [getattr(e, when) for e in effects], i, when
        )
    _name_rows(ax, [f"{e.name}: {e.metric}" for e in effects])
    ax.set_xlabel(unit or "metric")


@draws(Significance)
def plot_significance(found: Significance, *, ax: Axes | None = None) -> Figure:
    """What the circuit loses without each component; filled where that is more than chance after correction.

    Args:
        found: what :func:`tl_multitrace.significance` returned.
        ax: axes to draw in; default: a new figure.

    Examples:
        >>> from tl_multitrace.render import plot_significance
        >>> tested = mt.significance(circuit, task.pairs, draws=39, replacements=5)
        >>> plot_significance(tested).savefig("significance.png")
    """
    kept = set(found.components())
    shown = sorted(found.tests, key=lambda t: t.adjusted)[:MOST_ROWS]
    with styled():
        figure, ax = new_axes(ax, 5.6, 1.2 + 0.24 * max(1, len(shown)))
        ax.axvline(0, color=GREY, linewidth=0.8)
        faces = [COLOURS[0] if t.component in kept else "none" for t in shown]
        ax.scatter([t.drop for t in shown], range(len(shown)), edgecolors=COLOURS[0], facecolors=faces)
        _name_rows(ax, [f"{t.component.label} (p = {t.adjusted:.2g})" for t in shown])
        ax.set_xlabel(f"effect lost without it ({found.metric})")
        ax.set_title(f"Corrected p-values; circuit p = {found.p_value:.2g}", loc="left")
    return figure
