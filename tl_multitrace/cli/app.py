"""The commands ``tl-multitrace demo | run | trace | show | report | convert | tasks | reproduce | doctor``.

Results go to standard output, progress to standard error. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tl_multitrace._version import __version__
from tl_multitrace.cli import convert, doctor, reproduce, trace
from tl_multitrace.cli.logs import Level, LogFile, LogLevel, logged
from tl_multitrace.cli.trace import Bos
from tl_multitrace.distributed import Ranks, leave, ranks_of, started_by_torchrun
from tl_multitrace.engine.budget import bytes_from
from tl_multitrace.interventions import intervention_by_name
from tl_multitrace.metrics import BY_NAME, metric_by_name
from tl_multitrace.records.read import printable
from tl_multitrace.runs.bounds import bound_from_text
from tl_multitrace.runs.folder import is_complete, rewrite_report, write_run, writing
from tl_multitrace.runs.job import Job, Log, run_job
from tl_multitrace.solvers import SOLVERS, solver_by_name
from tl_multitrace.spec import Spec, budgets_from_text
from tl_multitrace.tasks import tasks as task_table
from tl_multitrace.tasks.registry import info_of

INTERRUPTED = 130

app = typer.Typer(
    name="tl-multitrace",
    help=__doc__.partition("\n")[2].strip(),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Direction(str, Enum):
    """Whether the metric is to rise or to fall."""

    maximize = "maximize"
    minimize = "minimize"


class Align(str, Enum):
    """What happens to pairs of different token length."""

    drop = "drop"
    right = "right"
    left = "left"


class Dtype(str, Enum):
    """Type of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


def main() -> None:
    """Entry point of ``tl-multitrace`` and ``python -m tl_multitrace``."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # figures are files here
    app(prog_name="tl-multitrace")


# ---------------------------------------------------------------------- options


def _checked(read: Callable[[str], Any]) -> Callable[[str | None], str | None]:
    """A callback that turns the ``ValueError`` of ``read`` into a usage error, before any model is loaded."""

    def check(value: str | None) -> str | None:
        if value is None:
            return None
        try:
            read(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check


def _all_checked(read: Callable[[str], Any]) -> Callable[[list[str] | None], list[str] | None]:
    """The same for an option that may be given several times."""
    check = _checked(read)

    def check_all(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            check(value)
        return values

    return check_all


def _check_components(text: str) -> None:
    for part in text.split(","):
        Spec.of(part)


OVERWRITE_HELP = "Replace an earlier run in that folder."
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run of these arguments stopped.")]
Seed = Annotated[int, typer.Option(min=0, help="Of prompts, split, search and intervals.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must not exist yet, or be empty.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU where there is one.")]
MemoryLimit = Annotated[
    str | None,
    typer.Option(callback=_checked(bytes_from), help="Of activations, beside the weights: 6GiB. Default: measured."),
]
TaskName = Annotated[str | None, typer.Option("--task", callback=_checked(info_of), help="See `tl-multitrace tasks`.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Instead of --task: .csv or .jsonl with base, source, answer [, wrong_answer, group, subject]; a prompt "
        "file of EAP-IG, MIB, auto-circuit, CounterFact or known_1000; or hf:owner/name."
    ),
]
DataPath = Annotated[Path | None, typer.Option("--data", help="The task's file; `tl-multitrace tasks` says which.")]
Components = Annotated[
    str | None,
    typer.Option(
        callback=_checked(_check_components),
        help="heads, heads:pattern, neurons, mlps, attn, mlp_dims, resid; comma separated, each with optional layers "
        "and positions: heads,neurons@0-3,mlps/last. Default: the task's.",
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        callback=_checked(lambda text: budgets_from_text(text, 1 << 30)),
        help="Components at most: 10 (every budget up to it), 1-25, 5,10,20, or heads=5,neurons=20.",
    ),
]
SolverName = Annotated[
    str | None, typer.Option("--solver", callback=_checked(solver_by_name), help=f"One of {', '.join(SOLVERS)}.")
]
MaxCost = Annotated[float | None, typer.Option(min=1.0, help="Stop each search at so many forwards over the prompts.")]
InterventionName = Annotated[
    str | None,
    typer.Option(
        "--intervention", callback=_checked(intervention_by_name), help="interchange, zero, mean, resample or noise."
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        callback=_checked(metric_by_name),
        help=f"One of {', '.join(metric.name for metric in BY_NAME)}. Default: the task's.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        callback=_all_checked(bound_from_text),
        help="TASK=CHANGE, also several times: with the set switched off, the task's metric may rise (above 0) or fall "
        "(below 0) by so much at most: neutral_text=0.02.",
    ),
]
Count = Annotated[int | None, typer.Option("--n", "-n", min=1, help="Prompts to use, at most.")]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the model, if you trust its authors."),
]
Stability = Annotated[int, typer.Option(min=0, help="Repeat the search on so many resamples; 0 for none.")]
HeldOut = Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of prompts kept for scoring; 0 for none.")]


# ---------------------------------------------------------------------- commands


@app.command()
def demo(
    out: Out = Path("demo-run"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The whole job on the model inside this package: which heads and neurons hold a gender stereotype?"""
    job = Job(task="professions", components="heads,neurons", budget="8", seed=seed, device="cpu")
    with _reported(debug, quiet):
        run_into(job, out, overwrite, quiet)


@app.command()
def run(
    out: Out,
    model: Annotated[str, typer.Option(help="Hugging Face name, local folder, or demo.")] = "demo",
    task: TaskName = None,
    prompts: Prompts = None,
    data: DataPath = None,
    components: Components = None,
    budget: Budget = "10",
    solver: SolverName = None,
    max_cost: MaxCost = None,
    intervention: InterventionName = None,
    metric: MetricName = None,
    direction: Annotated[Direction | None, typer.Option(help="Default: the task's.")] = None,
    n: Count = None,
    held_out: HeldOut = 0.3,
    stability: Stability = 5,
    keep: Keep = None,
    align: Annotated[Align, typer.Option(help="Pairs of unequal length: drop, or line up at one end.")] = Align.drop,
    bos: Bos = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.float32,
    trust_remote_code: TrustCode = False,
    memory_limit: MemoryLimit = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    debug: Debug = False,
) -> None:
    """Search any model on a task or your own prompts, and write a run folder."""
    if (task is None) == (prompts is None):
        raise typer.BadParameter("give one of --task and --prompts.")
    if data is not None and task is None:
        raise typer.BadParameter("--data is the file of a --task; prompts of a file are --prompts.")
    if stability == 1:
        raise typer.BadParameter("--stability needs 2 searches or more to compare, or 0 for none.")
    job = Job(
        model=model,
        task=task,
        prompts=None if prompts is None else str(prompts),
        data=None if data is None else str(data),
        components=components,
        budget=budget,
        solver=solver,
        max_cost=max_cost,
        intervention=intervention,
        metric=metric,
        direction=None if direction is None else direction.value,
        n=n,
        held_out=held_out,
        keep=tuple(keep or ()),
        stability=stability,
        align=align.value,
        bos=bos,
        seed=seed,
        device=device,
        dtype=dtype.value,
        trust_remote_code=trust_remote_code,
        memory_limit=memory_limit,
    )
    with _reported(debug, quiet, log_level, log_file):
        run_into(job, out, overwrite, quiet, resume)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A run folder, or a result of this package in JSON.")],
    debug: Debug = False,
) -> None:
    """Print a saved circuit, path, trace or run."""
    from tl_multitrace.cli.show import shown

    with _reported(debug):
        for item in shown(path):
            Console().print(item, markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write elsewhere; must not exist.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file given by --out.")] = False,
    browse: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    debug: Debug = False,
) -> None:
    """Write the HTML report of a run folder again; no model is needed."""
    with _reported(debug):
        page = rewrite_report(folder, out, overwrite=overwrite or out is None)
        _say(str(page))
        if browse and not webbrowser.open(page.resolve().as_uri()):
            _tell("no browser was found on this machine: open that file in one.", style="red")


@app.command()
def tasks(debug: Debug = False) -> None:
    """List the tasks."""
    from tl_multitrace.cli.show import task_list

    with _reported(debug):
        for item in task_list(task_table()):
            Console().print(item)


def _version(value: bool) -> bool:
    if value:
        _say(__version__)
        raise typer.Exit
    return value


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Multi-component causal tracing for TransformerLens: which set of components carries a behaviour?

    Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted by Ctrl-C.
    """


# ---------------------------------------------------------------------- doing it


def run_into(job: Job, out: Path, overwrite: bool, quiet: bool, resume: bool = False) -> None:
    """Run a job into its folder, on every process that ``torchrun`` started, and say what it found."""
    from tl_multitrace.cli.show import closing_lines

    ranks = ranks_of(started_by_torchrun())
    try:
        if resume and _is_there(out, job, ranks):
            _say(f"{out} holds this run already, complete.") if ranks.first else None
            return
        log = Log(_tell_nobody if quiet or not ranks.first else _tell)
        with writing(out, job, log, overwrite=overwrite, resume=resume, ranks=ranks) as checkpoint:
            found = run_job(job, log, progress=not quiet, ranks=ranks, checkpoint=checkpoint)
            if ranks.first:
                with log.step("report", "Writing figures and report"):
                    found = write_run(found, checkpoint.result)
        for line in closing_lines(found, log, out) if ranks.first else ():
            _say(line)
    finally:
        leave()


def _is_there(out: Path, job: Job, ranks: Ranks) -> bool:
    """Whether the run is complete, as the first rank sees it, so that all do the same."""
    found: list[bool] = []
    ranks.after_first(lambda: found.append(is_complete(out, job)))
    return bool(ranks.share_bytes(b"there" if any(found) else b""))


@contextmanager
def _reported(debug: bool, quiet: bool = False, level: Level | None = None, path: Path | None = None) -> Iterator[None]:
    """Errors as one line and an exit code, instead of a traceback; reports as ``--log-level``, ``--log-file`` say."""
    try:
        with logged(quiet, level, path):
            yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        _tell("Interrupted.", style="red")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        _tell(f"Error: {one_line(error)}", style="red")
        raise typer.Exit(1) from None


def one_line(error: Exception) -> str:
    """What went wrong; with its kind where the message alone was not written for a user."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    own = type(error).__module__.partition(".")[0] == __name__.partition(".")[0]
    if (own or isinstance(error, ValueError | OSError | KeyError)) and message:
        return message
    return f"{type(error).__name__}: {message or 'no message'} (add --debug for the traceback)"


def _say(line: str) -> None:
    Console(soft_wrap=True, highlight=False).print(escape(printable(line)))


def _tell(line: str, style: str | None = None) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(escape(printable(line)), style=style)


def _tell_nobody(line: str) -> None:
    """Under ``--quiet``."""


trace.register(app, _reported, _say)
convert.register(app, _reported, _say)
reproduce.register(app, _reported, _say, _tell)
doctor.register(app, _reported)
