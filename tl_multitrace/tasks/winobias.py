"""WinoBias: does a pronoun call up the occupation that the stereotype gives it?

Source: sentences of WinoBias (Zhao et al. 2018, arXiv:1804.06876), prompts and measure of causal mediation analysis
(Vig et al. 2020, arXiv:2004.12265) and of multi-component causal tracing (arXiv:2606.03085).

Base "The nurse examined the farmer for injuries because she", source "... because he". The answer is how the sentence
about the male-stereotyped occupation goes on, the wrong answer that about the female-stereotyped one, both of several
tokens. Above 0: the patch moves probability towards the male-stereotyped continuation, as "he" does. Subgroup: the
stereotype of the occupation that the sentence names first.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tl_multitrace.metrics import OddsRatio
from tl_multitrace.tasks.readers.coreference import Pronouns
from tl_multitrace.tasks.readers.winobias import read_winobias
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.rows import Row, Sieve, drawn

FILE = "pro_stereotyped_type1.txt.dev"


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    path: str | Path,
    pronouns: Pronouns = "own",
    stereotype: str | None = None,
    shuffle: bool = True,
) -> Iterator[Row]:
    """Every pair of sentences once.

    Args:
        sieve: not needed.
        rng: of the order.
        demo: not needed.
        path: ``pro_stereotyped_type1.txt.dev`` or its like (sentences of type 1 go on differently behind the pronoun,
            those of type 2 end there), or the folder that it is in.
        pronouns: ``"own"``: the prompt ends in "her" or "his" where the sentence has it, as in Vig et al.;
            ``"she/he"`` always.
        stereotype: ``"pro"`` or ``"anti"`` where the file's name does not say it.
        shuffle: draw in random order; False: in the file's.
    """
    file = Path(path) / FILE if Path(path).is_dir() else path
    yield from drawn(read_winobias(file, pronouns=pronouns, stereotype=stereotype), rng if shuffle else None)


TASK = TaskInfo(
    name="winobias",
    question="Which heads carry the gender stereotype of an occupation to its pronoun?",
    make=rows,
    metric=OddsRatio(),
    groups="heads:pattern",
    n=198,
    source="WinoBias, Zhao et al. 2018",
    data="pro_stereotyped_type1.txt.dev or .test, from github.com/uclanlp/corefBias, WinoBias/wino/data",
    settings={"paper": {"published_bos": True, "options": {"pronouns": "she/he", "shuffle": False}}},
)
