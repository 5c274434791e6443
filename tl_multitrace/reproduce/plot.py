"""The figure of a reproduction: our curves in colour, published numbers in grey."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_multitrace.records.record import draws
from tl_multitrace.records.write import write_bytes
from tl_multitrace.render.style import COLOURS, GREY, MARKERS, new_axes, styled
from tl_multitrace.reproduce.result import Curve, Reproduction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160


@draws(Reproduction)
def plot_reproduction(found: Reproduction, *, ax: Axes | None = None) -> Figure:
    """Our curves with 95 % bands, held-out prompts dashed in the same colour, published numbers in grey.

    Args:
        found: what :func:`tl_multitrace.reproduce.reproduce` returned.
        ax: axes to draw in; default: a new figure.
    """
    from matplotlib.ticker import MaxNLocator

    with styled():
        figure, ax = new_axes(ax, 6.8, 4.4)
        ax.axhline(0, color=GREY, linewidth=0.6)
        names = [c.name for c in found.curves if c.kind == "line"]
        for i, curve in enumerate(found.curves):
            number = names.index(curve.name) if curve.name in names else i
            _draw(ax, curve, number)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(found.axes[0])
        ax.set_ylabel(found.axes[1])
        ax.set_title(f"{found.title}\n{found.model}", loc="left")
        if found.curves:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def _draw(ax: Axes, curve: Curve, number: int) -> None:
    style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.6, "markersize": 4}
    marker, label = MARKERS[number % len(MARKERS)], curve.name
    if curve.kind == "dashed":
        style |= {"linestyle": "--", "linewidth": 1.2}
        marker, label = "", f"{curve.name}, held out"
    if curve.kind == "published":
        style |= {"color": GREY, "linestyle": ":", "markersize": 6, "markerfacecolor": "none"}
    ax.plot(curve.x, curve.y, marker=marker if len(curve.x) <= 40 else "", label=label, **style)
    if curve.low:
        ax.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.15, linewidth=0)


@draws(Reproduction, "png")
def png_of(found: Reproduction, path: Path, *, overwrite: bool = False) -> Path:
    """Write the figure as PNG; raises FileExistsError unless ``overwrite``."""
    import matplotlib.pyplot as plt

    figure, out = plot_reproduction(found), io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return write_bytes(path, out.getvalue(), overwrite=overwrite)
