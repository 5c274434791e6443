"""``evaluate``: the verb behind :class:`~tl_multitrace.evaluation.circuit_report.CircuitReport`.

    effect(m)        metric(m) - metric(0)                             m = 1: the source's activation
    faithfulness     f(C) = (M(C) - M(empty)) / (M(full) - M(empty))   C keeps its activations, all else is replaced
                          = 1 - effect(all but C) / effect(all)
    completeness     1 - f(full minus C) = effect(C) / effect(all)     which is the share of the whole mask's effect
    minimality of c  f(C) - f(C minus c)

``full`` and ``empty`` count the hook groups of the search and nothing else of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.circuit import Circuit
from tl_multitrace.copies import copies_of, prompt_keys
from tl_multitrace.evaluation.circuit_report import AblationScores, CircuitReport
from tl_multitrace.evaluation.target import Interventions, Judged, Target, target_of
from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import Intervention
from tl_multitrace.models.ambient import neutral
from tl_multitrace.progress import bar, ticking
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.chance import chance_p, percentile
from tl_multitrace.records.stats import Copies, Score, by_label, estimates, once, prompt_notes, random_sets, sign_flip_p
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
    target = target_of(
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
        measure(target, pairs, intervention, draws=draws, minimality=minimality, seed=seed)
        for intervention in target.interventions
    )
    report = CircuitReport(
        components=target.chosen.components,
        n_groups=len(target.groups),
        metric=target.metric.name or "custom",
        metric_unit=target.metric.unit,
        direction=target.direction,
        prompts=prompt_texts(pairs),
        labels=tuple(pairs.labels),
        ablations=scores,
        provenance={
            **target.provenance,
            "evaluation": {"prompts": {"n": len(pairs), "digest": pairs.digest()}, "draws": draws, "seed": seed},
        },
    )
    seen = (*seen_before(target, pairs), *prompt_notes(copies_of(target.tracer(pairs))))
    return replace(report, notes=(*seen, *_doubts(report), *_opposed(circuit, report)))


def prompt_texts(pairs: PromptPairs) -> tuple[str, ...]:
    """Base prompts as text, or their token ids where there is no text."""
    if pairs.base_words:
        return tuple("".join(words) for words in pairs.base_words)
    rows = zip(pairs.base_tokens.tolist(), pairs.lengths.tolist(), strict=True)
    return tuple(" ".join(map(str, row[:length])) for row, length in rows)


def seen_before(target: Target, pairs: PromptPairs) -> list[str]:
    """A warning where prompts are those that the set was chosen on."""
    digest = dict(target.provenance.get("prompts") or {}).get("digest")
    if digest == pairs.digest():
        return ["these are the prompts of the search: effects are too good; judge on held-out prompts"]
    if target.search is None:
        return []
    known = set(prompt_keys(target.search, answers=False))
    double = sum(key in known for key in prompt_keys(pairs, answers=False))
    return [f"{double} of {len(pairs)} prompts were also in the search: effects are too good"] if double else []


def _doubts(report: CircuitReport) -> list[str]:
    return [note for s in report.ablations for note in _doubts_of(report, s)] + _ablation_note(report.ablations)


def _doubts_of(report: CircuitReport, scores: AblationScores) -> list[str]:
    notes, effect, sign = [], scores.effect, -1 if report.direction == "minimize" else 1
    if scores.undefined:
        notes.append(f"{scores.name}: faithfulness, completeness and minimality are {scores.undefined}")
    if sign * effect.mean < 0:
        notes.append(f"{scores.name}: the effect {effect} goes the wrong way")
    verdict = report.verdict_of(scores)
    if scores.chance is not None and not verdict.beyond:
        notes.append(f"{scores.name}: {verdict}")
    for name in scores.reversed_subgroups:
        part = scores.subgroups[name]
        sure = ", and its interval leaves 0 out" if part.clear else ""
        notes.append(f"{scores.name}: in subgroup {name!r} the effect {part} has the opposite sign of {effect}{sure}")
    return notes


def _ablation_note(scores: Sequence[AblationScores]) -> list[str]:
    known = [s.faithfulness.value for s in scores if s.faithfulness is not None]
    if len(known) < 2 or max(known) - min(known) < 0.1:
        return []
    return [f"faithfulness runs from {min(known):.2f} to {max(known):.2f} with the ablation alone"]


def _opposed(circuit: Judged, report: CircuitReport) -> list[str]:
    """Why a component's marginal effect and its minimality may have opposite signs, where they have."""
    scores, full = report.ablations[0], report.full_effect.mean
    marginals = circuit.marginals if isinstance(circuit, Circuit) else ()
    pairs = zip(report.components, marginals, scores.minimality, strict=False)
    labels = [c.label for c, m, kept in pairs if kept is not None and m * full * kept.value < 0]
    if not labels:
        return []
    return [
        f"{', '.join(labels[:5])}{' ...' if len(labels) > 5 else ''}: marginal effect and minimality have opposite "
        "signs, and both are right. The first takes the component out of the patched set, while all else runs as in "
        "the base run; the second takes it out of what is kept, while all else is replaced. So its part depends on "
        "what else is replaced"
    ]


# ---------------------------------------------------------------------- the runs that scores are made of


def measure(
    target: Target, pairs: PromptPairs, intervention: Intervention, *, draws: int, minimality: bool, seed: int
) -> AblationScores:
    """Run everything that one ablation's scores need, on one prompt set.

    Args:
        target: the set and its model.
        pairs: prompts to measure on.
        intervention: what replaces activations.
        draws: random sets; 0 for none.
        minimality: measure it, at one evaluation per component.
        seed: of random sets and bootstrap.
    """
    tracer = target.tracer(pairs, intervention)
    copies = copies_of(tracer)
    with tracer.session():
        runs = _runs(tracer, target, minimality)
        drawn = _drawn(tracer, target, draws, seed)
        logged = log_effects(tracer, target.mask)
    ratios = estimates(_ratios, runs, copies=copies, over=1, seed=seed)
    effects = runs[0]
    scores = _chance_scores(effects, logged, drawn, target.sign, seed, copies) if drawn is not None else {}
    return AblationScores(
        intervention=tracer.intervention.describe(),
        effect=Score.of(effects, log=logged, copies=copies, seed=seed),
        full_effect=Score.of(runs[1], copies=copies, seed=seed),
        faithfulness=ratios[0],
        completeness=ratios[1],
        minimality=tuple(ratios[2:]),
        effects=tuple(effects.tolist()),
        full_effects=tuple(runs[1].tolist()),
        kept_effects=tuple(runs[2].tolist()),
        subgroups=by_label(effects, pairs.labels, copies, seed),
        **scores,
    )


def _runs(tracer: Tracer, target: Target, minimality: bool) -> Float[np.ndarray, "k n"]:
    """Per-example effects of the circuit, of everything, of all but the circuit, and of that with each component."""
    mask = target.mask
    rest = 1 - mask
    with_one = rest.repeat(len(target.members) if minimality else 0, 1)
    with_one[torch.arange(len(with_one)), list(target.members)[: len(with_one)]] = 1.0
    patched = tracer.effects(torch.stack([mask, torch.ones_like(mask)]))
    kept = tracer.effects(torch.cat([rest[None], with_one]), reference=rest if minimality else None)
    return rounded(tracer, torch.cat([patched, kept]))


def rounded(tracer: Tracer, values: Float[Tensor, "*k n"]) -> Float[np.ndarray, "*k n"]:
    """Effects as float64, with those that are nothing but rounding set to zero.

    Else a ratio to no effect would be a number, and a test would find a sign in it.
    """
    scale = 1.0 if tracer.metric.relative else float(tracer.base_metric.abs().max())
    floor = 16 * torch.finfo(tracer.dtype).eps * scale
    found = values.double().cpu().numpy()
    return np.where(np.abs(found) <= floor, 0.0, found)


def _ratios(means: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    patched, full, kept, with_one = means[0], means[1], means[2], means[3:]
    return np.concatenate([[1 - kept / full, patched / full], (with_one - kept) / full])


def _drawn(tracer: Tracer, target: Target, draws: int, seed: int) -> Float[np.ndarray, " draws"] | None:
    if not draws:
        return None
    masks = random_sets(target.groups, target.members, draws, seed)
    return mean_effects(tracer, masks)


def mean_effects(tracer: Tracer, masks: Float[Tensor, "k groups"], part: int = 256) -> Float[np.ndarray, " k"]:
    """Mean effect per mask over distinct prompts, a few hundred masks at a time."""
    found, copies = [], copies_of(tracer)
    with bar(len(masks) * tracer.n, "random sets", tracer.progress) as shown:
        tick = ticking(shown, lambda: {"cost": tracer.cost.equivalents})
        for some in masks.split(part):
            found.append(once(rounded(tracer, tracer.effects(some, tick=tick)), copies).mean(-1))
    return np.concatenate(found)


def log_effects(tracer: Tracer, mask: Float[Tensor, " groups"]) -> Float[np.ndarray, " n"] | None:
    """Per-example effect on the metric's log scale; None for a metric that has none."""
    if not (tracer.metric.relative and tracer.metric.needs_wrong):
        return None
    return rounded(tracer, tracer.log_effect(mask))


def _chance_scores(
    effects: Float[np.ndarray, " n"],
    logged: Float[np.ndarray, " n"] | None,
    drawn: Float[np.ndarray, " draws"],
    sign: int,
    seed: int,
    copies: Copies,
) -> dict[str, Any]:
    mean = float(once(effects, copies).mean())
    return {
        "chance": Score.of_sets(drawn),
        "percentile": percentile(mean, drawn, sign),
        "p_zero": sign_flip_p(effects if logged is None else logged, sign, seed, copies),
        "p_chance": chance_p(mean, drawn, sign),
    }
