"""Traces of many facts, and their average over classes of tokens."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_multitrace.causal_trace.cells import check_severed, make_cells
from tl_multitrace.causal_trace.corruption import Corruption, TokenReplacement, named_corruption, subject_std
from tl_multitrace.causal_trace.facts import Fact, as_facts
from tl_multitrace.causal_trace.grid import TraceGrid
from tl_multitrace.causal_trace.question import Question
from tl_multitrace.causal_trace.sweep import trace_question
from tl_multitrace.compat import ModelView
from tl_multitrace.files import File, read_json, write_json
from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import NoiseCorruption

CLASSES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
"""Token classes of Meng et al. 2022. A token may be in two: a one-token subject is first and last, and the first
subsequent token may be the prompt's last."""


def average_causal_trace(
    model: Any,
    facts: Sequence[Any] | str | Path,
    *,
    restore: str | Sequence[str] | HookGroups = "resid",
    window: int = 10,
    samples: int = 10,
    noise: float = 3.0,
    seed: int = 0,
    corruption: str | Corruption = "gaussian",
    subjects: Sequence[str] | None = None,
    severed: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    known_only: bool = True,
    folder: str | Path | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> TraceGrid:
    """Average causal trace over facts, by class of token.

    Args:
        model: a TransformerLens model with a tokenizer.
        facts: a file (see :func:`load_facts`), mappings, ``(prompt, subject, answer)`` tuples or :class:`Fact`.
        restore: as :func:`causal_trace`; hook groups are averaged as they are, without classes.
        window: layers per window.
        samples: draws per fact.
        noise: in standard deviations.
        seed: every fact's draws come from this and its place in the list.
        corruption: as :func:`causal_trace`; ``"replace"`` draws from the other facts' subjects.
        subjects: texts that give the unit of the noise; default: all the facts' subjects.
        severed: as :func:`causal_trace`.
        layers: centres; default all.
        units: heads or neurons; default all.
        known_only: leave out facts whose answer is not the model's top prediction (and count them).
        folder: keep every fact's trace here, and reuse those that are there already; an interrupted run loses the fact
            in hand at most.
        memory_limit: bytes of stored activations per fact.
        progress: show a progress bar over facts.

    Returns:
        A :class:`TraceGrid` whose samples are facts and whose positions are :data:`CLASSES`. A fact's value for a class
        is the mean over its tokens there and over its samples, NaN without such tokens; intervals are over facts.

    Raises:
        ValueError: no facts, none that the model knows, a folder made with other settings.
    """
    options = TraceOptions(
        restore, window, samples, noise, seed, corruption, check_severed(severed), layers, units, known_only,
        None if subjects is None else tuple(subjects), memory_limit,
    )  # fmt: skip
    runs = FactRuns(model, as_facts(facts), options, None if folder is None else Path(folder))
    grids = [by_class(grid) for grid in tqdm(runs, total=len(runs.facts), desc="facts", disable=not progress)]
    if not grids:
        raise ValueError(
            f"no fact is left of {len(runs.facts)}: {runs.left_out()}. Pass known_only=False to trace all."
        )
    return _average(grids, runs)


@dataclass(frozen=True)
class TraceOptions:
    """What all facts of a run share; see :func:`average_causal_trace`."""

    restore: str | Sequence[str] | HookGroups
    window: int
    samples: int
    noise: float
    seed: int
    corruption: str | Corruption
    severed: tuple[str, ...]
    layers: Sequence[int] | None
    units: Sequence[int] | None
    known_only: bool
    subjects: tuple[str, ...] | None
    memory_limit: int | None

    def record(self) -> dict[str, Any]:
        """What must be equal for two runs to be one."""
        plain = {k: v for k, v in vars(self).items() if k not in ("memory_limit", "subjects")}
        return {k: v if isinstance(v, int | float | str | bool | type(None)) else str(v) for k, v in plain.items()}


class FactsRunFile(File):
    """What a folder of traces was made with."""

    FORMAT = "tl_multitrace.trace_run"
    settings: dict[str, Any]
    facts: str
    model: str


@dataclass
class FactRuns:
    """Traces of facts, one after the other, from a folder where they are there.

    Attributes:
        model: a TransformerLens model.
        facts: what to trace.
        options: how.
        folder: where finished traces are kept.
        dropped: why facts were left out, by id.
    """

    model: Any
    facts: list[Fact]
    options: TraceOptions
    folder: Path | None = None
    dropped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.subjects = self.options.subjects or tuple(f.subject for f in self.facts)
        self.corruption = self._shared_corruption()
        self.record = ModelView(self.model).describe()
        if self.folder is not None:
            self._claim(self.folder)

    def _shared_corruption(self) -> Corruption:
        o = self.options
        made = named_corruption(o.corruption, o.noise, o.seed, self.subjects)
        self.unit_of: str | None = None
        if not isinstance(o.corruption, str) or not isinstance(made, NoiseCorruption) or made.kind == "fixed":
            return made
        # measured once, over all the facts' subjects: the same unit for every fact
        self.unit_of = f"the tokens of {len(self.subjects)} subjects"
        return replace(made, std=subject_std(self.model, self.subjects))

    def _claim(self, folder: Path) -> None:
        digest = hashlib.sha256(json.dumps([vars(f) for f in self.facts]).encode()).hexdigest()[:16]
        mine = FactsRunFile(
            format=FactsRunFile.FORMAT,
            version=FactsRunFile.VERSION,
            settings=self.options.record(),
            facts=digest,
            model=str(self.record["digest"]),
        )
        path = folder / "settings.json"
        if not path.exists():
            write_json(path, mine.model_dump(mode="json"))
            return
        there = read_json(path, FactsRunFile)
        differing = [k for k in ("model", "facts") if getattr(there, k) != getattr(mine, k)]
        differing += [k for k, v in mine.settings.items() if there.settings.get(k) != v]
        if differing:
            raise ValueError(
                f"{folder} holds traces made with another {', '.join(differing)}. Choose another folder, or repeat the "
                "settings of that run to resume it."
            )

    def __iter__(self) -> Iterator[TraceGrid]:
        for number, fact in enumerate(self.facts):
            grid = self._finished(fact) or self._trace(number, fact)
            if grid is not None:
                yield replace(grid, tracer=None)  # a tracer keeps its activations

    def _path(self, fact: Fact) -> Path | None:
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in fact.id)
        return None if self.folder is None else self.folder / "facts" / f"{safe}.json"

    def _finished(self, fact: Fact) -> TraceGrid | None:
        path = self._path(fact)
        return TraceGrid.load(path) if path is not None and path.exists() else None

    def _trace(self, number: int, fact: Fact) -> TraceGrid | None:
        try:
            question = Question.ask(self.model, fact.prompt, fact.subject, fact.answer)
        except ValueError as error:
            self.dropped[fact.id] = str(error)
            return None
        if self.options.known_only and not question.predicted:
            self.dropped[fact.id] = f"not predicted (rank {question.rank})"
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said once, of the average
            grid = self._grid(number, question)
        path = self._path(fact)
        if path is not None:
            grid.save(path)
        return grid

    def _grid(self, number: int, question: Question) -> TraceGrid:
        o = self.options
        cells = make_cells(
            self.model, len(question.ids), question.subject, o.restore, o.window, layers=o.layers, units=o.units
        )
        seed = int(np.random.SeedSequence([o.seed, number]).generate_state(1)[0])
        return trace_question(
            self.model,
            question,
            cells,
            replace(self.corruption, seed=seed),
            o.samples,
            subjects=self.subjects if isinstance(self.corruption, TokenReplacement) else None,
            severed=o.severed,
            memory_limit=o.memory_limit,
            model_record=self.record,
            unit_of=self.unit_of,
        )

    def left_out(self) -> str:
        """How many facts were left out, and why."""
        unknown = sum(reason.startswith("not predicted") for reason in self.dropped.values())
        other = [f"{i}: {reason}" for i, reason in self.dropped.items() if not reason.startswith("not predicted")]
        parts = [f"{unknown} not predicted by the model"] if unknown else []
        parts += [f"{len(other)} unreadable (fact {other[0].rstrip('.')})"] if other else []
        return f"{len(self.dropped)} of {len(self.facts)} facts left out: " + "; ".join(parts)


# ---------------------------------------------------------------------- classes of tokens


def class_members(n: int, subject: tuple[int, int]) -> list[list[int]]:
    """Positions of a prompt of ``n`` tokens in each of :data:`CLASSES`; tokens before the subject are in none."""
    first, after, last = subject[0], subject[1], n - 1
    return [
        [first],
        list(range(first + 1, after - 1)),
        [after - 1],
        [after] if after <= last else [],
        list(range(after + 1, last)),
        [last],
    ]


def by_class(grid: TraceGrid) -> TraceGrid:
    """A trace of one fact as one sample over token classes."""
    restored = grid.restored.mean(0)
    tokens: tuple[str, ...] = grid.tokens
    cells = grid.cells
    if cells.own is None:
        members = class_members(len(grid.tokens), grid.subject)
        restored = torch.stack([_mean_of(restored, m) for m in members])
        tokens, cells = CLASSES, replace(cells, positions=tuple(range(len(CLASSES))))
    return replace(
        grid,
        restored=restored[None],
        corrupted=grid.corrupted.mean(0, keepdim=True),
        clean=grid.clean[:1],
        cells=cells,
        tokens=tokens,
        tracer=None,
    )


def _mean_of(restored: Float[Tensor, "position ..."], members: list[int]) -> Float[Tensor, "..."]:
    return restored[members].mean(0) if members else torch.full_like(restored[0], torch.nan)


def _average(grids: list[TraceGrid], runs: FactRuns) -> TraceGrid:
    first = grids[0]
    facts = {
        **{k: v for k, v in first.provenance.items() if k in ("tl_multitrace", "model", "intervention")},
        "corruption_text": str(first.provenance["corruption_text"]).split(", seed")[0] + f", seed {runs.options.seed}",
        "facts": len(grids),
        "left_out": dict(runs.dropped),
        "settings": runs.options.record(),
        "cost": {k: sum(g.provenance["cost"][k] for g in grids) for k in ("forwards", "equivalents", "seconds")},
    }
    made = replace(
        first,
        restored=torch.cat([g.restored for g in grids]),
        corrupted=torch.cat([g.corrupted for g in grids]),
        clean=torch.cat([g.clean for g in grids]),
        answer="each fact's own",
        subject=(0, 3),
        notes=(runs.left_out() + ".",) if runs.dropped else (),
        provenance=facts,
    )
    if made.total.low > 0:
        return made
    note = f"the total effect {made.total} does not exclude zero: the corruption does not reach the answers."
    warnings.warn(note, stacklevel=3)
    return replace(made, notes=(*made.notes, note))
