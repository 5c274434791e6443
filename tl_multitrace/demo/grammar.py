"""Seeded text with known answers and known entropy: what the demo model is trained and measured on.

Eleven families of sentences, five here and six in ``families.py``. Every sentence carries the prompt that ends right
before its answer, the answer with its leading space, and ``nats``: minus the log probability that the grammar gives to
the sentence within its family. The mean of ``nats`` is the entropy no model can go below, so "how good is it" has
an exact denominator.

Some combinations are kept out of training (``split="held_out"``): pairs of names and pairs of place and object in
indirect object identification, one wording of every fact, one wording of every noun before a pronoun, and some in each
family of ``families.py`` but ``corr2cause``, whose questions are few.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from tl_multitrace.tasks.corpus import (
    ACTIONS,
    ADJECTIVES,
    AGREEMENT_TEMPLATES,
    ANIMALS,
    CAUSAL_TEMPLATE,
    CAUSAL_WORDS,
    CENTURIES,
    CLASS_TEMPLATES,
    CLASSES,
    EVENTS,
    FACT_TEMPLATES,
    FACTS,
    FEMALE_NOUNS,
    FEMALE_PROFESSIONS,
    FILLER_TEMPLATES,
    GIVING_VERBS,
    INDUCTION_WORDS,
    IOI_TEMPLATES,
    IOI_THIRD_NAME_SHARE,
    LETTERS,
    MALE_NOUNS,
    MALE_PROFESSIONS,
    NAME_TEMPLATES,
    NAMES,
    NEUTRAL_PROFESSIONS,
    OBJECTS,
    PLACES,
    PRAISE,
    PROFESSIONS,
    PRONOUN_NOUNS,
    PRONOUN_PLACE_SHARE,
    PRONOUN_TAILS,
    PRONOUN_TEMPLATES,
    RELATIONS,
    ROLES,
    SEASONS,
    STATES,
    TIES,
    WEATHER,
    YEAR_TEMPLATES,
    YEARS,
    InventedFact,
)

from . import families
from .draw import Draw, Sentence, Split, combinations, is_held_out

__all__ = [
    "FACTS",
    "FACT_TEMPLATES",
    "FAMILIES",
    "FEMALE_NOUNS",
    "FEMALE_PROFESSIONS",
    "GIVING_VERBS",
    "GRAMMAR_VERSION",
    "INDUCTION_WORDS",
    "IOI_TEMPLATES",
    "InventedFact",
    "MALE_NOUNS",
    "MALE_PROFESSIONS",
    "NAMES",
    "NEUTRAL_PROFESSIONS",
    "OBJECTS",
    "PLACES",
    "PROFESSIONS",
    "PRONOUN_NOUNS",
    "PRONOUN_TEMPLATES",
    "RELATIONS",
    "Sentence",
    "fact_prompts",
    "pronoun_prompts",
    "sentence",
    "sentences",
    "stream",
    "vocabulary",
]

GRAMMAR_VERSION = "2"

# Share of each family among the training sentences.
FAMILIES: dict[str, float] = {
    "professions": 0.20,
    "ioi": 0.08,
    "facts": 0.13,
    "induction": 0.08,
    "filler": 0.05,
    "gendered_pronouns": 0.03,
    "greater_than": 0.10,
    "subject_verb_agreement": 0.04,
    "hypernymy": 0.04,
    "variable_binding": 0.18,
    "corr2cause": 0.07,
}

INDUCTION_LENGTHS: range = range(4, 13)  # words in one copy


@cache
def _name_pairs(split: Split) -> list[tuple[str, str]]:
    """List the ordered pairs of different names of one split; a pair and its mirror share a split."""
    return [(a, b) for a, b in combinations(NAMES, NAMES, 8, split) if a != b]


@cache
def _ioi_contexts(split: Split) -> list[tuple[str, str]]:
    """List the (place, object) pairs of one split."""
    return combinations(PLACES, OBJECTS, 8, split)


@cache
def pronoun_prompts(split: Split) -> list[tuple[str, str]]:
    """List the (noun, template) pairs of one split: every noun keeps one of its eight templates held out."""
    return combinations(tuple(PRONOUN_NOUNS), PRONOUN_TEMPLATES, 8, split)


@cache
def fact_prompts(split: Split) -> list[tuple[InventedFact, str]]:
    """List the (fact, template) pairs of one split: every fact keeps one of its five wordings held out."""
    wanted = split == "held_out"
    return [
        (fact, template)
        for i, fact in enumerate(FACTS)
        for j, template in enumerate(FACT_TEMPLATES[fact.relation])
        # Subjects have two facts each, in turn: counting subjects makes the held-out wording vary within a relation.
        if is_held_out(i // 2, j, 5) == wanted
    ]


def _professions(draw: Draw, split: Split) -> Sentence:
    noun, template = draw.pick(pronoun_prompts(split))
    place = f" at the {draw.pick(PLACES)}" if draw.flip(PRONOUN_PLACE_SHARE) else ""
    prompt = template.format(noun=noun + place)
    answer = " he" if draw.flip(PRONOUN_NOUNS[noun]) else " she"
    text = f"{prompt}{answer} {draw.pick(PRONOUN_TAILS)}."
    return Sentence("professions", text, prompt, answer, draw.nats, {"noun": noun, "template": template})


def _ioi(draw: Draw, split: Split) -> Sentence:
    a, b = draw.pick(_name_pairs(split))
    place, thing = draw.pick(_ioi_contexts(split))
    template, verb = draw.pick(IOI_TEMPLATES), draw.pick(GIVING_VERBS)
    third = split == "train" and draw.flip(IOI_THIRD_NAME_SHARE)
    order = draw.pick(("ABB", "BAB"))  # which of the two is left to receive: the first or the second
    receiver, other = (a, b) if order == "ABB" else (b, a)
    giver = draw.pick([name for name in NAMES if name not in (a, b)]) if third else other
    prompt = template.format(a=a, b=b, s=giver, place=place, verb=verb, object=thing)
    detail = {"order": "ABC" if third else order, "receiver": receiver, "giver": giver, "place": place, "object": thing}
    return Sentence("ioi", f"{prompt} {receiver}.", prompt, f" {receiver}", draw.nats, detail)


def _facts(draw: Draw, split: Split) -> Sentence:
    fact, template = draw.pick(fact_prompts(split))
    prompt = template.format(subject=fact.subject)
    detail = {"subject": fact.subject, "relation": fact.relation, "template": template}
    return Sentence("facts", f"{prompt} {fact.object}.", prompt, f" {fact.object}", draw.nats, detail)


def _induction(draw: Draw, split: Split) -> Sentence:
    length = draw.pick(INDUCTION_LENGTHS)
    rest = list(INDUCTION_WORDS)
    chosen = []
    for _ in range(length):
        chosen.append(draw.pick(rest))
        rest.remove(chosen[-1])
    seen = 1 + length // 2
    prompt = " ".join(chosen + chosen[:seen])
    text = " ".join(chosen + chosen) + "."
    return Sentence("induction", text, prompt, f" {chosen[seen]}", draw.nats, {"words": " ".join(chosen)})


def _filler(draw: Draw, split: Split) -> Sentence:
    template = draw.pick(FILLER_TEMPLATES)
    slots = re.findall(r"{(\w+)}", template)
    values: dict[str, str] = {}
    # Only what the template shows is drawn, so that nats counts only visible choices.
    for slot in (slot for slot in slots if slot in _FILLER_SLOTS):
        values.update(_FILLER_SLOTS[slot](draw))
    if "other" in slots:
        values["name"], values["other"] = draw.pick(_name_pairs("train"))
    elif "name" in slots:
        values["name"] = draw.pick(NAMES)
    return Sentence("filler", template.format(**values), "", "", draw.nats)


def _animal(draw: Draw) -> dict[str, str]:
    plural = draw.pick((0, 1))
    return {"animal": draw.pick(ANIMALS)[plural], "be": ("is", "are")[plural]}


def _slot(name: str, options: Sequence[str]) -> Callable[[Draw], dict[str, str]]:
    return lambda draw: {name: draw.pick(options)}


_FILLER_SLOTS: dict[str, Callable[[Draw], dict[str, str]]] = {
    "adjective": _slot("adjective", ADJECTIVES),
    "animal": _animal,
    "animals": _slot("animals", [plural for _, plural in ANIMALS]),
    "place": _slot("place", PLACES),
    "state": _slot("state", STATES),
    "season": _slot("season", SEASONS),
    "action": _slot("action", ACTIONS),
    "object": _slot("object", OBJECTS),
    "weather": _slot("weather", WEATHER),
}
_MAKERS: dict[str, Callable[[Draw, Split], Sentence]] = {
    "professions": _professions,
    "ioi": _ioi,
    "facts": _facts,
    "induction": _induction,
    "filler": _filler,
    "gendered_pronouns": families.gendered_pronouns,
    "greater_than": families.greater_than,
    "subject_verb_agreement": families.subject_verb_agreement,
    "hypernymy": families.hypernymy,
    "variable_binding": families.variable_binding,
    "corr2cause": families.corr2cause,
}


def sentence(family: str, rng: random.Random, split: Split = "train") -> Sentence:
    """Generate one sentence of a family.

    Args:
        family: One of ``FAMILIES``.
        rng: Where the choices come from.
        split: ``"train"``, or ``"held_out"`` for combinations that training never shows (induction and filler draw
            fresh combinations anyway and have one split).

    Raises:
        ValueError: For an unknown family.
    """
    if family not in _MAKERS:
        raise ValueError(f"unknown family {family!r}; the grammar has {', '.join(_MAKERS)}")
    return _MAKERS[family](Draw(rng), split)


def sentences(family: str, count: int, seed: int, split: Split = "train") -> list[Sentence]:
    """Generate ``count`` sentences of a family from a seed."""
    rng = random.Random(seed)
    return [sentence(family, rng, split) for _ in range(count)]


def stream(seed: int) -> Iterator[Sentence]:
    """Generate training sentences without end, families drawn with the shares in ``FAMILIES``."""
    rng = random.Random(seed)
    names, shares = list(FAMILIES), list(FAMILIES.values())
    while True:
        point = rng.random()
        index = next((i for i in range(len(names)) if point < sum(shares[: i + 1])), len(names) - 1)
        yield sentence(names[index], rng)


def vocabulary() -> list[str]:
    """List every word and punctuation mark the grammar can write, sorted."""
    templates = [*PRONOUN_TEMPLATES, *PRONOUN_TAILS, *IOI_TEMPLATES, *FILLER_TEMPLATES, *NAME_TEMPLATES]
    templates += [template for group in FACT_TEMPLATES.values() for template in group]
    templates += [*YEAR_TEMPLATES, *AGREEMENT_TEMPLATES, *CLASS_TEMPLATES, CAUSAL_TEMPLATE]
    fixed = re.sub(r"{\w+}", " ", " ".join(templates))
    parts = [*PRONOUN_NOUNS, *GIVING_VERBS, *INDUCTION_WORDS, "he she not at the is are and = + - yes no"]
    parts += [f"{fact.subject} {fact.object}" for fact in FACTS]
    parts += [*PRAISE, *ROLES, *EVENTS, *CENTURIES, *YEARS, *LETTERS, *map(str, range(19))]
    parts += [word for name, items in CLASSES.items() for word in (name, *items)]
    parts += [*TIES.values(), *CAUSAL_WORDS.values()]
    return sorted(set(re.findall(r"\w+|[^\w\s]", " ".join([fixed, *parts]))))
