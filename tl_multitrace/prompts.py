"""Base and source prompts, tokenised and aligned, with their answers.

A pair is two prompts that differ in one respect. Whether a BOS token stands in front, how prompts of unequal length
line up, whether an answer continues its prompt is decided once, and shown; the rest of the package sees token ids only.

Tokens are right-padded. Position ``p`` of the base prompt lines up with position ``p + shift`` of the source prompt,
where ``shift`` is 0 unless the user asked for another alignment.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_multitrace.copies import distinct
from tl_multitrace.models.ambient import neutral
from tl_multitrace.models.compat import ModelView
from tl_multitrace.pair_reader import Align, PairReader, PairTokens, doubts, rows_from
from tl_multitrace.token_ids import (
    NO_TOKEN,
    Answers,
    Texts,
    candidate_tensor,
    check_candidates,
    id_lists,
    pad_rows,
    picks,
    whole_numbers,
)
from tl_multitrace.tokens import LENGTHS, Encoder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PromptPairs:
    """Aligned prompts and candidate answers; make one with :meth:`from_text` or :meth:`from_tokens`.

    Attributes:
        base_tokens: right-padded ids of the prompts that are intervened on.
        source_tokens: right-padded ids of the prompts that activations come from.
        lengths: tokens per base prompt, BOS included.
        source_lengths: tokens per source prompt.
        shifts: source position minus base position of aligned tokens.
        candidates: token ids of the K candidate continuations, ``NO_TOKEN`` where shorter or absent.
        right: which candidates are answers; the others are wrong answers.
        answer_positions: base position whose logits predict the first answer token.
        labels: subgroup of each pair, or an empty tuple.
        spans: named ``[start, stop)`` base positions per pair, for instance ``"subject"``.
        base_words: base tokens as text, for display.
        source_words: source tokens as text.
        answer_words: candidates as text.
        pad_id: id that fills the padding.
        padding_known: whether lengths were given or known; if not, the engine looks for padding itself.
        dropped: why pairs were left out, and how many.
        numbers: of the pairs in the whole set, where these are a part of it; see :meth:`number`.

    Examples:
        >>> nurse, man = ["The nurse said that"], ["The man said that"]
        >>> pairs = mt.PromptPairs.from_text(model, nurse, man, answers=[" he"], wrong_answers=[" she"])
        >>> pairs
        PromptPairs(1 pairs, 5-5 tokens, 2 candidates each)
          base    |<|bos|>| The|* nurse*| said| that|
          source  |<|bos|>| The|* man*| said| that|
          answers [' he'] against [' she']
    """

    base_tokens: Int[Tensor, "n pos"]
    source_tokens: Int[Tensor, "n source_pos"]
    lengths: Int[Tensor, " n"]
    source_lengths: Int[Tensor, " n"]
    shifts: Int[Tensor, " n"]
    candidates: Int[Tensor, "n k t"]
    right: Bool[Tensor, "n k"]
    answer_positions: Int[Tensor, " n"]
    labels: tuple[str, ...] = ()
    spans: dict[str, Int[Tensor, "n 2"]] = field(default_factory=dict)
    base_words: tuple[tuple[str, ...], ...] = ()
    source_words: tuple[tuple[str, ...], ...] = ()
    answer_words: tuple[tuple[str, ...], ...] = ()
    pad_id: int = 0
    padding_known: bool = True
    dropped: dict[str, int] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()

    # ------------------------------------------------------------------ making

    @classmethod
    @neutral()
    def from_text(
        cls,
        model: Any,
        base: Texts,
        source: Texts,
        answers: Answers,
        wrong_answers: Answers | None = None,
        *,
        subject: Texts | None = None,
        labels: Texts | None = None,
        prepend_bos: bool | None = None,
        align: Align = "error",
        joined: bool | Sequence[bool] = False,
        answer_positions: Sequence[int] | None = None,
    ) -> PromptPairs:
        """Tokenise prompts and answers with the model's tokenizer.

        A masked language model's prompts hold its mask, where the answer is read, and stand between its separators.
        Unknown words, and subjects that stand in their prompt more than once, are counted in a warning.

        Args:
            model: a TransformerLens model with a tokenizer.
            base: prompts to intervene on.
            source: prompts that activations come from, one per base prompt.
            answers: the continuation(s) that count as right, one string or several per pair, with their leading space.
            wrong_answers: continuations that count against; needed by ``LogitDiff`` and ``OddsRatio``.
            subject: a part of each base prompt; gives the span ``"subject"``.
            labels: subgroup of each pair.
            prepend_bos: put a BOS token in front; default: what TransformerLens does for this model.
            align: for pairs of different token length: ``"error"``; ``"right"`` or ``"left"`` lines them up at that end
                (tokens without a partner are never patched); ``"drop"`` leaves such pairs out and counts them.
            joined: whether answers go on inside the prompt's last word ("the year 17", "52"), for all pairs or each:
                they need no leading space and are tokenised by themselves.
            answer_positions: token of each base prompt where the answer is read; needed for prompts of several masks.

        Raises:
            ValueError: what cannot be used as it is, from an empty list to an answer that does not continue its prompt;
                the message names the pair and what to change.
        """
        encoder = Encoder.of(ModelView(model), prepend_bos)
        places = None if answer_positions is None else whole_numbers(answer_positions, "answer_positions").tolist()
        rows = rows_from(base, source, answers, wrong_answers, subject, labels, joined, places)
        read = PairReader(encoder, align=align, one_prompt=True, known=False).read_all(rows, places)
        return cls.from_read(read, encoder, align, Counter({LENGTHS: len(rows) - len(read)}))

    @classmethod
    def from_read(
        cls, numbered: Mapping[int, PairTokens], encoder: Encoder, align: Align, dropped: dict[str, int]
    ) -> PromptPairs:
        """What a :class:`~tl_multitrace.pair_reader.PairReader` has read, and what it refused.

        Args:
            numbered: tokens of pairs, by number.
            encoder: that read them.
            align: how pairs of different token length line up.
            dropped: how many pairs were refused, by reason.
        """
        read = list(numbered.values())
        for doubt in doubts(numbered, encoder):
            warnings.warn(doubt, stacklevel=3)
        made = cls._assemble(
            [one.base for one in read],
            [one.source for one in read],
            [one.candidates for one in read],
            [len(one.row.answers) for one in read],
            align=align,
            labels=tuple(one.row.label for one in read) if any(one.row.label for one in read) else (),
            spans={"subject": torch.tensor([one.subject[0] for one in read])} if all(p.subject for p in read) else {},
            pad_id=encoder.pad_id,
            words=encoder.words,
            answer_words=tuple((*one.row.answers, *one.row.wrong) for one in read),
            dropped={why: count for why, count in dropped.items() if count},
        )
        numbers = () if list(numbered) == list(range(len(read))) else tuple(numbered)
        return replace(made, answer_positions=torch.tensor([one.position for one in read]), numbers=numbers)

    @classmethod
    @neutral()
    def from_tokens(
        cls,
        base_tokens: Int[Tensor, "n pos"],
        source_tokens: Int[Tensor, "n pos"],
        answers: Any,
        wrong_answers: Any = None,
        *,
        lengths: Any = None,
        answer_positions: Any = None,
        labels: Texts | None = None,
    ) -> PromptPairs:
        """Take token ids as they are (BOS included where the model wants one).

        Args:
            base_tokens: right-padded ids.
            source_tokens: right-padded ids, aligned position by position.
            answers: ids of the right answer: ``[n]`` for one token each, ``[n, k]`` for k one-token answers, or nested
                lists ``[n][k][tokens]``.
            wrong_answers: likewise.
            lengths: real tokens per row; default: every column is real. Without it padded rows are refused by
                ``Tracer``.
            answer_positions: position whose logits predict the answer; default ``lengths - 1``.
            labels: subgroup of each pair.

        Raises:
            ValueError: shapes or counts that do not fit, fractions, lengths out of range, an empty set.
        """
        base, source = whole_numbers(base_tokens, "base_tokens"), whole_numbers(source_tokens, "source_tokens")
        if base.ndim != 2 or base.shape != source.shape or not len(base):
            raise ValueError(
                "base_tokens and source_tokens must be two [n, pos] tensors of one shape with n > 0, got "
                f"{tuple(base.shape)} and {tuple(source.shape)}. Pad on the right and pass lengths=."
            )
        n, width = base.shape
        given = torch.full((n,), width) if lengths is None else whole_numbers(lengths, "lengths")
        if given.shape != (n,) or int(given.min()) < 1 or int(given.max()) > width:
            raise ValueError(f"lengths must be {n} numbers from 1 to {width}, got {given.tolist()[:8]}.")
        rights, wrongs = id_lists(answers, n, "answers"), id_lists(wrong_answers, n, "wrong_answers")
        check_candidates(rights, wrongs)
        pairs = cls._assemble(
            [row[:k].tolist() for row, k in zip(base, given, strict=True)],
            [row[:k].tolist() for row, k in zip(source, given, strict=True)],
            [r + w for r, w in zip(rights, wrongs, strict=True)],
            [len(r) for r in rights],
            labels=tuple(map(str, labels)) if labels is not None else (),
        )
        if labels is not None and len(labels) != n:
            raise ValueError(f"{len(labels)} labels for {n} pairs: give one label per pair.")
        if answer_positions is not None:
            places = whole_numbers(answer_positions, "answer_positions")
            if places.shape != (n,) or bool(((places < 0) | (places >= given)).any()):
                raise ValueError(
                    f"answer_positions must be {n} positions inside their prompts, got {places.tolist()[:8]}."
                )
            pairs = replace(pairs, answer_positions=places)
        return replace(pairs, padding_known=lengths is not None)

    @classmethod
    def _assemble(
        cls,
        base: list[list[int]],
        source: list[list[int]],
        candidates: list[list[list[int]]],
        n_right: list[int],
        *,
        align: Align = "left",
        labels: tuple[str, ...] = (),
        spans: dict[str, Tensor] | None = None,
        pad_id: int = 0,
        words: Any = None,
        answer_words: tuple[tuple[str, ...], ...] = (),
        dropped: dict[str, int] | None = None,
    ) -> PromptPairs:
        lengths = torch.tensor([len(r) for r in base])
        source_lengths = torch.tensor([len(r) for r in source])
        ids = candidate_tensor(candidates)
        present = (ids != NO_TOKEN).any(-1)
        right = (torch.arange(ids.shape[1]) < torch.tensor(n_right)[:, None]) & present
        return cls(
            base_tokens=pad_rows(base, pad_id),
            source_tokens=pad_rows(source, pad_id),
            lengths=lengths,
            source_lengths=source_lengths,
            shifts=source_lengths - lengths if align == "right" else torch.zeros_like(lengths),
            candidates=ids,
            right=right,
            answer_positions=lengths - 1,
            labels=labels,
            spans=spans or {},
            base_words=tuple(words(r) for r in base) if words else (),
            source_words=tuple(words(r) for r in source) if words else (),
            answer_words=answer_words,
            pad_id=pad_id,
            dropped=dropped or {},
        )

    # ------------------------------------------------------------------ using

    def __len__(self) -> int:
        return len(self.base_tokens)

    def __getitem__(self, index: slice | int | Sequence[int] | Tensor) -> PromptPairs:
        """Some of the pairs, in the order asked for (by number, slice, or booleans)."""
        chosen = picks(index, len(self))
        if not chosen:
            raise ValueError(f"no pair is left: {index!r} of {len(self)} pairs.")
        changes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changes[f.name] = value[chosen]
            elif isinstance(value, tuple) and value:
                changes[f.name] = tuple(value[i] for i in chosen)
        changes["numbers"] = tuple(self.number(i) for i in chosen)
        changes["spans"] = {name: span[chosen] for name, span in self.spans.items()}
        return replace(self, **changes)

    def number(self, i: int) -> int:
        """The number of pair ``i`` in the set that it comes from, whatever part of that set this is."""
        return self.numbers[i] if self.numbers else i

    def split(self, fraction: float, seed: int = 0) -> tuple[PromptPairs, PromptPairs]:
        """Two disjoint random parts (``seed``), ``fraction`` of the pairs and the rest, each subgroup divided alike.

        Copies of a pair (the same prompts and answers) stay on one side.

        Raises:
            ValueError: a part would be empty.
        """
        generator, of = torch.Generator().manual_seed(seed), torch.from_numpy(distinct(self))
        first: list[int] = []
        for kind in sorted(set(self.labels)) or [""]:
            # one row stands for its copies, which follow it to its side
            members = torch.tensor([i for i in of.unique().tolist() if not self.labels or self.labels[i] == kind])
            shuffled = members[torch.randperm(len(members), generator=generator)]
            chosen = shuffled[: max(0, round(fraction * len(members)))]
            first += torch.isin(of, chosen).nonzero().flatten().tolist()
        if not first or not (rest := sorted(set(range(len(self))) - set(first))):
            raise ValueError(
                f"split({fraction}) of {len(self)} pairs leaves a part empty ({len(of.unique())} are distinct). Use a "
                "fraction such as 0.7, or more pairs."
            )
        return self[sorted(first)], self[rest]

    def swap(self) -> PromptPairs:
        """Base and source exchanged (noising becomes denoising); answers stay."""
        at_end = self.answer_positions == self.lengths - 1  # a mask stands where its partner does, an end at the end
        return replace(
            self,
            base_tokens=self.source_tokens,
            source_tokens=self.base_tokens,
            lengths=self.source_lengths,
            source_lengths=self.lengths,
            shifts=-self.shifts,
            answer_positions=torch.where(at_end, self.source_lengths - 1, self.answer_positions + self.shifts),
            spans={name: span + self.shifts[:, None] for name, span in self.spans.items()},
            base_words=self.source_words,
            source_words=self.base_words,
        )

    def filter_aligned(self) -> PromptPairs:
        """Only the pairs whose prompts have equal token counts; the others are counted in ``dropped``."""
        keep = (self.lengths == self.source_lengths).nonzero().flatten()
        lost = {LENGTHS: len(self) - len(keep)} if len(keep) < len(self) else {}
        return replace(self[keep], dropped={**self.dropped, **lost})

    def subgroup(self, label: str) -> PromptPairs:
        """The pairs of one ``label``.

        Raises:
            KeyError: no pair has it.
        """
        members = [i for i, name in enumerate(self.labels) if name == label]
        if not members:
            raise KeyError(f"no pair is labelled {label!r}; the labels are {sorted(set(self.labels))}.")
        return self[members]

    def digest(self) -> str:
        """SHA-256 prefix over tokens, candidates, alignment and where answers are read: same prompts, same digest."""
        total = hashlib.sha256()
        for part in (self.base_tokens, self.source_tokens, self.lengths, self.shifts, self.candidates, self.right):
            total.update(f"{tuple(part.shape)}".encode() + part.long().numpy().tobytes())
        if bool((self.answer_positions != self.lengths - 1).any()):  # read elsewhere than at the end
            total.update(self.answer_positions.numpy().tobytes())
        return total.hexdigest()[:16]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per pair: both prompts, answers, lengths, label."""
        import pandas as pd

        rows = {
            "base": ["".join(w) for w in self.base_words] or [r.tolist() for r in self.base_tokens],
            "source": ["".join(w) for w in self.source_words] or [r.tolist() for r in self.source_tokens],
            "answers": [self._answers(i, True) for i in range(len(self))],
            "wrong_answers": [self._answers(i, False) for i in range(len(self))],
            "tokens": self.lengths.tolist(),
            "label": list(self.labels) or [""] * len(self),
        }
        return pd.DataFrame(rows)

    def _answers(self, i: int, right: bool) -> list[Any]:
        rows = [row[row != NO_TOKEN].tolist() for row in self.candidates[i]]
        chosen = [k for k, row in enumerate(rows) if row and bool(self.right[i, k]) == right]
        return [self.answer_words[i][k] if self.answer_words else rows[k] for k in chosen]

    def __repr__(self) -> str:
        lengths = f"{int(self.lengths.min())}-{int(self.lengths.max())}"
        lines = [f"PromptPairs({len(self)} pairs, {lengths} tokens, {int(self.right.shape[1])} candidates each)"]
        if self.labels:
            lines.append("  labels  " + ", ".join(f"{k} {v}" for k, v in sorted(Counter(self.labels).items())))
        lines += ["  dropped " + f"{why}: {count}" for why, count in self.dropped.items()]
        return "\n".join([*lines, *self._show(0)])

    def _show(self, i: int) -> list[str]:
        if not self.base_words:
            return [f"  base    {self.base_tokens[i].tolist()}", f"  source  {self.source_tokens[i].tolist()}"]
        shift = int(self.shifts[i])
        base, source = self.base_words[i], self.source_words[i]
        differs = {p for p in range(len(base)) if not (0 <= p + shift < len(source)) or base[p] != source[p + shift]}
        extra = {p for p in range(len(source)) if not (0 <= p - shift < len(base))}
        here = "|".join(f"*{w}*" if p in differs else w for p, w in enumerate(base))
        there = "|".join(f"*{w}*" if p - shift in differs or p in extra else w for p, w in enumerate(source))
        answers = f"  answers {self._answers(i, True)} against {self._answers(i, False)}"
        return [f"  base    |{here}|", f"  source  |{there}|", answers]
