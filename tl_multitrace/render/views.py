"""What the circuitsvis views show, as plain data: computed once with the model, saved, shown without it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from tl_multitrace.records.record import Record, result

Share = Annotated[float, Field(ge=0.0, le=1.0)]
RunName = Literal["base", "source", "patched"]

MAX_BYTES = 3_000_000
"""Ceiling of the data of all views on one page; what does not fit is left out and named."""


@dataclass(frozen=True)
class RunView:
    """One run of one prompt.

    Attributes:
        words: its tokens.
        attention: weights of the shown heads, ``[heads][dest][src]``.
        neurons: activations of the shown neurons, ``[tokens][neurons]``.
        answers: probability that each answer (its first token) comes next, ``[tokens][answers]``.
    """

    words: list[str]
    attention: list[list[list[Share]]] = field(default_factory=list)
    neurons: list[list[FiniteFloat]] = field(default_factory=list)
    answers: list[list[Share]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.words)
        if any(len(p) != n or any(len(row) != n for row in p) for p in self.attention):
            raise ValueError(f"an attention pattern is not {n} by {n}, the number of tokens")
        if any(rows and len(rows) != n for rows in (self.neurons, self.answers)):
            raise ValueError(f"activations or answers are not of {n} tokens")


@dataclass(frozen=True)
class ExampleView:
    """One prompt pair: its runs, and what the circuit does to it.

    Attributes:
        pair: its number in the prompt set.
        answers: the answers whose probability is shown, right ones first.
        n_right: how many of them are right.
        effect: the circuit's effect on it.
        read: position whose next token is the answer.
        runs: base, source (where there is a source prompt) and patched.
        label: its subgroup.
    """

    pair: int
    answers: list[str]
    n_right: int
    effect: FiniteFloat
    read: int
    runs: dict[RunName, RunView]
    label: str = ""

    def __post_init__(self) -> None:
        if "base" not in self.runs or "patched" not in self.runs:
            raise ValueError("the base run or the patched run is missing")
        if not 0 <= self.read < len(self.runs["base"].words):
            raise ValueError(f"position {self.read} is outside the prompt")


@result("tl_multitrace.views")
@dataclass(frozen=True)
class Views(Record):
    """Everything that the views of one circuit show.

    Attributes:
        heads: labels of the heads whose attention is shown.
        neurons: labels of the neurons (or MLP dimensions) whose activations are shown.
        examples: the prompts.
        left_out: what was not shown, and why.

    Examples:
        >>> views = circuit.show(examples=1).views
        >>> views.heads, views.neurons, len(views.examples)
        (['L0H3', 'L0H1'], [], 1)
    """

    heads: list[str] = field(default_factory=list)
    neurons: list[str] = field(default_factory=list)
    examples: list[ExampleView] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for example in self.examples:
            for run in example.runs.values():
                if run.attention and len(run.attention) != len(self.heads):
                    raise ValueError(f"pair {example.pair}: {len(run.attention)} patterns of {len(self.heads)} heads")
                if any(len(row) != len(self.neurons) for row in run.neurons):
                    raise ValueError(f"pair {example.pair}: activations are not of {len(self.neurons)} neurons")
                if any(len(row) != len(example.answers) for row in run.answers):
                    raise ValueError(f"pair {example.pair}: probabilities are not of {len(example.answers)} answers")

    def size(self) -> int:
        """Bytes as JSON."""
        return len(json.dumps(self.content(), separators=(",", ":")))


def save_views(views: Views, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write views as JSON; raises FileExistsError unless ``overwrite``.

    Examples:
        >>> from tl_multitrace.render import save_views
        >>> save_views(circuit.show(examples=1).views, "views.json").name
        'views.json'
    """
    return views.save(path, overwrite=overwrite)


def load_views(path: str | Path) -> Views:
    """Read views.

    Raises:
        FileNotFoundError: no such file.
        ValueError: cut off, of another format or a newer version, or with numbers or shapes that do not fit.

    Examples:
        >>> from tl_multitrace.render import load_views, save_views
        >>> file = save_views(circuit.show(examples=1).views, "views.json")
        >>> load_views(file).heads
        ['L0H3', 'L0H1']
    """
    return Views.load(path)


def trim(views: Views, most: int = MAX_BYTES) -> Views:
    """The views within a ceiling of bytes: examples go first, then heads, last all attention; ``left_out`` says so."""
    while views.size() > most and len(views.examples) > 1:
        pair = views.examples[-1].pair
        views = _with(views, f"pair {pair}: the page would be too large", examples=views.examples[:-1])
    while views.size() > most and len(views.heads) > 1:
        gone = ", ".join(views.heads[len(views.heads) // 2 :])
        views = _with_heads(views, len(views.heads) // 2, f"attention of {gone}: the page would be too large")
    if views.size() > most and views.heads:
        views = _with_heads(views, 0, f"attention of {views.heads[0]}: the prompt is too long to show it")
    return views


def _with(views: Views, note: str, **changes: Any) -> Views:
    return replace(views, **changes, left_out=[*views.left_out, note])


def _with_heads(views: Views, keep: int, note: str) -> Views:
    def cut(example: ExampleView) -> ExampleView:
        runs = {k: replace(r, attention=r.attention[:keep]) for k, r in example.runs.items()}
        return replace(example, runs=runs)

    return _with(views, note, heads=views.heads[:keep], examples=[cut(e) for e in views.examples])
