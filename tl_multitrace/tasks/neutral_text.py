"""Neutral text: what else does a set of components change?

Everyday sentences about things, written for this package; the demo model gets the plain sentences it was trained on. A
sentence is cut behind its first words: they are the prompt, and all the rest is the answer. There is one prompt, not
two: components are replaced by their mean over the prompts, wherever they stand, the answer's tokens included.

The metric is the relative change of perplexity, which is not to rise: ``direction`` is ``"minimize"``, and 0.02 is a
rise of 2 %. The task is meant as a constraint beside another one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from importlib.resources import files

from tl_multitrace.interventions import MeanAblation
from tl_multitrace.metrics import Perplexity
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    sentences: Sequence[str] | None = None,
    prompt_words: int | None = None,
) -> Iterator[Row]:
    """Every sentence once, in random order.

    The first ``prompt_words`` words make the prompt; default 3, for the demo model 2.

    Raises:
        ValueError: ``prompt_words`` below 1, or a sentence that has no more words than that.
    """
    cut = (2 if demo else 3) if prompt_words is None else prompt_words
    if cut < 1:
        raise ValueError(f"prompt_words must be at least 1, got {cut}.")
    known = list(dict.fromkeys(sentences or (_demo_sentences(rng) if demo else _sentences())))
    rng.shuffle(known)
    for sentence in known:
        words = sentence.split()
        if len(words) <= cut:
            raise ValueError(
                f"the sentence {sentence!r} has no words behind the {cut} of its prompt: lower prompt_words."
            )
        prompt = " ".join(words[:cut])
        yield Row(prompt, prompt, (f" {' '.join(words[cut:])}",))


def _sentences() -> list[str]:
    return files(__package__).joinpath("neutral_sentences.txt").read_text(encoding="utf-8").splitlines()


def _demo_sentences(rng: random.Random) -> list[str]:
    from tl_multitrace.demo.grammar import sentences

    return [one.text for one in sentences("filler", 200, rng.getrandbits(32))]


TASK = TaskInfo(
    "neutral_text",
    "How much worse does the model get at ordinary text?",
    rows,
    Perplexity(),
    "heads/everywhere,mlps/everywhere",
    n=64,
    intervention=MeanAblation,
    direction="minimize",
    one_prompt=True,
)
