"""Stored runs that others restart from: the inputs of their blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.memory.stores import rows_on
from tl_multitrace.rows import Batch, Rows


@dataclass
class Prefix:
    """Block inputs of a run under a reference mask, to restart from.

    Attributes:
        mask: the reference mask.
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
            pinned = device.type == "cpu" and value.device.type == "cuda"
            shape = (*rows.base.shape, value.shape[-1])
            self.residuals[layer] = torch.zeros(shape, dtype=value.dtype, device=device, pin_memory=pinned)
        kept = self.residuals[layer]
        kept[rows_on(kept.device, batch.rows), column : column + value.shape[1]] = value.to(kept.device)
