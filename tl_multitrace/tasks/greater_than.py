"""Greater-than: the year a thing ends is later than the year it began.

Source: the task and its measure are those of Hanna et al. 2023 (arXiv:2305.00586); nouns and wording are this package's
own.

Source prompt "The war lasted from the year 1732 to the year 17", base prompt the same with the year 1701, after which
any two digits may follow. The metric is the probability of all two-digit years above 32 minus that of those at or below
it. Above 0: the patch brings the knowledge of the year. ``pairs.swap()`` gives the reading of ablation.

Only years that the tokenizer splits behind the century take part (not 1860 where that is one token), all into as many
tokens. Where digits are tokens of their own the last two are two tokens, whose probability is their product.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tl_multitrace.metrics import ProbDiff
from tl_multitrace.tasks.corpus import EVENTS, YEAR_TEMPLATES
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

NOUNS = (
    "war strike siege voyage trip journey reign festival project experiment marriage friendship drought famine trial "
    "campaign quarrel expedition plague truce apprenticeship construction dispute occupation rebellion exile tour "
    "season career partnership"
).split()
TEMPLATES = ("The {noun} lasted from the year {start} to the year {century}",)
CENTURIES = range(11, 19)
FIRST_YEAR, LAST_YEAR = 1, 99
ENOUGH = 10


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    nouns: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    centuries: Sequence[int] = CENTURIES,
) -> Iterator[Row]:
    """Random nouns, centuries and years from 02 to 98, without end.

    Templates are sentences with ``{noun} {start} {century}``, to be continued by the two digits of the last year; the
    demo model's have a year in two words.
    """
    # the demo's templates write a year as "{century} {year}" and call what lasts an event
    own = [t.replace("{century} {year}", "{start}").replace("{event}", "{noun}") for t in YEAR_TEMPLATES]
    frames, things = list(templates or (own if demo else TEMPLATES)), list(nouns or (EVENTS if demo else NOUNS))
    gap = " " if demo else ""
    known = {century: _split(sieve, century, gap) for century in centuries}
    while True:
        noun, frame, century = rng.choice(things), rng.choice(frames), rng.choice(list(centuries))
        year = rng.choice(known[century][1:-1])
        base, source = (
            frame.format(noun=noun, start=f"{century}{gap}{first:02d}", century=century) for first in (FIRST_YEAR, year)
        )
        answers = [[f"{gap}{one:02d}" for one in known[century] if (one > year) == above] for above in (True, False)]
        yield Row(base, source, tuple(answers[0]), tuple(answers[1]))


def _split(sieve: Sieve, century: int, gap: str) -> list[int]:
    """The years of a century split behind it into equally many tokens; with too few of those, some to be dropped."""
    added = {year: sieve.added(f"the year {century}", f"{gap}{year:02d}") for year in range(FIRST_YEAR, LAST_YEAR + 1)}
    usual = max((1, 2), key=list(added.values()).count)
    fitting = [year for year, tokens in added.items() if tokens == usual]
    return fitting if len(fitting) > ENOUGH else list(added)[:ENOUGH]


TASK = TaskInfo(
    "greater_than",
    "Which components know that an end comes after its beginning?",
    rows,
    ProbDiff(reduce="sum"),
    "heads,mlps",
    n=64,
)
