"""``evaluate``: the verb behind :class:`~tl_multitrace.evaluation.report.CircuitReport`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_multitrace.evaluation.measure import AblationScores, measure
from tl_multitrace.evaluation.report import CircuitReport
from tl_multitrace.evaluation.subject import Interventions, Judged, Subject, subject_of
from tl_multitrace.groups import HookGroups
from tl_multitrace.models.ambient import neutral
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.solvers.search import Direction
from tl_multitrace.tracer import Tracer


@neutral()
def evaluate(
    circuit: Judged,
    pairs: PromptPairs,
    *,
    budget: int | None = None,
    interventions: Interventions = None,
    draws: int = 100,
    minimality: bool = True,
    tracer: Tracer | None = None,
    model: Any = None,
    groups: HookGroups | None = None,
    metric: Any = None,
    direction: Direction | None = None,
    seed: int = 0,
) -> CircuitReport:
    """Judge a circuit on prompts, which should be others than those it was chosen on.

    Costs about ``4 + draws + components`` forwards over the prompts for each ablation.

    Args:
        circuit: a circuit, or a path (then of its largest ``budget``, unless one is named).
        pairs: held-out prompts.
        budget: which circuit of a path.
        interventions: one ablation or several, since faithfulness depends on it; default the search's.
        draws: random sets of the same size and kinds, for the percentile; 0 for none.
        minimality: also measure faithfulness without each component.
        tracer: a tracer whose model, groups, metric and intervention to use; default the one that found the circuit.
        model: for a circuit that was loaded from a file.
        groups: for a loaded circuit: all hook groups it was chosen from, such as ``heads(model)``.
        metric: default the search's.
        direction: ``"maximize"`` or ``"minimize"``; default the search's.
        seed: of random sets and bootstrap.

    Returns:
        Effect, faithfulness, completeness and minimality with 95 % bootstrap intervals over prompts, percentile among
        random sets, effects by subgroup and by prompt.

    Raises:
        ValueError: a loaded circuit without what it takes to run it (the message says what to pass), or groups that do
            not hold its components.

    Examples:
        >>> import tl_multitrace as mt
        >>> model = mt.load_model("demo")
        >>> task = mt.task("professions", model, n=16)
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), task.metric)
        >>> train, held_out = task.pairs.split(0.5, seed=0)
        >>> path = mt.select(tracer.on(train), [2], mt.Greedy())
        >>> report = mt.evaluate(path[2], held_out, draws=20)
        >>> report.effect.n, round(report.completeness.value, 1)
        (8, 0.5)
        >>> both = mt.evaluate(path[2], held_out, interventions=[mt.ZeroAblation(), mt.MeanAblation()], draws=0)
        >>> [scores.name for scores in both.ablations]
        ['zero', 'mean']
    """
    if draws < 0:
        raise ValueError(f"draws must be 0 or more, got {draws}.")
    subject = subject_of(
        circuit,
        budget=budget,
        tracer=tracer,
        model=model,
        groups=groups,
        metric=metric,
        interventions=interventions,
        direction=direction,
    )
    scores = tuple(
        measure(subject, pairs, intervention, draws=draws, minimality=minimality, seed=seed)
        for intervention in subject.interventions
    )
    return CircuitReport(
        components=subject.chosen.components,
        n_groups=len(subject.groups),
        metric=subject.metric.name or "custom",
        metric_unit=subject.metric.unit,
        direction=subject.direction,
        prompts=prompt_texts(pairs),
        labels=tuple(pairs.labels),
        ablations=scores,
        notes=tuple([*seen_before(subject, pairs), *_doubts(scores, subject.sign)]),
        provenance={
            **subject.provenance,
            "evaluation": {"prompts": {"n": len(pairs), "digest": pairs.digest()}, "draws": draws, "seed": seed},
        },
    )


def prompt_texts(pairs: PromptPairs) -> tuple[str, ...]:
    """Base prompts as text, or their token ids where there is no text."""
    if pairs.base_words:
        return tuple("".join(words) for words in pairs.base_words)
    rows = zip(pairs.base_tokens.tolist(), pairs.lengths.tolist(), strict=True)
    return tuple(" ".join(map(str, row[:length])) for row, length in rows)


def seen_before(subject: Subject, pairs: PromptPairs) -> list[str]:
    """A warning where prompts are those that the set was chosen on."""
    digest = dict(subject.provenance.get("prompts") or {}).get("digest")
    if digest == pairs.digest():
        return ["these are the prompts of the search: effects are too good; judge on held-out prompts"]
    if subject.search is None:
        return []
    known = set(_keys(subject.search))
    double = sum(key in known for key in _keys(pairs))
    return [f"{double} of {len(pairs)} prompts were also in the search: effects are too good"] if double else []


def _keys(pairs: PromptPairs) -> list[tuple[Any, ...]]:
    sides = ((pairs.base_tokens, pairs.lengths), (pairs.source_tokens, pairs.source_lengths))
    rows = [[tuple(r[:k]) for r, k in zip(t.tolist(), n.tolist(), strict=True)] for t, n in sides]
    return list(zip(*rows, strict=True))


def _doubts(scores: Sequence[AblationScores], sign: int) -> list[str]:
    return [note for s in scores for note in _doubts_of(s, sign)] + _ablation_note(scores)


def _doubts_of(scores: AblationScores, sign: int) -> list[str]:
    notes, full, effect = [], scores.full_effect, scores.effect
    if full.low <= 0 <= full.high:
        notes.append(f"{scores.name}: the full effect {full} may be zero, so ratios to it mean little")
    if sign * effect.mean < 0:
        notes.append(f"{scores.name}: the effect {effect} goes the wrong way")
    if scores.percentile is not None and scores.percentile < 95:
        notes.append(f"{scores.name}: {100 - scores.percentile:.0f} % of random sets of its size do as well")
    for name in scores.reversed_subgroups:
        part = scores.subgroups[name]
        sure = "" if part.low <= 0 <= part.high else ", and its interval leaves 0 out"
        notes.append(f"{scores.name}: in subgroup {name!r} the effect {part} has the opposite sign of {effect}{sure}")
    return notes


def _ablation_note(scores: Sequence[AblationScores]) -> list[str]:
    known = [s.faithfulness.value for s in scores if s.faithfulness is not None]
    if len(known) < 2 or max(known) - min(known) < 0.1:
        return []
    return [f"faithfulness runs from {min(known):.2f} to {max(known):.2f} with the ablation alone"]
