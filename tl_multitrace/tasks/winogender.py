"""Winogender: does a pronoun call up the person that the stereotype gives it?

Source: Winogender schemas (Rudinger et al. 2018, arXiv:1804.09301), prompts and measure of causal mediation analysis
(Vig et al. 2020, arXiv:2004.12265) and of multi-component causal tracing (arXiv:2606.03085).

Base "The technician told the customer that she", source "... that he". In an occupation where more than half are women
the sentence about the occupation is the female-stereotyped one and that about the other person the male-stereotyped
one, otherwise the other way round. The answer is how the male-stereotyped sentence goes on, the wrong answer the
female-stereotyped one. Subgroup: the stereotype of the occupation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tl_multitrace.metrics import OddsRatio
from tl_multitrace.tasks.readers.coreference import Pronouns
from tl_multitrace.tasks.readers.winogender import Statistic, read_winogender
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.rows import Row, Sieve, drawn


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    path: str | Path,
    statistics: str | Path | None = None,
    share: Statistic = "bls",
    pronouns: Pronouns = "own",
    shuffle: bool = True,
) -> Iterator[Row]:
    """Every pair of sentences once.

    Args:
        sieve: not needed.
        rng: of the order.
        demo: not needed.
        path: ``winogender_templates_structurefilter.tsv`` (the pairs that begin alike), ``templates.tsv`` or
            ``all_sentences.tsv``; or the folder of ``templates.tsv``.
        statistics: table of the share of women by occupation; default ``occupations-stats.tsv`` beside the file.
        share: whose numbers, ``"bls"`` or ``"bergsma"``.
        pronouns: ``"own"`` or ``"she/he"``, as in the task ``winobias``.
        shuffle: draw in random order; False: in the file's.
    """
    file = Path(path) / "templates.tsv" if Path(path).is_dir() else path
    found = read_winogender(file, statistics=statistics, share=share, pronouns=pronouns)
    yield from drawn(found, rng if shuffle else None)


TASK = TaskInfo(
    name="winogender",
    question="Which heads carry the gender stereotype of an occupation to its pronoun, in Winogender schemas?",
    make=rows,
    metric=OddsRatio(),
    groups="heads:pattern",
    n=120,
    source="Winogender, Rudinger et al. 2018",
    data="templates.tsv and occupations-stats.tsv, from github.com/rudinger/winogender-schemas, data",
    settings={"paper": {"published_bos": True, "options": {"pronouns": "she/he", "shuffle": False}}},
)
