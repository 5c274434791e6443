"""How figures look, on a page and in a notebook."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tl_multitrace.records.stats import Estimate, Score
from tl_multitrace.render.html import Markup, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # not as many as colours, so that pairs of them come back late
INK = "#010203"
"""Stands for the reader's text colour in the report's figures: black on a light page, white on a dark one."""

GREY = "#808080"
SMALLEST = 0.75
"""Share of its own width to which a figure on a page shrinks: its text of 10 points is still 10 pixels high."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
}
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")


def diverging() -> Colormap:
    """Red below zero, white at it, blue above; readable with the common kinds of colour blindness."""
    import matplotlib as mpl

    return mpl.colormaps["RdBu"].resampled(65)


@contextmanager
def styled() -> Iterator[None]:
    """The package's style for the duration; the reader's own settings for the rest."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


@contextmanager
def inked() -> Iterator[None]:
    """Lines and text in the colour that the page's reader has for text."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {**dict.fromkeys(INKED, INK), "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        yield


def new_axes(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """The figure and axes to draw in: the caller's, or new ones (inches)."""
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax.get_figure(root=True) if hasattr(ax, "_root_figure") else ax.figure, ax  # type: ignore[return-value]
    figure, made = plt.subplots(figsize=(width, height), layout="constrained")
    if "inline" in plt.get_backend().lower():
        plt.close(figure)  # a notebook would show it twice: now, and as the value of the cell
    return figure, made


def bars(numbers: Sequence[Score | Estimate]) -> Float[np.ndarray, "two n"]:
    """Lengths of error bars, below and above; 0 where a number has no interval."""
    at = [x.mean if isinstance(x, Score) else x.value for x in numbers]
    known = [(v, v) if x.low is None or x.high is None else (x.low, x.high) for v, x in zip(at, numbers, strict=True)]
    return np.array([[max(0.0, v - low), max(0.0, high - v)] for v, (low, high) in zip(at, known, strict=True)]).T


def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an inline SVG element in a box that pans where the page is narrow, and the figure closed.

    Args:
        figure: drawn under :func:`inked`.
        name: prefix of the ids inside, distinct per page.
        alt: what a reader who does not see it must know.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(
            out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    plt.close(figure)
    return tag("div", Markup(_inline(out.getvalue(), name, alt)), class_="pan")


def _inline(svg: str, name: str, alt: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body).replace(INK, "currentColor")
    opening, rest = body.split(">", 1)
    points = re.search(r'viewBox="0 0 ([\d.]+)', opening)
    width = round(float(points.group(1)) * 96 / 72) if points else 600
    opening = re.sub(r'\s(width|height|xmlns:?\w*|version)="[^"]*"', "", opening)
    title = tag("title", alt, id=f"{name}-title")
    rest = rest.replace("xlink:href", "href")
    size = f"max-width:{width}px;min-width:{round(SMALLEST * width)}px"
    return f'{opening} style="{size}" role="img" aria-labelledby="{name}-title">{title}{rest}'


def to_file(figure: Figure) -> str:
    """The figure as the text of an SVG file, the same for the same figure, and the figure closed."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "tl_multitrace", "svg.fonttype": "none"}):
        figure.savefig(
            out, format="svg", facecolor="white", bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    plt.close(figure)
    return out.getvalue()
