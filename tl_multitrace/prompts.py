"""Base and source prompts, tokenised and aligned, with their answers.

A pair is two prompts that differ in one respect. Everything that can go wrong between text and tokens is decided here,
once, and shown: whether a BOS token stands in front, how two prompts of different length line up, whether an answer
really continues its prompt. The rest of the package sees token ids only.

Tokens are right-padded. Position ``p`` of the base prompt lines up with position ``p + shift`` of the source prompt,
where ``shift`` is 0 unless the user asked for another alignment.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_multitrace.compat import ModelView
from tl_multitrace.models.ambient import neutral
from tl_multitrace.tokens import (
    NO_TOKEN,
    Answers,
    Encoder,
    Texts,
    as_lists,
    candidate_tensor,
    check_candidates,
    check_counts,
    check_equal_lengths,
    id_lists,
    pad_rows,
    picks,
)

if TYPE_CHECKING:
    import pandas as pd

Align = Literal["error", "right", "left", "drop"]


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

    Examples:
        >>> import tl_multitrace as mt
        >>> model = mt.load_model("demo")
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
    ) -> PromptPairs:
        """Tokenise prompts and answers with the model's tokenizer.

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

        Raises:
            ValueError: empty input, unequal numbers, unequal token lengths under ``align="error"``, an answer that does
                not tokenise as a continuation, a missing leading space, a right and a wrong answer of the same tokens,
                a subject that is not in its prompt. The message names the pair.
        """
        encoder = Encoder.of(ModelView(model), prepend_bos)
        rights, wrongs = as_lists(answers, "answers"), as_lists(wrong_answers, "wrong_answers")
        check_counts(base, source=source, answers=rights, wrong_answers=wrongs, subject=subject, labels=labels)
        kept, dropped = list(range(len(base))), Counter[str]()
        base_rows, source_rows = [encoder.prompt(t) for t in base], [encoder.prompt(t) for t in source]
        if align == "drop":
            kept = [i for i in kept if len(base_rows[i]) == len(source_rows[i])]
            dropped["token lengths differ"] = len(base) - len(kept)
            if not kept:
                raise ValueError(f"all {len(base)} pairs differ in token length: nothing is left. Pass align='right'.")
        elif align == "error":
            check_equal_lengths(base_rows, source_rows, base, source)
        inside = [joined] * len(base) if isinstance(joined, bool) else list(joined)
        check_counts(base, joined=inside)
        candidate_rows = [encoder.answers(i, base[i], rights[i], wrongs[i] if wrongs else [], inside[i]) for i in kept]
        spans = (
            {} if subject is None else {"subject": torch.tensor([encoder.span(i, base[i], subject[i]) for i in kept])}
        )
        return cls._assemble(
            [base_rows[i] for i in kept],
            [source_rows[i] for i in kept],
            candidate_rows,
            [len(rights[i]) for i in kept],
            align=align,
            labels=tuple(str(labels[i]) for i in kept) if labels is not None else (),
            spans=spans,
            pad_id=encoder.pad_id,
            words=encoder.words,
            answer_words=tuple((*rights[i], *(wrongs[i] if wrongs else ())) for i in kept),
            dropped={k: v for k, v in dropped.items() if v},
        )

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
            ValueError: shapes or counts that do not fit, lengths out of range, an empty set.
        """
        base, source = torch.as_tensor(base_tokens).long(), torch.as_tensor(source_tokens).long()
        if base.ndim != 2 or base.shape != source.shape or not len(base):
            raise ValueError(
                "base_tokens and source_tokens must be two [n, pos] tensors of one shape with n > 0, got "
                f"{tuple(base.shape)} "
                f"and {tuple(source.shape)}. Pad on the right and pass lengths=."
            )
        n, width = base.shape
        given = torch.full((n,), width) if lengths is None else torch.as_tensor(lengths).long()
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
            places = torch.as_tensor(answer_positions).long()
            if places.shape != (n,) or bool((places < 0).any()) or bool((places >= given).any()):
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
        changes["spans"] = {name: span[chosen] for name, span in self.spans.items()}
        return replace(self, **changes)

    def split(self, fraction: float, seed: int = 0) -> tuple[PromptPairs, PromptPairs]:
        """Two disjoint random parts (``seed``), ``fraction`` of the pairs and the rest, each subgroup divided alike.

        Raises:
            ValueError: a part would be empty.
        """
        generator = torch.Generator().manual_seed(seed)
        groups = sorted(set(self.labels)) or [""]
        first: list[int] = []
        for group in groups:
            members = torch.tensor([i for i in range(len(self)) if not self.labels or self.labels[i] == group])
            shuffled = members[torch.randperm(len(members), generator=generator)]
            first += shuffled[: max(0, round(fraction * len(members)))].tolist()
        rest = sorted(set(range(len(self))) - set(first))
        if not first or not rest:
            raise ValueError(
                f"split({fraction}) of {len(self)} pairs leaves a part empty. Use a fraction such as 0.7, or more "
                "pairs."
            )
        return self[sorted(first)], self[rest]

    def swap(self) -> PromptPairs:
        """Base and source exchanged (noising becomes denoising); answers stay."""
        return replace(
            self,
            base_tokens=self.source_tokens,
            source_tokens=self.base_tokens,
            lengths=self.source_lengths,
            source_lengths=self.lengths,
            shifts=-self.shifts,
            answer_positions=self.answer_positions + self.source_lengths - self.lengths,
            spans={name: span + self.shifts[:, None] for name, span in self.spans.items()},
            base_words=self.source_words,
            source_words=self.base_words,
        )

    def filter_aligned(self) -> PromptPairs:
        """Only the pairs whose prompts have equal token counts; the others are counted in ``dropped``."""
        keep = (self.lengths == self.source_lengths).nonzero().flatten()
        kept = self[keep]
        lost = len(self) - len(keep)
        return kept if not lost else replace(kept, dropped={**self.dropped, "token lengths differ": lost})

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
        """SHA-256 prefix over tokens, candidates and alignment: same prompts, same digest."""
        total = hashlib.sha256()
        for part in (self.base_tokens, self.source_tokens, self.lengths, self.shifts, self.candidates, self.right):
            total.update(f"{tuple(part.shape)}".encode() + part.long().numpy().tobytes())
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
        picked = []
        for k, row in enumerate(self.candidates[i]):
            if (row != NO_TOKEN).any() and bool(self.right[i, k]) == right:
                picked.append(self.answer_words[i][k] if self.answer_words else row[row != NO_TOKEN].tolist())
        return picked

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
        return [
            "  base    |" + "|".join(f"*{w}*" if p in differs else w for p, w in enumerate(base)) + "|",
            "  source  |"
            + "|".join(f"*{w}*" if p - shift in differs or p in extra else w for p, w in enumerate(source))
            + "|",
            f"  answers {self._answers(i, True)} against {self._answers(i, False)}",
        ]
