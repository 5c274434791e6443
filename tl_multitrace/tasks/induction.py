"""Induction: continue a repeated sequence.

Source: the task is that of Olsson et al. 2022 (arXiv:2209.11895), on random words instead of random tokens.

The source prompt is random words and then the same words again, cut off inside the second copy: the answer is the
repeated next word. In the base prompt the words of the first copy stand in another order, so that there is nothing to
repeat and the last word was followed by another one: the wrong answer. ``pairs.swap()`` gives the reading of ablation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tl_multitrace.metrics import LogitDiff
from tl_multitrace.tasks.corpus import INDUCTION_WORDS
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

COMMON_WORDS = (
    "the to and was he she her his it in day be with said play up that on mom you they big of friend little time had "
    "we there so for want happy saw but very do upon one two three man boy girl house dog tree car water food home red"
).split()
"""For tokenizers so small that few longer words are one token."""

ENOUGH_WORDS = 24


def rows(
    sieve: Sieve, rng: random.Random, *, demo: bool = False, words: Sequence[str] | None = None, length: int = 8
) -> Iterator[Row]:
    """Random sequences without end.

    A copy has ``length`` words of one token each: others would give their second half away without any induction.

    Raises:
        ValueError: ``length`` below 4, or fewer than ``length`` words that are one token.
    """
    if length < 4:
        raise ValueError(f"length must be at least 4 words, got {length}.")
    usable = single_words(sieve, words)
    if len(usable) < length:
        raise ValueError(
            f"only {len(usable)} of the words are one token of this tokenizer, and a sequence needs {length}. Pass "
            "words= that are."
        )
    # Tokenizers that write a word at the start of a text differently may split it there.
    starts = [word for word in usable if len(sieve.ids(word)) == 1] or usable
    while True:
        first = rng.choice(starts)
        rest = rng.sample([word for word in usable if word != first], length - 1)
        yield _row([first, *rest], rng)


def single_words(sieve: Sieve, words: Sequence[str] | None = None) -> list[str]:
    """The words that are one known token behind another word."""
    usable = [word for word in (INDUCTION_WORDS if words is None else words) if sieve.added("the", f" {word}") == 1]
    if words is None and len(usable) < ENOUGH_WORDS:
        usable += [word for word in COMMON_WORDS if word not in usable and sieve.added("the", f" {word}") == 1]
    return usable


def _row(words: list[str], rng: random.Random) -> Row:
    seen = 1 + len(words) // 2
    shuffled = _reordered(words, rng, last=words[seen - 1])
    follower = shuffled[shuffled.index(words[seen - 1]) + 1]
    base, source = (" ".join([*copy, *words[:seen]]) for copy in (shuffled, words))
    return Row(base, source, (f" {words[seen]}",), (f" {follower}",))


def _reordered(words: list[str], rng: random.Random, last: str) -> list[str]:
    """The words in an order that keeps the first one and no two neighbours, and does not end in ``last``."""
    neighbours = set(pairwise(words))
    while True:
        rest = rng.sample(words[1:], len(words) - 1)
        order = [words[0], *rest]
        if rest[-1] != last and not neighbours & set(pairwise(order)):
            return order


TASK = TaskInfo(
    "induction",
    "Which components continue a sequence that is being repeated?",
    rows,
    LogitDiff(),
    "heads",
    single_token=True,
)
