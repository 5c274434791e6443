"""What a job keeps while it searches: ``--keep neutral_text=0.02`` as constraints of an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tl_multitrace.interventions import MeanAblation
from tl_multitrace.objective import Constraint
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tasks import Task, task
from tl_multitrace.tasks.registry import info_of
from tl_multitrace.tracer import Tracer

CONFIDENCE = 0.95
"""Bounds are held with this confidence, so that they can be expected to hold on unseen prompts too."""


def bound_from_text(text: str) -> tuple[str, float]:
    """Task and bound from ``"neutral_text=0.02"``.

    Raises:
        ValueError: not such text, an unknown task, or a bound that is no number.
    """
    name, equals, bound = text.partition("=")
    try:
        value = float(bound)
    except ValueError:
        value = float("nan")
    if not equals or value != value or abs(value) == float("inf"):
        raise ValueError(
            f"--keep takes TASK=CHANGE, the most a task's metric may rise (above 0) or fall (below 0), such as "
            f"neutral_text=0.02 or ioi=-0.5; got {text!r}."
        )
    info_of(name.strip())
    return name.strip(), value


def constraints_of(
    kept: Sequence[str], search: Tracer, *, seed: int, held_out: bool
) -> tuple[list[Constraint], Mapping[str, PromptPairs]]:
    """A constraint per task that a job keeps, and its held-out half.

    The components are switched off (mean ablation, means over the search's prompts) on the task's prompts. Where a
    task's answer is what the source prompt calls for, its pairs are turned round: what has to stay is the answer that
    the prompt itself calls for.

    Args:
        kept: as :func:`bound_from_text` reads them.
        search: on its prompts means are taken; its components are off at every token, answers included.
        seed: of prompts and split.
        held_out: whether to keep half of each task's prompts for scoring.
    """
    constraints, unseen = [], {}
    for text in kept:
        name, bound = bound_from_text(text)
        made = task(name, search.model, seed=seed)
        pairs = made.pairs if _one_prompt(made) else made.pairs.swap()
        if held_out:
            pairs, unseen[name] = pairs.split(0.5, seed=seed)
        off, groups = MeanAblation(reference=search.pairs), search.groups.at("everywhere")
        tracer = search.on(pairs, groups=groups, metric=made.metric, intervention=off)
        most, least = (bound, None) if bound > 0 else (None, bound)
        constraints.append(Constraint(name, tracer, at_most=most, at_least=least, confidence=CONFIDENCE))
    return constraints, unseen


def _one_prompt(made: Task) -> bool:
    base, source = made.pairs.base_tokens, made.pairs.source_tokens
    return bool(base.shape == source.shape and (base == source).all())
