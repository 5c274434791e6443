"""Families of the demo grammar for the field's standard questions: years, numbers, names, classes, causes.

Every maker draws one sentence; ``split`` names the combinations it may use (``"held_out"``: those kept from training).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import permutations

from tl_multitrace.tasks import causal_graphs
from tl_multitrace.tasks.corpus import (
    AGREEMENT_TEMPLATES,
    ANIMALS,
    BINDING_THIRD_SHARE,
    CAUSAL_WORDS,
    CENTURIES,
    CLASS_TEMPLATES,
    CLASSES,
    DIGITS,
    EVENTS,
    FEMALE_NAMES,
    LETTERS,
    NAME_TEMPLATES,
    NAMES,
    PRAISE,
    ROLES,
    STATES,
    YEAR_TEMPLATES,
    YEARS,
)
from tl_multitrace.tasks.corr2cause import causal_prompt, ties_of

from .draw import Draw, Sentence, Split, combinations, is_held_out


@cache
def name_prompts(split: Split) -> list[tuple[str, str]]:
    """List the (name, template) pairs of one split: every name keeps one of its four templates held out."""
    return combinations(NAMES, NAME_TEMPLATES, 4, split)


@cache
def year_prompts(split: Split) -> list[tuple[str, str]]:
    """List the (event, first year) pairs of one split; the last year has no later one and never comes first."""
    return combinations(EVENTS, YEARS[:-1], 8, split)


@cache
def agreement_prompts(split: Split) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """List the (noun, noun nearer to the verb) pairs of one split, each as (animal, 1 for plural)."""
    forms = [(animal, plural) for animal in range(len(ANIMALS)) for plural in (0, 1)]
    # By the animals' distance: each animal keeps one neighbor from training, in all four combinations of number.
    return [
        (one, other)
        for one in forms
        for other in forms
        if one[0] != other[0] and is_held_out(one[0], other[0], len(ANIMALS)) == (split == "held_out")
    ]


@cache
def class_prompts(split: Split) -> list[tuple[tuple[str, str], str]]:
    """List the ((item, class), template) pairs of one split: every item keeps one of its templates held out."""
    items = [(item, name) for name, items in CLASSES.items() for item in items]
    return combinations(items, CLASS_TEMPLATES, len(CLASS_TEMPLATES), split)


def gendered_pronouns(draw: Draw, split: Split) -> Sentence:
    """Write such as ``So Mary is a really great friend, is she not?``."""
    name, template = draw.pick(name_prompts(split))
    prompt = template.format(name=name, praise=draw.pick(PRAISE), role=draw.pick(ROLES))
    answer = " she" if name in FEMALE_NAMES else " he"
    detail = {"name": name, "template": template}
    return Sentence("gendered_pronouns", f"{prompt}{answer} not?", prompt, answer, draw.nats, detail)


def greater_than(draw: Draw, split: Split) -> Sentence:
    """``The war lasted from the year 17 32 to the year 17 58.``: any later year, all equally likely."""
    event, year = draw.pick(year_prompts(split))
    template, century = draw.pick(YEAR_TEMPLATES), draw.pick(CENTURIES)
    prompt = template.format(event=event, year=year, century=century)
    answer = f" {draw.pick(YEARS[YEARS.index(year) + 1 :])}"
    detail = {"event": event, "year": year}
    return Sentence("greater_than", f"{prompt}{answer}.", prompt, answer, draw.nats, detail)


def subject_verb_agreement(draw: Draw, split: Split) -> Sentence:
    """Write such as ``The dogs near the cat are hungry.``."""
    (animal, plural), (other, others) = draw.pick(agreement_prompts(split))
    nouns = {"noun": ANIMALS[animal][plural], "other": ANIMALS[other][others]}
    prompt, answer = draw.pick(AGREEMENT_TEMPLATES).format(**nouns), (" is", " are")[plural]
    text = f"{prompt}{answer} {draw.pick(STATES)}."
    return Sentence("subject_verb_agreement", text, prompt, answer, draw.nats, nouns)


def hypernymy(draw: Draw, split: Split) -> Sentence:
    """Write such as ``They talked about dogs and other animals.``."""
    (item, name), template = draw.pick(class_prompts(split))
    who = draw.pick(NAMES) if "{name}" in template else ""
    prompt = template.format(item=item, name=who)
    detail = {"item": item, "template": template}
    return Sentence("hypernymy", f"{prompt} {name}.", prompt, f" {name}", draw.nats, detail)


Letters = tuple[str, ...]


@cache
def _sums(sign: str, split: Split) -> list[tuple[tuple[int, int], Letters]]:
    """List (values left and right of the sign, letters) of one split; differences are never negative."""
    values = [int(digit) for digit in DIGITS]
    pairs = [(i, j) for i in values for j in values if sign == "+" or i >= j]
    # Every sum is trained, but not in all letters.
    return combinations(pairs, list(permutations(LETTERS)), 8, split)


def variable_binding(draw: Draw, split: Split) -> Sentence:
    """Write such as ``x = 3 z = 5 x + z = 8.``: two or three variables, two of which are added or subtracted."""
    sign = draw.pick(("+", "-"))
    (left, right), letters = draw.pick(_sums(sign, split))
    lines = [(letters[0], left), (letters[1], right)]
    if draw.flip(BINDING_THIRD_SHARE):
        lines.append((letters[2], int(draw.pick(DIGITS))))
    result = left + right if sign == "+" else left - right
    prompt = binding_prompt(draw.pick(list(permutations(lines))), letters[0], sign, letters[1])
    detail = {"sign": sign, "left": str(left), "right": str(right), "variables": str(len(lines))}
    return Sentence("variable_binding", f"{prompt} {result}.", prompt, f" {result}", draw.nats, detail)


def binding_prompt(lines: Sequence[tuple[str, int]], left: str, sign: str, right: str) -> str:
    """Write the lines of a program, letter and value each, and the expression at its end."""
    bound = " ".join(f"{letter} = {value}" for letter, value in lines)
    return f"{bound} {left} {sign} {right} ="


@cache
def causal_classes() -> dict[tuple[str, str, str], dict[tuple[str, int, int], bool]]:
    """Say for each set of ties between three variables which statements follow from it.

    Keys are the words for the pairs AB, AC, BC; there are eleven sets, one per Markov equivalence class. Values tell
    for each (relation, a, b) whether it holds in every graph with these ties.
    """
    found: dict[tuple[str, str, str], dict[tuple[str, int, int], bool]] = {}
    for arrows in causal_graphs.every_graph(3):
        found[ties_of(causal_graphs.separating_sets(arrows, 3))] = {
            (relation, a, b): causal_graphs.follows(arrows, 3, relation, a, b)
            for relation in CAUSAL_WORDS
            for a, b in permutations(range(3), 2)
        }
    return found


@cache
def _causal_items(answer: bool, collider: bool) -> list[str]:
    """List the questions with one answer, about ties with a collider or without one."""
    return [
        causal_prompt(ties, statement)
        for ties, statements in causal_classes().items()
        for statement, follows in statements.items()
        if follows == answer and ("unlocked" in ties) == collider
    ]


def corr2cause(draw: Draw, split: Split) -> Sentence:
    """``A B unlocked, A C linked, B C linked. Is A parent of C? yes.``: half of the answers are yes.

    Only a collider tells causes from effects, so half of the questions with the answer no are about colliders too.
    """
    answer = draw.flip(0.5)
    collider = answer or draw.flip(0.5)
    prompt = draw.pick(_causal_items(answer, collider))
    word = " yes" if answer else " no"
    return Sentence("corr2cause", f"{prompt}{word}.", prompt, word, draw.nats)
