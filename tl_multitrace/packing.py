"""Several continuations of one prompt in one row, so that the prompt runs once for all of them.

    prompt | continuation 1 | continuation 2

Each continuation sees the prompt and itself, and stands at the positions it would have alone: an attention mask with
the other continuations left out, and position ids that start anew. Bridges hand both to the model; whether the model
then computes the same as with one row per continuation is tried before it is relied on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_multitrace.compat import ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tokens import NO_TOKEN, pad_rows

logger = logging.getLogger(__name__)


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


def can_pack(view: ModelView, pairs: PromptPairs) -> bool:
    """Whether some prompt has several continuations to run, and the model computes them right in one row."""
    if not view.is_bridge or view.attends_locally:
        return False
    prefixes = [answer_prefixes(candidates)[0] for candidates in pairs.candidates]
    tokens = pairs.lengths + torch.tensor([sum(map(len, row)) for row in prefixes])
    several = torch.tensor([len(row) > 1 for row in prefixes])
    if not bool(several.any()) or (view.n_ctx and int(tokens.max()) > view.n_ctx):
        return False
    widest = int(torch.where(several, tokens, 0).argmax())
    prompt = pairs.base_tokens[widest, : pairs.lengths[widest]].tolist()
    try:
        return _same_logits(view, prompt, prefixes[widest])
    except Exception as error:  # every model refuses such a mask in its own way; one row each always works
        logger.debug("%s does not run packed rows: %s", view.name, error)
        return False


def _same_logits(view: ModelView, prompt: list[int], prefixes: list[list[int]]) -> bool:
    """Whether a packed row gives every continuation the logits that a row of its own gives."""
    alone = pad_rows([prompt + prefix for prefix in prefixes], 0)
    lengths = torch.tensor([len(prompt) + len(prefix) for prefix in prefixes])
    together = torch.tensor([prompt + [t for prefix in prefixes for t in prefix]])
    size = torch.tensor([together.shape[1]])
    mask, position = Packing.of([prefixes]).attention(slice(None), size, together.shape[1])
    real = (torch.arange(alone.shape[1]) < lengths[:, None]).long()
    device = view.device
    with view.frozen(), torch.no_grad():
        wanted = view.run(alone.to(device), real.to(device)).log_softmax(-1)
        found = view.run(together.to(device), mask.to(device), position_ids=position.to(device)).log_softmax(-1)
    wanted = torch.cat([wanted[i, len(prompt) : n] for i, n in enumerate(lengths.tolist())])
    tolerance = torch.finfo(found.dtype).eps ** 0.5
    return bool(torch.allclose(found[0, len(prompt) :], wanted, atol=tolerance, rtol=tolerance))
