"""Where a mask's run may restart: from the first block, and the first token, at which it differs from a stored run.

Blocks before the first that a mask changes give what they gave before: a run restarts from the stored input of that
block. In a causal model the same holds for tokens: those before the first that a mask touches, and those that base and
source have in common at the start, are left alone, and the later ones find their keys and values stored. Whether a
model can do either is tried, not assumed (``trials``): where a trial fails, every block, or every token, runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.engine.mask_runs import MaskRuns
from tl_multitrace.engine.past import Past, keys_width
from tl_multitrace.engine.sources import StoredRun
from tl_multitrace.rows import Batch, rows_on

TILE_TOKENS = {"cpu": 512, "cuda": 16384}
"""Tokens per forward up to which several masks share a batch."""

FORWARD_TOKENS = {"cpu": 24, "cuda": 4096}
"""Tokens that take as long as starting a forward does."""

PLACES = 1 << 20
"""Tokens looked at together for the first that a position chooses."""

MIN_RUNS = 4
"""Runs for which storing keys and values (one forward) begins to pay."""

Plans = list[tuple[int, Int[Tensor, " _"], list[StoredRun]]]
"""A block to start at, the masks that do, and the stored run of each."""


@dataclass(eq=False)
class Restarts:
    """Stored runs, and which masks may restart from them, where, and together.

    Attributes:
        runs: run the masks.
        batches: what they run on.
        origin: the base run.
        limit: bytes of keys and values that may be kept.
        references: runs under other masks.
        eager: store keys and values as soon as there are runs enough, whatever their tokens would save, so that every
            process does alike.
        several: whether block inputs of other runs than the base run may be kept.
        device: where keys and values are kept; None: the model's.
    """

    runs: MaskRuns
    batches: list[Batch]
    origin: StoredRun
    limit: int = 0
    references: list[StoredRun] = field(default_factory=list)
    eager: bool = False
    several: bool = True
    device: torch.device | None = None
    _past: Past | None = None
    _asked: int = 0
    _differences: Int[Tensor, " rows"] | None = None
    _columns: Int[np.ndarray, " groups"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        device = self.runs.view.device.type
        self.tile, self.overhead = TILE_TOKENS.get(device, 512), FORWARD_TOKENS.get(device, 24)

    # ------------------------------------------------------------------ from which block

    def by_first_block(self, masks: Float[np.ndarray, "k groups"], *, with_references: bool = True) -> Plans:
        """Masks grouped by where they can restart: ``(first block, mask numbers, stored run of each)``.

        A mask that does not differ from a stored run whose answers are known starts after the last block.
        """
        runs = [self.origin, *(self.references if with_references else ())]
        plans: dict[int, list[tuple[int, StoredRun]]] = {}
        for j, mask in enumerate(masks):
            starts = [self._first_block(mask, run) for run in runs]
            best = int(np.argmax(starts))
            plans.setdefault(starts[best], []).append((j, runs[best]))
        return [
            (start, torch.tensor([j for j, _ in jobs]), [r for _, r in jobs]) for start, jobs in sorted(plans.items())
        ]

    def _first_block(self, mask: Float[np.ndarray, " groups"], run: StoredRun) -> int:
        changed = np.flatnonzero(mask != run.mask)
        if not len(changed):
            if run is self.origin or run.answers:
                return self.runs.view.n_layers
            changed = np.flatnonzero(mask)
        layer = min(self.runs.starts[i] for i in changed)
        return layer if layer in run.residuals else 0

    def set_references(self, masks: Float[Tensor, "r groups"]) -> None:
        """Run masks and keep their block inputs, for masks that differ little from one of them."""
        wanted = masks.cpu().double().numpy()
        if len(wanted) == len(self.references) and all(
            np.array_equal(r.mask, w) for r, w in zip(self.references, wanted, strict=True)
        ):
            return
        records = self.new_references(masks)
        if not records:
            return
        for batch in self.batches:
            for part, column in self.tiles(wanted, batch):
                self._record_runs(masks[part], batch, [records[p] for p in part], column)
        self.references = records

    def _record_runs(
        self, masks: Float[Tensor, "k groups"], batch: Batch, records: list[StoredRun], column: int
    ) -> None:
        view, k = self.runs.view, len(masks)
        past = self.cache(batch, column, k) if column else None
        answers = self.runs.answers(batch, masks[:, None].to(view.device), record=records, column=column, past=past)
        each = torch.arange(len(batch.examples), device=view.device)
        for i, record in enumerate(records):
            record.answers.append(answers.picked(each + i * len(each)))
            self.complete(record, batch, column)

    def complete(self, record: StoredRun, batch: Batch, column: int) -> None:
        """Tokens before the first that was run are those of the base run."""
        for layer, inputs in record.residuals.items() if column else ():
            rows = rows_on(inputs.device, batch.rows)
            inputs[rows, :column] = self.origin.residuals[layer][rows, :column]

    def new_references(self, masks: Float[Tensor, "r groups"]) -> list[StoredRun]:
        """Empty references for masks, in the memory of the last ones; none where block inputs are not kept."""
        values = masks.detach().cpu().double().numpy()
        if not (self.several and self.origin.residuals and values.any()):
            return []
        kept, self.references = self.references, []
        buffers = [r.residuals for r in kept[: len(values)]] + [{} for _ in values[len(kept) :]]
        return [StoredRun(mask, residuals) for mask, residuals in zip(values, buffers, strict=True)]

    def forget(self) -> None:
        """Drop stored runs, keys and values, so that what follows depends on nothing evaluated before."""
        self._past, self._asked, self.references = None, 0, []

    # ------------------------------------------------------------------ from which token, and together

    def consider(self, n_runs: int) -> None:
        """Store keys and values where the runs that were asked for so far, and these, make it worth it."""
        self._asked += n_runs
        if self._past is not None or self._asked < MIN_RUNS:
            return
        groups, width = self._group_columns(), self.runs.rows.base.shape[1]
        saved = np.mean([np.maximum(groups, self._common(batch)).mean() for batch in self.batches]) / width
        if (self.eager or self._asked * saved > 1) and self.causal:
            self._past = self._stored()

    def tiles(self, masks: Float[np.ndarray, "k groups"], batch: Batch) -> Iterator[tuple[Int[Tensor, " jobs"], int]]:
        """Which of the masks that start at one block share a forward over a batch, and the first column it runs."""
        width, rows = batch.tokens.shape[1], batch.n_rows
        columns = self._first_columns(masks, batch)
        order = np.argsort(-columns, kind="stable")
        at = 0
        while at < len(order):
            count, column = 1, int(columns[order[at]])
            while at + count < len(order):
                lower = int(columns[order[at + count]])
                # masks of unequal starts share a forward where the tokens that this adds cost less than another forward
                added = count * rows * (column - lower)
                if added > self.overhead or (count + 0.5) * rows * (width - lower) > self.tile:
                    break
                count, column = count + 1, lower
            yield torch.from_numpy(order[at : at + count].copy()), column
            at += count

    def gradient_start(self, batch: Batch) -> tuple[int, object]:
        """The first token that any mask changes, and the stored keys and values of those before it."""
        column = int(self._first_columns(np.ones((1, len(self.runs.groups))), batch)[0])
        return column, self.cache(batch, column, 1) if column else None

    def _first_columns(self, masks: Float[np.ndarray, "k groups"], batch: Batch) -> Int[np.ndarray, " k"]:
        if self._past is None:
            return np.zeros(len(masks), dtype=np.int64)
        group_columns, latest = self._group_columns(), int(batch.read_position.min())
        first = [group_columns[on].min() if len(on := np.flatnonzero(m)) else latest for m in masks]
        return np.minimum(np.maximum(np.array(first, dtype=np.int64), self._common(batch)), latest)

    def _common(self, batch: Batch) -> int:
        """Columns at the start of a batch that have the same activations in the base and the source run."""
        if self._differences is None:
            self._differences = self.runs.sources.first_difference(self.runs)
        rows = batch.rows if isinstance(batch.rows, slice) else batch.rows.cpu()
        return min(int(self._differences[rows].min()), int(batch.read_position.min()))

    def _group_columns(self) -> Int[np.ndarray, " groups"]:
        """Per group, the first column that it touches in any row."""
        if not len(self._columns):
            sites = self.runs.groups.sites
            found = {p: self._first_column(p) for p in {s.position for group in sites for s in group}}
            self._columns = np.array([min(found[s.position] for s in group) for group in sites], dtype=np.int64)
        return self._columns

    def _first_column(self, position: object) -> int:
        whole = self.runs.whole  # other processes, which have other rows, start at the same
        parts = torch.arange(whole.n_examples).split(max(1, PLACES // whole.base.shape[1]))
        chosen = (whole.batch(part, torch.device("cpu")).places.select(position) for part in parts)  # type: ignore[arg-type]
        return min(int(c.long().argmax(-1).min()) for c in chosen)

    # ------------------------------------------------------------------ keys and values

    @property
    def causal(self) -> bool:
        """Whether tokens before a change are left alone, and a run may start after them."""
        stored = all(sources.keeps for sources in self.runs.stored)
        return stored and 0 < keys_values_bytes(self.runs) <= self.limit and self.runs.trials.start_tokens

    @property
    def stored_bytes(self) -> int:
        """Bytes of keys and values kept."""
        layers = self._past.layers if self._past is not None else ()
        return sum(t.numel() * t.element_size() for layer in layers for t in layer)

    def cache(self, batch: Batch, column: int, k: int) -> object:
        """What the model needs to start at a column."""
        assert self._past is not None
        return self._past.cache(batch.rows, column, k)

    def _stored(self) -> Past:
        rows, stored = self.runs.rows, None
        for batch in self.batches:
            with torch.no_grad():
                part = Past.record(
                    self.runs.view,
                    batch.n_rows,
                    lambda cache, here=batch: self.runs.answers(here, past=cache),  # type: ignore[misc]
                )
            stored = stored or part.room_for(len(rows), rows.base.shape[1], self.device)
            stored.put(batch.rows, part)
        assert stored is not None
        return stored


def keys_values_bytes(runs: MaskRuns) -> int:
    """Bytes of the base run's keys and values; 0 where runs cannot restart from them."""
    view, rows = runs.view, runs.rows
    plans = {**runs.frozen_plans, **runs.plans}
    plain = rows.packing is None and not any(p.pattern for p in plans.values())
    # in lower precision a run over some of the tokens rounds differently from a whole one
    if not plain or view.dtype not in (torch.float32, torch.float64) or rows.base.shape[1] <= 2:
        return 0
    return 2 * rows.base.numel() * view.n_layers * keys_width(view) * view.dtype.itemsize
