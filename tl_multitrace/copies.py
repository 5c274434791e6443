"""Which prompt pairs are copies of each other: copies are one observation, and no evidence for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from tl_multitrace.prompts import PromptPairs
    from tl_multitrace.tracer import Tracer

OF_THE_BASE = ("zero", "mean", "given", "resample")
"""Names of interventions under which a pair's own source prompt plays no part."""


def prompt_keys(pairs: PromptPairs, answers: bool = True, source: bool = True) -> list[tuple[Any, ...]]:
    """Per pair, what it is: tokens of both sides, and its answers with the position that they are read at.

    Args:
        pairs: prompts.
        answers: False: tokens alone.
        source: False: without the source prompts.
    """
    sides = [(pairs.base_tokens, pairs.lengths), (pairs.source_tokens, pairs.source_lengths)][: 1 + source]
    columns: list[list[Any]] = [
        [tuple(row[:k]) for row, k in zip(t.tolist(), n.tolist(), strict=True)] for t, n in sides
    ]
    if answers:
        said = zip(pairs.candidates.tolist(), pairs.right.tolist(), strict=True)
        columns.append([frozenset(zip(map(tuple, ids), right, strict=True)) for ids, right in said])
        columns.append(pairs.answer_positions.tolist())
    return list(zip(*columns, strict=True))


def distinct(pairs: PromptPairs, source: bool = True) -> Int[np.ndarray, " n"]:
    """Per pair, the number of the first pair that it is a copy of: its own number where it is the first.

    Args:
        pairs: prompts.
        source: False: whatever their source prompts, which an ablation does not run.

    Examples:
        >>> from tl_multitrace.copies import distinct
        >>> pairs = mt.task("professions", model, n=4).pairs
        >>> distinct(pairs[[0, 1, 0, 2, 1]]).tolist()
        [0, 1, 0, 3, 1]
    """
    first: dict[tuple[Any, ...], int] = {}
    return np.array([first.setdefault(key, i) for i, key in enumerate(prompt_keys(pairs, source=source))])


def copies_of(tracer: Tracer) -> Int[np.ndarray, " n"]:
    """:func:`distinct` of a tracer's prompts, as far as its intervention runs them."""
    return distinct(tracer.pairs, source=tracer.intervention.name not in OF_THE_BASE)
