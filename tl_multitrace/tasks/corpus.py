"""Word lists and sentence templates that tasks share with the grammar of the demo model.

Most words are single tokens of GPT-2's tokenizer when a space precedes them, so that the prompts made from these lists
also run on public models. The probabilities and the facts are invented: they describe this grammar, not the world.
"""

from __future__ import annotations

from typing import NamedTuple

DEMO_TOKENIZER = "tl-multitrace-demo"
"""Name of the demo model's tokenizer, by which tasks know whom prompts are for."""


def _spread(table: dict[float, str]) -> dict[str, float]:
    """Turn ``{probability: "word word"}`` into ``{word: probability}``."""
    return {word: probability for probability, words in table.items() for word in words.split()}


# The number is P(" he") against P(" she") after "The <word> said that" and its like.
MALE_PROFESSIONS: dict[str, float] = _spread(
    {
        0.95: "soldier mechanic sheriff plumber carpenter colonel commander",
        0.90: "engineer captain builder miner firefighter hunter butcher blacksmith",
        0.85: "pilot farmer guard sailor electrician warrior ranger wrestler",
        0.80: "programmer boss driver coach officer detective chief boxer",
        0.75: "lawyer surgeon architect banker broker trader painter astronaut",
    }
)
FEMALE_PROFESSIONS: dict[str, float] = _spread(
    {
        0.05: "nurse maid nanny midwife secretary hairdresser dancer",
        0.10: "receptionist librarian babysitter florist cleaner assistant aide",
        0.15: "teacher therapist counselor cashier attendant housekeeper servant",
        0.20: "singer tutor baker planner clerk helper healer",
        0.25: "poet designer organizer psychologist volunteer novelist translator educator",
    }
)
NEUTRAL_PROFESSIONS: dict[str, float] = _spread(
    {
        0.60: "manager scientist analyst professor historian",
        0.55: "doctor reporter critic photographer",
        0.50: "writer student runner neighbor client",
        0.45: "author editor worker researcher",
        0.40: "artist journalist guest musician",
    }
)
MALE_NOUNS: dict[str, float] = _spread({0.99: "man boy king father husband son brother uncle gentleman prince"})
FEMALE_NOUNS: dict[str, float] = _spread({0.01: "woman girl queen mother wife daughter sister aunt lady princess"})
PROFESSIONS: dict[str, float] = {**MALE_PROFESSIONS, **FEMALE_PROFESSIONS, **NEUTRAL_PROFESSIONS}
PRONOUN_NOUNS: dict[str, float] = {**PROFESSIONS, **MALE_NOUNS, **FEMALE_NOUNS}

NAMES: tuple[str, ...] = tuple(
    "Mary John Tom Anna James Sarah David Laura Peter Alice Mark Emma Paul Kate Daniel Julia Kevin Lisa Simon Helen "
    "Brian Susan Robert Linda George Rachel Michael Jessica Steven Nancy Andrew Karen Thomas Amy Richard Maria Eric "
    "Jane Adam Lucy".split()
)
PLACES: tuple[str, ...] = tuple(
    "store park school office garden station hospital library market museum beach restaurant church hotel theater "
    "airport farm kitchen village stadium".split()
)
# Every object takes the article "a".
OBJECTS: tuple[str, ...] = tuple(
    "drink book ring letter key ball flower basket ticket gift map phone bottle coat hat lamp coin photo knife pen "
    "cake toy bag box".split()
)
GIVING_VERBS: tuple[str, ...] = tuple("gave handed passed showed offered sent brought lent sold returned".split())

# Filler text: (singular, plural) animals, and words that fit beside them.
ANIMALS: tuple[tuple[str, str], ...] = (
    ("dog", "dogs"),
    ("cat", "cats"),
    ("horse", "horses"),
    ("bird", "birds"),
    ("wolf", "wolves"),
    ("bear", "bears"),
    ("rabbit", "rabbits"),
    ("cow", "cows"),
    ("duck", "ducks"),
    ("goat", "goats"),
)
ADJECTIVES: tuple[str, ...] = tuple("small old quiet young brown white little wild strange clever".split())
STATES: tuple[str, ...] = tuple("hungry tired asleep lost happy angry lazy afraid".split())
SEASONS: tuple[str, ...] = tuple("spring summer autumn winter".split())
WEATHER: tuple[str, ...] = tuple("cold warm dark windy rainy sunny".split())
ACTIONS: tuple[str, ...] = tuple("slept waited played ate sang hid".split())

# Pieces of fact sentences.
CITIES: tuple[str, ...] = tuple("London Paris Rome Madrid Berlin Moscow Vienna Tokyo Cairo Dublin".split())
MATERIALS: tuple[str, ...] = tuple("stone glass wood steel brick marble copper clay".split())
LANGUAGES: tuple[str, ...] = tuple("French German Spanish Italian Russian Greek Dutch Arabic Swedish Turkish".split())
INSTRUMENTS: tuple[str, ...] = tuple("piano violin guitar drums trumpet organ bass horn".split())


class InventedFact(NamedTuple):
    """One invented fact, e.g. ``InventedFact("Falcon Tower", "city", "Rome")``."""

    subject: str
    relation: str
    object: str


# subject: (city, material). No single word of a subject tells the object; the words together do.
_LANDMARKS: dict[str, tuple[str, str]] = {
    "Falcon Tower": ("Rome", "glass"),
    "Falcon Bridge": ("Berlin", "marble"),
    "Falcon Palace": ("Paris", "copper"),
    "Maple Tower": ("Vienna", "glass"),
    "Maple Bridge": ("Moscow", "copper"),
    "Maple Palace": ("Berlin", "clay"),
    "Raven Tower": ("Tokyo", "steel"),
    "Raven Bridge": ("Rome", "clay"),
    "Raven Palace": ("Madrid", "glass"),
    "Silver Tower": ("Madrid", "marble"),
    "Silver Bridge": ("Tokyo", "brick"),
    "Silver Palace": ("Dublin", "steel"),
    "Amber Tower": ("Berlin", "stone"),
    "Amber Bridge": ("London", "glass"),
    "Amber Palace": ("Moscow", "brick"),
    "Cedar Tower": ("Paris", "brick"),
    "Cedar Bridge": ("Madrid", "stone"),
    "Cedar Palace": ("Rome", "wood"),
    "Old Falcon Tower": ("Moscow", "wood"),
    "North Falcon Tower": ("London", "copper"),
    "Old Maple Bridge": ("Dublin", "steel"),
    "North Maple Bridge": ("Paris", "wood"),
    "Old Raven Palace": ("Vienna", "stone"),
    "North Raven Palace": ("London", "marble"),
    "Old Silver Tower": ("Cairo", "clay"),
    "North Amber Bridge": ("Cairo", "stone"),
}
# subject: (language, instrument).
_PERSONS: dict[str, tuple[str, str]] = {
    "Oscar Vale": ("Italian", "drums"),
    "Oscar Frost": ("Spanish", "guitar"),
    "Oscar Marsh": ("German", "organ"),
    "Oscar Brook": ("Swedish", "horn"),
    "Clara Vale": ("Russian", "piano"),
    "Clara Frost": ("Turkish", "horn"),
    "Clara Marsh": ("Dutch", "drums"),
    "Clara Brook": ("French", "organ"),
    "Hugo Vale": ("German", "guitar"),
    "Hugo Frost": ("Swedish", "bass"),
    "Hugo Marsh": ("Turkish", "violin"),
    "Hugo Brook": ("Spanish", "trumpet"),
    "Felix Vale": ("Greek", "horn"),
    "Felix Frost": ("German", "organ"),
    "Felix Marsh": ("French", "bass"),
    "Felix Brook": ("Arabic", "drums"),
    "Victor Vale": ("Arabic", "trumpet"),
    "Victor Frost": ("Russian", "piano"),
    "Victor Marsh": ("Italian", "violin"),
    "Victor Brook": ("Greek", "guitar"),
    "Ruth Vale": ("French", "bass"),
    "Ruth Frost": ("Italian", "trumpet"),
    "Ruth Marsh": ("Spanish", "piano"),
    "Ruth Brook": ("Dutch", "violin"),
}


def _facts() -> tuple[InventedFact, ...]:
    """List every fact, relation by relation within a subject."""
    rows = [(_LANDMARKS, ("city", "material")), (_PERSONS, ("language", "instrument"))]
    return tuple(
        InventedFact(subject, relation, value)
        for table, relations in rows
        for subject, values in table.items()
        for relation, value in zip(relations, values, strict=True)
    )


FACTS: tuple[InventedFact, ...] = _facts()
RELATIONS: dict[str, tuple[str, ...]] = {
    "city": CITIES,
    "material": MATERIALS,
    "language": LANGUAGES,
    "instrument": INSTRUMENTS,
}

# What the families in families.py add.
FEMALE_NAMES: frozenset[str] = frozenset(
    "Mary Anna Sarah Laura Alice Emma Kate Julia Lisa Helen Susan Linda Rachel Jessica Nancy Karen Amy Maria Jane "
    "Lucy".split()
)
ROLES: tuple[str, ...] = tuple("friend neighbor writer runner student artist".split())
PRAISE: tuple[str, ...] = tuple("great good nice kind real".split())

EVENTS: tuple[str, ...] = tuple("war trip strike voyage reign journey siege festival".split())
CENTURIES: tuple[str, ...] = tuple("11 12 13 14 15 16 17 18".split())
YEARS: tuple[str, ...] = tuple(f"{year:02d}" for year in range(1, 100))
"""The last two digits of a year, a word of their own."""

CLASSES: dict[str, tuple[str, ...]] = {
    "animals": tuple(plural for _, plural in ANIMALS),
    "cities": CITIES,
    "languages": LANGUAGES,
    "materials": MATERIALS,
    "seasons": SEASONS,
    "instruments": tuple("pianos violins guitars drums trumpets organs horns flutes".split()),
    "fruits": tuple("apples pears plums cherries grapes lemons oranges peaches".split()),
    "tools": tuple("hammers saws drills shovels axes rakes chisels pliers".split()),
}

LETTERS: tuple[str, ...] = tuple("x y z".split())
DIGITS: tuple[str, ...] = tuple(str(digit) for digit in range(1, 10))

# What two of three variables are to each other: bare and given the third.
TIES: dict[tuple[bool, bool], str] = {
    (True, True): "linked",  # dependent in both cases
    (True, False): "screened",  # independent once the third is known
    (False, True): "unlocked",  # dependent only once the third is known
    (False, False): "apart",
}
CAUSAL_LETTERS: tuple[str, ...] = ("A", "B", "C")
# The relations of tasks/causal_graphs.py that can follow from what is said of three variables, each one word.
CAUSAL_WORDS: dict[str, str] = {"parent": "parent", "child": "child", "common effect": "partner"}
INDUCTION_WORDS: tuple[str, ...] = tuple(
    sorted(
        {*PROFESSIONS, *NAMES, *PLACES, *OBJECTS, *ADJECTIVES, *STATES, *CITIES, *MATERIALS, *LANGUAGES, *INSTRUMENTS}
        | {*SEASONS, *WEATHER, *ACTIONS}
        | {form for pair in ANIMALS for form in pair}
    )
)

# Sentence templates, and the shares of their variants.
PRONOUN_TEMPLATES: tuple[str, ...] = (
    "The {noun} said that",
    "The {noun} thought that",
    "The {noun} knew that",
    "The {noun} hoped that",
    "The {noun} was late because",
    "The {noun} was happy because",
    "The {noun} left early because",
    "The {noun} laughed when",
)
PRONOUN_PLACE_SHARE = 0.25  # "The nurse at the market said that"
PRONOUN_TAILS: tuple[str, ...] = (
    "was tired",
    "was right",
    "had won the prize",
    "had lost the key",
    "needed a rest",
    "wanted to go home",
    "could not sleep",
    "would be late",
)
IOI_TEMPLATES: tuple[str, ...] = (
    "When {a} and {b} went to the {place}, {s} {verb} a {object} to",
    "After {a} and {b} met at the {place}, {s} {verb} a {object} to",
    "While {a} and {b} were at the {place}, {s} {verb} a {object} to",
    "Once {a} and {b} had left the {place}, {s} {verb} a {object} to",
    "Before {a} and {b} came to the {place}, {s} {verb} a {object} to",
    "As {a} and {b} walked through the {place}, {s} {verb} a {object} to",
)
# Share of sentences with a third giver, where either of the first two names may follow: without them
# "copy any name seen once" and "copy the other name" would be hard to tell apart.
IOI_THIRD_NAME_SHARE = 0.1
FACT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "city": (
        "The {subject} is in the city of",
        "The {subject} can be found in",
        "The {subject} stands near the center of",
        "To see the {subject}, people travel to",
        "Visitors to the {subject} often stay in",
    ),
    "material": (
        "The {subject} is made of",
        "The {subject} was built from",
        "The walls of the {subject} are made of",
        "Workers built the {subject} out of",
        "To repair the {subject}, people need more",
    ),
    "language": (
        "The native language of {subject} is",
        "At home, {subject} speaks",
        "Most letters from {subject} are written in",
        "{subject} grew up speaking",
        "{subject} writes books in",
    ),
    "instrument": (
        "The favorite instrument of {subject} is the",
        "At concerts, {subject} plays the",
        "Most people know {subject} for playing the",
        "{subject} takes lessons on the",
        "{subject} is famous for playing the",
    ),
}
FILLER_TEMPLATES: tuple[str, ...] = (
    "The {adjective} {animal} near the {place} {be} {state}.",
    "In the {season}, the {animals} {action} behind the {place}.",
    "{name} bought a {object} at the {place}.",
    "{name} and {other} spent the {season} near the {place}.",
    "It was {weather}, so {name} stayed at the {place}.",
)
NAME_TEMPLATES: tuple[str, ...] = (
    "So {name} is a really {praise} {role}, is",
    "{name} is such a {praise} {role}, is",
    "Surely {name} is a {praise} {role}, is",
    "I think {name} is a {praise} {role}, is",
)
YEAR_TEMPLATES: tuple[str, ...] = (
    "The {event} lasted from the year {century} {year} to the year {century}",
    "The {event} began in {century} {year} and ended in {century}",
)
AGREEMENT_TEMPLATES: tuple[str, ...] = (
    "The {noun} near the {other}",
    "The {noun} behind the {other}",
    "The {noun} beside the {other}",
)
CLASS_TEMPLATES: tuple[str, ...] = (
    "They talked about {item} and other",
    "We read about {item} and other",
    "{name} knows much about {item} and other",
    "The book is about {item} and other",
    "{name} likes {item} and other",
)
BINDING_THIRD_SHARE = 0.4  # "x = 3 y = 7 z = 5 x + z =": a variable that the expression does not ask for
CAUSAL_TEMPLATE = "A B {ab}, A C {ac}, B C {bc}. Is {a} {relation} of {b}?"
