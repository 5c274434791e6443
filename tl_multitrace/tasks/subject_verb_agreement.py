"""Subject-verb agreement: the verb has the number of its subject, whatever stands between them.

Source: the question is that of Linzen et al. 2016 (arXiv:1611.01368) and of Finlayson et al. 2021 (arXiv:2106.06087);
words and wording are this package's own.

Base "The dog near the park" calls for "is"; the source has the subject in the other number ("The dogs near the park"),
and its verb is the answer. Subgroups: the number of the base's subject, followed by "attractor" where a noun of the
other number stands between subject and verb ("The dog near the cats"): one that calls for the wrong verb.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tl_multitrace.metrics import LogitDiff
from tl_multitrace.tasks.corpus import ADJECTIVES, ANIMALS, PLACES
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

Noun = tuple[str, str]
"""Singular and plural."""

NOUNS: tuple[Noun, ...] = tuple(
    (word, f"{word}s")
    for word in (
        "dog cat horse bird bear rabbit cow duck goat boy girl doctor nurse farmer teacher student driver singer "
        "worker writer soldier pilot car truck boat chair table book flower tree"
    ).split()
)
PREPOSITIONS = ("near", "behind", "beside")
VERBS = (" is", " are")
NUMBERS = ("singular", "plural")


def rows(
    sieve: Sieve, rng: random.Random, *, demo: bool = False, nouns: Sequence[Noun] | None = None, verbs: Noun = VERBS
) -> Iterator[Row]:
    """Random subjects without end: singular and plural, without and with an attractor in turn.

    Nouns are (singular, plural) pairs, verbs the two forms with their leading space. Nouns whose plural has more tokens
    are left out afterwards.

    Raises:
        ValueError: fewer than two nouns.
    """
    words = list(nouns or (ANIMALS if demo else NOUNS))
    if len(words) < 2:
        raise ValueError(f"a subject and an attractor need at least two nouns, got {words}.")
    while True:
        for number, attracted in ((0, False), (1, False), (0, True), (1, True)):
            subject, other = rng.sample(words, 2)
            if attracted:
                rest = f"{rng.choice(PREPOSITIONS)} the {other[1 - number]}"
                start = "The"
            else:
                start, rest = f"The {rng.choice(ADJECTIVES)}", f"near the {rng.choice(PLACES)}"
            base, source = (f"{start} {subject[n]} {rest}" for n in (number, 1 - number))
            label = f"{NUMBERS[number]} attractor" if attracted else NUMBERS[number]
            yield Row(base, source, (verbs[1 - number],), (verbs[number],), label)


TASK = TaskInfo(
    "subject_verb_agreement",
    "Which components give the verb the number of its subject?",
    rows,
    LogitDiff(),
    "heads,mlps",
)
