"""Activations that are kept: of the source run at the mask's hook points, and inputs of blocks to restart from.

Source activations are taken once and kept where there is room for them: on the model's device, or beside a GPU in host
memory. Where there is none, a forward per batch gives them again, which ``cost`` counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.engine.means import mean_activations, refuse_non_finite
from tl_multitrace.groups import Points
from tl_multitrace.groups.mixing import Plan
from tl_multitrace.interventions import GivenAblation, Run
from tl_multitrace.rows import Batch, Rows, rows_on

if TYPE_CHECKING:
    from tl_multitrace.engine.mask_runs import MaskRuns

Place = Literal["device", "host", "recomputed", "none"]
"""Where something is kept. ``host`` is the memory of the CPU where the model is on a GPU; ``recomputed``: nowhere, a
forward gives it again; ``none``: nowhere, and runs do without it."""


@dataclass
class StoredRun:
    """Block inputs of a run under a mask, to restart from.

    Attributes:
        mask: of that run.
        residuals: input of a block, per block number, on the model's device or in host memory.
        answers: of the run, per batch, where they were kept.
    """

    mask: Float[np.ndarray, " groups"]
    residuals: dict[int, Float[Tensor, "rows pos d_model"]] = field(default_factory=dict)
    answers: list[Answers] = field(default_factory=list)

    def input(self, layer: int, batch: Batch, column: int) -> Float[Tensor, "b part d_model"]:
        """A batch's input of a block from a column on, on a GPU where the model is on one."""
        kept = self.residuals[layer]
        part = kept[rows_on(kept.device, batch.rows), column : batch.tokens.shape[1]]
        # of a model on several GPUs, whose blocks fetch their inputs themselves, it stays where it is
        near = kept.device.type == batch.tokens.device.type
        return part if near else part.to(batch.tokens.device, non_blocking=True)

    def put(
        self,
        layer: int,
        value: Float[Tensor, "b part d_model"],
        batch: Batch,
        column: int,
        rows: Rows,
        device: torch.device,
    ) -> None:
        """Write a batch's input of a block from a column on.

        Args:
            layer: the block.
            value: its input.
            batch: whose.
            column: the first that ``value`` has.
            rows: all rows, where there is no room for them yet.
            device: where to make that room.
        """
        if layer not in self.residuals:
            self.residuals[layer] = zeros((*rows.base.shape, value.shape[-1]), value, device)
        kept = self.residuals[layer]
        kept[rows_on(kept.device, batch.rows), column : column + value.shape[1]] = value.to(kept.device)


def zeros(shape: tuple[int, ...], like: Tensor, device: torch.device) -> Tensor:
    """Room for activations; in host memory that a GPU reads directly, where they come from one."""
    pinned = device.type == "cpu" and like.device.type == "cuda"
    return torch.zeros(shape, dtype=like.dtype, device=device, pin_memory=pinned)


@dataclass(eq=False)
class Sources:
    """Activations of a run at some hook points, of all rows or of the batch in hand.

    Attributes:
        plans: the hook points.
        chunk: rows per run.
        ends: rows that a run ends before, where other processes have the other rows: the same runs then, and the same
            rounding, however rows are split among them.
        aligned: whether positions follow the pairs' alignment.
        place: where they are kept.
        kept: per hook name ``[rows, pos, ...]`` (attention weights ``[rows, head, dest, src]``), aligned to the base
            prompts, or one row that serves all.
        needed: bytes that keeping everything takes.
    """

    plans: Mapping[str, Plan]
    chunk: int
    ends: tuple[int, ...] = ()
    aligned: bool = False
    place: Place = "device"
    kept: dict[str, Tensor] = field(default_factory=dict)
    needed: int = 0
    _run: Run | None = None
    _n_rows: int = 1
    _devices: dict[str, torch.device] = field(default_factory=dict)
    _batch: Batch | None = None
    _batch_values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def keeps(self) -> bool:
        """Whether they are kept anywhere."""
        return self.place != "recomputed"

    def measure(self, runs: MaskRuns, run: Run | None = None) -> int:
        """Bytes that keeping what a run has at the hook points takes; of means, which are few, 0.

        Args:
            runs: run the model.
            run: default: the intervention's source.
        """
        if self._run is None:
            self._run = source_of(runs) if run is None else run
        if run is not None or runs.intervention.averages is None:
            self._n_rows = self._rows(runs)
            self.needed = self._n_rows * sum(self.row_bytes(runs).values())
        return self.needed

    def prepare(self, runs: MaskRuns, run: Run | None = None) -> None:
        """Run the intervention's source once, or the run given, and keep it where ``place`` says."""
        self.measure(runs, run)
        fixed = {} if run is not None else self._fixed(runs)
        if fixed:
            self.kept, self.place = fixed, "device"
        elif self.keeps:
            self._fill(runs)

    def _fixed(self, runs: MaskRuns) -> dict[str, Tensor]:
        """One row that serves all, where the intervention has such."""
        intervention, view = runs.intervention, runs.view
        if intervention.averages == "zero":
            dims = {name: 4 if plan.kind == "head" else 3 for name, plan in self.plans.items()}
            return {name: torch.zeros([1] * d, device=view.device, dtype=view.dtype) for name, d in dims.items()}
        if isinstance(intervention, GivenAblation):
            values = {name: intervention.values[name].to(view.device, view.dtype) for name in self.plans}
            for name, value in values.items():
                refuse_non_finite(value[None], f"the values given for {name}")
            return {name: value[None, None] for name, value in values.items()}
        return self._means(runs) if intervention.averages else {}

    def _means(self, runs: MaskRuns) -> dict[str, Tensor]:
        """Means over the prompts of the source run, over all tokens or per position."""
        assert self._run is not None
        run, per_position = self._run, runs.intervention.averages == "position"
        patterns = {name: plan.pattern for name, plan in self.plans.items()}
        found = mean_activations(runs.view, patterns, run, per_position=per_position, chunk=self.chunk)
        runs.cost.forwards += 1
        for name, plan in self.plans.items():
            if per_position or plan.pattern:
                _checked_width(runs, plan, run)
                found[name] = _widened(runs, plan, found[name][None])
            else:
                found[name] = found[name][None, None]
        return {name: mean.to(runs.view.dtype) for name, mean in found.items()}

    def get(self, runs: MaskRuns, name: str, batch: Batch) -> Tensor:
        """Source activation of a batch's rows at a hook point, as wide as the batch."""
        if not self.keeps:
            return self._recomputed(runs, batch)[name]
        value = self._at_hand(name, batch)
        return self._cut(name, value, batch.tokens.shape[1]) if value.numel() > 1 else value

    def _at_hand(self, name: str, batch: Batch) -> Tensor:
        """A batch's rows on the model's device; what had to be moved there stays for the batch's next run."""
        kept = self.kept[name]
        rows = slice(0, 1) if self._n_rows == 1 else rows_on(kept.device, batch.rows)
        if self.place == "device":
            return kept[rows]
        if self._batch is not batch:
            self.drop_batch()
            self._batch = batch
        if name not in self._batch_values:
            self._batch_values[name] = kept[rows].to(self._devices[name], non_blocking=True)
        return self._batch_values[name]

    def drop_batch(self) -> None:
        """Forget the batch in hand."""
        self._batch, self._batch_values = None, {}

    def first_difference(self, runs: MaskRuns) -> Int[Tensor, " rows"]:
        """Per row, the first column where source and base run are given something else; 0 where that is not known.

        In a causal model the columns before it have the same activations in both.
        """
        base, source = runs.base, self._run
        if source is None or runs.intervention.averages is not None:
            return torch.zeros(len(runs.rows), dtype=torch.long)
        width = min(base.tokens.shape[1], source.tokens.shape[1])
        differs = base.tokens[:, :width] != source.tokens[:, :width]
        for run in (base, source):
            for change in (run.replaced, None if run.noise is None else (run.noise != 0).any(-1)):
                if change is not None:
                    differs = differs | change[:, :width]
        if self.aligned:
            differs[:, 0] |= runs.rows.pairs.shifts[runs.rows.example] != 0
        return torch.where(differs.any(-1), differs.long().argmax(-1), width)

    def _cut(self, name: str, value: Tensor, width: int) -> Tensor:
        if self.plans[name].pattern:
            return value[:, :, :width, :width]
        return value[:, :width] if value.shape[1] > 1 else value

    def row_bytes(self, runs: MaskRuns) -> dict[str, int]:
        """Bytes of one row by hook name, from the shapes that the activations there have."""
        width, size = runs.rows.base.shape[1], runs.view.dtype.itemsize
        shapes = Points.of(runs.view.model).shapes
        return {
            name: size * width * (shapes[name][1] * width if plan.pattern else prod(shapes[name][2:]))
            for name, plan in self.plans.items()
            if name in shapes
        }

    def _rows(self, runs: MaskRuns) -> int:
        """Rows to keep: one where the source is the same for all, as the clean prompt is for all draws of noise."""
        assert self._run is not None
        run, rows = self._run, runs.rows
        alike = run.noise is None and bool((run.tokens == run.tokens[:1]).all() & (run.lengths == run.lengths[0]).all())
        same_places = bool((rows.lengths == rows.lengths[0]).all() & (rows.pairs.shifts == rows.pairs.shifts[0]).all())
        return 1 if alike and same_places and rows.packing is None else len(rows)

    def _fill(self, runs: MaskRuns) -> None:
        """Run the source and keep what it has at the hook points."""
        self.kept = {}
        total, width = self._n_rows, runs.rows.base.shape[1]
        for index in self._parts(total):
            first = int(index[0])
            for name, value in self._of(runs, index).items():
                if name not in self.kept:
                    shape = [total, *value.shape[1:]]
                    for axis in (2, 3) if self.plans[name].pattern else (1,):
                        shape[axis] = width
                    device = torch.device("cpu") if self.place == "host" else value.device
                    self.kept[name], self._devices[name] = zeros(tuple(shape), value, device), value.device
                room = self.kept[name][first : first + len(value)]
                room[tuple(slice(0, size) for size in value.shape)] = value.to(room.device)

    def _parts(self, total: int) -> list[Int[Tensor, " _"]]:
        rows = torch.arange(total)
        return list(rows.tensor_split(self.ends) if total > 1 and self.ends else rows.split(self.chunk))

    def _of(self, runs: MaskRuns, index: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Activations of some rows, moved to the positions of the base prompts."""
        assert self._run is not None
        values = runs.kept(self._run, index, self.plans)
        runs.cost.forwards += runs.share(len(index))
        if not self.aligned:
            return values
        shift = runs.rows.pairs.shifts[runs.rows.example[index]]
        width = int(runs.rows.lengths[index].max())
        if not bool((shift != 0).any()) and int(self._run.lengths[index].max()) == width:
            return values
        return {n: _moved(v, shift.to(v.device), width, self.plans[n].pattern) for n, v in values.items()}

    def _recomputed(self, runs: MaskRuns, batch: Batch) -> dict[str, Tensor]:
        if self._batch is not batch:
            self.drop_batch()  # before the next one's are made
            rows = batch.rows
            index = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.cpu()
            self._batch_values, self._batch = self._of(runs, index), batch
        return self._batch_values


def _checked_width(runs: MaskRuns, plan: Plan, run: Run) -> None:
    answers = "everywhere" in plan.selectors
    have = int(run.lengths.max())
    want = runs.rows.base.shape[1] if answers else int(runs.rows.pairs.lengths.max())
    if have < want:
        raise ValueError(
            f"the reference prompts have at most {have} tokens, the prompts{' with their answers' * answers} "
            f"{want}: no mean for the last positions at {plan.hook}. Give a reference of that length, or use "
            "MeanAblation(per_position=False) without patterns."
        )


def _widened(runs: MaskRuns, plan: Plan, value: Tensor) -> Tensor:
    """A mean per position as wide as the rows; behind the prompt, where nothing is mixed, it is 0."""
    missing = max(0, runs.rows.base.shape[1] - value.shape[-1 if plan.pattern else 1])
    pad = [0, missing] * 2 if plan.pattern else [0, 0] * (value.ndim - 2) + [0, missing]
    return torch.nn.functional.pad(value, pad)


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


def source_of(runs: MaskRuns) -> Run | None:
    """The source run: of these rows, or of all prompts where the intervention takes means over them."""
    run = runs.intervention.source_run(runs.whole, runs.view)
    return run if run is None or runs.intervention.averages is not None else run.picked(runs.rows.number)
