"""The rows that run: each prompt with as much of an answer as its scoring needs, and where to read logits.

A candidate answer of T tokens is scored from T positions: the prompt's last one and one per answer token but the last.
So a one-token answer needs the prompt alone, candidates whose needed parts are prefixes of one another share them, and
where the model allows it all candidates of a prompt share one row (see ``packing``). Logits are read at those positions
and nowhere else.

Examples are kept in order of length, so that a batch is a contiguous slice with little padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_multitrace.groups.mixing import Places
from tl_multitrace.packing import Packing, answer_prefixes
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
        candidate_start: tokens between the prompt and the candidate's own in that row.
        present: which entries of ``pairs.candidates`` are tokens.
        packing: how answer prefixes share a row; None where each has its own.
        number: which rows of the whole set these are; None where they are all.
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
    candidate_start: Int[Tensor, "n k"]
    present: Bool[Tensor, "n k t"]
    packing: Packing | None = None
    number: Int[Tensor, " rows"] | None = None

    @classmethod
    def of(cls, pairs: PromptPairs, packed: bool = False) -> Rows:
        """Lay out the rows of a prompt set.

        Args:
            pairs: the prompts.
            packed: one row per prompt, with all its answer prefixes, instead of one per answer prefix.

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
        packs: list[list[list[int]]] = []
        starts, candidate_row = [0], torch.zeros(pairs.candidates.shape[:2], dtype=torch.long)
        candidate_start = torch.zeros_like(candidate_row)
        for e in range(len(pairs)):
            prefixes, which = answer_prefixes(pairs.candidates[e])
            if len(prefixes[0]) and int(pairs.answer_positions[e]) != int(pairs.lengths[e]) - 1:
                raise ValueError(
                    f"pair {int(order[e])}: a multi-token answer must be read at the prompt's last position."
                )
            if packed:
                candidate_start[e] = torch.tensor([sum(map(len, prefixes[:i])) for i in which])
                packs.append(prefixes)
                prefixes, which = [[t for prefix in prefixes for t in prefix]], [0] * len(which)
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
            candidate_start=candidate_start,
            present=pairs.candidates != NO_TOKEN,
            packing=Packing.of(packs) if packed else None,
        )

    def picked(self, examples: Int[Tensor, " e"]) -> Rows:
        """The rows of some examples, as wide as these, in the given order."""
        ranges = [torch.arange(int(self.starts[e]), int(self.starts[e + 1])) for e in examples]
        rows, counts = torch.cat(ranges), torch.tensor([len(r) for r in ranges])
        return replace(
            self,
            pairs=self.pairs[examples],
            order=self.order[examples],
            base=self.base[rows],
            source=self.source[rows],
            lengths=self.lengths[rows],
            source_lengths=self.source_lengths[rows],
            example=torch.repeat_interleave(torch.arange(len(examples)), counts),
            starts=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
            reads=self.reads[rows],
            candidate_row=self.candidate_row[examples],
            candidate_start=self.candidate_start[examples],
            present=self.present[examples],
            packing=None if self.packing is None else self.packing.picked(rows),
            number=rows,
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

    def attention(
        self, rows: slice | Int[Tensor, " b"], lengths: Int[Tensor, " b"], width: int, device: torch.device
    ) -> Attention:
        """What some rows' tokens attend to, for base or source tokens of these lengths."""
        if self.packing is None:
            return Attention((torch.arange(width) < lengths[:, None]).long().to(device))
        mask, position = self.packing.attention(rows, lengths, width)
        return Attention(mask.to(device), position.to(device))

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
        # the prompt's last position predicts the first token of every candidate
        steps = torch.where(steps > 0, self.candidate_start[examples][..., None] + steps, 0)
        partner = self.partner
        contiguous = torch.equal(rows, torch.arange(int(rows[0]), int(rows[0]) + len(rows)))
        return Batch(
            examples=examples.to(device),
            rows=slice(int(rows[0]), int(rows[0]) + len(rows)) if contiguous else rows.to(device),
            example=torch.repeat_interleave(torch.arange(len(examples)), counts).to(device),
            tokens=self.base[rows, :width].to(device),
            attention=self.attention(rows, lengths, width, device),
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
class Attention:
    """What the tokens of a forward attend to.

    Attributes:
        mask: 1 at real tokens, or what each token sees; None where the model is not told (see ``engine.trials``).
        position_ids: positions, where they are not 0, 1, 2 ...
    """

    mask: Int[Tensor, "b pos"] | Bool[Tensor, "b 1 pos pos"] | None
    position_ids: Int[Tensor, "b pos"] | None = None

    def repeated(self, k: int) -> Attention:
        """The same for ``k`` copies of the rows."""
        if k == 1:
            return self
        ids = None if self.position_ids is None else self.position_ids.repeat(k, 1)
        return Attention(None if self.mask is None else self.mask.repeat(k, *[1] * (self.mask.ndim - 1)), ids)


@dataclass(frozen=True)
class Batch:
    """One forward: ``b`` rows of ``e`` examples, with ``q`` places to read logits at.

    Attributes:
        examples: which (sorted) examples.
        rows: which rows, as a slice where they are neighbours.
        example: example of each row, counted within the batch.
        tokens: base token ids.
        attention: what the tokens attend to.
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
    attention: Attention
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


def rows_on(device: torch.device, rows: slice | Int[Tensor, " b"]) -> slice | Int[Tensor, " b"]:
    """Rows of a batch as an index into tensors on a device."""
    return rows if isinstance(rows, slice) else rows.to(device)
