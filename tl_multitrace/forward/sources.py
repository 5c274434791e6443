"""Source activations: captured once, kept where there is room for them, recaptured per batch where there is none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from tl_multitrace.cost import NonFiniteError
from tl_multitrace.groups.mixing import Plan
from tl_multitrace.interventions import GivenAblation, Run
from tl_multitrace.memory.stores import Place, Store, StoreError, TensorStore, store_for
from tl_multitrace.rows import Batch

if TYPE_CHECKING:
    from tl_multitrace.forward.engine import Engine

logger = logging.getLogger(__name__)


@dataclass
class Sources:
    """Source activations of all rows, or of the batch in hand.

    Attributes:
        chunk: rows per source forward.
        ends: rows that a source forward ends before, where other processes have the other rows: the same forwards then,
            and the same rounding, however rows are dealt out.
        place: where to keep them; ``"recomputed"``: nowhere, a forward per batch gives them again.
        folder: of the file, for ``"disk"``.
        store: per hook name ``[rows, pos, ...]`` (attention weights ``[rows, head, dest, src]``), aligned to the base
            prompts, or one row that serves all.
        needed: bytes that keeping everything takes.
        plans: the hook points to keep; default: the engine's.
    """

    chunk: int
    ends: tuple[int, ...] = ()
    place: Place = "device"
    folder: Path | None = None
    store: Store | None = None
    needed: int = 0
    plans: Mapping[str, Plan] = field(default_factory=dict)
    aligned: bool = False
    _run: Run | None = None
    _n_rows: int = 1
    _devices: dict[str, torch.device] = field(default_factory=dict)
    _batch: Batch | None = None
    _batch_values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def keeps(self) -> bool:
        """Whether they are kept anywhere."""
        return self.place != "recomputed"

    @property
    def stored(self) -> Mapping[str, Tensor]:
        """Tensors that are kept in memory, by hook name."""
        return self.store.tensors if isinstance(self.store, TensorStore) else {}

    def measure(self, engine: Engine, run: Run | None = None) -> int:
        """Bytes that keeping what a run has at the hook points takes; of means, which are few, 0.

        Args:
            engine: runs the model.
            run: default: the intervention's source.
        """
        self.plans = self.plans or engine.plans
        self.aligned = run is None and engine.intervention.aligned
        self._run = source_of(engine) if run is None else run
        if run is not None or engine.intervention.averages is None:
            self._n_rows = self._rows(engine)
            self.needed = self._n_rows * sum(self.row_bytes(engine).values())
        return self.needed

    def prepare(self, engine: Engine, run: Run | None = None) -> None:
        """Run the intervention's source once, or the run given, and keep it where ``place`` says."""
        self.measure(engine, run)
        fixed = {} if run is not None else self._fixed(engine)
        if fixed:
            self.store, self.place = TensorStore(tensors=fixed), "device"
        elif self.place != "recomputed":
            try:
                self.store = store_for(self.place, engine.view.device, self.folder)
                self._fill(engine, self.store)
            except StoreError as error:
                self._give_up(error)

    def _give_up(self, error: StoreError) -> None:
        logger.warning("%s", error)
        self.store, self.place = None, "recomputed"
        self.drop_batch()

    def _fixed(self, engine: Engine) -> dict[str, Tensor]:
        """One row that serves all, where the intervention has such."""
        intervention, view = engine.intervention, engine.view
        if intervention.averages == "zero":
            dims = {name: 4 if plan.kind == "head" else 3 for name, plan in self.plans.items()}
            return {name: torch.zeros([1] * d, device=view.device, dtype=view.dtype) for name, d in dims.items()}
        if isinstance(intervention, GivenAblation):
            values = {name: intervention.values[name].to(view.device, view.dtype) for name in self.plans}
            for name, value in values.items():
                _refuse(value[None], f"the values given for {name}")
            return {name: value[None, None] for name, value in values.items()}
        if intervention.averages:
            return self._average(engine, per_position=intervention.averages == "position")
        return {}

    def get(self, engine: Engine, name: str, batch: Batch) -> Tensor:
        """Source activation of a batch's rows at a hook point, as wide as the batch."""
        try:
            value = self._kept(name, batch) if self.keeps else None
        except StoreError as error:
            self._give_up(error)
            value = None
        if value is None:
            return self._recaptured(engine, batch)[name]
        return self._cut(name, value, batch.tokens.shape[1]) if value.numel() > 1 else value

    def _kept(self, name: str, batch: Batch) -> Tensor:
        """A batch's rows on the model's device; what had to be moved there stays for the batch's next run."""
        assert self.store is not None
        rows = slice(0, 1) if self._n_rows == 1 else batch.rows
        if self.place == "device":
            return self.store.get(name, rows)
        if self._batch is not batch:
            self.drop_batch()
            self._batch = batch
        if name not in self._batch_values:
            found = self.store.get(name, rows)
            self._batch_values[name] = found.to(self._devices[name], non_blocking=True)
        return self._batch_values[name]

    def drop_batch(self) -> None:
        """Forget the batch in hand."""
        self._batch, self._batch_values = None, {}

    def first_difference(self, engine: Engine) -> Int[Tensor, " rows"]:
        """Per row, the first column where source and base run are given something else; 0 where that is not known.

        In a causal model the columns before it have the same activations in both.
        """
        base, source = engine.base, self._run
        if base is None or source is None or engine.intervention.averages is not None:
            return torch.zeros(len(engine.rows), dtype=torch.long)
        width = min(base.tokens.shape[1], source.tokens.shape[1])
        differs = base.tokens[:, :width] != source.tokens[:, :width]
        for run in (base, source):
            for change in (run.replaced, None if run.noise is None else (run.noise != 0).any(-1)):
                if change is not None:
                    differs = differs | change[:, :width]
        if self.aligned:
            differs[:, 0] |= engine.rows.pairs.shifts[engine.rows.example] != 0
        return torch.where(differs.any(-1), differs.long().argmax(-1), width)

    def _cut(self, name: str, value: Tensor, width: int) -> Tensor:
        if self.plans[name].pattern:
            return value[:, :, :width, :width]
        return value[:, :width] if value.shape[1] > 1 else value

    def row_bytes(self, engine: Engine) -> dict[str, int]:
        """Bytes of one row by hook name."""
        rows, view = engine.rows, engine.view
        width, size = rows.base.shape[1], view.dtype.itemsize
        per_position = {"neuron": view.d_mlp, "head": view.n_heads * view.d_head}
        return {
            name: size * width * (view.n_heads * width if plan.pattern else per_position.get(plan.kind, view.d_model))
            for name, plan in (self.plans or engine.plans).items()
        }

    def _rows(self, engine: Engine) -> int:
        """Rows to keep: one where the source is the same for all, as the clean prompt is for all draws of noise."""
        assert self._run is not None
        run, rows = self._run, engine.rows
        alike = run.noise is None and bool((run.tokens == run.tokens[:1]).all() & (run.lengths == run.lengths[0]).all())
        same_places = bool((rows.lengths == rows.lengths[0]).all() & (rows.pairs.shifts == rows.pairs.shifts[0]).all())
        return 1 if alike and same_places and rows.packing is None else len(rows)

    def _fill(self, engine: Engine, store: Store) -> None:
        """Run the source and keep what it has at the hook points."""
        total, width = self._n_rows, engine.rows.base.shape[1]
        for index in self._parts(total):
            for name, value in self._capture(engine, index).items():
                if name not in store:
                    shape = [total, *value.shape[1:]]
                    for axis in (2, 3) if self.plans[name].pattern else (1,):
                        shape[axis] = width
                    store.reserve(name, tuple(shape), value)
                    self._devices[name] = value.device
                store.put(name, int(index[0]), value)

    def _parts(self, total: int) -> list[Int[Tensor, " _"]]:
        rows = torch.arange(total)
        return list(rows.tensor_split(self.ends) if total > 1 and self.ends else rows.split(self.chunk))

    def _capture(self, engine: Engine, index: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Source activations of some rows, moved to the positions of the base prompts."""
        assert self._run is not None
        values = engine.run_source(self._run, index, set(self.plans))
        engine.cost.forwards += engine.share(len(index))
        if not self.aligned:
            return values
        shift = engine.rows.pairs.shifts[engine.rows.example[index]]
        width = int(engine.rows.lengths[index].max())
        if not bool((shift != 0).any()) and int(self._run.lengths[index].max()) == width:
            return values
        return {n: _moved(v, shift.to(v.device), width, self.plans[n].pattern) for n, v in values.items()}

    def _recaptured(self, engine: Engine, batch: Batch) -> dict[str, Tensor]:
        if self._batch is not batch:
            self.drop_batch()  # before the next one's are made
            rows = batch.rows
            index = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.cpu()
            self._batch_values, self._batch = self._capture(engine, index), batch
        return self._batch_values

    def _average(self, engine: Engine, per_position: bool) -> dict[str, Tensor]:
        assert self._run is not None
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        total, full = len(self._run.tokens), self._run.tokens.shape[1]
        for first in range(0, total, self.chunk):
            index = torch.arange(first, min(first + self.chunk, total))
            values = engine.run_source(self._run, index, set(self.plans))
            engine.cost.forwards += len(index) / total
            real = torch.arange(full) < self._run.lengths[index][:, None]
            for name, value in values.items():
                _refuse(value, f"the run that means are taken of is not finite at {name}", first)
                weight = real[:, : value.shape[-1 if self.plans[name].pattern else 1]].to(value.device, value.dtype)
                _accumulate(name, value, weight, self.plans[name].pattern, full, sums, counts)
        means = {}
        for name, value in sums.items():
            if per_position or self.plans[name].pattern:
                self._check_width(engine, name)
                mean = self._widened(engine, name, (value / counts[name].clamp_min(1))[None])
            else:
                mean = (value.sum(0) / counts[name].sum(0))[None, None]
            means[name] = mean.to(engine.view.dtype)
        return means

    def _check_width(self, engine: Engine, name: str) -> None:
        assert self._run is not None
        answers = "everywhere" in self.plans[name].selectors
        have = int(self._run.lengths.max())
        want = engine.rows.base.shape[1] if answers else int(engine.rows.pairs.lengths.max())
        if have < want:
            raise ValueError(
                f"the reference prompts have at most {have} tokens, the prompts{' with their answers' * answers} "
                f"{want}: no mean for the last positions at {name}. Give a reference of that length, or use "
                "MeanAblation(per_position=False) without patterns."
            )

    def _widened(self, engine: Engine, name: str, value: Tensor) -> Tensor:
        """A mean per position as wide as the rows; behind the prompt, where nothing is mixed, it is 0."""
        missing = max(0, engine.rows.base.shape[1] - value.shape[-1 if self.plans[name].pattern else 1])
        pad = [0, missing] * 2 if self.plans[name].pattern else [0, 0] * (value.ndim - 2) + [0, missing]
        return torch.nn.functional.pad(value, pad)


def _refuse(value: Tensor, what: str, first: int | None = None) -> None:
    """Refuse a tensor that is not finite: a mean of it, or a value for every prompt, would spoil all of them."""
    if bool(value.isfinite().all()):
        return
    if first is None:
        raise NonFiniteError(f"{what} are not finite in {value.dtype}. Look at what they were computed from.")
    row = first + int((~value.isfinite()).flatten(1).any(1).nonzero()[0])
    raise NonFiniteError(f"{what}, prompt {row}. Check the weights and the reference prompts.")


def _accumulate(
    name: str,
    value: Tensor,
    weight: Tensor,
    pattern: bool,
    full: int,
    sums: dict[str, Tensor],
    counts: dict[str, Tensor],
) -> None:
    value = value.double()
    if pattern:
        seen = (weight[:, None, :, None] * weight[:, None, None, :]).double()
        missing = full - value.shape[-1]
        pad = [0, missing, 0, missing]
    else:
        seen = weight.double().reshape(*weight.shape, *[1] * (value.ndim - 2))
        pad = [0, 0] * (value.ndim - 2) + [0, full - value.shape[1]]
    total, count = (torch.nn.functional.pad(x.sum(0), pad) for x in (value * seen, seen))
    sums[name] = sums[name] + total if name in sums else total
    counts[name] = counts[name] + count if name in counts else count


def _moved(value: Tensor, shift: Int[Tensor, " b"], width: int, pattern: bool) -> Tensor:
    """``out[b, p] = value[b, p + shift[b]]``, clamped at the ends (places without a partner are never mixed)."""
    if pattern:
        b, h = value.shape[:2]
        at = (torch.arange(width, device=value.device) + shift[:, None]).clamp(0, value.shape[2] - 1)
        value = value.gather(2, at[:, None, :, None].expand(b, h, width, value.shape[3]))
        return value.gather(3, at[:, None, None, :].expand(b, h, width, width))
    at = (torch.arange(width, device=value.device) + shift[:, None]).clamp(0, value.shape[1] - 1)
    at = at.reshape(*at.shape, *[1] * (value.ndim - 2)).expand(-1, -1, *value.shape[2:])
    return value.gather(1, at)


def base_of(engine: Engine) -> Run:
    """The intervention's base run, of the engine's rows."""
    return engine.intervention.base_run(engine.whole or engine.rows, engine.view).picked(engine.rows.number)


def source_of(engine: Engine) -> Run | None:
    """Its source run: of these rows, or of all prompts where it takes means over them."""
    run = engine.intervention.source_run(engine.whole or engine.rows, engine.view)
    return run if run is None or engine.intervention.averages is not None else run.picked(engine.rows.number)
