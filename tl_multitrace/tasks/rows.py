"""From rows of text to prompt pairs: what does not tokenise cleanly is left out and counted, never guessed at."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from tl_multitrace.compat import ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tokens import Encoder

Alignment = Literal["drop", "right", "left"]

UNKNOWN = "a word the tokenizer does not know"
LENGTHS = "token lengths differ"
SAME_PROMPT = "base and source are the same tokens"
TOO_LONG = "longer than the model's context"
NO_ANSWER = "an answer does not continue its prompt (does it lack its leading space?)"
SAME_ANSWER = "answer and wrong answer are the same tokens"
SEVERAL = "an answer of several tokens"
SUBJECT = "the subject is not whole tokens"

PATIENCE = 40
"""Rows tried per row wanted before a generator of rows is given up."""


@dataclass(frozen=True)
class Row:
    """One prompt pair as text.

    Attributes:
        base: the prompt that is intervened on.
        source: the prompt that activations come from.
        answers: continuations that count as right, with their leading space.
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
class Sieve:
    """Says why a row cannot be used with a model, if it can't.

    Attributes:
        encoder: the model's tokenizer and its decision about BOS.
        n_ctx: the model's longest prompt; 0 where it states none.
        align: what happens to prompts of different token length.
        single_token: whether every answer must be one token.
        one_prompt: whether base and source may be the same prompt, as where the source run is a noised or averaged one.
    """

    encoder: Encoder
    n_ctx: int = 0
    align: Alignment = "drop"
    single_token: bool = False
    one_prompt: bool = False

    def reason(self, row: Row) -> str | None:
        """Why ``row`` is left out, or None if it tokenises cleanly."""
        if row.unusable:
            return row.unusable
        base, source = self.encoder.prompt(row.base), self.encoder.prompt(row.source)
        if self._unknown(row):
            return UNKNOWN
        if len(base) != len(source) and self.align == "drop":
            return LENGTHS
        if base == source and not self.one_prompt:
            return SAME_PROMPT
        return self._wrong_with_answers(row, max(len(base), len(source))) or self._wrong_with_subject(row)

    def _unknown(self, row: Row) -> bool:
        unknown = getattr(self.encoder.tokenizer, "unk_token_id", None)
        # GPT-2 names its end-of-text token as the unknown one, and never produces it.
        texts = [row.base, row.source, *row.answers, *row.wrong]
        return unknown is not None and any(unknown in self.encoder.known(text) for text in texts)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text alone, without BOS."""
        return list(self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"])

    def as_long_as(self, prompt: str, rivals: Iterable[str]) -> list[str]:
        """Those of some prompts that have as many tokens as ``prompt``."""
        wanted = len(self.ids(prompt))
        return [rival for rival in rivals if len(self.ids(rival)) == wanted]

    def _wrong_with_answers(self, row: Row, prompt_length: int) -> str | None:
        try:
            right = [self.encoder.answer(0, row.base, answer, row.joined) for answer in row.answers]
            wrong = [self.encoder.answer(0, row.base, answer, row.joined) for answer in row.wrong]
        except ValueError:
            return NO_ANSWER
        if any(ids in wrong for ids in right):
            return SAME_ANSWER
        longest = max(len(ids) for ids in right + wrong)
        if self.single_token and longest > 1:
            return SEVERAL
        # The last token of an answer is read from the logits, not fed to the model.
        return TOO_LONG if self.n_ctx and prompt_length + longest - 1 > self.n_ctx else None

    def _wrong_with_subject(self, row: Row) -> str | None:
        if row.subject is None:
            return None
        try:
            self.encoder.span(0, row.base, row.subject)
        except ValueError:
            return SUBJECT
        return None


def drawn(rows: Sequence[Row], rng: random.Random | None) -> list[Row]:
    """The rows in random order; in their own without a generator."""
    return list(rows) if rng is None else rng.sample(rows, len(rows))


def sieve_of(model: Any, *, align: Alignment = "drop", single_token: bool = False, one_prompt: bool = False) -> Sieve:
    """The sieve of a model's tokenizer.

    Raises:
        ValueError: the model has no tokenizer, or ``align`` is unknown.
    """
    if align not in ("drop", "right", "left"):
        raise ValueError(f"align must be 'drop', 'right' or 'left', got {align!r}.")
    view = ModelView(model)
    return Sieve(Encoder.of(view), view.n_ctx, align, single_token, one_prompt)


def pairs_of(model: Any, rows: Iterable[Row], sieve: Sieve, n: int | None = None) -> PromptPairs:
    """Prompt pairs of the rows that tokenise cleanly, up to ``n`` of them.

    Args:
        model: a TransformerLens model with a tokenizer.
        rows: candidates, in the order they are tried.
        sieve: says which rows are left out.
        n: pairs wanted; default all.

    Returns:
        The pairs; ``pairs.dropped`` says how many of the rows tried were left out, by reason.

    Raises:
        ValueError: nothing is left, or ``n`` is below 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    dropped: Counter[str] = Counter()
    tried = rows if n is None else islice(rows, PATIENCE * n)
    kept = list(islice(_sifted(tried, sieve, dropped), n))
    if not kept:
        reasons = ", ".join(f"{why} ({count})" for why, count in dropped.most_common()) or "there are no prompts"
        raise ValueError(
            f"no prompt is left for the tokenizer of {ModelView(model).name}: {reasons}. Give prompts whose words this "
            "tokenizer knows, or align prompts of different length with align='right'."
        )
    return replace(_assembled(model, kept, sieve.align), dropped=dict(dropped))


def _sifted(rows: Iterable[Row], sieve: Sieve, dropped: Counter[str]) -> Iterator[Row]:
    for row in rows:
        why = sieve.reason(row)
        if why is None:
            yield row
        else:
            dropped[why] += 1


def _assembled(model: Any, rows: list[Row], align: Alignment) -> PromptPairs:
    subjects = [row.subject for row in rows]
    return PromptPairs.from_text(
        model,
        [row.base for row in rows],
        [row.source for row in rows],
        [list(row.answers) for row in rows],
        [list(row.wrong) for row in rows] if any(row.wrong for row in rows) else None,
        subject=[str(s) for s in subjects] if all(s is not None for s in subjects) else None,
        labels=[row.label for row in rows] if any(row.label for row in rows) else None,
        align="error" if align == "drop" else align,
        joined=[row.joined for row in rows],
    )
