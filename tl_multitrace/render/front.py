"""A front of two goals: what one costs in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tl_multitrace.evaluation.pareto import Axis, Front
from tl_multitrace.records.record import draws
from tl_multitrace.render.style import COLOURS, GREY, bars, new_axes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED = 3
"""Points that are called by their components at most."""

APART = 0.3
"""Least distance of two of them across, as a share of the front's extent."""


@draws(Front)
def plot_front(front: Front, x: str | None = None, y: str | None = None, *, ax: Axes | None = None) -> Figure:
    """One axis of a front against another, with 95 % intervals; held-out prompts as open circles.

    Args:
        front: what :func:`~tl_multitrace.pareto` found.
        x: name of the goal or constraint across; default the second.
        y: name of the one upwards; default the first.
        ax: axes to draw in; default: a new figure.

    Returns:
        The matplotlib figure. Grey lines, where in sight, are the unpatched model; arrows on the
        axes' labels say what is better.

    Raises:
        ValueError: a name that the front does not have.

    Examples:
        >>> from tl_multitrace.render import plot_front
        >>> pairs, heads = mt.task("professions", model, n=16).pairs, mt.heads(model)
        >>> by_label = {label: pairs.subgroup(label) for label in ("female", "male")}
        >>> objective = mt.Objective([mt.Goal(n, mt.Tracer(model, p, heads)) for n, p in by_label.items()])
        >>> front = mt.pareto(objective, budget=2, levels=2, solver=mt.Greedy())
        >>> plot_front(front, x="male", y="female").savefig("front.png")
    """
    across, upwards = _axis(front, x, 1), _axis(front, y, 0)
    with styled():
        figure, ax = new_axes(ax, 6.8, 4.2)
        _draw(ax, front, across, upwards, held_out=False)
        if any(point.held_out for point in front):
            _draw(ax, front, across, upwards, held_out=True)
            ax.legend(loc="best")
        _name_some(ax, front, across, upwards)
        _mark_unpatched(ax)
        ax.set_xlabel(_label(across))
        ax.set_ylabel(_label(upwards))
        ax.set_title(f"Sets of at most {front.budget} components: {upwards.name} against {across.name}")
    return figure


def _axis(front: Front, name: str | None, default: int) -> Axis:
    if name is None:
        return front.axes[default]
    for axis in front.axes:
        if axis.name == name:
            return axis
    raise ValueError(f"the front has no {name!r}; it trades {', '.join(a.name for a in front.axes)}.")


def _draw(ax: Axes, front: Front, across: Axis, upwards: Axis, *, held_out: bool) -> None:
    scores = [point.held_out if held_out else point.changes for point in front]
    xs, ys = ([s[axis.name] for s in scores] for axis in (across, upwards))
    ax.errorbar(
        [s.mean for s in xs],
        [s.mean for s in ys],
        xerr=bars(xs),
        yerr=bars(ys),
        marker="o",
        markersize=5,
        elinewidth=0.5,
        alpha=0.8,
        linewidth=1.2,
        linestyle="none" if held_out else "-",
        color=COLOURS[1] if held_out else COLOURS[0],
        markerfacecolor="none" if held_out else COLOURS[0],
        label="held-out prompts" if held_out else "the search's prompts",
    )


def _mark_unpatched(ax: Axes) -> None:
    """Lines where nothing changes, as far as they are in sight: far from the front they would only squeeze it."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    if left < 0 < right:
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    if low < 0 < high:
        ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)


def _name_some(ax: Axes, front: Front, across: Axis, upwards: Axis) -> None:
    at = np.array([p.changes[across.name].mean for p in front])
    at = at / (np.ptp(at) or 1.0)
    named: list[int] = []
    for i in (0, len(front) - 1, *range(len(front))):
        apart = all(abs(at[i] - at[j]) > APART for j in named)
        if apart and len(named) < LABELLED:
            named.append(i)
    for i in named:
        point = front[i]
        text = " ".join(point.labels[:3]) + (f" +{len(point.labels) - 3}" if len(point.labels) > 3 else "")
        place = (point.changes[across.name].mean, point.changes[upwards.name].mean)
        ax.annotate(text or "nothing", place, xytext=(6, -10), textcoords="offset points", fontsize=8)


def _label(axis: Axis) -> str:
    arrow = "\N{RIGHTWARDS ARROW}" if axis.better == "higher" else "\N{LEFTWARDS ARROW}"
    unit = f", {axis.unit}" if axis.unit else ""
    return f"{axis.name}{unit}   {axis.better} is better {arrow}"
