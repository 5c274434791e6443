"""Causal traces as heat maps, curves and token views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tl_multitrace.causal_trace import CausalTokens, TraceGrid
from tl_multitrace.records.record import draws
from tl_multitrace.records.write import write_text
from tl_multitrace.render.embed import asset, bundle, page, view
from tl_multitrace.render.html import Markup, tag
from tl_multitrace.render.style import COLOURS, GREY, diverging, new_axes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTES = {"mlp": "Greens", "attn": "Reds"}
"""Colours of the published maps: purple for states, green for MLPs, red for attention."""

NAMES = {"resid": "state", "mlp": "MLP output", "attn": "attention output", "head": "head", "neuron": "neuron"}
BARS = 30
ROWS = 100
"""Tokens that are named in a map; of longer prompts every second, third ... is."""


@draws(TraceGrid)
def plot_trace(grid: TraceGrid, *, lines: bool = False, position: int | None = None, ax: Axes | None = None) -> Figure:
    """The mean indirect effect of every cell.

    A heat map of tokens (top to bottom, subject tokens starred) by layers. Where an effect is clearly negative, red is
    below zero and blue above; else the map runs from zero. Heads and neurons: the largest of a layer's, or one map of
    layers by units for a single position. A user's own groups: bars, largest first.

    Args:
        grid: the trace.
        lines: curves over layers with 95 % intervals instead, one per token.
        position: for heads and neurons: the token to show.
        ax: axes to draw in; default: a new figure.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: ``lines`` or ``position`` where the grid has no such axes.
    """
    if grid.cells.own is not None:
        return _bars(grid, ax)
    if lines:
        return _lines(grid, ax)
    if position is not None and (not grid.cells.units or position not in grid.cells.positions):
        there = grid.cells.positions if grid.cells.units else "no heads or neurons to show at one"
        raise ValueError(f"position {position} cannot be shown: the trace has {there}.")
    effect = grid.effect.double().numpy()
    if grid.cells.units and (position is not None or len(grid.cells.positions) == 1):
        at = 0 if position is None else grid.cells.positions.index(position)
        return _unit_map(grid, effect[at], grid.cells.positions[at], ax)
    if grid.cells.units:
        effect = np.fmax.reduce(effect, axis=-1)
    return _token_map(grid, effect, ax)


# ---------------------------------------------------------------------- heat maps


def _token_map(grid: TraceGrid, effect: Float[np.ndarray, "position layer"], ax: Axes | None) -> Figure:
    rows, columns = effect.shape
    cell = min(0.42, max(0.068, 7.0 / columns))
    height = min(0.3, max(0.13, 9.0 / rows)) if rows <= ROWS else 0.13 * ROWS / rows
    with styled():
        figure, ax = new_axes(ax, max(4.4, columns * cell + 2.9), max(2.2, rows * height + 1.4))
        image = _image(ax, grid, effect)
        shown = _named_rows(grid)
        absent = np.isnan(effect).all(1)
        ax.set_yticks(shown, [_token(grid, grid.cells.positions[i]) + " (none)" * bool(absent[i]) for i in shown])
        if height < 0.2:
            ax.tick_params(axis="y", labelsize=7)
        _layer_ticks(ax, grid, columns * cell)
        ax.set_xlabel(_layer_label(grid))
        _finish(figure, ax, image, grid, "largest unit's " if grid.cells.units else "")
    return figure


def _named_rows(grid: TraceGrid) -> list[int]:
    """Rows whose token is written beside them: all, or of long prompts every so many, and the subject's."""
    rows = len(grid.cells.positions)
    step = -(-rows // ROWS)
    starred = [i for i, p in enumerate(grid.cells.positions) if grid.subject[0] <= p < grid.subject[1]]
    own = set(starred[::step])
    return [i for i in range(rows) if i in own or (i % step == 0 and all(abs(i - s) >= step for s in own))]


def _unit_map(grid: TraceGrid, effect: Float[np.ndarray, "layer unit"], position: int, ax: Axes | None) -> Figure:
    layers, units = effect.shape
    with styled():
        figure, ax = new_axes(ax, min(11.0, max(4.4, units * 0.3 + 2.4)), min(9.0, max(2.3, layers * 0.3 + 1.45)))
        image = _image(ax, grid, effect)
        step = max(1, layers // 16)
        ax.set_yticks(range(0, layers, step), [str(i) for i in grid.cells.layers[::step]])
        step = max(1, units // 16)
        ax.set_xticks(range(0, units, step), [str(i) for i in grid.cells.units[::step]])
        ax.set_ylabel("layer")
        ax.set_xlabel(f"{grid.kind}, at {_token(grid, position)}")
        _finish(figure, ax, image, grid, "")
    return figure


def _image(ax: Axes, grid: TraceGrid, effect: Float[np.ndarray, "rows columns"]) -> Any:
    import matplotlib as mpl

    largest = float(np.nanmax(np.abs(effect))) or 1e-9
    signed = float(np.nanmin(effect)) < -0.15 * largest
    colours = diverging() if signed else mpl.colormaps[PALETTES.get(grid.kind, "Purples")]
    colours = colours.with_extremes(bad="#e4e4e4")  # no such token: not the same as no effect
    image = ax.imshow(
        effect, aspect="auto", interpolation="nearest", cmap=colours, vmin=-largest if signed else 0.0, vmax=largest
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _finish(figure: Figure, ax: Axes, image: Any, grid: TraceGrid, which: str) -> None:
    answer = "p(answer)" if grid.averaged else f"p({_plain(grid.answer.strip())})"
    inches = figure.get_size_inches()[1]
    figure.colorbar(image, ax=ax, label=f"{which}indirect effect on {answer}", aspect=max(14, 6 * inches), pad=0.02)
    severed = f", {' and '.join(grid.severed)} severed" if grid.severed else ""
    who = (
        f"{len(grid.corrupted)} facts" if grid.averaged else f"p {_p(grid.clean)} clean, {_p(grid.corrupted)} corrupted"
    )
    ax.set_title(f"Restoring {_restored(grid)}{severed}\n{who}", loc="left", fontsize=10)


def _restored(grid: TraceGrid) -> str:
    """What a cell restores, in words."""
    several = grid.cells.window > 1
    what = " and ".join(NAMES[k] + "s" * several for k in grid.cells.kinds)
    return f"{grid.cells.window if several else 'one'} {what}"


def _p(values: Any) -> str:
    return f"{float(values.mean()):.2f}"


def _token(grid: TraceGrid, position: int) -> str:
    if grid.averaged:
        return grid.tokens[position]
    starred = "*" if grid.subject[0] <= position < grid.subject[1] else ""
    return _plain(visible(grid.tokens[position])) + starred


def visible(word: str) -> str:
    """A token as it can be read: white space written out where there is nothing else."""
    return word.strip() or repr(word)[1:-1]


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def _layer_ticks(ax: Axes, grid: TraceGrid, inches: float) -> None:
    layers = grid.cells.layers
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, len(layers)) if inches * s / len(layers) >= 0.24)
    ax.set_xticks(range(0, len(layers), step), [str(i) for i in layers[::step]])


def _layer_label(grid: TraceGrid) -> str:
    return f"centre of a window of {grid.cells.window} layers" if grid.cells.window > 1 else "layer"


# ---------------------------------------------------------------------- curves and bars


def _lines(grid: TraceGrid, ax: Axes | None) -> Figure:
    if grid.cells.units:
        raise ValueError("curves are drawn for whole layers; heads and neurons have maps.")
    from matplotlib.ticker import MaxNLocator

    low, high = grid.interval()
    effect = grid.effect
    with styled():
        figure, ax = new_axes(ax, 7.2, 4.0)
        for i, position in enumerate(grid.cells.positions):
            if bool(effect[i].isnan().all()):
                continue
            colour, style = COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]
            ax.fill_between(grid.cells.layers, low[i], high[i], color=colour, alpha=0.18, linewidth=0)
            ax.plot(grid.cells.layers, effect[i], style, color=colour, label=_token(grid, position))
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(_layer_label(grid))
        ax.set_ylabel("indirect effect on p(answer)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        ax.set_title(f"{'facts' if grid.averaged else 'draws'}: mean and 95 % interval", loc="left", fontsize=10)
    return figure


def _bars(grid: TraceGrid, ax: Axes | None) -> Figure:
    frame = grid.best(BARS)
    labels, values = [_plain(t) for t in frame["group"]], frame["effect"].to_numpy()
    errors = np.abs(np.stack([values - frame["low"].astype(float), frame["high"].astype(float) - values]))
    with styled():
        figure, ax = new_axes(ax, 6.0, max(1.6, 0.24 * len(frame) + 1.0))
        ax.barh(range(len(frame)), values, xerr=errors, color=COLOURS[0], error_kw={"ecolor": GREY, "lw": 1})
        ax.set_yticks(range(len(frame)), labels)
        ax.invert_yaxis()
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_xlabel(f"indirect effect on p({_plain(grid.answer.strip())})")
    return figure


@draws(CausalTokens)
def plot_tokens(tokens: CausalTokens, ax: Axes | None = None) -> Figure:
    """What corrupting and restoring each token alone does to the answer's probability, with 95 % intervals.

    Args:
        tokens: from :func:`~tl_multitrace.causal_trace.causal_tokens`.
        ax: axes to draw in; default: a new figure.
    """
    frame = tokens.to_dataframe()
    with styled():
        figure, ax = new_axes(ax, max(4.0, 0.55 * len(frame) + 2.0), 3.2)
        for i, how in enumerate(("corrupt", "restore")):
            values = frame[how].to_numpy()
            low, high = (frame[f"{how}_{end}"].astype(float) for end in ("low", "high"))
            errors = np.abs(np.stack([values - low, high - values]))
            at = np.arange(len(frame)) + (i - 0.5) * 0.38
            label = "corrupted alone" if how == "corrupt" else "restored alone"
            ax.bar(at, values, 0.36, yerr=errors, color=COLOURS[1 - i], label=label, error_kw={"ecolor": GREY, "lw": 1})
        ax.axhline(0, color=GREY, linewidth=0.8)
        words = [_plain(visible(t)) for t in frame["token"]]
        ax.set_xticks(range(len(frame)), words, rotation=45 if max(map(len, words)) > 5 else 0, ha="center")
        ax.set_ylabel(f"change of p({_plain(tokens.answer.strip())})")
        ax.legend(loc="best")
    return figure


# ---------------------------------------------------------------------- token views


@dataclass(frozen=True)
class ShownTokens:
    """A circuitsvis token view that a notebook shows as the value of a cell.

    Attributes:
        title: heading.
        body: the page's content.
    """

    title: str
    body: Markup

    @property
    def html(self) -> str:
        """A self-contained page: nothing is fetched."""
        return page(self.title, self.body, scripts=(bundle(), asset("report.js")))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page; raises FileExistsError unless ``overwrite``."""
        return write_text(Path(path), self.html, overwrite=overwrite)

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" title="{escape(self.title)}" '
            'style="width:100%;height:320px;border:1px solid #8888;resize:vertical"></iframe>'
        )

    def __repr__(self) -> str:
        return f"ShownTokens({self.title}; .save(path) writes it)"


@draws(TraceGrid, "show")
def show_trace(grid: TraceGrid) -> ShownTokens:
    """The prompt's tokens coloured by the effect of restoring them, one layer at a time (circuitsvis).

    Raises:
        ValueError: a trace of hook groups, which has no tokens.
    """
    if grid.cells.own is not None:
        raise ValueError("a trace of hook groups has no token view: use plot() or to_dataframe().")
    effect = grid.effect.double().nan_to_num().numpy()
    effect = effect.max(-1) if grid.cells.units else effect
    words = [_starred(grid, p) for p in grid.cells.positions]
    labels = [f"layer {layer}" for layer in grid.cells.layers]
    caption = f"Indirect effect of restoring {_restored(grid)} on p({grid.answer.strip()}), by token; choose a layer"
    return _shown("Causal trace", words, effect, labels, caption)


@draws(CausalTokens, "show")
def show_tokens(tokens: CausalTokens) -> ShownTokens:
    """The prompt's tokens coloured by what corrupting, and restoring, each alone does (circuitsvis)."""
    values = np.stack([tokens.corrupt.double().mean(0).numpy(), tokens.restore.double().mean(0).numpy()], -1)
    words = [visible(tokens.tokens[p]) for p in tokens.positions]
    caption = f"Change of p({tokens.answer.strip()}) when one token is corrupted, or restored"
    return _shown("Causal tokens", words, values, ["corrupted alone", "restored alone"], caption)


def _starred(grid: TraceGrid, position: int) -> str:
    starred = not grid.averaged and grid.subject[0] <= position < grid.subject[1]
    return visible(grid.tokens[position]) + ("*" if starred else "")


def _shown(
    title: str, words: Sequence[str], values: Float[np.ndarray, "tokens k"], labels: Sequence[str], caption: str
) -> ShownTokens:
    if not np.isfinite(values).all():
        raise ValueError("a view of numbers that are not finite would be blank.")
    bound = float(np.abs(values).max()) or 1.0
    props = {
        "tokens": [f" {w}" for w in words],
        "values": [[float(f"{v:.4g}") for v in row] for row in values.tolist()],
        "labels": list(labels),
        "positiveBounds": [bound] * len(labels),
        "negativeBounds": [-bound] * len(labels),
    }
    figure = tag("figure", tag("figcaption", caption), view("ColoredTokensMulti", props, key="trace", title=caption))
    return ShownTokens(title, tag("main", tag("h1", title), figure, class_="notebook"))
