"""``tl-multitrace convert``: a circuit from one tool's file format into another's."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from tl_multitrace.interop import FORMATS, OURS, Shape, convert, format_by_name

Reported = Callable[[bool, bool], AbstractContextManager[None]]
Say = Callable[[str], None]
NAMES = ", ".join([OURS, *FORMATS])


def shape_from_text(text: str) -> Shape:
    """A model's shape from ``12x12x768`` (layers, heads, d_model) or ``12x12``.

    Raises:
        ValueError: not such text.
    """
    if not re.fullmatch(r"\d{1,6}x\d{1,6}(x\d{1,9})?", text, re.ASCII):
        raise ValueError(f"a shape reads like 12x12x768 (layers, heads, d_model), got {text!r}.")
    layers, heads, *width = map(int, text.split("x"))
    return Shape(layers, heads, width[0] if width else None)


def _checked(read: Callable[[str], object]) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        try:
            read(value) if value is not None else None
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check


From = Annotated[str, typer.Option("--from", callback=_checked(format_by_name), help=f"Format of IN: {NAMES}.")]
To = Annotated[str, typer.Option("--to", callback=_checked(format_by_name), help="Format of OUT, likewise.")]
ShapeText = Annotated[
    str | None,
    typer.Option(callback=_checked(shape_from_text), help="Layers x heads x d_model, where IN lacks it: 12x12x768."),
]


def register(app: typer.Typer, reported: Reported, say: Say) -> None:
    """Add the command to an app.

    Args:
        app: the command line.
        reported: turns errors into one line and an exit code, given ``debug`` and ``quiet``.
        say: prints a line on standard output.
    """

    @app.command("convert")
    def convert_files(
        source: Annotated[Path, typer.Argument(metavar="IN", help="File to read.")],
        target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; it must not exist yet.")],
        source_format: From,
        target_format: To,
        shape: ShapeText = None,
        edges: Annotated[int | None, typer.Option(min=1, help="First keep so many edges, by absolute score.")] = None,
        nodes: Annotated[int | None, typer.Option(min=1, help="Or so many heads and MLPs.")] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        """Convert a circuit between tools' formats; what OUT cannot hold is listed."""
        if edges is not None and nodes is not None:
            raise typer.BadParameter("give at most one of --edges and --nodes.")
        model = None if shape is None else shape_from_text(shape)
        with reported(debug, False), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            item = convert(
                source, target, source_format, target_format, shape=model, edges=edges, nodes=nodes, overwrite=overwrite
            )
            say(f"Read {item!r}".partition("\n")[0])
            for note in dict.fromkeys(str(w.message) for w in said):
                say(f"Warning: {note}")
            say(f"Wrote {target}")
