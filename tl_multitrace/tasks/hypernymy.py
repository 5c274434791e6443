"""Hypernymy: which class does a thing belong to?

Source: the pattern "X and other Y" is that of Hearst 1992, put to language models as in Hanna et al. 2024
(arXiv:2403.17806); words and wording are this package's own.

Base "They talked about dogs and other" calls for "animals"; the source names a thing of another class, and that class
is the answer. Subgroup: the class of the base's thing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from tl_multitrace.metrics import LogitDiff
from tl_multitrace.tasks.corpus import CLASS_TEMPLATES
from tl_multitrace.tasks.corpus import CLASSES as DEMO_CLASSES
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

CLASSES: dict[str, tuple[str, ...]] = {
    name: tuple(items.split())
    for name, items in {
        "animals": "dogs cats horses bears rabbits cows goats wolves lions tigers sheep pigs monkeys elephants",
        "fruits": "apples oranges bananas grapes lemons peaches cherries pears strawberries",
        "vegetables": "carrots potatoes onions tomatoes beans peas cabbage spinach broccoli",
        "tools": "hammers saws drills screws knives shovels rakes axes",
        "instruments": "guitars pianos drums violins trumpets flutes organs harps",
        "vehicles": "cars trucks buses bicycles trains boats motorcycles vans",
        "colors": "red blue green yellow purple orange pink brown",
        "metals": "gold silver iron copper steel lead zinc tin",
        "sports": "football tennis basketball baseball golf hockey swimming soccer",
        "countries": "France Germany Italy Spain Japan China Canada Brazil India Mexico",
        "cities": "London Paris Rome Berlin Madrid Tokyo Moscow Vienna Boston Chicago",
        "languages": "French German Spanish Italian Russian Greek Dutch Arabic Turkish Chinese",
        "drinks": "coffee tea wine beer milk juice lemonade soda",
        "insects": "bees ants flies butterflies beetles moths wasps mosquitoes",
    }.items()
}
TEMPLATES = (
    "They talked about {item} and other",
    "We read about {item} and other",
    "The book is about {item} and other",
)


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    classes: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
) -> Iterator[Row]:
    """Random things of random classes without end.

    Classes are things by the name of their class, templates sentences with ``{item}``, to be continued by the class.

    Raises:
        ValueError: fewer than two classes.
    """
    known = classes or (DEMO_CLASSES if demo else CLASSES)
    # of the demo's sentences, those with a name in them say nothing more
    own = [template for template in CLASS_TEMPLATES if "{name}" not in template] if demo else TEMPLATES
    frames = list(templates or own)
    if len(known) < 2:
        raise ValueError(f"a class is told from others, so at least two are needed, got {list(known)}.")
    while True:
        name, frame = rng.choice(list(known)), rng.choice(frames)
        base = frame.format(item=rng.choice(list(known[name])))
        others = {frame.format(item=item): other for other in known if other != name for item in known[other]}
        source = rng.choice(sieve.as_long_as(base, others) or list(others))
        yield Row(base, source, (f" {others[source]}",), (f" {name}",), name)


TASK = TaskInfo(
    "hypernymy", "Which components know the class that a thing belongs to?", rows, LogitDiff(), "heads,mlps"
)
