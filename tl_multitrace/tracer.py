"""What a user calls: per-example effects ``F(mask)`` and their derivative ``dF/dmask``, of any model.

    act <- (1 - m) * act_running + m * act_source        one mask entry m per hook group
    effect(m) = metric(m) - metric(0)

The work is done batch by batch (``engine.batches``), shared with other processes and kept on disk (``engine.shared``);
here it comes in the caller's order. Everything is counted in ``tracer.cost``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.cost import Cost
from tl_multitrace.distributed import Found, Ranks, ranks_of
from tl_multitrace.engine.cache import bytes_of
from tl_multitrace.engine.estimate import MemoryEstimate
from tl_multitrace.engine.forward import session
from tl_multitrace.engine.identity import Unchanged, agree
from tl_multitrace.engine.prepare import counted_estimate, prepare
from tl_multitrace.engine.shared import SharedCalls
from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import Intervention
from tl_multitrace.metrics import Metric
from tl_multitrace.models import ambient
from tl_multitrace.models.compat import ModelView
from tl_multitrace.progress import Ticks
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.rows import Rows

logger = logging.getLogger(__name__)


class Tracer:
    """Evaluates masks over hook groups on a prompt set.

    Args:
        model: a ``HookedTransformer`` or ``TransformerBridge``.
        pairs: prompts and answers.
        groups: the mask's entries.
        metric: a :class:`~tl_multitrace.metrics.Metric` or a callable ``(out, base) -> [n]``.
        intervention: where base and source activations come from.
        batch_size: prompt pairs per forward; default: what fits, by a count of what one pair takes.
        dtype: of masks, log probabilities and sums; default float32, or float64 for a float64 model.
        memory_limit: bytes of stored activations and one batch together, such as ``6_000_000_000`` or ``"6GiB"``; the
            weights are not counted. On a GPU it holds for its memory and for host memory, each alone. Default: three
            fifths of what is free in either, rounded down to a power of two; no more is taken than the trace needs.
            What does not fit on the GPU goes to host memory; source activations that fit nowhere are recomputed per
            batch, which ``cost`` counts. See :meth:`memory_estimate`.
        held: sites that :meth:`effects` may freeze at the base run's values (severed paths).
        progress: show progress bars in loops over this tracer.
        distributed: share the prompts with the other processes that ``torchrun`` started; every process runs the same
            script and gets the same results.
        cache_dir: a folder to keep results in. The same calls on the same model, prompts and groups take them from
            there, in this process or another: a script that was interrupted goes on where it stopped.

    Raises:
        TypeError: not a TransformerLens model, a metric that is not callable, or, with ``cache_dir``, one that another
            run cannot recognise.
        ValueError: prompts that do not fit the model or the metric, padding without lengths, an unknown span, or
            ``distributed`` without other processes.
        HookError: a hook point that does not fire or ignores edits.
        NonFiniteError: the base run is not finite.

    Examples:
        >>> tracer.effect(["L0H3"]).shape, tracer.gradient([0.0] * 32).shape
        (torch.Size([16]), torch.Size([16, 32]))
    """

    @ambient.call
    def __init__(
        self,
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
        progress: bool | None = None,
        distributed: bool | Ranks = False,
        cache_dir: str | Path | None = None,
    ) -> None:
        ModelView(model)  # says what it wants, where this is none
        pairs, groups = ambient.usable(pairs), ambient.usable(groups)
        metric, intervention = ambient.usable(metric), ambient.usable(intervention)
        self.model, self.pairs, self.groups = model, pairs, groups
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.given_limit, self.given_ranks = memory_limit, ranks_of(distributed)
        given = {"prompts": pairs, "components": groups, "metric": metric, "intervention": intervention, "held": held}
        agree(self.given_ranks, model, given)
        self.ranks = self.given_ranks.for_examples(len(pairs))
        self.progress = bool(progress) and self.ranks.first
        made = prepare(
            model,
            pairs,
            groups,
            metric,
            intervention,
            batch_size=batch_size,
            dtype=dtype,
            memory_limit=memory_limit,
            frozen=held,
            ranks=self.ranks,
        )
        self.batches = made.batches
        self.metric, self.intervention = made.batches.metric, made.batches.runs.intervention
        self.dtype: torch.dtype = made.batches.runs.dtype
        unchanged = Unchanged(model, self.metric, keeps=self.cache_dir is not None)
        self.calls = SharedCalls(made.batches, self.ranks, made.counts, made.order, unchanged)
        self._base_metric = self.calls.begin(self.cache_dir, pairs, made.parts)
        logger.info("base run of %d pairs on %s: %s", self.n, self.view.device, self.memory)

    # ------------------------------------------------------------------ facts

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def n(self) -> int:
        """Number of prompt pairs."""
        return len(self.pairs)

    @property
    def view(self) -> ModelView:
        """The model."""
        return self.batches.runs.view

    @property
    def rows(self) -> Rows:
        """This process's prompts as rows, in the order in which they run."""
        return self.batches.runs.rows

    @property
    def batch_size(self) -> int:
        """Prompt pairs per forward, now."""
        return self.batches.size

    @property
    def halved(self) -> int:
        """How often batches were halved because memory ran out."""
        return self.batches.halved

    @property
    def cost(self) -> Cost:
        """Forwards, backwards and seconds so far, base and source runs included."""
        cost = self.batches.runs.cost
        cost.off = tuple(f"{name}: {said}" for name, said in self.optimisations.items() if said.startswith("off"))
        return cost

    @property
    def base_metric(self) -> Float[Tensor, " n"]:
        """The metric of the unpatched base run, per example, in its unit."""
        return self._base_metric

    @property
    def optimisations(self) -> dict[str, str]:
        """What was tried on this model so far, by name: ``"on (...)"``, or ``"off, because ..."``."""
        trials = self.batches.runs.trials.done.values()
        return {t.name: f"on ({t.why})" if t.on else f"off, because {t.why}" for t in trials}

    @property
    def memory(self) -> dict[str, Any]:
        """Where stored activations are, their bytes, the limit they are held against, and batches halved so far."""
        own, plan = self.batches, self.batches.plan
        return {
            "limit": plan.limits.device,
            "left": plan.left,
            "source_bytes": own.runs.sources.needed,
            "source_kept": own.runs.sources.keeps,
            "source_place": own.runs.sources.place,
            "block_input_bytes": plan.bytes_per_run if own.origin.residuals else 0,
            "block_input_place": plan.places["block_inputs"],
            "keys_values_bytes": own.restarts.stored_bytes,
            "keys_values_place": plan.places["keys_values"],
            "batch_size": self.batch_size,
            "halved": self.halved,
        }

    def memory_estimate(self) -> MemoryEstimate:
        """What this trace takes, by item, and where it is kept; what one batch takes is counted on one prompt pair."""
        return counted_estimate(self.batches)

    @contextmanager
    def session(self) -> Iterator[Tracer]:
        """Keep weights frozen over several calls; solvers do this for you."""
        with session(self.view):
            yield self

    def on(self, pairs: PromptPairs | None = None, **changes: Any) -> Tracer:
        """A tracer on other ``pairs``, such as held-out ones, or other arguments (``changes``); None: this one's."""
        own = {name: getattr(self, name) for name in ("groups", "metric", "intervention")} | self.options
        given = {name: value for name, value in changes.items() if value is not None}
        return Tracer(self.model, self.pairs if pairs is None else pairs, **own | given)

    @property
    def options(self) -> dict[str, Any]:
        """How it runs, whatever the prompts, components and metric: dtype, memory limit, progress, ranks, cache."""
        own = {"dtype": self.dtype, "memory_limit": self.given_limit, "progress": self.progress}
        return own | {"distributed": self.given_ranks, "cache_dir": self.cache_dir}

    def __repr__(self) -> str:
        return (
            f"Tracer({self.view.name}, {self.n} pairs, {self.groups!r}, metric={self.metric.name or 'custom'}, "
            f"intervention={self.intervention.name})"
        )

    def flush(self) -> None:
        """Write everything found so far to ``cache_dir``.

        Raises:
            OSError: the folder cannot be written; results in memory are not touched.
        """
        if self.calls.cache is not None:
            self.calls.cache.flush()

    def forget(self) -> None:
        """Drop block inputs stored by earlier calls: the next call costs, and rounds, as it would on a fresh tracer."""
        self.batches.restarts.forget()

    @property
    def causal(self) -> bool:
        """Whether it was found that tokens do not act on earlier ones, so that runs restart at later tokens."""

        def work() -> Found:
            found = float(self.batches.restarts.causal)
            return Found(torch.zeros(0, self.rows.n_examples), torch.tensor([found]))

        return bool(self.calls.make("causal", [], 0, 1, work, keep=False).sums[0] == self.ranks.size)

    # ------------------------------------------------------------------ effects

    @ambient.call
    def effect(self, mask: Any) -> Float[Tensor, " n"]:
        """Per-example effect of one mask, in the metric's unit; positive: the metric rises.

        Args:
            mask: numbers in [0, 1] per group, or a list of labels or components that are on.

        Raises:
            ValueError: a mask of the wrong length or outside [0, 1].
            NonFiniteError: the metric became NaN or infinite.
        """
        return self.effects([mask])[0]

    def effects(
        self,
        masks: Any,
        reference: Any = None,
        *,
        held: Float[Tensor, "k held"] | None = None,
        tick: Callable[[int], object] | None = None,
    ) -> Float[Tensor, "k n"]:
        """Per-example effects of many masks, exact.

        Args:
            masks: ``[k, groups]``, or a list of masks as :meth:`effect` takes them.
            reference: a mask that the others differ little from, such as a search's current set, or several: block
                inputs under it are stored and every mask restarts from the first block where it differs.
            held: per mask, which of the tracer's ``held`` sites stay at the base run's values (1) or run on (0). Sites
                before the first block that the mask changes have these values anyway.
            tick: called with the number of values that were just found, of ``k * n`` in all: a progress bar's
                ``update``.

        Returns:
            One row per mask, pairs in the caller's order.
        """
        with ambient.alone(self.model):
            stacked = self.groups.as_masks(masks).to(self.dtype).cpu()
            stored = None if reference is None else self._references(reference)
            counted, own = Ticks(tick, len(stacked) * self.n), self.batches
            done = own.base_values.new_full((len(stacked), own.n), torch.nan)
            given = [bytes_of(stacked), bytes_of(stored), bytes_of(held)]
            work = partial(own.effects, stacked, stored, held, counted, done)
            found = self.calls.make("effects", given, len(stacked), 0, work)
            counted.finish()
            return found.each

    def _references(self, reference: Any) -> Float[Tensor, "r groups"]:
        several = isinstance(reference, Tensor) and reference.ndim == 2
        return self.groups.as_masks(reference if several else [reference]).to(self.dtype)

    @ambient.call
    def log_effect(self, mask: Any) -> Float[Tensor, " n"]:
        """Change of the metric's inner quantity under a ``mask``, per example: for ``OddsRatio`` log-odds, in nats."""
        values = self.groups.as_mask(mask).cpu()

        def run() -> Found:
            return Found(self.batches.inner_changes(values)[None], torch.zeros(0))

        return self.calls.make("log_effect", [bytes_of(values)], 1, 0, run).each[0]

    # ------------------------------------------------------------------ gradients

    def gradient(self, mask: Any) -> Float[Tensor, "n groups"]:
        """Per-example derivative of the effect to every mask entry, in one backward per batch.

        A metric without a gradient is replaced by its ``surrogate``.

        Raises:
            ValueError: a mask of the wrong length or outside [0, 1].
            NonFiniteError: a derivative is NaN or infinite.
        """
        return self.effect_and_gradient(mask)[1]

    @ambient.call
    def effect_and_gradient(
        self, mask: Any, *, inner: bool = False, as_reference: bool = False, dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n groups"]]:
        """Per-example effect and derivative at a mask.

        Args:
            mask: as :meth:`effect` takes it.
            inner: of the metric's inner quantity (log-odds change for ``OddsRatio``, log p for ``AnswerProb``) instead
                of the metric itself; the value is then the inner quantity, not relative to the base run.
            as_reference: store block inputs on the way, so that evaluations near this mask restart from them.
            dtype: lower precision to run the model in (autocast), such as ``torch.bfloat16``: for ranking, not for
                results. Nothing is stored as reference then.
        """
        values = self.groups.as_mask(mask).cpu()

        def run() -> Found:
            effects, gradient = self.batches.slopes(values, inner, as_reference, dtype)
            return Found(torch.cat([effects[None], gradient.T]), torch.zeros(0))

        given = [bytes_of(values), f"{inner} {as_reference} {dtype}".encode()]
        found = self.calls.make("effect_and_gradient", given, 1 + len(self.groups), 0, run)
        return found.each[0], found.each[1:].T

    @ambient.call
    def mean_gradient(self, mask: Any, *, dtype: torch.dtype | None = None) -> Float[Tensor, " groups"]:
        """Mean of :meth:`gradient` at ``mask``, in float64; ``dtype`` as for :meth:`effect_and_gradient`."""
        values = self.groups.as_mask(mask).cpu()

        def run() -> Found:
            total = self.batches.slope_sum(values, dtype)
            return Found(total.new_zeros(0, self.rows.n_examples), total)

        given = [bytes_of(values), str(dtype).encode()]
        return self.calls.make("mean_gradient", given, 0, len(self.groups), run).sums / self.n

    @ambient.call
    def predicted_changes(self, mask: Any, *, dtype: torch.dtype | None = None) -> Float[Tensor, " groups"]:
        """Predicted change of the mean metric from switching each entry of a binary mask, from one derivative.

        Every example is followed through the metric's own non-linearity: :math:`outer(inner + slope) - outer(inner)`,
        with steps of at most 6 nats. Block inputs are stored, so that evaluations near the mask restart from them.

        Args:
            mask: 0 or 1 per group.
            dtype: as for :meth:`effect_and_gradient`.
        """
        values = self.groups.as_mask(mask).cpu()

        def run() -> Found:
            changes = self.batches.predictions(values, dtype)
            return Found(changes.new_zeros(0, self.rows.n_examples), changes)

        given = [bytes_of(values), str(dtype).encode()]
        return self.calls.make("predicted_changes", given, 0, len(self.groups), run).sums / self.n

    @ambient.call
    def loss_gradient(
        self, mask: Any, loss: Callable[[Float[Tensor, " e"]], Tensor], examples: Sequence[int] | Tensor | None = None
    ) -> tuple[Float[Tensor, " e"], Float[Tensor, " groups"]]:
        """Effects of some pairs under a soft mask, and the gradient of ``loss(effects)`` with respect to the mask.

        Never kept on disk: what a loss is, cannot be told. Solvers keep the state of their loop instead.

        Args:
            mask: as :meth:`effect` takes it.
            loss: differentiable mean over the effects; pairs that run in several parts are combined as a weighted mean.
            examples: pair numbers, all by default; one forward and one backward over just these.
        """
        values = self.groups.as_mask(mask)
        wanted = torch.arange(self.n) if examples is None else torch.as_tensor(examples).long().cpu()
        place = torch.full((self.n,), -1, dtype=torch.long)
        place[self.rows.order] = torch.arange(self.rows.n_examples)  # of this process's pairs, in its order
        own = None if examples is None else place[wanted][place[wanted] >= 0]

        def run() -> Found:
            effects, total = self.batches.loss_slope(values, loss, own, len(wanted))
            return Found(effects[None], total)

        given = [bytes_of(values.cpu()), bytes_of(wanted)]
        found = self.calls.make("loss_gradient", given, 1, len(self.groups), run, keep=False)
        return found.each[0, wanted.to(found.each.device)], found.sums.to(self.dtype)
