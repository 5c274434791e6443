"""Gender stereotypes of professions: which pronoun does the model expect?

Source: the prompts and the measure follow the professions experiment of multi-component causal tracing
(arXiv:2606.03085) and causal mediation analysis (Vig et al. 2020, arXiv:2004.12265); words and templates are this
package's own, or those of a published list: ``path=``. ``setting="paper"`` asks about MLP output dimensions, on all
2,703 pairs of the paper's lists.

Base "The nurse said that", source "The man said that": with r the odds he : she relative to the base run, the effect of
a female-stereotyped word is ``r - 1`` and that of a male-stereotyped word (source "The woman said that") is ``1/r -
1``. Above 0: the patch moves the model against the stereotype.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tl_multitrace.metrics import OddsRatio
from tl_multitrace.tasks.readers.professions import NEUTRAL, Professions, read_professions
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.rows import Row, Sieve

HE, SHE = " he", " she"


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    male: Sequence[str] | None = None,
    female: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    path: str | Path | None = None,
) -> Iterator[Row]:
    """Every word in every template once, male- and female-stereotyped words in turn.

    Args:
        sieve: not needed: every word is tried.
        rng: of the order.
        demo: not needed: the words are everyday ones.
        male: words stereotyped as male; default the package's list.
        female: words stereotyped as female.
        templates: sentences with ``{noun}``; each is also said of "man" and "woman".
        path: published lists instead of the package's: a folder with ``male_occupations.txt``,
            ``female_occupations.txt`` and ``templates.txt``, or ``professions.json``.
    """
    from tl_multitrace.demo.grammar import PRONOUN_TEMPLATES
    from tl_multitrace.demo.words import FEMALE_PROFESSIONS, MALE_PROFESSIONS

    own = Professions(tuple(MALE_PROFESSIONS), tuple(FEMALE_PROFESSIONS))
    lists = own if path is None else read_professions(path)
    frames = (lists.templates or PRONOUN_TEMPLATES) if templates is None else templates
    men = _rows(lists.male if male is None else male, frames, "woman", (SHE, HE), "male")
    women = _rows(lists.female if female is None else female, frames, "man", (HE, SHE), "female")
    yield from (Row(word, word, (HE,), unusable=NEUTRAL) for word in lists.neutral)
    rng.shuffle(men)
    rng.shuffle(women)
    for i in range(max(len(men), len(women))):
        yield from (*women[i : i + 1], *men[i : i + 1])


def _rows(
    words: Iterable[str],
    templates: Sequence[str],
    other: str,
    pronouns: tuple[str, str],
    label: str,
) -> list[Row]:
    answer, wrong = pronouns
    return [
        Row(frame.format(noun=word), frame.format(noun=other), (answer,), (wrong,), label)
        for word in words
        for frame in templates
    ]


TASK = TaskInfo(
    name="professions",
    question="Which components hold the gender stereotype of a profession?",
    make=rows,
    metric=OddsRatio(),
    groups="neurons",
    settings={"paper": {"published_bos": True, "groups": "mlp_dims", "n": 2703}},
)
