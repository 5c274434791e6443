"""``tl-multitrace reproduce``: a published experiment on the model at hand, beside the published numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from tl_multitrace.cli.logs import Level, LogFile, LogLevel
from tl_multitrace.reproduce import EXPERIMENTS, experiment_by_name, reproduce
from tl_multitrace.reproduce.result import CURVE, MARKDOWN, check_free

Reported = Callable[[bool, bool, Level | None, Path | None], AbstractContextManager[None]]
Say = Callable[[str], None]


def _known(value: str) -> str:
    try:
        return experiment_by_name(value).name
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Name = Annotated[str, typer.Argument(callback=_known, help=f"One of {', '.join(EXPERIMENTS)}.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for curve, tables and record.")]
Model = Annotated[str | None, typer.Option(help="Hub name, local folder, or demo. Default: the published model.")]
Data = Annotated[Path | None, typer.Option(help="The experiment's file or folder, where it reads one.")]
Published = Annotated[Path | None, typer.Option(help="Published results to compare with (winobias-cma).")]
Budget = Annotated[str | None, typer.Option(help="Components at most, such as 5,10,20. Default: the published ones.")]
Solvers = Annotated[
    str | None, typer.Option("--solver", help="Comma separated, such as pgbct,top-k,greedy. Default: the experiment's.")
]
Count = Annotated[int | None, typer.Option("--n", "-n", min=2, help="Prompts at most. Default: the published number.")]
HeldOut = Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of prompts no search sees; 0: as published.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few prompts, budgets and epochs: does it run?")]


def register(app: typer.Typer, reported: Reported, say: Say, tell: Say) -> None:
    """Add the command to an app.

    Args:
        app: the command line.
        reported: turns errors into one line and an exit code, given ``debug``, ``quiet``, log level and log file.
        say: prints a line on standard output.
        tell: prints a line of progress.
    """

    @app.command("reproduce")
    def reproduce_command(
        name: Name,
        out: Out,
        model: Model = None,
        data: Data = None,
        published: Published = None,
        budget: Budget = None,
        solver: Solvers = None,
        n: Count = None,
        held_out: HeldOut = 0.3,
        seed: Annotated[int, typer.Option(min=0, help="Of prompts, split and searches.")] = 0,
        quick: Quick = False,
        device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU where there is one.")] = None,
        dtype: Annotated[str, typer.Option(help="Of the weights.")] = "float32",
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier reproduction.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
        log_level: LogLevel = None,
        log_file: LogFile = None,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        """Run a published experiment again: its curve and table for this model, beside the published numbers."""
        with reported(debug, quiet, log_level, log_file):
            check_free(out, overwrite=overwrite)
            found = reproduce(
                name,
                out,
                model=model,
                overwrite=overwrite,
                tell=_nobody if quiet else tell,
                progress=not quiet,
                data=_text(data),
                published=_text(published),
                budget=budget,
                solvers=tuple(part.strip() for part in (solver or "").split(",") if part.strip()),
                n=n,
                held_out=held_out,
                seed=seed,
                quick=quick,
                device=device,
                dtype=dtype,
            )
            say(repr(found))
            say(f"Wrote {out / CURVE} and {out / MARKDOWN}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _nobody(line: str) -> None:
    """Under ``--quiet``."""
