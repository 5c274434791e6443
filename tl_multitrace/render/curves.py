"""Effect against budget, and effect per subgroup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tl_multitrace.circuit import Circuit
from tl_multitrace.copies import copies_of
from tl_multitrace.records.record import draws
from tl_multitrace.records.stats import Copies, Score, by_label
from tl_multitrace.render.style import COLOURS, GREY, MARKERS, bars, new_axes, styled
from tl_multitrace.solvers import SubsetPath
from tl_multitrace.solvers.path import chance_score
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANCE_SIZES = 5
MOST_SUBGROUPS = 40


def solver_name(path: SubsetPath) -> str:
    """The name of the solver that made a path."""
    return str(dict(path.provenance.get("solver") or {}).get("name", "unknown solver"))


def unit_of(result: SubsetPath | Circuit) -> str:
    """Unit of a result's effects, from its provenance."""
    facts = result.provenance
    return str(facts.get("metric_unit") or facts.get("metric") or "effect")


def chance_by_size(path: SubsetPath, most: int = CHANCE_SIZES) -> dict[int, Score]:
    """Effect of random sets by set size: what the path already knows, and a few sizes more where it has its tracer.

    Args:
        path: its choices' kinds are what the random sets are drawn alike.
        most: sizes to measure at most, 20 draws each.
    """
    known = {len(c.members): c.chance for c in path.choices if c.chance is not None}
    if path.tracer is None or len(known) >= min(most, len(path)):
        return dict(sorted(known.items()))
    seed = int(path.provenance.get("seed", 0))
    by_size = {len(c.members): c.members for c in path.choices if c.members}
    ranks = np.unique(np.linspace(0, len(by_size) - 1, min(most, len(by_size))).round().astype(int))
    for size in (sorted(by_size)[i] for i in ranks):
        if size not in known:
            found = chance_score(path.objective or path.tracer, by_size[size], seed)
            known |= {} if found is None else {size: found}
    return dict(sorted(known.items()))


# ---------------------------------------------------------------------- effect against budget


@draws(SubsetPath)
def plot_path(path: SubsetPath, *others: SubsetPath, log_scale: bool = False, ax: Axes | None = None) -> Figure:
    """Effect against budget with 95% bands; held-out prompts dashed, random sets dotted, other solvers over it.

    Args:
        path: the search to show.
        others: searches by other solvers on the same prompts and metric.
        log_scale: show the metric's log-scale quantity instead (change of the log-odds in nats for ``OddsRatio``),
            which a few large ratios do not move. Without bands and random sets, whose intervals are of the ratio.
        ax: axes to draw in; default: a new figure.

    Returns:
        The matplotlib figure. The legend says what each search cost in forward equivalents.

    Raises:
        ValueError: another path has another unit; ``log_scale`` for a metric without a log-scale quantity.

    Examples:
        >>> from tl_multitrace.render import plot_path
        >>> path = mt.select(tracer, [1, 2], mt.Greedy())
        >>> plot_path(path).savefig("path.png")
    """
    _check(path, others, log_scale)
    with styled():
        figure, ax = new_axes(ax, 6.8, 4.0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        for i, other in enumerate((path, *others)):
            _draw_path(ax, other, i, log_scale)
        if not log_scale:
            _draw_references(ax, path)
        _label_path(ax, path, log_scale)
    return figure


def _check(path: SubsetPath, others: Sequence[SubsetPath], log_scale: bool) -> None:
    for other in others:
        if unit_of(other) != unit_of(path):
            raise ValueError(
                f"one path is in {unit_of(path)!r}, another in {unit_of(other)!r}: they cannot share an axis. "
                "Compare searches of one metric."
            )
    if log_scale and any(c.score.log is None for p in (path, *others) for c in p.choices):
        metric = path.provenance.get("metric", "this metric")
        raise ValueError(f"{metric} has no log-scale quantity: leave out log_scale=True, or search with OddsRatio().")


def _value(score: Score, log_scale: bool) -> float:
    return float(score.log) if log_scale and score.log is not None else score.mean


def _draw_path(ax: Axes, path: SubsetPath, i: int, log_scale: bool) -> None:
    """The first path lies on top, with its interval; where colours come back, lines are dotted."""
    sizes, colour, marker = path.sizes, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    line: dict[str, Any] = {"linewidth": 1.6, "linestyle": "-" if i < len(COLOURS) else ":", "zorder": 3 if i else 4}
    label = f"{solver_name(path)}, {path.cost.get('equivalents', 0):.0f} forward equivalents"
    dot = marker if len(sizes) <= 30 else None
    means = np.array([_value(c.score, log_scale) for c in path.choices])
    ax.plot(sizes, means, color=colour, marker=dot, markersize=4, label=label, **line)
    if i:
        return
    if not log_scale:
        down, up = bars([c.score for c in path.choices])
        ax.fill_between(sizes, means - down, means + up, color=colour, alpha=0.2, linewidth=0)
    held = [(c.size, c.held_out) for c in path.choices if c.held_out is not None]
    if held:
        _draw_held_out(ax, held, colour, log_scale)


def _draw_held_out(ax: Axes, held: list[tuple[int, Score]], colour: str, log_scale: bool) -> None:
    sizes, scores = [s for s, _ in held], [s for _, s in held]
    if log_scale and any(s.log is None for s in scores):
        return
    label = f"the same sets on {scores[0].n} held-out prompts"
    means = np.array([_value(s, log_scale) for s in scores])
    ends = None if log_scale else bars(scores)
    style: dict[str, Any] = {"linestyle": "--", "linewidth": 1.4, "elinewidth": 0.9, "capsize": 2}
    ax.errorbar(sizes, means, ends, color=colour, errorevery=max(1, len(sizes) // 12), label=label, **style)


def _draw_references(ax: Axes, path: SubsetPath) -> None:
    chance = chance_by_size(path)
    if chance:
        means = np.array([s.mean for s in chance.values()])
        style: dict[str, Any] = {
            "color": GREY,
            "marker": "x",
            "markersize": 5,
            "linestyle": ":",
            "capsize": 2,
            "linewidth": 1.2,
        }
        ax.errorbar(list(chance), means, bars(list(chance.values())), label="95 % of random sets of that size", **style)
    label = f"everything patched ({len(path.groups)} components)"
    ax.axhline(path.full_effect, color=GREY, linestyle="-.", linewidth=1.1, label=label)


def _label_path(ax: Axes, path: SubsetPath, log_scale: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    n = dict(path.provenance.get("prompts") or {}).get("n")
    unit = "change of log-odds (nats)" if log_scale else f"effect ({unit_of(path)})"
    ax.set_xlabel("budget (largest number of components)")
    ax.set_ylabel(unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.02)
    ax.set_title("Effect against budget" + (f", {n} prompts" if n else ""), loc="left")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1 if len(ax.lines) < 6 else 2)


# ---------------------------------------------------------------------- subgroups


def plot_subgroups(
    effects: Circuit | Any,
    labels: Sequence[str] | Tracer,
    *,
    held_out: tuple[Any, Sequence[str]] | None = None,
    unit: str = "",
    ax: Axes | None = None,
    seed: int = 0,
) -> Figure:
    """Mean effect per subgroup of the prompts, with 95% bootstrap intervals over prompts.

    Args:
        effects: per-example effects, ``[n]``, as ``tracer.effect(circuit.mask)`` gives them; or a circuit.
        labels: the subgroup of each prompt; for a circuit its tracer, whose ``pairs.labels`` they are.
        held_out: effects and labels of held-out prompts, drawn beside.
        unit: of the effects; a circuit brings its own.
        ax: axes to draw in; default: a new figure.
        seed: of the bootstrap.

    Returns:
        The matplotlib figure: one row per subgroup and one for all prompts.

    Raises:
        ValueError: numbers of effects and labels differ, or there are no labels.
        TypeError: a circuit without a tracer.

    Examples:
        >>> from tl_multitrace.render import plot_subgroups
        >>> figure = plot_subgroups(circuit, tracer)
        >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        ['all (n = 16)', 'female (n = 8)', 'male (n = 8)']
    """
    values, names, own_unit = _effects(effects, labels)
    copies = copies_of(labels) if isinstance(labels, Tracer) else None
    sets = {"search prompts": subgroup_scores(values, names, seed, copies)}
    if held_out is not None:
        sets["held-out prompts"] = subgroup_scores(np.asarray(held_out[0], dtype=float), held_out[1], seed)
    order = list(dict.fromkeys(name for scores in sets.values() for name in scores))[: MOST_SUBGROUPS + 1]
    with styled():
        figure, ax = new_axes(ax, 6.8, 1.4 + 0.36 * len(order))
        ax.axvline(0, color=GREY, linewidth=0.8)
        for i, (label, scores) in enumerate(sets.items()):
            _draw_subgroups(ax, scores, order, label, i, len(sets))
        _label_subgroups(ax, sets, order, unit or own_unit)
    return figure


def subgroup_scores(effects: Any, labels: Sequence[str], seed: int = 0, copies: Copies = None) -> dict[str, Score]:
    """Score of all prompts (under ``"all"``) and of every subgroup, largest subgroup effect first.

    Raises:
        ValueError: numbers of effects and labels differ, or there are none.
    """
    values = np.asarray(effects, dtype=float)
    if not len(labels) or values.shape != (len(labels),):
        raise ValueError(
            f"{len(labels)} labels for effects of shape {values.shape}: give one subgroup label per prompt, such as "
            "PromptPairs.from_text(..., labels=...)."
        )
    ranked = dict(sorted(by_label(values, labels, copies, seed).items(), key=lambda item: -item[1].mean))
    return {"all": Score.of(values, copies=copies, seed=seed), **ranked}


def _effects(effects: Any, labels: Any) -> tuple[Float[np.ndarray, " n"], Sequence[str], str]:
    if not isinstance(effects, Circuit):
        values = effects.detach().cpu() if hasattr(effects, "detach") else effects
        return np.asarray(values, dtype=float), labels, "effect"
    if not isinstance(labels, Tracer):
        raise TypeError("plot_subgroups(circuit, tracer) needs the tracer that the circuit was found with.")
    found = labels.effect(effects.mask).double().cpu().numpy()
    return found, labels.pairs.labels, unit_of(effects)


def _draw_subgroups(ax: Axes, scores: dict[str, Score], order: list[str], label: str, i: int, n: int) -> None:
    here = [(row, scores[name]) for row, name in enumerate(order) if name in scores]
    y = [row + (0.16 * (2 * i - 1) if n > 1 else 0.0) for row, _ in here]
    scores_here = [s for _, s in here]
    face = COLOURS[i] if i == 0 else "none"
    style: dict[str, Any] = {"fmt": MARKERS[i], "color": COLOURS[i], "markerfacecolor": face, "capsize": 3}
    ax.errorbar([s.mean for s in scores_here], y, xerr=bars(scores_here), markersize=6, label=label, **style)


def _label_subgroups(ax: Axes, sets: dict[str, dict[str, Score]], order: list[str], unit: str) -> None:
    def name(group: str) -> str:
        counts = " + ".join(str(scores[group].n) if group in scores else "0" for scores in sets.values())
        return f"{_literal(group)} (n = {counts})"

    ax.set_yticks(range(len(order)), [name(g) for g in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.axhline(0.5, color=GREY, linewidth=0.5, alpha=0.6)
    ax.set_xlabel(f"mean effect ({unit}), 95% interval")
    ax.tick_params(axis="y", length=0)
    if len(sets) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _literal(text: str) -> str:
    """A label that matplotlib does not read as mathematics."""
    short = text if len(text) <= 40 else text[:39] + "…"
    return short.replace("$", r"\$")
