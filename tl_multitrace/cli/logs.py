"""``--log-level`` and ``--log-file``: what the library reports while it works, on standard error and into a file.

Progress bars are for people who watch; this is for jobs that nobody watches. Both options can also be set for every
command at once by ``TL_MULTITRACE_LOG_LEVEL`` and ``TL_MULTITRACE_LOG_FILE``. Under ``torchrun`` every rank after the
first writes a file of its own, ``name.rank1.log``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

PACKAGE = logging.getLogger(__name__.partition(".")[0])
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Level(str, Enum):
    """What is reported."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


LogLevel = Annotated[
    Level | None,
    typer.Option(
        "--log-level",
        case_sensitive=False,
        envvar="TL_MULTITRACE_LOG_LEVEL",
        help="Report on standard error: info says what every stage found and cost. Default: warning; error if --quiet.",
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log-file",
        dir_okay=False,
        envvar="TL_MULTITRACE_LOG_FILE",
        help="Add the report, with times, to a file; at level info unless --log-level says otherwise.",
    ),
]


@contextmanager
def logged(quiet: bool, level: Level | None = None, path: Path | None = None) -> Iterator[None]:
    """Report while the block runs; afterwards the loggers are as they were.

    Raises:
        OSError: the file cannot be written.
    """
    shown = _number(level) if level is not None else logging.ERROR if quiet else logging.WARNING
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(shown)
    screen.setFormatter(logging.Formatter("%(message)s" if level is None else FORMAT))
    handlers: list[logging.Handler] = [screen]
    if path is not None:
        kept = logging.FileHandler(_of_rank(path), encoding="utf-8")
        kept.setLevel(logging.INFO if level is None else shown)
        kept.setFormatter(logging.Formatter(FORMAT))
        handlers.append(kept)
    with _attached(handlers):
        try:
            yield
        except Exception as error:  # told on the screen by the command; the file would end without it
            for handler in handlers[1:]:
                what = (type(error), error, error.__traceback__)
                handler.handle(PACKAGE.makeRecord(PACKAGE.name, logging.ERROR, __file__, 0, "failed", (), what))
            raise


@contextmanager
def _attached(handlers: list[logging.Handler]) -> Iterator[None]:
    """Handlers on the root logger; this package reports whatever they take, others warnings and errors."""
    root, before = logging.getLogger(), PACKAGE.level
    captures = len(handlers) > 1
    for handler in handlers:
        root.addHandler(handler)
    PACKAGE.setLevel(min(handler.level for handler in handlers))
    if captures:
        logging.captureWarnings(True)  # so that they are in the file too
    try:
        yield
    finally:
        if captures:
            logging.captureWarnings(False)
        PACKAGE.setLevel(before)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _number(level: Level) -> int:
    return int(getattr(logging, level.value.upper()))


def _of_rank(path: Path) -> Path:
    """The file of this process, where ``torchrun`` has started several."""
    rank = os.environ.get("RANK", "0")
    return path if rank in ("", "0") or not rank.isdecimal() else path.with_suffix(f".rank{rank}{path.suffix}")
