"""Causal mediation of gender bias (Vig et al., NeurIPS 2020, arXiv:2004.12265): one attention head at a time.

    total effect       odds("... he") / odds("... she") - 1
    indirect effect    the same, where one head (or every head) attends as under "he" and nothing else changes
    odds               p(continuation about the male-stereotyped occupation) / p(female), p = exp(mean log p)

The published per-head effects come with their prompts and continuations, so both sides are compared prompt by prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from tl_multitrace.groups import heads
from tl_multitrace.metrics import LogitDiff, OddsRatio
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.read import load_json
from tl_multitrace.records.stats import Score
from tl_multitrace.reproduce.experiment import Request, Work, scored
from tl_multitrace.reproduce.result import Curve, Published, Reproduction, Row
from tl_multitrace.tasks import task
from tl_multitrace.tracer import Tracer

SOURCE = "Vig et al., NeurIPS 2020, arXiv:2004.12265"
WHERE = "attention_intervention_<model>_filtered_dev.json, from github.com/sebastianGehrmann/CausalMediationAnalysis"
FIELDS = ("base_string1", "base_string2", "candidate1", "candidate2", "total_effect", "indirect_effect_head")
UNIT = "relative change of odds"


@dataclass(frozen=True)
class Effects:
    """A published file.

    Attributes:
        model: that it is of.
        prompts: female prompt, male prompt, female and male continuation, per example.
        total: total effect per example.
        whole: indirect effect of all heads together, per example; NaN where it is not there.
        heads: indirect effect per example, layer and head.
    """

    model: str
    prompts: list[tuple[str, ...]]
    total: Float[np.ndarray, " n"]
    whole: Float[np.ndarray, " n"]
    heads: Float[np.ndarray, "n layer head"]


def read_effects(path: str | Path) -> Effects:
    """Read a published file of effects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; the message says what is missing.
    """
    try:
        return _effects(load_json(path, nan=True))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a file of published effects ({str(error)[:300]}): expected {WHERE}.") from None


def _effects(content: Any) -> Effects:
    records = content["results"]
    missing = [name for name in FIELDS if any(name not in record for record in records)]
    if missing or not records:
        raise ValueError(f"no {missing[0]!r}" if missing else "no results")
    texts = [tuple(record[name] for name in FIELDS[:4]) for record in records]
    if not all(isinstance(text, str) for row in texts for text in row):
        raise ValueError("a prompt or continuation that is no text")
    per_head = np.array([r["indirect_effect_head"] for r in records], dtype=float)
    if per_head.ndim != 3:
        raise ValueError(f"indirect_effect_head of shape {per_head.shape[1:]} instead of layers by heads")
    total, whole = (
        np.array([r.get(name, math.nan) for r in records], dtype=float)
        for name in ("total_effect", "indirect_effect_model")
    )
    if total.ndim != 1 or whole.ndim != 1:
        raise ValueError("a total effect that is no number")
    return Effects(str(content.get("model_version", "unknown")), texts, total, whole, per_head)


@dataclass(frozen=True)
class Mediation:
    """Per-head indirect effects on WinoBias."""

    name: str = "winobias-cma"
    title: str = "Gender bias in WinoBias: indirect effect of each attention head"
    source: str = SOURCE
    model: str = "distilgpt2"

    def check(self, request: Request) -> None:
        """Published effects, or sentences."""
        if request.published is not None:
            read_effects(request.published)
        elif request.data is None:
            raise ValueError(f"{self.name} needs --published ({WHERE}), or --data (a WinoBias file) without them.")

    def run(self, work: Work) -> Reproduction:
        """One evaluation per head, one for all heads, one for the whole prompt."""
        theirs = None if work.request.published is None else read_effects(work.request.published)
        pairs, kept = self._pairs(work, theirs)
        groups = heads(work.model, site="pattern")
        work.tell(f"  {len(pairs)} prompts, {len(groups)} heads")
        tracer = Tracer(work.model, pairs, groups, OddsRatio(), progress=work.progress)
        singles = tracer.effects(torch.eye(len(groups))).double().cpu().numpy()
        together = tracer.effect(torch.ones(len(groups))).double().cpu().numpy()
        total = _total(work.model, pairs)
        work.equivalents += tracer.cost.equivalents
        work.settings |= {"prompts": len(pairs), "metric": "odds_ratio", "components": "heads:pattern"}
        self._means(work, total, together, theirs, kept)
        per_head = singles.reshape(work.view.n_layers, work.view.n_heads, -1)
        self._heads(work, per_head, theirs, kept)
        return work.finish(self, ("head, by its rank", f"mean indirect effect ({UNIT})"))

    def _pairs(self, work: Work, theirs: Effects | None) -> tuple[PromptPairs, list[int]]:
        if theirs is None:
            work.notes.append("no published effects were given: the prompts are those of --data, unfiltered")
            made = task("winobias", work.model, work.prompts(160), work.request.seed, path=work.request.data)
            return made.pairs, []
        chosen = theirs.prompts[: work.prompts(len(theirs.prompts))]
        kept = [i for i, (she, he, _, _) in enumerate(chosen) if _length(work.model, she) == _length(work.model, he)]
        rows = [chosen[i] for i in kept]
        pairs = PromptPairs.from_text(
            work.model,
            [r[0] for r in rows],
            [r[1] for r in rows],
            [f" {r[3]}" for r in rows],
            [f" {r[2]}" for r in rows],
        )
        return pairs, kept

    def _means(self, work: Work, total: Any, together: Any, theirs: Effects | None, kept: list[int]) -> None:
        named = (("total effect", total, "total"), ("indirect effect of all heads", together, "whole"))
        for what, values, name in named:
            published = None
            if theirs is not None:
                mean = float(np.mean(getattr(theirs, name)[kept]))
                published = Published(mean, theirs.model, SOURCE) if math.isfinite(mean) else None
            work.rows.append(scored(what, UNIT, Score.of(values, seed=work.request.seed), published=published))

    def _heads(self, work: Work, found: Float[np.ndarray, "l h n"], theirs: Effects | None, kept: list[int]) -> None:
        means, same = found.mean(-1), theirs is not None and theirs.heads.shape[1:] == found.shape[:2]
        published = theirs.heads[kept].mean(0) if theirs is not None and same else None
        if theirs is not None and not same:
            layers, count = theirs.heads.shape[1:]
            work.notes.append(
                f"the published heads are of {theirs.model}, with {layers} layers of {count}: another shape of model, "
                "whose heads are not compared one by one"
            )
        order = np.argsort(-(means if published is None else published), axis=None)
        x = tuple(float(i + 1) for i in range(len(order)))
        work.curves.append(Curve(work.view.name, x, tuple(means.flat[order].tolist())))
        for flat in order[:10].tolist():
            layer, head = divmod(flat, found.shape[1])
            value = (
                None
                if published is None or theirs is None
                else Published(float(published[layer, head]), theirs.model, SOURCE)
            )
            score = Score.of(found[layer, head], seed=work.request.seed)
            work.rows.append(scored(f"L{layer}H{head}", UNIT, score, published=value))
        if published is not None and theirs is not None:
            work.curves.append(
                Curve(f"{theirs.model}, published", x, tuple(published.flat[order].tolist()), "published")
            )
            work.rows += _agreement(means, published, found, theirs.heads[kept])


def _agreement(
    ours: Float[np.ndarray, "l h"],
    theirs: Float[np.ndarray, "l h"],
    all_ours: Float[np.ndarray, "l h n"],
    all_theirs: Float[np.ndarray, "n l h"],
) -> list[Row]:
    """How alike the two are: over heads, and over every head and prompt."""
    ranks = float(stats.spearmanr(ours.ravel(), theirs.ravel()).statistic)
    furthest = float(np.abs(all_ours - np.moveaxis(all_theirs, 0, -1)).max())
    n = all_ours.shape[-1]
    return [
        Row("rank correlation with the published heads", "Spearman", ranks, n=n),
        Row("largest difference, of any head and prompt", UNIT, furthest, n=n),
    ]


def _total(model: Any, pairs: PromptPairs) -> Float[np.ndarray, " n"]:
    """Odds of the source prompt over odds of the base prompt, minus 1."""
    one = heads(model, 0)[:1]
    base, source = (Tracer(model, p, one, LogitDiff()).base_metric for p in (pairs, pairs.swap()))
    found: Float[np.ndarray, " n"] = torch.expm1(source - base).double().cpu().numpy()
    return found


def _length(model: Any, text: str) -> int:
    return len(model.tokenizer(text)["input_ids"])


EXPERIMENTS = (Mediation(),)
