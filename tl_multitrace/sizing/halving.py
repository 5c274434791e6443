"""Going on when memory runs out: half the batch, the same numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from tl_multitrace.answers import Answers
from tl_multitrace.compat import ModelView
from tl_multitrace.forward.engine import Engine
from tl_multitrace.forward.restart import Restarts
from tl_multitrace.memory.exhausted import does_not_fit, is_out_of_memory, release
from tl_multitrace.rows import Batch, Rows

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Halving:
    """The part of an evaluator that holds its batches and makes them smaller.

    Attributes:
        batch_size: prompt pairs per forward, now.
        halved: how often it was halved because memory ran out.
    """

    view: ModelView
    rows: Rows
    memory_limit: int
    batch_size: int
    halved: int = 0
    _engine: Engine
    _restarts: Restarts
    _batches: list[Batch]
    _base: list[Answers]

    def _surviving(self, work: Callable[[], T]) -> T:
        """What ``work`` returns; it starts again on smaller batches where memory ran out.

        Raises:
            MemoryError: a single prompt pair under a single mask does not fit.
        """
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                why = str(error) or type(error).__name__
            # out of the handler, where the error no longer holds the tensors of the frames that it passed
            self._halve(why)

    def _halve(self, why: str) -> None:
        size, tile = max(len(batch.examples) for batch in self._batches), self._restarts.tile
        self._forget_steps()
        if size == 1 and tile == 1:  # one prompt pair, and no other mask beside it
            raise does_not_fit(self.rows.base.shape[1], self.view.device, self.memory_limit, why)
        self._rebatch((size + 1) // 2)
        tokens = max(batch.tokens.numel() for batch in self._batches)
        self._restarts.tile = max(1, min(tile // 2, tokens))
        self.halved += 1
        release(self.view.device)
        logger.warning("memory ran out (%s): going on with %d prompt pairs per forward", why, self.batch_size)

    def _forget_steps(self) -> None:
        """Drop everything that a later call makes anew."""
        self._restarts.forget()
        self._engine.drop_captured()

    def _rebatch(self, size: int) -> None:
        """Batches of at most so many examples, of equal size rather than a small last one."""
        everyone = torch.arange(self.rows.n_examples)
        parts = everyone.chunk(-(-len(everyone) // size))
        whole = Answers.joined(self._base) if sum(len(a.right) for a in self._base) == len(everyone) else None
        self._batches[:] = [self.rows.batch(part, self.view.device) for part in parts]  # which others hold too
        self._base[:] = [] if whole is None else [whole.picked(batch.examples) for batch in self._batches]
        self.batch_size = max(map(len, parts))
        ends = torch.tensor([batch.n_rows for batch in self._batches]).cumsum(0)[:-1].tolist()
        for sources in self._engine.kept:
            sources.chunk, sources.ends = self.batch_size, tuple(ends) if sources.ends else ()
