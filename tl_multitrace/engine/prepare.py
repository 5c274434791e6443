"""What the arguments of a tracer come to: rows, batches and limits, before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_multitrace.cost import new_cost
from tl_multitrace.distributed import ALONE, Ranks
from tl_multitrace.engine.batches import Batches
from tl_multitrace.engine.budget import Limits
from tl_multitrace.engine.estimate import MemoryEstimate, batch_and_step, plan_memory
from tl_multitrace.engine.mask_runs import MaskRuns
from tl_multitrace.engine.step_bytes import count_step
from tl_multitrace.engine.trials import Trials, trials_of
from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import Interchange, Intervention
from tl_multitrace.metrics import LogitDiff, Metric, as_metric
from tl_multitrace.models.compat import ModelView
from tl_multitrace.packing import can_pack
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.rows import Rows
from tl_multitrace.validate import check_inputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A tracer's own part of the work, and how the parts of all ranks come together.

    Attributes:
        batches: of this process.
        counts: examples per rank.
        order: puts the examples of rank after rank into the caller's order.
        parts: batches of all ranks.
    """

    batches: Batches
    counts: list[int]
    order: Int[Tensor, " n"]
    parts: int


def prepare(
    model: Any,
    pairs: PromptPairs,
    groups: HookGroups,
    metric: Metric | Callable[..., Tensor] | None = None,
    intervention: Intervention | None = None,
    *,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    memory_limit: int | str | None = None,
    frozen: HookGroups | None = None,
    ranks: Ranks = ALONE,
) -> Prepared:
    """Check the arguments of a tracer, lay out its rows and batches, and decide what is kept where."""
    view, metric = ModelView(model), as_metric(LogitDiff() if metric is None else metric)
    intervention = Interchange() if intervention is None else intervention
    check_inputs(view, pairs, groups, metric, interchanged=intervention.aligned)
    limits = Limits.of(view.device, memory_limit)  # measured, it may differ from rank to rank
    limits = replace(limits, device=ranks.least(limits.device), host=ranks.least(limits.host))
    longest = int(pairs.lengths.argmax())
    trials = trials_of(view, pairs.base_tokens[longest, : pairs.lengths[longest]].tolist())
    _ = trials.padding  # first of all: whether the model is told what is padding
    by_row = intervention.averages in (None, "zero")  # means are taken over prompts that are not ours to pack
    whole = Rows.of(pairs, packed=by_row and can_pack(view, pairs, trials))
    dtype = dtype or (torch.float64 if view.dtype == torch.float64 else torch.float32)
    size, step = batch_and_step(view, whole, groups, dtype, limits, batch_size)
    size = 1 if _apart(whole, trials) else size
    dealt = ranks.deal(len(pairs), size)
    mine = dealt[ranks.rank]
    examples = torch.cat(list(mine))
    rows = whole if len(examples) == whole.n_examples else whole.picked(examples)
    sizes = [len(part) for part in mine]
    parts = [rows.batch(part, view.device) for part in torch.arange(len(examples)).split(sizes)]
    ends = torch.tensor([batch.n_rows for batch in parts]).cumsum(0)[:-1].tolist() if ranks.shared else []
    runs = MaskRuns(
        view,
        rows,
        groups,
        intervention,
        dtype,
        trials,
        whole,
        needs_last=bool(metric.needs_last or metric.surrogate.needs_last),
        frozen_groups=frozen,
        chunk=1 if size == 1 else 2 * max(sizes),
        ends=tuple(ends),
        cost=new_cost(whole.n_examples),
    )
    plan = plan_memory(runs, max(sizes), step, limits)
    counts = [sum(map(len, given)) for given in dealt]
    order = torch.argsort(whole.order[torch.cat([torch.cat(given) for given in dealt])])
    return Prepared(Batches(runs, metric, plan, parts, eager=ranks.shared), counts, order, sum(map(len, dealt)))


def _apart(rows: Rows, trials: Trials) -> bool:
    """Whether every prompt has to run alone, because the model does not run padded batches right.

    Raises:
        ValueError: a prompt's answers have different lengths, so that even its own rows would be padded.
    """
    if trials.padding or bool((rows.lengths == rows.lengths[0]).all()):
        return False
    for first, end in zip(rows.starts[:-1].tolist(), rows.starts[1:].tolist(), strict=True):
        if int(rows.lengths[first:end].min()) != int(rows.lengths[first:end].max()):
            raise ValueError(
                f"{trials.view.name} does not run batches of prompts of different lengths right, and the answers of "
                f"pair {int(rows.order[rows.example[first]])} have different lengths. Use answers of one token."
            )
    return True


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
    cache_dir: object = None,
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
        cache_dir: taken as the tracer takes it; activations are not kept there.

    Returns:
        A table of bytes; ``.needed`` is the smallest ``memory_limit`` that keeps everything on the model's device, and
        ``.peak`` what will be taken there at once, weights included.

    Raises:
        TypeError: as the tracer does.
        ValueError: as the tracer does, or a memory limit that is no number of bytes.

    Examples:
        >>> pairs = mt.task("professions", model, n=16).pairs
        >>> estimate = mt.memory_estimate(model, pairs, mt.heads(model), memory_limit="1GiB")
        >>> estimate.batch_size, dict(estimate.places)["source_activations"]
        (16, 'device')
    """
    given = {"batch_size": batch_size, "dtype": dtype, "memory_limit": memory_limit, "frozen": held}
    batches = prepare(model, pairs, groups, metric, intervention, **given).batches  # type: ignore[arg-type]
    return counted_estimate(batches)


def counted_estimate(batches: Batches) -> MemoryEstimate:
    """What a trace takes, by item, and where it is kept; what one batch takes is counted on one prompt pair."""
    runs = batches.runs
    step = count_step(runs.view, runs.whole, runs.groups, runs.dtype)
    return plan_memory(runs, batches.size, step, batches.plan.limits)
