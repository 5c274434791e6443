"""Gendered pronouns: a name tells whether "he" or "she" follows.

Source: the task is that of Mathwin et al. 2023 ("Identifying a preliminary circuit for predicting gendered pronouns in
GPT-2 small"); names and wording are this package's own.

Base "So Mary is a really great friend, isn't" calls for "she"; the source has a name of the other gender, and its
pronoun is the answer. Subgroup: the gender of the base's name.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tl_multitrace.metrics import LogitDiff
from tl_multitrace.tasks.corpus import FEMALE_NAMES, NAME_TEMPLATES, NAMES, PRAISE, ROLES
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

TEMPLATES = (
    "So {name} is a really {praise} {role}, isn't",
    "{name} is such a {praise} {role}, isn't",
    "I think {name} is a {praise} {role}, isn't",
)
PRONOUNS = {"female": " she", "male": " he"}


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    female: Sequence[str] | None = None,
    male: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
) -> Iterator[Row]:
    """Random names and wordings without end, female and male base names in turn.

    Templates are sentences with ``{name}``, to be continued by a pronoun; ``{praise}`` and ``{role}`` may stand in them
    too. Another name has as many tokens where there is one.
    """
    frames = list(templates or (NAME_TEMPLATES if demo else TEMPLATES))
    names = {
        "female": list(female or [name for name in NAMES if name in FEMALE_NAMES]),
        "male": list(male or [name for name in NAMES if name not in FEMALE_NAMES]),
    }
    while True:
        for gender, other in (("female", "male"), ("male", "female")):
            frame, words = rng.choice(frames), {"praise": rng.choice(PRAISE), "role": rng.choice(ROLES)}
            name = rng.choice(names[gender])
            base, *rivals = (frame.format(name=one, **words) for one in (name, *names[other]))
            source = rng.choice(sieve.as_long_as(base, rivals) or rivals)
            yield Row(base, source, (PRONOUNS[other],), (PRONOUNS[gender],), gender)


TASK = TaskInfo("gendered_pronouns", "Which components turn a name into its pronoun?", rows, LogitDiff(), "heads,mlps")
