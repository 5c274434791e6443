"""The classes of tokens that traces of different prompts are averaged over."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.causal_trace.grid import TraceGrid

CLASSES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
"""Token classes of Meng et al. 2022. A token may be in two: a one-token subject is first and last, and the first
subsequent token may be the prompt's last. In a masked language model the mask, where the answer is read, is the last.
"""


def class_members(n: int, subject: tuple[int, int], answer_position: int | None = None) -> list[list[int]]:
    """Positions of a prompt of ``n`` tokens in each of :data:`CLASSES`; tokens before the subject are in none.

    Args:
        n: tokens of the prompt.
        subject: ``[start, stop)`` of the subject.
        answer_position: where the answer is read; default: the prompt's last token.
    """
    first, after = subject
    last = n - 1 if answer_position is None else answer_position
    return [
        [first],
        list(range(first + 1, after - 1)),
        [after - 1],
        list(range(after, min(after + 1, n))),
        [p for p in range(after + 1, n) if p != last],
        [last],
    ]


def by_class(grid: TraceGrid) -> TraceGrid:
    """A trace of one fact as one sample over token classes."""
    restored = grid.restored.mean(0)
    tokens: tuple[str, ...] = grid.tokens
    cells = grid.cells
    if cells.own is None:
        members = class_members(len(grid.tokens), grid.subject, grid.provenance.get("answer_position"))
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
