"""Several continuations of one prompt in one row, so that the prompt runs once for all of them.

    prompt | continuation 1 | continuation 2

Each continuation sees the prompt and itself, and stands at the positions it would have alone: an attention mask with
the other continuations left out, and position ids that start anew. Bridges hand both to the model; whether the model
then computes the same as with one row per continuation is tried before it is relied on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_multitrace.models.compat import ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tokens import NO_TOKEN, pad_rows


@dataclass(frozen=True)
class Packing:
    """Which continuation each token after the prompt belongs to.

    Attributes:
        segment: number of the continuation, from 1; 0 past the row's end.
        step: place within the continuation, from 0.
    """

    segment: Int[Tensor, "rows suffix"]
    step: Int[Tensor, "rows suffix"]

    @classmethod
    def of(cls, prefixes: list[list[list[int]]]) -> Packing:
        """The packing of every row's continuations, given as token lists."""
        segment = [[i + 1 for i, prefix in enumerate(row) for _ in prefix] for row in prefixes]
        step = [[j for prefix in row for j in range(len(prefix))] for row in prefixes]
        return cls(pad_rows(segment, 0), pad_rows(step, 0))

    def picked(self, rows: Int[Tensor, " b"]) -> Packing:
        """Some of the rows."""
        return Packing(self.segment[rows], self.step[rows])

    def attention(
        self, rows: slice | Int[Tensor, " b"], lengths: Int[Tensor, " b"], width: int
    ) -> tuple[Bool[Tensor, "b 1 pos pos"], Int[Tensor, "b pos"]]:
        """What each token of some rows may attend to, and its position id.

        Args:
            rows: which rows.
            lengths: prompt and continuation tokens per row.
            width: columns.
        """
        prompt = (lengths - (self.segment[rows] > 0).sum(-1))[:, None]
        column = torch.arange(width).expand(len(prompt), -1)
        inside = (column >= prompt) & (column < lengths[:, None])
        place = (column - prompt).clamp(0, self.segment.shape[1] - 1)
        segment = torch.where(inside, self.segment[rows].gather(1, place), 0)
        position = torch.where(inside, prompt + self.step[rows].gather(1, place), column)
        related = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
        seen = (column[:, None, :] <= column[:, :, None]) & (column < lengths[:, None])[:, None, :] & related
        return seen[:, None], position


def answer_prefixes(candidates: Int[Tensor, "k t"]) -> tuple[list[list[int]], list[int]]:
    """The distinct token prefixes to append, longest first, and which of them scores each candidate."""
    needed = [[int(t) for t in row if int(t) != NO_TOKEN][:-1] for row in candidates]
    prefixes: list[list[int]] = []
    for prefix in sorted(needed, key=len, reverse=True):
        if not any(kept[: len(prefix)] == prefix for kept in prefixes):
            prefixes.append(prefix)
    which = [next(i for i, kept in enumerate(prefixes) if kept[: len(p)] == p) for p in needed]
    return prefixes, which


def can_pack(view: ModelView, pairs: PromptPairs, trials: Any) -> bool:
    """Whether some prompt has several continuations to run, and the model computes them right in one row.

    Args:
        view: the model.
        pairs: the prompts.
        trials: what the model allows.
    """
    if not view.is_bridge or view.attends_locally:
        return False
    prefixes = [answer_prefixes(candidates)[0] for candidates in pairs.candidates]
    tokens = pairs.lengths + torch.tensor([sum(map(len, row)) for row in prefixes])
    several = torch.tensor([len(row) > 1 for row in prefixes])
    if not bool(several.any()) or (view.n_ctx and int(tokens.max()) > view.n_ctx):
        return False
    widest = int(torch.where(several, tokens, 0).argmax())
    prompt = pairs.base_tokens[widest, : pairs.lengths[widest]].tolist()
    row = [*prompt, *(t for prefix in prefixes[widest] for t in prefix)]
    mask, position = Packing.of([prefixes[widest]]).attention(slice(None), torch.tensor([len(row)]), len(row))
    found: bool = trials.packing(prompt, prefixes[widest], row, mask, position)
    return found
