"""Traces of many facts, and their average over classes of tokens."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tl_multitrace.causal_trace.cells import check_severed, make_cells
from tl_multitrace.causal_trace.classes import by_class
from tl_multitrace.causal_trace.corruption import Corruption, TokenReplacement, named_corruption, subject_std
from tl_multitrace.causal_trace.grid import TraceGrid
from tl_multitrace.causal_trace.question import Question
from tl_multitrace.causal_trace.sweep import UNCHANGED, check_samples, trace_question, window_doubt
from tl_multitrace.distributed import ALONE, Ranks, ranks_of
from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import NoiseCorruption
from tl_multitrace.models.ambient import neutral
from tl_multitrace.models.compat import ModelView
from tl_multitrace.progress import bar, ticking
from tl_multitrace.records.fact_files import Fact, as_facts, copies_of_facts
from tl_multitrace.records.record import Record, result
from tl_multitrace.records.stored import groups_content
from tl_multitrace.records.write import locked

logger = logging.getLogger(__name__)


@neutral()
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
    memory_limit: int | str | None = None,
    distributed: bool | Ranks = False,
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
        known_only: leave out facts whose answer's first token is not the model's top prediction (and count them).
        folder: keep every fact's trace here, and reuse those that are there already; an interrupted run loses the fact
            in hand at most. All ranks must see it.
        memory_limit: bytes of stored activations per fact.
        distributed: share every fact's samples with the other processes that ``torchrun`` started.
        progress: show a progress bar over facts.

    Returns:
        A :class:`TraceGrid` whose samples are facts and whose positions are the classes of tokens of
        :mod:`~tl_multitrace.causal_trace.classes`. A fact's value for a class is the mean over its tokens there and
        over its samples, NaN without such tokens; intervals are over facts.

    Raises:
        ValueError: no facts, none that the model knows, a folder made with other settings.

    Examples:
        >>> prompt = "The {} is in the city of"
        >>> towers = {"Falcon Tower": " Rome", "Maple Tower": " Vienna"}
        >>> facts = [(prompt.format(name), name, city) for name, city in towers.items()]
        >>> grid = mt.average_causal_trace(model, facts, samples=2, layers=[0, 3])
        >>> print(grid.best(2)[["token", "layer", "effect"]].round(1).to_string(index=False))
                     token  layer  effect
                last token      3     0.7
        last subject token      0     0.4
    """
    options = TraceOptions(
        restore, window, check_samples(samples), noise, seed, corruption, check_severed(severed), _fixed(layers),
        _fixed(units), known_only, _fixed(subjects), memory_limit,
        ranks_of(distributed),
    )  # fmt: skip
    runs = FactRuns(model, as_facts(facts), options, None if folder is None else Path(folder))
    grids: list[TraceGrid] = []
    with bar(len(runs.facts), "facts", progress and runs.options.ranks.first, leave=True) as shown:
        for grid in runs.grids(ticking(shown, lambda: so_far(grids))):
            grids.append(by_class(grid))
    if not grids:
        raise ValueError(
            f"no fact is left of {len(runs.facts)}: {runs.left_out()}. Pass known_only=False to trace all."
        )
    return _average(grids, runs)


def so_far(grids: Sequence[TraceGrid]) -> dict[str, float | None]:
    """Mean total effect of the facts that are done, and what they cost, for a progress bar."""
    effects = [float((grid.clean - grid.corrupted).mean()) for grid in grids]
    cost = sum((float(grid.provenance["cost"]["equivalents"]) for grid in grids), 0.0)
    return {"effect": sum(effects) / len(effects) if effects else None, "cost": cost}


def _fixed(values: Any) -> Any:
    """Several values as a tuple, which is read more than once; texts and numbers as they are."""
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else values


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
    memory_limit: int | str | None
    ranks: Ranks = ALONE

    def record(self) -> dict[str, Any]:
        """What must be equal for two runs to be one."""
        subjects = None if self.subjects is None else f"{len(self.subjects)} texts {_digest(self.subjects)}"
        return {k: _recorded(v) for k, v in vars(self).items() if k not in ("memory_limit", "ranks")} | {
            "subjects": subjects
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _recorded(value: Any) -> Any:
    """An option as it stands in a file: equal where the options do the same."""
    if isinstance(value, int | float | str | bool | type(None)):
        return value
    if isinstance(value, HookGroups):
        return f"{len(value)} hook groups {_digest(groups_content(value))}"
    return [_recorded(v) for v in value] if isinstance(value, Iterable) else str(value)


@result("tl_multitrace.trace_run")
@dataclass(frozen=True)
class FactsRunFile(Record):
    """What a folder of traces was made with."""

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
        given = self.options.subjects
        self.subjects = given if given is not None else tuple(f.subject for f in self.facts)
        self.corruption = self._shared_corruption()
        self.record = ModelView(self.model).describe()
        self.doubts: list[str] = []
        self.unwritten: tuple[Path, FactsRunFile] | None = None
        if self.folder is not None:
            self._claim(self.folder)

    def _shared_corruption(self) -> Corruption:
        o = self.options
        made = named_corruption(o.corruption, o.noise, o.seed, self.subjects)
        self.unit_of: str | None = None
        if not isinstance(made, NoiseCorruption) or made.kind == "fixed" or isinstance(made.std, int | float):
            return made
        if not isinstance(o.corruption, str) and o.subjects is None:
            return made  # the unit that it asks for itself
        # measured once, over all the facts' subjects: the same unit for every fact
        self.unit_of = f"the tokens of {len(self.subjects)} subjects"
        with warnings.catch_warnings():
            if o.subjects is None:  # what is doubtful about them is said of their prompts
                warnings.simplefilter("ignore", UserWarning)
            return replace(made, std=subject_std(self.model, self.subjects))

    def _claim(self, folder: Path) -> None:
        digest = _digest([vars(f) for f in self.facts])
        mine = FactsRunFile(
            settings=self.options.record(),
            facts=digest,
            model=str(self.record["digest"]),
        )
        path = folder / "settings.json"
        if not path.exists():
            self.unwritten = (path, mine)
            return
        there = FactsRunFile.load(path)
        differing = [k for k in ("model", "facts") if getattr(there, k) != getattr(mine, k)]
        differing += [k for k, v in mine.settings.items() if there.settings.get(k) != v]
        if differing:
            raise ValueError(
                f"{folder} holds the traces of a run with other {', '.join(differing)}. Choose another folder, or "
                "repeat that run's settings to resume it."
            )

    def grids(self, tick: Callable[[int], object] = lambda _: None) -> Iterator[TraceGrid]:
        """The traces of the facts that are not left out; ``tick(1)`` is called after each fact."""
        with self._held():
            for number, fact in enumerate(self.facts):
                grid = self._finished(fact) or self._trace(number, fact)
                tick(1)
                if grid is not None:
                    yield replace(grid, tracer=None)  # a tracer keeps its activations

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The folder for this run alone, on all ranks or none."""
        with ExitStack() as stack:
            if self.folder is not None:
                folder = self.folder
                self.options.ranks.after_first(lambda: stack.enter_context(locked(folder, ".lock")))
            yield

    def _path(self, fact: Fact) -> Path | None:
        if self.folder is None:
            return None
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in fact.id[:80])
        if plain != fact.id:  # two ids may differ in what a file name cannot hold
            plain += "-" + _digest(fact.id)
        return self.folder / "facts" / f"{plain}.json"

    def _finished(self, fact: Fact) -> TraceGrid | None:
        path, ranks = self._path(fact), self.options.ranks
        if path is None or not ranks.share_bytes(b"there" if path.exists() else b""):
            return None
        return TraceGrid.load(path)

    def _trace(self, number: int, fact: Fact) -> TraceGrid | None:
        try:
            question = Question.ask(self.model, fact.prompt, fact.subject, fact.answer)
            if isinstance(self.corruption, TokenReplacement):  # is there a subject of its length to draw?
                self.corruption.tokens(ModelView(self.model), question, 1)
        except ValueError as error:
            self.dropped[fact.id] = str(error)
            return None
        self.doubts += [f"fact {fact.id}: {doubt}" for doubt in question.doubts]
        if self.options.known_only and not question.predicted:
            self.dropped[fact.id] = f"not predicted (rank {question.rank})"
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said once, of the average
            grid = self._grid(number, question)
        logger.info(
            "fact %d of %d (%s): total effect %.3g, %.1f forward equivalents",
            number + 1, len(self.facts), fact.id, grid.total.mean, grid.provenance["cost"]["equivalents"],
        )  # fmt: skip
        self.options.ranks.after_first(lambda: self._keep(grid, self._path(fact)))
        return grid

    def _keep(self, grid: TraceGrid, path: Path | None) -> None:
        if path is None:
            return
        if self.unwritten is not None:  # not before there is a result: what fails at once leaves nothing behind
            settings, record = self.unwritten
            record.save(settings)
            self.unwritten = None
        grid.save(path)

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
            options={"memory_limit": o.memory_limit, "distributed": o.ranks},
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
    copies = copies_of_facts([fact for fact in runs.facts if fact.id not in runs.dropped])
    doubled = len(copies) - len(set(copies))
    facts |= {"copies": copies} if doubled else {}
    made = replace(
        first,
        restored=torch.cat([g.restored for g in grids]),
        corrupted=torch.cat([g.corrupted for g in grids]),
        clean=torch.cat([g.clean for g in grids]),
        answer="each fact's own",
        subject=(0, 3),
        notes=(),
        provenance=facts,
    )
    said = [runs.left_out() + "."] if runs.dropped else []
    said += [f"{doubled} of {len(copies)} facts are copies of others: intervals count them once."] if doubled else []
    for note in said:
        logger.warning("%s", note)
    unknown = sum(g.provenance.get("answer_rank", 0) > 0 for g in grids)
    if unknown:
        said.append(f"{unknown} of {len(grids)} answers are not what the model predicts (known_only=False).")
    doubts = _doubts(made)
    if runs.doubts:
        doubts.append(f"{len(runs.doubts)} doubts about prompts; the first: {runs.doubts[0]}.")
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=3)
    return replace(made, notes=(*said, *doubts))


def _doubts(made: TraceGrid) -> list[str]:
    """What a reader must know before trusting the average."""
    window = window_doubt(made.cells)
    doubts = [] if window is None else [window]
    if not made.total.at_least(UNCHANGED):
        doubts.append(
            f"the total effect {made.total} does not exclude zero: the corruption does not reach the answers."
        )
    return doubts
