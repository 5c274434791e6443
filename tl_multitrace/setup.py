"""What the arguments of a tracer come to: rows, batches and limits, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_multitrace.compat import ModelView
from tl_multitrace.distributed import ALONE, Ranks
from tl_multitrace.evaluator import Evaluator
from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import Interchange, Intervention
from tl_multitrace.metrics import LogitDiff, Metric, as_metric
from tl_multitrace.packing import can_pack
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.rows import Rows
from tl_multitrace.sizing.budget import Limits
from tl_multitrace.sizing.calibrate import StepBytes
from tl_multitrace.sizing.estimate import MemoryEstimate, batch_and_step
from tl_multitrace.validate import check_inputs


@dataclass(frozen=True)
class Setup:
    """Everything an evaluator is made from but the hook groups.

    Attributes:
        view: the model.
        whole: all rows.
        dealt: examples of every batch, by rank.
        metric: per-example numbers.
        intervention: base and source runs.
        dtype: of masks, log probabilities and sums.
        limits: bytes that may be taken.
        step: bytes that one prompt pair takes.
    """

    view: ModelView
    whole: Rows
    dealt: list[list[Int[Tensor, " _"]]]
    metric: Metric
    intervention: Intervention
    dtype: torch.dtype
    limits: Limits
    step: StepBytes

    @classmethod
    def of(
        cls,
        model: Any,
        pairs: PromptPairs,
        groups: HookGroups,
        metric: Metric | Callable[..., Tensor] | None,
        intervention: Intervention | None,
        *,
        batch_size: int | None,
        dtype: torch.dtype | None,
        memory_limit: int | str | None,
        cache_dir: Path | None,
        ranks: Ranks,
    ) -> Setup:
        """Check the arguments of a tracer and lay out its rows and batches."""
        view, metric = ModelView(model), as_metric(LogitDiff() if metric is None else metric)
        intervention = Interchange() if intervention is None else intervention
        check_inputs(view, pairs, groups, metric, interchanged=intervention.aligned)
        limits = Limits.of(view.device, memory_limit, cache_dir)  # measured, it may differ from rank to rank
        limits = replace(limits, device=ranks.least(limits.device), host=ranks.least(limits.host))
        by_row = intervention.averages in (None, "zero")  # means are taken over prompts that are not ours to pack
        whole = Rows.of(pairs, packed=by_row and can_pack(view, pairs))
        dtype = dtype or (torch.float64 if view.dtype == torch.float64 else torch.float32)
        size, step = batch_and_step(view, whole, groups, dtype, limits, batch_size)
        return cls(view, whole, ranks.deal(len(pairs), size), metric, intervention, dtype, limits, step)


def memory_estimate(
    model: Any,
    pairs: PromptPairs,
    groups: HookGroups,
    metric: Metric | Callable[..., Tensor] | None = None,
    intervention: Intervention | None = None,
    *,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    memory_limit: int | str | None = None,
    held: HookGroups | None = None,
    cache_dir: str | Path | None = None,
) -> MemoryEstimate:
    """What a :class:`~tl_multitrace.Tracer` with these arguments will keep, and where.

    Nothing but one prompt pair runs, a few times: what it takes is counted.

    Args:
        model: as :class:`~tl_multitrace.Tracer` takes it, like everything below.
        pairs: prompts and answers.
        groups: the mask's entries.
        metric: default: logit difference.
        intervention: default: interchange with the source prompts.
        batch_size: prompt pairs per forward; default: what fits.
        dtype: of masks, log probabilities and sums.
        memory_limit: bytes, or text such as ``"6GiB"``; default: measured.
        held: sites that may be frozen.
        cache_dir: where a file of activations may go.

    Returns:
        A table of bytes; ``.needed`` is the smallest ``memory_limit`` that keeps everything on the model's device, and
        ``.peak`` what will be taken there at once, weights included.

    Raises:
        TypeError: as the tracer does.
        ValueError: as the tracer does, or a memory limit that is no number of bytes.

    Examples:
        >>> import tl_multitrace as mt
        >>> model = mt.load_model("demo")
        >>> pairs = mt.task("professions", model, n=16).pairs
        >>> estimate = mt.memory_estimate(model, pairs, mt.heads(model), memory_limit="1GiB")
        >>> estimate.batch_size, dict(estimate.places)["source_activations"]
        (16, 'device')
    """
    folder = None if cache_dir is None else Path(cache_dir)
    given = {"batch_size": batch_size, "dtype": dtype, "memory_limit": memory_limit, "cache_dir": folder}
    made = Setup.of(model, pairs, groups, metric, intervention, **given, ranks=ALONE)  # type: ignore[arg-type]
    own = Evaluator(
        made.view,
        made.whole,
        made.dealt[0],
        groups,
        made.metric,
        made.intervention,
        dtype=made.dtype,
        limits=made.limits,
        step=made.step,
        held=held,
    )
    return own.memory_estimate()
