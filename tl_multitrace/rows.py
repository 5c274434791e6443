"""The rows that run: each prompt with as much of an answer as its scoring needs, and where to read logits.

A candidate answer of T tokens is scored from T positions: the prompt's last one and one per answer token but the last.
So a one-token answer needs the prompt alone, and candidates whose needed parts are prefixes of one another share one
row. Logits are read at those positions and nowhere else.

Examples are kept in order of length, so that a batch is a contiguous slice with little padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_multitrace.mixing import Places
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tokens import NO_TOKEN, pad_rows


@dataclass(frozen=True)
class Rows:
    """All rows of a prompt set, examples sorted by length.

    Attributes:
        pairs: the prompts, in sorted order.
        order: original index of each sorted example.
        base: base prompt and answer prefix per row.
        source: source prompt and the same answer prefix.
        lengths: tokens per base row.
        source_lengths: tokens per source row.
        example: sorted example of each row; rows of one example are neighbours.
        starts: first row of each example, and the number of rows at the end.
        reads: logits read per row (answer prefix length + 1).
        candidate_row: row that scores each candidate, counted from the example's first.
        present: which entries of ``pairs.candidates`` are tokens.
    """

    pairs: PromptPairs
    order: Int[Tensor, " n"]
    base: Int[Tensor, "rows pos"]
    source: Int[Tensor, "rows source_pos"]
    lengths: Int[Tensor, " rows"]
    source_lengths: Int[Tensor, " rows"]
    example: Int[Tensor, " rows"]
    starts: Int[Tensor, " n_plus_1"]
    reads: Int[Tensor, " rows"]
    candidate_row: Int[Tensor, "n k"]
    present: Bool[Tensor, "n k t"]

    @classmethod
    def of(cls, pairs: PromptPairs) -> Rows:
        """Lay out the rows of a prompt set.

        Raises:
            ValueError: a multi-token answer is to be read at a position that is not the prompt's last.
        """
        longest = (pairs.candidates != NO_TOKEN).sum(-1).amax(-1)
        order = torch.argsort(pairs.lengths + longest, stable=True)
        pairs = pairs[order]
        base: list[list[int]] = []
        source: list[list[int]] = []
        example: list[int] = []
        reads: list[int] = []
        starts, candidate_row = [0], torch.zeros(pairs.candidates.shape[:2], dtype=torch.long)
        for e in range(len(pairs)):
            prefixes, which = _answer_prefixes(pairs.candidates[e])
            if len(prefixes[0]) and int(pairs.answer_positions[e]) != int(pairs.lengths[e]) - 1:
                raise ValueError(
                    f"pair {int(order[e])}: a multi-token answer must be read at the prompt's last position."
                )
            for prefix in prefixes:
                base.append(pairs.base_tokens[e, : pairs.lengths[e]].tolist() + prefix)
                source.append(pairs.source_tokens[e, : pairs.source_lengths[e]].tolist() + prefix)
                example.append(e)
                reads.append(len(prefix) + 1)
            candidate_row[e] = torch.tensor(which)
            starts.append(len(base))
        return cls(
            pairs=pairs,
            order=order,
            base=pad_rows(base, pairs.pad_id),
            source=pad_rows(source, pairs.pad_id),
            lengths=torch.tensor([len(r) for r in base]),
            source_lengths=torch.tensor([len(r) for r in source]),
            example=torch.tensor(example),
            starts=torch.tensor(starts),
            reads=torch.tensor(reads),
            candidate_row=candidate_row,
            present=pairs.candidates != NO_TOKEN,
        )

    def __len__(self) -> int:
        return len(self.base)

    @property
    def n_examples(self) -> int:
        """Number of prompt pairs."""
        return len(self.starts) - 1

    @property
    def partner(self) -> Bool[Tensor, "rows pos"] | None:
        """Base columns that have an aligned source token; None when all have."""
        shift = self.pairs.shifts[self.example][:, None]
        there = torch.arange(self.base.shape[1]) + shift
        found = (there >= 0) & (there < self.source_lengths[:, None])
        real = torch.arange(self.base.shape[1]) < self.lengths[:, None]
        return None if bool(found[real].all()) else found

    def batch(self, examples: Int[Tensor, " e"], device: torch.device) -> Batch:
        """What one forward over some (sorted) examples needs."""
        ranges = [torch.arange(int(self.starts[e]), int(self.starts[e + 1])) for e in examples]
        rows = torch.cat(ranges)
        counts = torch.tensor([len(r) for r in ranges])
        lengths, width = self.lengths[rows], int(self.lengths[rows].max())
        prompt = self.pairs.lengths[self.example[rows]]
        reads = self.reads[rows]
        read_row = torch.repeat_interleave(torch.arange(len(rows)), reads)
        offsets = torch.cumsum(reads, 0) - reads
        step = torch.arange(int(reads.sum())) - offsets[read_row]
        first_row = torch.cumsum(counts, 0) - counts
        scored = offsets[first_row[:, None] + self.candidate_row[examples]][..., None]
        steps = torch.arange(self.present.shape[-1])
        partner = self.partner
        contiguous = torch.equal(rows, torch.arange(int(rows[0]), int(rows[0]) + len(rows)))
        return Batch(
            examples=examples.to(device),
            rows=slice(int(rows[0]), int(rows[0]) + len(rows)) if contiguous else rows.to(device),
            example=torch.repeat_interleave(torch.arange(len(examples)), counts).to(device),
            tokens=self.base[rows, :width].to(device),
            attention_mask=(torch.arange(width) < lengths[:, None]).long().to(device),
            places=Places(
                width,
                prompt.to(device),
                lengths.to(device),
                None if partner is None else partner[rows, :width].to(device),
                {k: v[self.example[rows]].to(device) for k, v in self.pairs.spans.items()},
            ),
            read_row=read_row.to(device),
            read_position=(self.pairs.answer_positions[self.example[rows]][read_row] + step).to(device),
            candidate_read=torch.where(self.present[examples], scored + steps, 0).to(device),
            candidate_token=self.pairs.candidates[examples].clamp_min(0).to(device),
            present=self.present[examples].to(device),
            right=self.pairs.right[examples].to(device),
            last_read=offsets[first_row].to(device),
        )


@dataclass(frozen=True)
class Batch:
    """One forward: ``b`` rows of ``e`` examples, with ``q`` places to read logits at.

    Attributes:
        examples: which (sorted) examples.
        rows: which rows, as a slice where they are neighbours.
        example: example of each row, counted within the batch.
        tokens: base token ids.
        attention_mask: 1 at real tokens.
        places: prompt, answer and span positions.
        read_row: row of each read.
        read_position: column of each read.
        candidate_read: read that scores each candidate token.
        candidate_token: its token id.
        present: whether there is such a token.
        right: which candidates are answers.
        last_read: read at the prompt's answer position, one per example.
    """

    examples: Int[Tensor, " e"]
    rows: slice | Int[Tensor, " b"]
    example: Int[Tensor, " b"]
    tokens: Int[Tensor, "b pos"]
    attention_mask: Int[Tensor, "b pos"]
    places: Places
    read_row: Int[Tensor, " q"]
    read_position: Int[Tensor, " q"]
    candidate_read: Int[Tensor, "e k t"]
    candidate_token: Int[Tensor, "e k t"]
    present: Bool[Tensor, "e k t"]
    right: Bool[Tensor, "e k"]
    last_read: Int[Tensor, " e"]

    @property
    def n_rows(self) -> int:
        """Rows in the batch."""
        return len(self.tokens)


def _answer_prefixes(candidates: Int[Tensor, "k t"]) -> tuple[list[list[int]], list[int]]:
    """The distinct token prefixes to append, longest first, and which of them scores each candidate."""
    needed = [[int(t) for t in row if int(t) != NO_TOKEN][:-1] for row in candidates]
    prefixes: list[list[int]] = []
    for prefix in sorted(needed, key=len, reverse=True):
        if not any(kept[: len(prefix)] == prefix for kept in prefixes):
            prefixes.append(prefix)
    which = [next(i for i, kept in enumerate(prefixes) if kept[: len(p)] == p) for p in needed]
    return prefixes, which
