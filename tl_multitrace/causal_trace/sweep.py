"""Causal tracing: corrupt the subject, restore one activation at a time, read the answer's probability.

    total effect = p(answer | clean) - p(answer | corrupted)
    indirect effect of a cell = p(answer | corrupted, cell restored) - p(answer | corrupted)

(Meng et al. 2022, arXiv:2202.05262.) One tracer does both the baseline and the sweep: its base run is the corrupted
run, its source run the clean one, and a cell is a one-hot mask. So one draw of the noise serves the baseline and every
cell, runs restart at the first layer and token that a cell changes, cells share a batch, and logits are computed at the
answer only.
Memory: the clean activations at the restored sites and the corrupted block inputs of all samples, within
``memory_limit``; reported in ``grid.provenance["memory"]``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_multitrace._version import __version__
from tl_multitrace.causal_trace.cells import Cells, check_severed, held_sites, make_cells
from tl_multitrace.causal_trace.corruption import Corrupted, Corruption, describe_corruption, named_corruption
from tl_multitrace.causal_trace.grid import TraceGrid
from tl_multitrace.causal_trace.question import Question
from tl_multitrace.causal_trace.reading import Answer, Prompt, Subject
from tl_multitrace.distributed import Ranks
from tl_multitrace.groups import HookGroups, Position
from tl_multitrace.metrics import AnswerProb
from tl_multitrace.models.ambient import neutral
from tl_multitrace.models.compat import ModelView
from tl_multitrace.progress import bar, ticking
from tl_multitrace.records.stats import Score
from tl_multitrace.tracer import Tracer

MASK_ENTRIES = 1 << 22
"""Numbers in the one-hot masks made at a time: neurons are so many that all of them would not fit."""

CACHED_CELLS, CACHED_PARTS = 64, 32
"""With a cache, fewest cells that are kept at a time, and parts that a sweep is kept in at most."""

UNCHANGED = 1e-6
"""A total effect up to this may be rounding."""


@neutral()
def causal_trace(
    model: Any,
    prompt: Prompt,
    *,
    subject: Subject,
    answer: Answer = None,
    restore: str | Sequence[str] | HookGroups = "resid",
    window: int = 10,
    samples: int = 10,
    noise: float = 3.0,
    seed: int = 0,
    corruption: str | Corruption = "gaussian",
    subjects: Sequence[str] | None = None,
    severed: str | Sequence[str] | None = None,
    positions: Any = None,
    layers: Iterable[int] | None = None,
    units: Iterable[int] | None = None,
    answer_position: int | None = None,
    prepend_bos: bool | None = None,
    memory_limit: int | str | None = None,
    distributed: bool | Ranks = False,
    cache_dir: str | Path | None = None,
    progress: bool | None = None,
) -> TraceGrid:
    """Where does the model recover the answer when one activation of a corrupted run is restored?

    Args:
        model: a ``HookedTransformer`` or ``TransformerBridge``; for masked language models the prompt holds the mask.
        prompt: text or token ids.
        subject: what is corrupted: a part of the prompt, a ``(start, stop)`` span of positions, or ``"all"`` (every
            token but BOS and separators). Masks in it are spared.
        answer: text with its leading space, or token ids, one or more; default: the model's top prediction. A warning
            gives its rank where the model predicts something else.
        restore: ``"resid"`` (output of a block), ``"mlp"``, ``"attn"`` (outputs, in windows of layers), ``"head"``,
            ``"neuron"``, several of the first three together, or hook groups of your own, one cell each.
        window: layers restored around each centre, for ``"mlp"`` and ``"attn"``.
        samples: draws of the corruption; one where nothing is drawn.
        noise: size of the noise, in standard deviations of token embeddings.
        seed: of the draws.
        corruption: ``"gaussian"``, ``"uniform"``, ``"fixed"``, ``"replace"``, or an object:
            :class:`~tl_multitrace.interventions.NoiseCorruption` or
            :class:`~tl_multitrace.causal_trace.TokenReplacement`, which then bring their own noise and seed.
        subjects: texts over whose token embeddings the standard deviation is taken (the paper: all facts' subjects), or
            that a replacement is drawn from. Without them: the whole embedding matrix; the result says which.
        severed: ``"mlp"``, ``"attn"`` or both: freeze these outputs at the restored token at their corrupted values.
        positions: ``"all"``, ``"subject"``, ``"last"``, a slice or a list.
        layers: centres; default all.
        units: heads or neurons; default all. All neurons of all layers and positions are many: choose.
        answer_position: for masked language models; default: the mask.
        prepend_bos: for text; default: what TransformerLens does for this model.
        memory_limit: bytes of stored activations; see :class:`~tl_multitrace.tracer.Tracer`.
        distributed: share the samples with the other processes that ``torchrun`` started.
        cache_dir: a folder to keep what was found in; an interrupted trace goes on from there.
        progress: show a progress bar.

    Returns:
        A :class:`TraceGrid`; effects in probability of the whole answer.

    Raises:
        ValueError: no samples; a subject that is not in the prompt or splits a token; anything outside the model.

    Examples:
        >>> prompt = "The Falcon Tower is in the city of"
        >>> grid = mt.causal_trace(model, prompt, subject="Falcon Tower", answer=" Rome", samples=4)
        >>> print(f"corruption costs {grid.total.mean:.1f} of p")
        corruption costs 0.8 of p
        >>> print(grid.best(3)[["token", "layer", "effect"]].round(2).to_string(index=False))
         token  layer  effect
            of      3    0.81
            of      2    0.81
         Tower      0    0.80
    """
    check_samples(samples)
    question = Question.ask(model, prompt, subject, answer, answer_position=answer_position, prepend_bos=prepend_bos)
    cells = make_cells(
        model, len(question.ids), question.subject, restore, window, positions=positions, layers=layers, units=units
    )
    chosen = named_corruption(corruption, noise, seed, subjects)
    return trace_question(
        model,
        question,
        cells,
        chosen,
        samples,
        subjects=subjects,
        severed=check_severed(severed),
        options={"memory_limit": memory_limit, "distributed": distributed, "cache_dir": cache_dir},
        progress=progress,
    )


def trace_question(
    model: Any,
    question: Question,
    cells: Cells,
    corruption: Corruption,
    samples: int,
    *,
    subjects: Sequence[str] | None = None,
    severed: tuple[str, ...] = (),
    options: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    model_record: dict[str, Any] | None = None,
    unit_of: str | None = None,
) -> TraceGrid:
    """Trace one question over given cells; :func:`causal_trace` without its conveniences.

    ``model_record`` is ``ModelView.describe()`` where the caller has it: it reads all weights. ``unit_of`` says what
    the standard deviation that the corruption brings along was taken over, ``options`` are the tracer's.
    """
    samples, view = check_samples(samples), ModelView(model)
    notes = [question.warn_unpredicted(), _warn_window(cells)]
    corrupted = Corrupted.of(view, question, corruption, samples, subjects)
    record = corrupted.record | ({"unit_of": unit_of} if unit_of else {})
    groups, table = cells.atoms()
    frozen, held = held_sites(model, cells.groups(), severed) if severed else (None, None)
    tracer = Tracer(
        model,
        corrupted.pairs,
        groups,
        AnswerProb(reduce="sum"),
        corrupted.intervention,
        held=frozen,
        **dict(options or {}),
    )
    effects = Sweep(tracer, table, held, cells.chains(), corrupted.first).effects(progress)
    base = tracer.base_metric.cpu()
    grid = TraceGrid(
        restored=(effects + base[:, None]).reshape(len(base), *cells.shape),
        corrupted=base,
        clean=torch.full_like(base, question.probability),
        cells=cells,
        tokens=question.words,
        subject=question.subject,
        answer=question.answer_text,
        severed=severed,
        provenance=_provenance(tracer, question, record) | {"model": model_record or view.describe()},
        tracer=tracer,
    )
    return _with_notes(grid, [n for n in (*notes, warn_unchanged(grid.total)) if n])


def check_samples(samples: Any) -> int:
    """``samples`` as a whole number from 1; raises ValueError."""
    whole = isinstance(samples, int | float | np.integer) and math.isfinite(samples) and samples == int(samples)
    if not whole or samples < 1:
        raise ValueError(f"samples must be a whole number from 1, got {samples!r}: an effect needs at least one draw.")
    return int(samples)


@dataclass(frozen=True)
class Sweep:
    """Masks to evaluate one by one.

    Attributes:
        tracer: base and source run.
        table: the groups that each cell restores; None for every group alone.
        held: per cell, the held sites to freeze with it.
        chains: cells of which each restores what the one before it does, and later layers.
        equal_before: base and source have the same embeddings before this position, so that in a causal model cells
            there change nothing: their effect is 0 without a run.
    """

    tracer: Tracer
    table: Float[Tensor, "cells groups"] | None = None
    held: Float[Tensor, "cells held"] | None = None
    chains: Sequence[Sequence[int]] = ()
    equal_before: int = 0

    def effects(self, progress: bool | None = None) -> Float[Tensor, "sample cells"]:
        """Effect of every cell alone, for every prompt of the tracer."""
        out = torch.zeros(self.tracer.n, self._count(), dtype=self.tracer.dtype)
        with self.tracer.session():
            parts = self._parts()
            total = sum(len(cells) for cells, _ in parts) * self.tracer.n
            with bar(total, "cells x samples", progress and self.tracer.ranks.first) as shown:
                tick = ticking(
                    shown, lambda: {"effect": float(out.mean(0).max()), "cost": self.tracer.cost.equivalents}
                )
                for cells, references in parts:
                    held = None if self.held is None else self.held[cells]
                    out[:, cells] = self.tracer.effects(self._masks(cells), references, held=held, tick=tick).T.cpu()
        self.tracer.flush()
        return out

    def _count(self) -> int:
        return len(self.tracer.groups) if self.table is None else len(self.table)

    def _parts(self) -> list[tuple[Int[Tensor, " part"], Tensor | None]]:
        """Cells that are evaluated together, with the masks of the runs that some of them share a beginning with."""
        live = self._live()
        cells = live.nonzero().flatten()
        # a run to restart from is one without frozen sites
        chains = [chain for chain in self.chains if self.held is None and sum(bool(live[i]) for i in chain) > 2]
        if chains and len(cells) * len(self.tracer.groups) <= MASK_ENTRIES and self._fit(len(chains)):
            shared = self._masks(torch.tensor([chain[-1] for chain in chains]))
            return [(part, shared) for part in cells.split(self._at_a_time(len(cells)))]
        at_a_time = min(self._at_a_time(len(cells)), MASK_ENTRIES // len(self.tracer.groups))
        return [(part, None) for part in cells.split(max(1, at_a_time))]

    def _at_a_time(self, cells: int) -> int:
        """Cells of a call: all of them, unless an interruption is to cost but a few."""
        return max(1, cells if self.tracer.cache_dir is None else max(CACHED_CELLS, cells // CACHED_PARTS))

    def _fit(self, runs: int) -> bool:
        """Whether so many runs can be kept beside the base run."""
        memory = self.tracer.memory
        return bool((runs - 1) * memory["block_input_bytes"] <= memory["left"])  # there is room for one already

    def _masks(self, cells: Int[Tensor, " part"]) -> Float[Tensor, "part groups"]:
        if self.table is not None:
            return self.table[cells].to(self.tracer.dtype)
        masks = torch.zeros(len(cells), len(self.tracer.groups), dtype=self.tracer.dtype)
        masks[torch.arange(len(cells)), cells] = 1.0
        return masks

    def _live(self) -> Bool[Tensor, " cells"]:
        """Cells that can have an effect."""

        def before(position: Position) -> bool:
            return isinstance(position, int) and 0 <= position < self.equal_before

        idle = torch.tensor([all(before(s.position) for s in sites) for sites in self.tracer.groups.sites])
        if not bool(idle.any()) or not self.tracer.causal:
            return torch.ones(self._count(), dtype=torch.bool)
        return ~idle if self.table is None else (self.table[:, ~idle] != 0).any(1)


def _with_notes(grid: TraceGrid, notes: list[str]) -> TraceGrid:
    return replace(grid, notes=tuple(notes)) if notes else grid


def window_doubt(cells: Cells) -> str | None:
    """What is to be said of a window that covers the whole model."""
    if cells.window <= max(1, cells.n_layers):
        return None
    return (
        f"window {cells.window} is larger than the model's {cells.n_layers} layers, so cells of different layers "
        f"restore nearly the same and layers cannot be told apart. Pass a smaller one, such as "
        f"window={max(1, cells.n_layers // 4)}."
    )


def _warn_window(cells: Cells) -> str | None:
    note = window_doubt(cells)
    if note is not None:
        warnings.warn(note, stacklevel=4)
    return note


def warn_unchanged(total: Score) -> str | None:
    """Warn where a total effect does not exclude zero; the warning's text, or None."""
    if total.at_least(UNCHANGED):
        return None
    how = "raises" if total.at_least(UNCHANGED, -1) else "does not clearly lower"
    note = (
        f"the corruption {how} the answer's probability (total effect {total}): there is nothing to restore, and "
        "indirect effects mean little. Use more noise, more samples, or another subject."
    )
    warnings.warn(note, stacklevel=4)
    return note


def _provenance(tracer: Tracer, question: Question, corruption: dict[str, Any]) -> dict[str, Any]:
    cost = tracer.cost
    return {
        "tl_multitrace": __version__,
        "prompts": {"n": tracer.n, "digest": tracer.pairs.digest()},
        "prompt": question.text,
        "ids": list(question.ids),
        "answer_ids": list(question.answer),
        "answer_rank": question.rank,
        "answer_position": question.answer_position,
        "intervention": corruption,
        "corruption_text": describe_corruption(corruption),
        "cost": {"forwards": cost.forwards, "equivalents": cost.equivalents, "seconds": cost.seconds},
        "memory": {k: v for k, v in tracer.memory.items() if k not in ("limit", "left")},  # which are the machine's
    }
