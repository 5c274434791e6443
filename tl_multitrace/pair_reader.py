"""One decision for every pair of prompts, wherever it comes from: its tokens, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tl_multitrace.token_ids import Answers, Texts, as_lists, check_counts
from tl_multitrace.tokens import (
    LENGTHS,
    MASK,
    NO_ANSWER,
    SAME_ANSWER,
    SAME_PROMPT,
    SEVERAL,
    TOO_LONG,
    UNKNOWN,
    Encoder,
    Span,
    UnfitError,
    repeated,
)

Align = Literal["error", "right", "left", "drop"]
SIDES = ("base", "source")


@dataclass(frozen=True)
class Row:
    """One prompt pair as text.

    Attributes:
        base: the prompt that is intervened on.
        source: the prompt that activations come from.
        answers: continuations that count as right, with their leading space; of a masked language model, what may stand
            at the mask.
        wrong: continuations that count against; may be empty.
        label: subgroup.
        subject: part of ``base`` that the prompt is about, or None.
        joined: whether answers go on inside the prompt's last word ("the year 17", "52"): they are tokenised by
            themselves.
        unusable: why the row cannot be used whatever the tokenizer, as a file's reader found; it is left out.

    Examples:
        >>> from tl_multitrace.tasks import Row
        >>> row = Row("The nurse said that", "The man said that", (" he",), wrong=(" she",), label="female")
        >>> row.answers, row.wrong
        ((' he',), (' she',))
    """

    base: str
    source: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    label: str = ""
    subject: str | None = None
    joined: bool = False
    unusable: str = ""


@dataclass(frozen=True)
class PairTokens:
    """A row that tokenises cleanly: ids of both prompts and of every candidate (right ones first), and where to read.

    Attributes:
        row: the text.
        base: ids of the base prompt, special tokens included.
        source: likewise.
        candidates: ids of each answer, then of each wrong answer.
        position: of the base prompt, whose logits predict the answer's first token.
        subject: each place of the subject in the base prompt, none without one.
    """

    row: Row
    base: list[int]
    source: list[int]
    candidates: list[list[int]]
    position: int
    subject: tuple[Span, ...] = ()


@dataclass(frozen=True)
class PairReader:
    """Reads rows with a model's tokenizer, and says why one cannot be used.

    Attributes:
        encoder: the tokenizer and its special tokens.
        n_ctx: the model's longest prompt; 0 for no bound here.
        align: what happens to prompts of different token length.
        single_token: whether every answer must be one token.
        one_prompt: whether base and source may be the same prompt, as where the source run is a noised or averaged one.
        known: whether prompts with a word that the tokenizer does not know are refused.
    """

    encoder: Encoder
    n_ctx: int = 0
    align: Align = "drop"
    single_token: bool = False
    one_prompt: bool = False
    known: bool = True

    def __post_init__(self) -> None:
        if self.align not in get_args(Align):
            raise ValueError(f"align must be one of {', '.join(map(repr, get_args(Align)))}, got {self.align!r}.")

    def reason(self, row: Row) -> str | None:
        """Why ``row`` is left out, or None if it tokenises cleanly."""
        try:
            self.read(row)
        except UnfitError as error:
            return error.reason
        return None

    def read(self, row: Row, position: int | None = None) -> PairTokens:
        """The tokens of a row; ``position`` says where the answer is read, if not where it usually is.

        Raises:
            UnfitError: the row cannot be used; the message says what to change.
        """
        if row.unusable:
            raise UnfitError(row.unusable)
        base, source = self.encoder.prompt(row.base), self.encoder.prompt(row.source)
        self._check_prompts(row, base, source)
        candidates = self._candidates(row)
        at = self._position(base, source, position)
        longest = max(len(base), len(source)) + max(map(len, candidates)) - 1  # an answer's last token is never fed in
        if self.n_ctx and longest > self.n_ctx:
            raise UnfitError(TOO_LONG, f"with its answer it has {longest} tokens, but the model takes {self.n_ctx}.")
        places = () if row.subject is None else tuple(self.encoder.spans(row.base, row.subject))
        return PairTokens(row, base, source, candidates, at, places)

    def read_all(self, rows: Sequence[Row], positions: Sequence[int] | None = None) -> dict[int, PairTokens]:
        """The tokens of rows by their numbers, without those that ``align="drop"`` leaves out.

        Raises:
            ValueError: a row cannot be used; the message names it. No row is left.
        """
        read: dict[int, PairTokens] = {}
        for i, row in enumerate(rows):
            try:
                read[i] = self.read(row, None if positions is None else positions[i])
            except UnfitError as error:
                if self.align != "drop" or error.reason != LENGTHS:
                    raise ValueError(f"pair {i}: {error}") from None
        if not read:
            raise ValueError(f"all {len(rows)} pairs differ in token length: nothing is left. Pass align='right'.")
        return read

    def _check_prompts(self, row: Row, base: list[int], source: list[int]) -> None:
        texts = (row.base, row.source, *row.answers, *row.wrong)
        if self.known and (strange := [piece for text in texts for piece in self.encoder.unknown(text)]):
            raise UnfitError(UNKNOWN, f"the tokenizer does not know {strange[0]!r}.")
        if len(base) != len(source) and self.align in ("error", "drop"):
            raise UnfitError(
                LENGTHS,
                f"base has {len(base)} tokens, source has {len(source)} ({row.base!r} / {row.source!r}), so their "
                'positions do not line up. Pass align="right", or align="drop" to leave such pairs out '
                "(pairs.filter_aligned() does so later).",
            )
        if base == source and not self.one_prompt:
            raise UnfitError(SAME_PROMPT, f"base and source are the same tokens ({row.base!r}).")

    def _candidates(self, row: Row) -> list[list[int]]:
        if not row.answers:
            raise UnfitError(NO_ANSWER, "no answer.")
        rows = [self.encoder.answer(row.base, answer, row.joined) for answer in (*row.answers, *row.wrong)]
        for a, ids in zip(row.answers, rows, strict=False):
            for b, others in zip(row.wrong, rows[len(row.answers) :], strict=True):
                if ids == others:
                    raise UnfitError(
                        SAME_ANSWER,
                        f"answer {a!r} and wrong answer {b!r} are the same tokens {ids} here, so the metric would be "
                        "constant. Choose answers that this tokenizer tells apart.",
                    )
        if self.single_token and max(map(len, rows)) > 1:
            raise UnfitError(SEVERAL, f"the answer {row.answers[0]!r} or a rival of it has several tokens.")
        return rows

    def _position(self, base: list[int], source: list[int], given: int | None) -> int:
        """Where the answer is read; of a masked model at the mask, which stands at the same place in both prompts."""
        encoder = self.encoder
        if given is not None and not -len(base) <= given < len(base):
            raise UnfitError(MASK, f"answer_position {given} is outside the prompt of {len(base)} tokens.")
        at = encoder.reads_at(base) if given is None else given % len(base)
        if encoder.frame is not None and at in encoder.masks(base):
            shift = len(source) - len(base) if self.align == "right" else 0
            if at + shift not in encoder.masks(source):
                raise UnfitError(
                    MASK,
                    f"the mask is token {at} of the base prompt, where the source prompt has none (its masks: "
                    f"{list(encoder.masks(source))}). Put both at the same place"
                    f"{', or pass align=' + repr('left' if shift else 'right') if len(source) != len(base) else ''}.",
                )
        return at


def rows_from(
    base: Texts,
    source: Texts,
    answers: Answers,
    wrong_answers: Answers | None,
    subject: Texts | None,
    labels: Texts | None,
    joined: bool | Sequence[bool],
    positions: Sequence[int] | None,
) -> list[Row]:
    """One row per pair from lists of each thing; raises ValueError for an empty set and lists of different length."""
    rights, wrongs = as_lists(answers, "answers"), as_lists(wrong_answers, "wrong_answers")
    inside = [joined] * len(base) if isinstance(joined, bool) else list(joined)
    given = {"source": source, "answers": rights, "wrong_answers": wrongs, "subject": subject, "labels": labels}
    check_counts(base, **given, joined=inside, answer_positions=positions)
    return [
        Row(
            base[i],
            source[i],
            tuple(rights[i]),
            tuple(wrongs[i]) if wrongs else (),
            "" if labels is None else str(labels[i]),
            None if subject is None else subject[i],
            inside[i],
        )
        for i in range(len(base))
    ]


def doubts(read: Mapping[int, PairTokens], encoder: Encoder) -> list[str]:
    """What is doubtful about some numbered pairs, one sentence a kind: it counts them and names the first."""
    often = [(i, text) for i, one in read.items() if (text := repeated(one.row.subject or "", one.subject))]
    strange = encoder.doubt({f"pair {i}, {side}": getattr(p.row, side) for i, p in read.items() for side in SIDES})
    found = [f"{strange}."] if strange else []
    if often:
        more = f" (likewise in {len(often) - 1} more)" if len(often) > 1 else ""
        found.append(f"pair {often[0][0]}: {often[0][1]}{more}. Name a longer part if another is meant.")
    return found
