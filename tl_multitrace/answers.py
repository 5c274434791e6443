"""What a run says about the candidate answers: the one thing that metrics read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Reduce = Literal["mean", "sum"]


@dataclass(frozen=True)
class Answers:
    """What a run says about the candidate answers of ``n`` examples.

    Attributes:
        token_logp: log probability of every candidate token given the prompt and the tokens before it.
        present: which of these tokens exist.
        right: which candidates are answers (the others are wrong answers).
        last: log probabilities over the vocabulary at the answer position; only when the metric asks for it.
        token_ids: ids of the candidate tokens.

    Examples:
        >>> import torch
        >>> from tl_multitrace import Answers
        >>> found = Answers(
        ...     token_logp=torch.tensor([[[0.6], [0.3]]]).log(),
        ...     present=torch.ones(1, 2, 1, dtype=torch.bool),
        ...     right=torch.tensor([[True, False]]),
        ... )
        >>> right, wrong = found.grouped()
        >>> (right - wrong).exp().round(decimals=2).tolist()
        [2.0]
    """

    token_logp: Float[Tensor, "n k t"]
    present: Bool[Tensor, "n k t"]
    right: Bool[Tensor, "n k"]
    token_ids: Any = None
    last: Float[Tensor, "n vocab"] | None = None

    def scores(self, reduce: Reduce = "mean") -> Float[Tensor, "n k"]:
        """Log score of each candidate: mean (default) or sum of its tokens' log p; -inf where there is none.

        Args:
            reduce: ``"mean"`` or ``"sum"`` over a candidate's tokens.
        """
        total = torch.where(self.present, self.token_logp, 0.0).sum(-1)
        count = self.present.sum(-1)
        scored = total / count.clamp_min(1) if reduce == "mean" else total
        return scored.masked_fill(count == 0, -torch.inf)

    def grouped(self, reduce: Reduce = "mean") -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Log of the summed score of the right candidates, and of the wrong ones (-inf without any).

        Args:
            reduce: ``"mean"`` or ``"sum"`` over a candidate's tokens.
        """
        scores = self.scores(reduce)
        none = torch.full_like(scores, -torch.inf)
        right = torch.where(self.right, scores, none)
        wrong = torch.where(self.right, none, scores)
        return right.logsumexp(-1), wrong.logsumexp(-1)

    def repeated(self, k: int) -> Answers:
        """The same answers ``k`` times, to stand beside the runs of ``k`` masks."""
        if k == 1:
            return self
        last = None if self.last is None else self.last.repeat(k, 1)
        return Answers(
            self.token_logp.repeat(k, 1, 1),
            self.present.repeat(k, 1, 1),
            self.right.repeat(k, 1),
            None if self.token_ids is None else self.token_ids.repeat(k, 1, 1),
            last,
        )

    def picked(self, index: Int[Tensor, " m"]) -> Answers:
        """The answers of some examples.

        Args:
            index: numbers of the examples.
        """
        last = None if self.last is None else self.last[index]
        ids = None if self.token_ids is None else self.token_ids[index]
        return Answers(self.token_logp[index], self.present[index], self.right[index], ids, last)

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """The answers of several batches, one after the other.

        Args:
            parts: of one or more batches.
        """
        last = [p.last for p in parts if p.last is not None]
        ids = [p.token_ids for p in parts if p.token_ids is not None]
        return Answers(
            torch.cat([p.token_logp for p in parts]),
            torch.cat([p.present for p in parts]),
            torch.cat([p.right for p in parts]),
            torch.cat(ids) if ids else None,
            torch.cat(last) if last else None,
        )
