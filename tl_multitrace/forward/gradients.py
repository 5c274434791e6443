"""Runs under a soft mask, and the way back: the derivative of whatever was read with respect to the mask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.forward.engine import Engine, Prefix
from tl_multitrace.forward.restart import Restarts
from tl_multitrace.rows import Batch

RUNS = 2
"""A forward and a backward save as much as two runs where they restart at a later token."""


@dataclass
class Gradients:
    """Forwards that keep what a backward to the mask needs.

    Attributes:
        engine: runs the masks.
        restarts: where runs may start.
        origin: the base run.
        metric_name: for the message where there is no derivative.
    """

    engine: Engine
    restarts: Restarts
    origin: Prefix
    metric_name: str

    def prepare(self) -> None:
        """Before a pass over the batches: see whether to restart at a later token."""
        self.restarts.consider(RUNS)

    def answers(
        self, batch: Batch, leaf: Float[Tensor, "1 r groups"], record: Sequence[Prefix] = ()
    ) -> tuple[Answers, float]:
        """Answers under a mask that requires a gradient, and the share of a whole forward that they cost."""
        first = int(self.engine.first_layers.min())
        start = first if first in self.origin.residuals else 0
        column, past = self.restarts.gradient_start(batch)
        found = self.engine.answers(
            batch, leaf, start=start, prefix=self.origin, record=record, column=column, past=past
        )
        for run in record:
            self.restarts.complete(run, batch, column)
        return found, self.engine.fraction(batch, start, column)

    def backward(self, scalar: Tensor, leaf: Tensor, share: float) -> Tensor:
        """Derivative of a number with respect to the mask.

        Raises:
            ValueError: there is none.
        """
        if not scalar.requires_grad:
            raise ValueError(
                f"the metric {self.metric_name!r} has no gradient with respect to the mask (it rounds or detaches what "
                "it reads). Use a solver that needs none, such as Greedy()."
            )
        began = time.perf_counter()
        (grad,) = torch.autograd.grad(scalar, leaf)
        self.engine.cost.seconds += time.perf_counter() - began
        self.engine.cost.backwards += share
        return grad
