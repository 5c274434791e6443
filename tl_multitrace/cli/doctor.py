"""``tl-multitrace doctor``: what a bug report needs, and whether tracing works on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from tl_multitrace.doctor import doctor

Reported = Callable[[bool, bool], AbstractContextManager[None]]

Model = Annotated[str, typer.Option(help="Try this model: Hugging Face name, local folder, or demo.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, float16, float64.")]
AsJson = Annotated[bool, typer.Option("--json", help="The same as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def register(app: typer.Typer, reported: Reported) -> None:
    """Add the command to an app.

    Args:
        app: the command line.
        reported: turns errors into one line and an exit code, given ``debug`` and ``quiet``.
    """

    @app.command("doctor")
    def doctor_command(
        model: Model = "demo",
        device: Device = None,
        dtype: Dtype = "float32",
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Say what a bug report needs: versions, machine, and which hooks work. Exit code 1 if a check failed."""
        with reported(debug, False):
            found = doctor(model, device, dtype)
            text = json.dumps(found.to_dict(), indent=2) if as_json else repr(found)
            sys.stdout.write(text + "\n")  # plain: to be pasted, or piped
            if not found.ok:
                raise typer.Exit(1)
