"""What every experiment has in common: what is asked of it, and how its results become a record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from tl_multitrace.machine import versions
from tl_multitrace.models.compat import ModelView
from tl_multitrace.records.stats import Score
from tl_multitrace.reproduce.result import Curve, Reproduction, Row
from tl_multitrace.tasks.sieve import published_bos

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to run; all of it plain text and numbers.

    Attributes:
        model: hub name, local folder or ``"demo"``; default: the experiment's own.
        data: the experiment's file, where it reads one.
        published: published results to compare with, prompt by prompt or head by head.
        budget: as :func:`~tl_multitrace.spec.budgets_from_text` takes it; default the experiment's.
        solvers: names; default the experiment's.
        n: prompts at most; default the experiment's number.
        held_out: share of the prompts that no search sees.
        seed: of prompts, split and searches.
        quick: few prompts, budgets and epochs: to see that it runs, not what it gives.
        device: default a GPU where there is one.
        dtype: of the weights.

    Examples:
        >>> from tl_multitrace.reproduce import Request
        >>> Request(model="gpt2", n=64).held_out
        0.3
    """

    model: str | None = None
    data: str | None = None
    published: str | None = None
    budget: str | None = None
    solvers: tuple[str, ...] = ()
    n: int | None = None
    held_out: float = 0.3
    seed: int = 0
    quick: bool = False
    device: str | None = None
    dtype: str = "float32"


@runtime_checkable
class Experiment(Protocol):
    """One published experiment."""

    @property
    def name(self) -> str:
        """What it is called by."""

    @property
    def title(self) -> str:
        """What it is, in one line."""

    @property
    def source(self) -> str:
        """Publication."""

    @property
    def model(self) -> str:
        """The published model that is the default."""

    def check(self, request: Request) -> None:
        """Refuse a request before any model is loaded; raises ValueError."""

    def run(self, work: Work) -> Reproduction:
        """Do it."""


@dataclass
class Work:
    """An experiment under way.

    Attributes:
        request: what was asked.
        model: the loaded model.
        tell: called with a line for the user at each step.
        progress: show the searches' progress bars.
        rows: of the table, so far.
        curves: of the figure, so far.
        settings: beyond the request's own.
        notes: where this run departs from the published one.
        extras: results to save beside the record, by file name.
        equivalents: forward equivalents of the searches, so far.
    """

    request: Request
    model: Any
    tell: Tell = lambda line: None
    progress: bool = False
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    equivalents: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @property
    def view(self) -> ModelView:
        """The model, seen the same on all versions."""
        return ModelView(self.model)

    def prompts(self, published: int, quick: int = 24) -> int:
        """How many prompts to use."""
        if self.request.n is not None:
            return self.request.n
        return min(published, quick) if self.request.quick else published

    def finish(self, experiment: Experiment, axes: tuple[str, str]) -> Reproduction:
        """The record of what was found."""
        if self.request.quick:
            self.notes.append("a quick run: few prompts, budgets and epochs, so the numbers mean little")
        asked = {
            k: v for k, v in asdict(self.request).items() if not (v is None or v is False or v == ()) and k != "model"
        }
        return Reproduction(
            name=experiment.name,
            title=experiment.title,
            source=experiment.source,
            model=self.view.name,
            rows=tuple(self.rows),
            curves=tuple(self.curves),
            axes=axes,
            settings={**asked, **self.settings},
            notes=tuple(self.notes),
            cost={"equivalents": self.equivalents, "seconds": round(time.perf_counter() - self.began, 3)},
            provenance={"model": self.view.describe(), "versions": versions()},
        )


def as_published(model: Any) -> Any:
    """The model, told to put no BOS token in front of prompts where the published code did not."""
    if published_bos(model) is False:
        model.cfg.default_prepend_bos = False
    return model


def scored(quantity: str, unit: str, score: Score, **more: Any) -> Row:
    """A row from a score."""
    return Row(quantity, unit, score.mean, score.low, score.high, n=score.n, **more)
