"""``tl-multitrace trace``: causal tracing of one prompt, or of a file of facts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tl_multitrace.causal_trace import TraceGrid, average_causal_trace, causal_trace, load_facts
from tl_multitrace.causal_trace.cells import check_kinds
from tl_multitrace.cli.logs import Level, LogFile, LogLevel
from tl_multitrace.engine.budget import bytes_from
from tl_multitrace.loading import load_model, set_bos
from tl_multitrace.records.write import write_text

Reported = Callable[[bool, bool, Level | None, Path | None], AbstractContextManager[None]]
Say = Callable[[str], None]


class Noise(str, Enum):
    """How the subject is corrupted."""

    gaussian = "gaussian"
    uniform = "uniform"
    fixed = "fixed"
    tokens = "replace"


class Severed(str, Enum):
    """What is frozen at its corrupted values."""

    none = "none"
    mlp = "mlp"
    attn = "attn"
    both = "both"


SEVERED = {"none": None, "mlp": "mlp", "attn": "attn", "both": ("mlp", "attn")}
Restore = Annotated[
    str,
    typer.Option(help="resid, mlp, attn, head, neuron; comma separated for one trace each; mlp+attn for both at once."),
]

Bos = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="Begin prompts with a BOS token, or not; default: the model's way."),
]


def register(app: typer.Typer, reported: Reported, say: Say) -> None:
    """Add the command to an app.

    Args:
        app: the command line.
        reported: turns errors into one line and an exit code, given ``debug``, ``quiet``, log level and log file.
        say: prints a line on standard output.
    """

    @app.command()
    def trace(
        out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; with --facts also to resume.")],
        model: Annotated[str, typer.Option(help="Hugging Face name, local folder, or demo.")] = "demo",
        prompt: Annotated[str | None, typer.Option(help="Text up to the answer.")] = None,
        subject: Annotated[str | None, typer.Option(help="Part of the prompt to corrupt, or all.")] = None,
        answer: Annotated[str | None, typer.Option(help="With its leading space; default: the prediction.")] = None,
        facts: Annotated[
            Path | None, typer.Option(help="Instead: facts, as a table or JSON (prompt, subject, answer).")
        ] = None,
        n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Facts to trace, at most.")] = None,
        restore: Restore = "resid",
        window: Annotated[int, typer.Option(min=1, help="Layers per window, for mlp and attn.")] = 10,
        samples: Annotated[int, typer.Option(min=1, help="Draws of the corruption.")] = 10,
        noise: Annotated[float, typer.Option(min=0.0, help="In standard deviations of embeddings.")] = 3.0,
        corruption: Annotated[Noise, typer.Option(help="What happens to the subject.")] = Noise.gaussian,
        severed: Annotated[Severed, typer.Option(help="Outputs frozen at their corrupted values.")] = Severed.none,
        all_facts: Annotated[bool, typer.Option("--all-facts", help="Also facts the model does not predict.")] = False,
        bos: Bos = None,
        seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
        device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU where there is one.")] = None,
        dtype: Annotated[str, typer.Option(help="Of the weights.")] = "float32",
        trust: Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")] = False,
        memory_limit: Annotated[str | None, typer.Option(help="Of activations, beside the weights: 6GiB.")] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results of a prompt.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
        log_level: LogLevel = None,
        log_file: LogFile = None,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        """Corrupt the subject, restore one activation at a time: where does the answer come back?"""
        if (facts is None) == (prompt is None) or (prompt is None) != (subject is None):
            raise typer.BadParameter("give --prompt with --subject, or --facts.")
        if facts is not None and answer is not None:
            raise typer.BadParameter("--answer goes with --prompt; facts bring their own.")
        kinds = _asked(restore)
        shared: dict[str, Any] = {
            "window": window,
            "samples": samples,
            "noise": noise,
            "corruption": corruption.value,
            "severed": SEVERED[severed.value],
            "seed": seed,
            "memory_limit": _amount(memory_limit),
            "progress": not quiet,
        }
        with reported(debug, quiet, log_level, log_file):
            if facts is not None:
                chosen = load_facts(facts)[:n]
                loaded = set_bos(load_model(model, device, dtype, trust_remote_code=trust), bos)
                trace_facts(loaded, chosen, kinds, out, say, known_only=not all_facts, **shared)
            else:
                _free(out, kinds, overwrite)
                loaded = set_bos(load_model(model, device, dtype, trust_remote_code=trust), bos)
                trace_prompt(loaded, str(prompt), kinds, out, say, subject=str(subject), answer=answer, **shared)


def _amount(text: str | None) -> int | None:
    """Bytes of ``--memory-limit``; a usage error where it is no number of them."""
    try:
        return None if text is None else bytes_from(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _asked(restore: str) -> list[str]:
    """The kinds of ``--restore``, one trace each; a usage error where there is no such kind."""
    kinds = list(dict.fromkeys(part.strip() for part in restore.split(",")))
    try:
        for kind in kinds:
            check_kinds(_kinds(kind))
    except ValueError as error:
        raise typer.BadParameter(str(error).replace("restore ''", "restore nothing")) from None
    return kinds


def _kinds(kind: str) -> str | Sequence[str]:
    return kind.split("+") if "+" in kind else kind


def _free(out: Path, kinds: list[str], overwrite: bool) -> None:
    """Refuse to replace results before any work is done."""
    there = [p for k in kinds if (p := out / f"{k}.json").exists()]
    if there and not overwrite:
        raise FileExistsError(f"{there[0]} exists. Choose another --out, or add --overwrite.")


def trace_prompt(model: Any, prompt: str, kinds: list[str], out: Path, say: Say, **options: Any) -> None:
    """Trace one prompt, kind by kind of component, into a folder."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        grids = {kind: causal_trace(model, prompt, restore=_kinds(kind), **options) for kind in kinds}
    for kind, grid in grids.items():
        _write(grid, kind, out)
        say(repr(grid))
    noted = {note for grid in grids.values() for note in grid.notes}
    for text in dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UserWarning)):
        if text not in noted:
            say(f"Warning: {text}")
    say(f"Wrote {out}")


def trace_facts(model: Any, facts: list[Any], kinds: list[str], out: Path, say: Say, **options: Any) -> None:
    """Average the traces of many facts, kind by kind of component, into a folder."""
    for kind in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what they say is in the trace's notes
            grid = average_causal_trace(model, facts, restore=_kinds(kind), folder=out / kind, **options)
        _write(grid, kind, out, lines=not grid.cells.units)
        say(repr(grid))
    say(f"Wrote {out}; every fact's own trace is in {out / kinds[0] / 'facts'}")


def _write(grid: TraceGrid, kind: str, out: Path, *, lines: bool = False) -> None:
    """The trace, its table and its picture."""
    import matplotlib.pyplot as plt

    grid.save(out / f"{kind}.json", overwrite=True)
    write_text(out / f"{kind}.csv", grid.to_dataframe().to_csv(index=False), overwrite=True)
    for name, options in ((kind, {}), *(((f"{kind}-lines", {"lines": True}),) if lines else ())):
        figure = grid.plot(**options)
        figure.savefig(out / f"{name}.png", dpi=160)
        plt.close(figure)
