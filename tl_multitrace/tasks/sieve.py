"""From rows of text to prompt pairs: what does not tokenise cleanly is left out and counted, never guessed at."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tl_multitrace.models.compat import ModelView
from tl_multitrace.pair_reader import PairReader, PairTokens, Row
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tokens import LENGTHS, Encoder, UnfitError

__all__ = ["Alignment", "Row", "Sieve", "drawn", "every_row", "pairs_of", "published_bos", "sieve_of"]

Alignment = Literal["drop", "right", "left"]

PATIENCE = 40
"""Rows tried per row wanted before a generator of rows is given up."""

GPT2_VOCABULARY = 50257


@dataclass(frozen=True)
class Sieve(PairReader):
    """Reads rows for a model, and answers what makers of rows ask of its tokenizer."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text alone, without BOS."""
        return list(self.encoder.known(text))

    def added(self, prompt: str, answer: str) -> int:
        """How many tokens an answer adds to a prompt; 0 where it does not continue it."""
        try:
            return len(self.encoder.answer(prompt, answer))
        except UnfitError:
            return 0

    def as_long_as(self, prompt: str, rivals: Iterable[str]) -> list[str]:
        """Those of some prompts that have as many tokens as ``prompt``."""
        wanted = len(self.ids(prompt))
        return [rival for rival in rivals if len(self.ids(rival)) == wanted]


def drawn(rows: Sequence[Row], rng: random.Random | None) -> list[Row]:
    """The rows in random order; in their own without a generator."""
    return list(rows) if rng is None else rng.sample(rows, len(rows))


def every_row(read: Callable[..., Sequence[Row]], name: str = "") -> Callable[..., Iterator[Row]]:
    """A maker of every row that ``read(path, **options)`` finds in a file, or in the one of this name in a folder.

    They come in random order, or with ``shuffle=False`` in the file's.
    """

    def rows(
        sieve: Sieve, rng: random.Random, *, demo: bool = False, path: str | Path, shuffle: bool = True, **options: Any
    ) -> Iterator[Row]:
        file = Path(path) / name if name and Path(path).is_dir() else path
        yield from drawn(read(file, **options), rng if shuffle else None)

    return rows


def sieve_of(
    model: Any,
    *,
    align: Alignment = "drop",
    single_token: bool = False,
    one_prompt: bool = False,
    prepend_bos: bool | None = None,
) -> Sieve:
    """The sieve of a model's tokenizer.

    Raises:
        ValueError: the model has no tokenizer, or ``align`` is unknown.
    """
    if align not in ("drop", "right", "left"):
        raise ValueError(f"align must be 'drop', 'right' or 'left', got {align!r}.")
    view = ModelView(model)
    return Sieve(Encoder.of(view, prepend_bos), view.n_ctx, align, single_token, one_prompt)


def published_bos(model: Any) -> bool | None:
    """False for a GPT-2 with its own tokenizer, None (what TransformerLens does) for others.

    Hugging Face's GPT-2 tokenizer adds no BOS, and so did the published experiments; TransformerLens does.
    """
    architecture = str(getattr(model.cfg, "original_architecture", "") or getattr(model.cfg, "architecture", ""))
    return False if architecture.startswith("GPT2") and ModelView(model).d_vocab == GPT2_VOCABULARY else None


def pairs_of(model: Any, rows: Iterable[Row], sieve: Sieve, n: int | None = None) -> PromptPairs:
    """Prompt pairs of the rows that tokenise cleanly, up to ``n`` of them, in the order they are tried.

    ``pairs.dropped`` says how many of the rows tried were left out, by reason.

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
        longer = ", or line up prompts of different length with align='right'" if LENGTHS in dropped else ""
        raise ValueError(
            f"no prompt is left for the tokenizer of {ModelView(model).name}: {reasons}. Give prompts and answers that "
            f"this tokenizer can say{longer}."
        )
    return PromptPairs.from_read(dict(enumerate(kept)), sieve.encoder, sieve.align, dict(dropped))


def _sifted(rows: Iterable[Row], sieve: Sieve, dropped: Counter[str]) -> Iterator[PairTokens]:
    for row in rows:
        try:
            yield sieve.read(row)
        except UnfitError as error:
            dropped[error.reason] += 1
