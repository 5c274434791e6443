"""CounterFact: which components restore a fact when its subject is noised?

Source: CounterFact and the measure of causal tracing (Meng et al. 2022, arXiv:2202.05262).

One prompt, "The mother tongue of Danielle Darrieux is". The base run has noise on the subject's tokens, and clean
activations are restored in it. Metric: logit of what is true (" French") minus that of the counterfactual target ("
English"). Above 0: the components bring the fact back. ``known_facts`` asks the same of facts without such a target:
the probability of the attribute.

``setting="paper"`` asks as multi-component causal tracing (arXiv:2606.03085) does: noise of 3 x 0.2015 on every token,
one draw per prompt; noised activations of MLP output dimensions are patched into the clean run; the first 200 prompts;
effect ``p_clean(true) / p_patched(true) - 1``, which is the relative rise of the answer's perplexity.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tl_multitrace.interventions import NoiseCorruption
from tl_multitrace.metrics import AnswerProb, LogitDiff, Perplexity
from tl_multitrace.tasks.readers.dispatch import read_prompts
from tl_multitrace.tasks.readers.facts import LAYOUTS, restored
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.rows import Row, Sieve, drawn

PAPER_NOISE = 0.2015
"""Standard deviation of the noise, before it is multiplied by 3."""


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    path: str | Path,
    shuffle: bool = True,
    subjects: bool = True,
) -> Iterator[Row]:
    """Every fact once.

    Args:
        sieve: not needed.
        rng: of the order.
        demo: not needed.
        path: ``counterfact.json`` as published, or one of its derivatives with one prompt a record; for ``known_facts``
            also ``known_1000.json``.
        shuffle: draw in random order; False: in the file's.
        subjects: find each subject's tokens; False where noise is not at the subject.

    Raises:
        ValueError: the file has no facts; for ``counterfact``, no counterfactual targets.
    """
    yield from drawn(_facts(path, subjects), rng if shuffle else None)


def rows_with_targets(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    path: str | Path,
    shuffle: bool = True,
    subjects: bool = True,
) -> Iterator[Row]:
    """Every fact once, as :func:`rows`; raises ValueError where a fact has no counterfactual target."""
    found = _facts(path, subjects)
    if not all(row.wrong for row in found):
        raise ValueError(
            f"{path}: these facts have no counterfactual target (target_new); the task known_facts takes them."
        )
    yield from drawn(found, rng if shuffle else None)


def _facts(path: str | Path, subjects: bool) -> list[Row]:
    prompts = read_prompts(path)
    if prompts.layout not in LAYOUTS:
        expected = "; ".join(f"{', '.join(layout.columns)} ({layout.name})" for layout in LAYOUTS)
        raise ValueError(f"{path}: expected facts, with the columns {expected}; found {prompts.layout.name}.")
    return [row if subjects else replace(row, subject=None, unusable="") for row in prompts.rows]


def everywhere() -> NoiseCorruption:
    """The paper's noise, to be patched into the clean run."""
    return NoiseCorruption(noise=3.0, at="all", std=PAPER_NOISE)


PAPER = {
    "published_bos": True,
    "metric": Perplexity(),
    "groups": "mlp_dims",
    "intervention": everywhere,
    "n": 200,
    "options": {"shuffle": False, "subjects": False},
}

TASK = TaskInfo(
    name="counterfact",
    question="Which MLP layers restore a fact, against another object, when its subject is noised?",
    make=rows_with_targets,
    metric=LogitDiff(),
    groups="mlps",
    intervention=restored,
    one_prompt=True,
    source="CounterFact, Meng et al. 2022",
    data="counterfact.json, from rome.baulab.info/data/dsets",
    settings={"paper": PAPER},
)

KNOWN_FACTS = replace(
    TASK,
    name="known_facts",
    question="Which MLP layers restore a known fact when its subject is noised?",
    make=rows,
    metric=AnswerProb(),
    source="known_1000, Meng et al. 2022",
    data="known_1000.json, from rome.baulab.info/data/dsets",
)
