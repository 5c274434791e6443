"""One set under one ablation: the runs that every score is made of, and the scores.

    effect(m)        metric(m) - metric(0)                             m = 1: the source's activation
    faithfulness     f(C) = (M(C) - M(empty)) / (M(full) - M(empty))   C keeps its activations, all else is replaced
                          = 1 - effect(all but C) / effect(all)
    completeness     1 - f(full minus C) = effect(C) / effect(all)     which is the share of the whole mask's effect
    minimality of c  f(C) - f(C minus c)

``full`` and ``empty`` count the hook groups of the search and nothing else of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.evaluation.chance import chance_p, percentile, random_sets, sign_flip_p
from tl_multitrace.evaluation.estimate import Estimate, estimates
from tl_multitrace.evaluation.result import intervention_name
from tl_multitrace.evaluation.subject import Subject
from tl_multitrace.interventions import Intervention
from tl_multitrace.progress import bar, ticking
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.scores import Score
from tl_multitrace.tracer import Tracer


@dataclass(frozen=True)
class AblationScores:
    """What one ablation says of a circuit.

    Attributes:
        intervention: what replaced activations, with its options.
        effect: of patching the circuit, in the metric's unit; positive: the metric rose.
        full_effect: of patching every hook group.
        faithfulness: what is left of the behaviour where only the circuit keeps its activations; 1: all of it. None
            where patching everything has no effect.
        completeness: what the behaviour loses without the circuit, over what it loses without anything: the share.
        minimality: per component, what faithfulness loses without it.
        effects: per prompt, of patching the circuit.
        full_effects: per prompt, of patching everything.
        kept_effects: per prompt, of patching everything but the circuit.
        subgroups: effect by the prompts' labels; empty without labels.
        chance: mean effects of random sets of the same size and kinds, the interval over draws.
        percentile: share of random sets that the circuit beats, in percent.
        p_value: that the effect is one of zero mean, or one that random sets have as well: the larger of ``p_zero``
            (sign flips over prompts) and ``p_chance`` (random sets), one-sided. Valid on held-out prompts only.

    Examples:
        >>> import tl_multitrace as mt
        >>> model = mt.load_model("demo")
        >>> task = mt.task("professions", model, n=16)
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), task.metric)
        >>> circuit = mt.select(tracer, 2, mt.Greedy())[2]
        >>> report = mt.evaluate(circuit, task.pairs, draws=20)
        >>> first = report.ablations[0]
        >>> first.name, len(first.effects), first.reversed_subgroups
        ('interchange', 16, ())
    """

    intervention: Mapping[str, Any]
    effect: Score
    full_effect: Score
    faithfulness: Estimate | None
    completeness: Estimate | None
    minimality: tuple[Estimate | None, ...]
    effects: tuple[float, ...]
    full_effects: tuple[float, ...]
    kept_effects: tuple[float, ...]
    subgroups: Mapping[str, Score]
    chance: Score | None = None
    percentile: float | None = None
    p_zero: float | None = None
    p_chance: float | None = None

    @property
    def name(self) -> str:
        """The intervention as tables show it."""
        return intervention_name(self.intervention)

    @property
    def share(self) -> Estimate | None:
        """Effect over the whole mask's effect; the same number as completeness, by definition."""
        return self.completeness

    @property
    def p_value(self) -> float | None:
        """P-value as the class describes it; None where no random sets were drawn."""
        return None if self.p_zero is None or self.p_chance is None else max(self.p_zero, self.p_chance)

    @property
    def reversed_subgroups(self) -> tuple[str, ...]:
        """Subgroups whose mean effect has the opposite sign of the overall one."""
        return tuple(name for name, s in self.subgroups.items() if s.mean * self.effect.mean < 0)


def measure(
    subject: Subject, pairs: PromptPairs, intervention: Intervention, *, draws: int, minimality: bool, seed: int
) -> AblationScores:
    """Run everything that one ablation's scores need, on one prompt set.

    Args:
        subject: the set and its model.
        pairs: prompts to measure on.
        intervention: what replaces activations.
        draws: random sets; 0 for none.
        minimality: measure it, at one evaluation per component.
        seed: of random sets and bootstrap.
    """
    tracer = subject.tracer(pairs, intervention)
    with tracer.session():
        runs = _runs(tracer, subject, minimality)
        drawn = _drawn(tracer, subject, draws, seed)
        logged = log_effects(tracer, subject.mask)
    ratios = estimates(_ratios, runs, seed=seed)
    effects = runs[0]
    scores = _chance_scores(effects, logged, drawn, subject.sign, seed) if drawn is not None else {}
    return AblationScores(
        intervention=tracer.intervention.describe(),
        effect=Score.of(effects, log=logged, seed=seed),
        full_effect=Score.of(runs[1], seed=seed),
        faithfulness=ratios[0],
        completeness=ratios[1],
        minimality=tuple(ratios[2:]),
        effects=tuple(effects.tolist()),
        full_effects=tuple(runs[1].tolist()),
        kept_effects=tuple(runs[2].tolist()),
        subgroups=subgroup_effects(effects, pairs.labels, seed),
        **scores,
    )


def _runs(tracer: Tracer, subject: Subject, minimality: bool) -> Float[np.ndarray, "k n"]:
    """Per-example effects of the circuit, of everything, of all but the circuit, and of that with each component."""
    mask = subject.mask
    rest = 1 - mask
    with_one = rest.repeat(len(subject.members) if minimality else 0, 1)
    with_one[torch.arange(len(with_one)), list(subject.members)[: len(with_one)]] = 1.0
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


def _drawn(tracer: Tracer, subject: Subject, draws: int, seed: int) -> Float[np.ndarray, " draws"] | None:
    if not draws:
        return None
    masks = random_sets(subject.groups, subject.members, draws, seed)
    return mean_effects(tracer, masks)


def mean_effects(tracer: Tracer, masks: Float[Tensor, "k groups"], part: int = 256) -> Float[np.ndarray, " k"]:
    """Mean effect per mask, a few hundred masks at a time."""
    found: list[Float[np.ndarray, " k"]] = []
    with bar(len(masks) * tracer.n, "random sets", tracer.progress) as shown:
        tick = ticking(shown, lambda: {"cost": tracer.cost.equivalents})
        for some in masks.split(part):
            found.append(rounded(tracer, tracer.effects(some, tick=tick)).mean(-1))
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
) -> dict[str, Any]:
    mean = float(effects.mean())
    return {
        "chance": Score.of(drawn, seed=seed),
        "percentile": percentile(mean, drawn, sign),
        "p_zero": sign_flip_p(effects if logged is None else logged, sign, seed),
        "p_chance": chance_p(mean, drawn, sign),
    }


def subgroup_effects(effects: Float[np.ndarray, " n"], labels: Sequence[str], seed: int = 0) -> dict[str, Score]:
    """Score of each subgroup, in the order of its first prompt; empty without labels."""
    names = np.array([str(name) for name in labels])
    return {name: Score.of(effects[names == name], seed=seed) for name in dict.fromkeys(names.tolist())}
