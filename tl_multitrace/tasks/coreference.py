"""Pairs of sentences that begin alike, up to a pronoun, and go on about one of two people: WinoBias and Winogender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tl_multitrace.pair_reader import Row

Pronouns = Literal["own", "she/he"]
"""``"own"``: the prompt ends in "her" or "his" where the sentence has it, as in Vig et al.; ``"she/he"`` always."""

NOMINATIVE = ("she", "he")
POSSESSIVE = ("her", "his")
OBJECT = "an object pronoun, which little follows"
SEVERAL_PRONOUNS = "more than one pronoun"
CONTEXTS = "the two sentences differ before the pronoun"
NOTHING_FOLLOWS = "nothing follows the pronoun, or the same in both sentences"


@dataclass(frozen=True)
class HalfPair:
    """One sentence of a pair, cut at its pronoun into context and continuation, or why it cannot be cut.

    ``who`` is the person that the pronoun stands for, ``male`` whether that person is stereotyped so; ``pronouns`` are
    the female and the male one that fit there.
    """

    line: int
    context: str = ""
    pronouns: tuple[str, str] = NOMINATIVE
    continuation: str = ""
    who: str = ""
    male: bool = False
    unusable: str = ""


def pair_row(first: HalfPair, second: HalfPair, label: str, pronouns: Pronouns = "own") -> Row:
    """Base "... she", source "... he"; the answer is how the sentence about the male-stereotyped person goes on."""
    male, female = (first, second) if first.male else (second, first)
    base, source = NOMINATIVE if pronouns == "she/he" else first.pronouns
    return Row(
        f"{first.context} {base}",
        f"{first.context} {source}",
        (f" {male.continuation}",),
        (f" {female.continuation}",),
        label,
        unusable=_unusable(first, second),
    )


def _unusable(first: HalfPair, second: HalfPair) -> str:
    if first.unusable or second.unusable:
        return first.unusable or second.unusable
    if (first.context, first.pronouns) != (second.context, second.pronouns):
        return CONTEXTS
    if not first.continuation or not second.continuation or first.continuation == second.continuation:
        return NOTHING_FOLLOWS
    return ""


def check_pronouns(pronouns: str) -> None:
    """Refuse an unknown choice of pronouns; raises ValueError."""
    if pronouns not in ("own", "she/he"):
        raise ValueError(f"pronouns must be 'own' or 'she/he', got {pronouns!r}.")
