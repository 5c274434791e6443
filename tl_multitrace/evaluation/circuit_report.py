"""``CircuitReport``: how good a circuit is on prompts it was not chosen on, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_multitrace.groups import Component
from tl_multitrace.records.chance import Verdict, beyond_chance
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, intervention_name, result
from tl_multitrace.records.stats import Estimate, Score, undefined

if TYPE_CHECKING:
    import pandas as pd

EXPLAINED = 0.5
"""Share of a prompt's full effect from which a circuit is said to explain the prompt."""


@dataclass(frozen=True)
class AblationScores:
    """What one ablation says of a circuit.

    Attributes:
        intervention: what replaced activations, with its options.
        effect: of patching the circuit, in the metric's unit; positive: the metric rose.
        full_effect: of patching every hook group.
        faithfulness: what is left of the behaviour where only the circuit keeps its activations; 1: all of it. None
            where the effect of patching everything may be zero (:attr:`undefined` says so), like the two that follow.
        completeness: what the behaviour loses without the circuit, over what it loses without anything: the share.
        minimality: per component, what faithfulness loses without it.
        effects: per prompt, of patching the circuit.
        full_effects: per prompt, of patching everything.
        kept_effects: per prompt, of patching everything but the circuit.
        subgroups: effect by the prompts' labels; empty without labels.
        chance: mean effects of random sets of the same size and kinds; the interval holds the middle 95 % of them, and
            the mean.
        percentile: share of random sets that the circuit beats, in percent.
        p_value: that the effect is one of zero mean, or one that random sets have as well: the larger of ``p_zero``
            (sign flips over prompts) and ``p_chance`` (random sets), one-sided. Valid on held-out prompts only.

    Examples:
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
    def undefined(self) -> str:
        """Why ratios to the full effect are not defined, in words; empty where they are."""
        return undefined(self.full_effect)

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


@result("tl_multitrace.evaluation", key="result")
@dataclass(frozen=True, repr=False)
class CircuitReport(Result):
    """Scores of one circuit on one prompt set, under one ablation or several.

    The attributes of :class:`AblationScores` (``effect``, ``faithfulness``, ...) can be read from the report itself:
    they are those of its first ablation.

    Attributes:
        components: the circuit's.
        n_groups: how many hook groups it was chosen from.
        metric: name of the metric.
        metric_unit: its unit.
        direction: which way the effect is meant to go.
        prompts: one text per prompt.
        labels: the prompts' subgroups, or empty.
        ablations: scores per ablation.
        notes: what a reader must know before using the numbers.
        provenance: of the circuit, and of this evaluation under ``"evaluation"``.

    Examples:
        >>> report = mt.evaluate(circuit, task.pairs, draws=20)
        >>> round(report.completeness.value, 1), sorted(report.subgroups)
        (0.6, ['female', 'male'])
        >>> report.per_example()[["label", "explained"]].value_counts().to_dict()
        {('female', True): 8, ('male', False): 7, ('male', True): 1}
    """

    components: tuple[Component, ...]
    n_groups: int
    metric: str
    metric_unit: str
    direction: str
    prompts: tuple[str, ...]
    labels: tuple[str, ...]
    ablations: tuple[AblationScores, ...]
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    # ------------------------------------------------------------------ the first ablation's scores

    @property
    def effect(self) -> Score:
        """Mean effect of patching the circuit, with its interval over prompts."""
        return self.ablations[0].effect

    @property
    def full_effect(self) -> Score:
        """Mean effect of patching every hook group."""
        return self.ablations[0].full_effect

    @property
    def share(self) -> Estimate | None:
        """Effect over the full effect."""
        return self.ablations[0].share

    @property
    def faithfulness(self) -> Estimate | None:
        """See :class:`~tl_multitrace.evaluation.circuit_report.AblationScores`; likewise for what follows."""
        return self.ablations[0].faithfulness

    @property
    def completeness(self) -> Estimate | None:
        """Equal to :attr:`share`."""
        return self.ablations[0].completeness

    @property
    def minimality(self) -> dict[str, Estimate | None]:
        """Per component label, what faithfulness loses without it; empty where it was not measured."""
        return dict(zip([c.label for c in self.components], self.ablations[0].minimality, strict=False))

    @property
    def percentile(self) -> float | None:
        """Share of random sets of the same size and kinds that the circuit beats, in percent."""
        return self.ablations[0].percentile

    @property
    def p_value(self) -> float | None:
        """That the effect is nothing, or nothing more than random sets have."""
        return self.ablations[0].p_value

    @property
    def verdict(self) -> Verdict:
        """Whether the effect is beyond chance, in the words that every table, page and note uses."""
        return self.verdict_of(self.ablations[0])

    def verdict_of(self, scores: AblationScores) -> Verdict:
        """The same under another ablation."""
        return beyond_chance(scores.effect, scores.chance, direction=self.direction, full=scores.full_effect)

    @property
    def subgroups(self) -> Mapping[str, Score]:
        """Effect by the prompts' labels."""
        return self.ablations[0].subgroups

    def __getitem__(self, name: str) -> AblationScores:
        """The scores under an ablation, by its name or by all that tables show of it.

        Raises:
            KeyError: it was not used.
        """
        for scores in self.ablations:
            if name in (scores.name, scores.intervention.get("name")):
                return scores
        raise KeyError(f"no ablation {name!r}: this report has {', '.join(a.name for a in self.ablations)}.")

    # ------------------------------------------------------------------ tables

    def to_dataframe(self) -> pd.DataFrame:
        """One row per ablation and score: score, component or subgroup, value, interval, number of prompts.

        Every row names its ablation, direction and metric.
        """
        import pandas as pd

        rows = [{**self._record(a), **row} for a in self.ablations for row in _rows(self, a)]
        return pd.DataFrame(rows)

    def _record(self, scores: AblationScores) -> dict[str, str]:
        return {"ablation": scores.name, "direction": self.direction, "metric": self.metric}

    def per_example(self, ablation: str | None = None) -> pd.DataFrame:
        """One row per prompt: text, subgroup, effect of the circuit, of everything and of all but the circuit.

        ``share`` is effect over full effect on that prompt. ``explained`` says whether it is at least one half; it is
        missing where patching everything does not move the prompt the intended way: then there is nothing to explain.

        Args:
            ablation: its name; default the first.
        """
        import pandas as pd

        scores = self.ablations[0] if ablation is None else self[ablation]
        effect, full = np.array(scores.effects), np.array(scores.full_effects)
        moved = (full < 0) if self.direction == "minimize" else (full > 0)
        share = np.divide(effect, full, out=np.full(len(full), np.nan), where=moved)
        explained = [bool(s >= EXPLAINED) if m else None for s, m in zip(share, moved, strict=True)]
        frame = pd.DataFrame({"pair": range(len(effect)), "prompt": list(self.prompts)})
        frame["label"] = list(self.labels) or ""
        frame["effect"], frame["full_effect"], frame["kept_effect"] = effect, full, list(scores.kept_effects)
        frame["share"], frame["explained"] = share, pd.Series(explained, dtype="boolean")
        return frame.assign(**self._record(scores))

    def unexplained(self, ablation: str | None = None) -> pd.DataFrame:
        """The prompts that the circuit does not explain, the least explained first.

        Args:
            ablation: its name; default the first.
        """
        frame = self.per_example(ablation)
        return frame[frame["explained"].eq(False).fillna(False)].sort_values("share", kind="stable", ignore_index=True)

    # ------------------------------------------------------------------ showing

    def headline(self) -> str:
        """What is judged, and on what."""
        model = dict(self.provenance.get("model") or {}).get("name", "a model")
        return (
            f"CircuitReport: {len(self.components)} of {self.n_groups} components of {model}, {len(self.prompts)} "
            f"prompts, {self.direction} {self.metric}"
        )

    def summary(self) -> list[tuple[str, str]]:
        """Every score under every ablation, line by line."""
        return [line for a in self.ablations for line in _lines(self, a)]

    def write_html(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write one self-contained HTML page with the figure and all tables.

        Raises:
            FileExistsError: the file exists and ``overwrite`` is False.
        """
        written: Path = self.drawn("write_html", path, overwrite=overwrite)
        return written


def _rows(report: CircuitReport, scores: AblationScores) -> list[dict[str, Any]]:
    n = len(report.prompts)
    found = [
        _row("effect", scores.effect, n),
        _row("full effect", scores.full_effect, n),
        _row("faithfulness", scores.faithfulness, n),
        _row("completeness", scores.completeness, n),
        _row("share", scores.share, n),
        _row("chance", scores.chance, n),
        *[{"score": k, "of": "", "value": getattr(scores, k), "n": n} for k in ("percentile", "p_value")],
    ]
    labels = [c.label for c in report.components]
    found += [_row("minimality", m, n, of) for of, m in zip(labels, scores.minimality, strict=False)]
    return found + [_row("subgroup effect", s, s.n, name) for name, s in scores.subgroups.items()]


def _row(score: str, number: Score | Estimate | None, n: int, of: str = "") -> dict[str, Any]:
    value = number.mean if isinstance(number, Score) else None if number is None else number.value
    low, high = (None, None) if number is None else (number.low, number.high)
    return {"score": score, "of": of, "value": value, "low": low, "high": high, "n": n}


def _lines(report: CircuitReport, scores: AblationScores) -> list[tuple[str, str]]:
    frame = report.per_example(scores.name)
    told, known = int(frame["explained"].fillna(False).sum()), int(frame["explained"].notna().sum())
    lines = [
        ("ablation", f"{scores.name}, {report.direction} {report.metric}"),
        ("effect", f"{scores.effect} {report.metric_unit}".rstrip()),
        ("full effect", f"{scores.full_effect}"),
        ("faithfulness", str(scores.faithfulness or scores.undefined)),
        ("completeness", f"{scores.completeness or scores.undefined} (share of the full effect)"),
        ("explained", f"{told} of {known} prompts that the full mask moves"),
    ]
    if scores.percentile is not None and scores.chance is not None:
        lines.append(("chance", f"{scores.chance}; beats {scores.percentile:.3g} % of {scores.chance.n} random sets"))
        lines.append(("verdict", str(report.verdict_of(scores))))
        lines.append(
            ("p", f"{scores.p_value:.3g} (zero effect {scores.p_zero:.3g}, random sets {scores.p_chance:.3g})")
        )
    if scores.subgroups:
        lines.append(("subgroups", "; ".join(f"{name} {s}" for name, s in list(scores.subgroups.items())[:6])))
    return lines
