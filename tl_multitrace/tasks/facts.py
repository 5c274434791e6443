"""Facts: which components look up what is known about a subject?

Source: prompts of the kind used for causal tracing of facts (Meng et al. 2022, arXiv:2202.05262); the facts are this
package's own list of well-known ones. The demo model gets the invented facts it was trained on.

Base "The capital of France is", source "The capital of Japan is": same wording, another subject of the same relation
and token count. The answer is what is true of the source's subject, the wrong answer what is true of the base's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from tl_multitrace.metrics import LogitDiff
from tl_multitrace.tasks.corpus import FACT_TEMPLATES
from tl_multitrace.tasks.corpus import FACTS as DEMO_FACTS
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

Templates = Mapping[str, Sequence[str]]
Triple = tuple[str, str, str]
"""Subject, relation, object."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": ("The capital of {subject} is", "The capital city of {subject} is", "{subject}'s capital city is"),
    "language": ("The official language of {subject} is", "Most people in {subject} speak"),
    "city": ("The {subject} is in the city of", "The {subject} is located in the city of"),
    "continent": ("{subject} is a country in", "The country of {subject} lies on the continent of"),
    "animal": ("A young {subject} is called a", "The word for a young {subject} is"),
}
_TABLE: dict[str, str] = {
    "capital": "France Paris, Italy Rome, Japan Tokyo, Germany Berlin, Spain Madrid, Russia Moscow, China Beijing, "
    "Egypt Cairo, Greece Athens, Austria Vienna, England London, Ireland Dublin, Poland Warsaw, Norway Oslo, "
    "Cuba Havana, Iraq Baghdad, Iran Tehran, Syria Damascus, Canada Ottawa, Hungary Budapest",
    "language": "France French, Italy Italian, Japan Japanese, Germany German, Spain Spanish, Russia Russian, "
    "Greece Greek, Poland Polish, Brazil Portuguese, Mexico Spanish, Egypt Arabic, Turkey Turkish, Sweden Swedish, "
    "Hungary Hungarian, Finland Finnish, Austria German, Argentina Spanish, Portugal Portuguese",
    "city": "Eiffel Tower/Paris, Space Needle/Seattle, Statue of Liberty/New York, Brandenburg Gate/Berlin, "
    "Golden Gate Bridge/San Francisco, Empire State Building/New York, Louvre/Paris, Colosseum/Rome, "
    "Kremlin/Moscow, Acropolis/Athens, Willis Tower/Chicago, White House/Washington, Forbidden City/Beijing, "
    "Tower Bridge/London, Lincoln Memorial/Washington, Trevi Fountain/Rome",
    "continent": "Kenya Africa, Egypt Africa, Ghana Africa, Nigeria Africa, Morocco Africa, France Europe, "
    "Poland Europe, Norway Europe, Spain Europe, Greece Europe, Japan Asia, China Asia, India Asia, Vietnam Asia, "
    "Thailand Asia",
    "animal": "dog puppy, cat kitten, cow calf, sheep lamb, horse foal, bear cub, goat kid, duck duckling, lion cub, "
    "deer fawn, pig piglet",
}


def _fact(entry: str, relation: str) -> Triple:
    subject, _, thing = entry.partition("/" if "/" in entry else " ")
    return subject, relation, thing


FACTS = tuple(_fact(entry, relation) for relation, table in _TABLE.items() for entry in table.split(", "))


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    facts: Sequence[Triple] | None = None,
    templates: Templates | None = None,
) -> Iterator[Row]:
    """Every fact in every wording once, in random order, each with a source drawn for it.

    A source has as many tokens as its base where there is one; facts are ``(subject, relation, object)``, templates
    wordings with ``{subject}`` per relation.

    Raises:
        ValueError: a relation without wording.
    """
    own = [(fact.subject, fact.relation, fact.object) for fact in DEMO_FACTS] if demo else FACTS
    known, wordings = list(facts or own), templates or (FACT_TEMPLATES if demo else TEMPLATES)
    missing = sorted({relation for _, relation, _ in known} - set(wordings))
    if missing:
        raise ValueError(f"no wording for the relation {missing[0]!r}: pass templates={{{missing[0]!r}: [...]}}.")
    frames = [(fact, frame) for fact in known for frame in wordings[fact[1]]]
    rng.shuffle(frames)
    for (subject, relation, thing), frame in frames:
        base = frame.format(subject=subject)
        other = _other(sieve, rng, known, (subject, relation, thing), frame)
        if other is not None:
            source = frame.format(subject=other[0])
            yield Row(base, source, (f" {other[2]}",), (f" {thing}",), relation, subject)


def _other(sieve: Sieve, rng: random.Random, facts: Sequence[Triple], fact: Triple, frame: str) -> Triple | None:
    """Another subject of the relation with another object, of the same token count where there is one."""
    rivals = [f for f in facts if f[1] == fact[1] and f[2] != fact[2]]
    rng.shuffle(rivals)
    length = {f: len(sieve.encoder.prompt(frame.format(subject=f[0]))) for f in (fact, *rivals)}
    return next(iter([f for f in rivals if length[f] == length[fact]] or rivals), None)


TASK = TaskInfo("facts", "Which components look up a fact about the subject?", rows, LogitDiff(), "neurons")
