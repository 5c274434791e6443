"""The last block's MLP, computed only where logits are read.

Nothing mixes positions after the last attention layer, so what that MLP gives at other positions is never used. At one
read per prompt of 15 tokens this saves a twentieth of a whole forward, and more of one that restarts in a late block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Reads = tuple[Int[Tensor, " q"], Int[Tensor, " q"]]
"""Rows and columns of a batch, paired."""


class LastMLP:
    """The MLP of a model's last block, or None where it has none.

    Attributes:
        by_position: whether it treats every position alone; None until a first forward has shown it.
    """

    def __init__(self, module: torch.nn.Module | None) -> None:
        self.module = module
        self.by_position: bool | None = None

    @contextmanager
    def only_at(self, reads: Reads | None) -> Iterator[None]:
        """Compute it at the reads alone, as long as no hook looks inside it."""
        module = self.module
        if reads is None or module is None or self.by_position is False or _hooked(module):
            yield
            return
        whole, before = module.forward, module.__dict__.get("forward")

        def partly(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._at(lambda x: whole(x, *args, **kwargs), hidden, reads)

        module.__dict__["forward"] = partly
        try:
            yield
        finally:
            module.__dict__.pop("forward")
            if before is not None:
                module.__dict__["forward"] = before

    def _at(self, whole: Callable[[Tensor], Any], hidden: Float[Tensor, "b pos d"], reads: Reads) -> Any:
        reads = (reads[0].to(hidden.device), reads[1].to(hidden.device))
        part, full = whole(hidden[reads][None]), None
        if self.by_position is None:
            full = whole(hidden)
            if not isinstance(full, Tensor):
                self.by_position = False
            elif bool(full.isfinite().all()):
                self.by_position = _close(full[reads], part[0])
        if self.by_position:  # also the forward that has shown it: every forward rounds alike
            return part.new_zeros(*hidden.shape[:2], part.shape[-1]).index_put(reads, part[0])
        return full


def _hooked(module: torch.nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to rounding, in units of their largest entry."""
    return bool((a - b).abs().max() <= torch.finfo(a.dtype).eps ** 0.5 * a.abs().max())
