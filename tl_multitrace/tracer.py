"""The engine's front: per-example effects ``F(mask)`` and their derivative ``dF/dmask``, of any model.

    act <- (1 - m) * act_running + m * act_source        one mask entry m per hook group
    effect(m) = metric(m) - metric(0)

Base and source activations are kept between calls, evaluations restart from the first block that the mask changes,
masks are batched when prompts are few, and logits are computed only where answers are read. Everything is counted in
``tracer.cost``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.budget import DEFAULT_LIMIT, block_input_bytes, default_batch_size
from tl_multitrace.compat import ModelView
from tl_multitrace.cost import Cost, new_cost
from tl_multitrace.engine import Engine, Prefix
from tl_multitrace.finite import checked
from tl_multitrace.gradients import Gradients
from tl_multitrace.groups import HookGroups
from tl_multitrace.held import held_sites
from tl_multitrace.interventions import Interchange, Intervention
from tl_multitrace.metrics import LogitDiff, Metric, as_metric
from tl_multitrace.packing import can_pack
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.restart import Restarts
from tl_multitrace.rows import Batch, Rows
from tl_multitrace.sources import Sources
from tl_multitrace.validate import check_inputs

logger = logging.getLogger(__name__)


class Tracer:
    """Evaluates masks over hook groups on a prompt set.

    Example:
        >>> tracer = Tracer(model, pairs, heads(model), metric=LogitDiff())          # doctest: +SKIP
        >>> tracer.effect(torch.ones(len(tracer.groups))).mean()                      # doctest: +SKIP

    Args:
        model: a ``HookedTransformer`` or ``TransformerBridge``.
        pairs: prompts and answers.
        groups: the mask's entries.
        metric: a :class:`~tl_multitrace.metrics.Metric` or a callable ``(out, base) -> [n]``.
        intervention: where base and source activations come from.
        batch_size: prompt pairs per forward; default: from the byte budget.
        dtype: of masks, log probabilities and sums; default float32, or float64 for a float64 model.
        memory_limit: bytes of stored source activations and block inputs; default 2 GiB on CPU, 8 GiB on a GPU. What
            does not fit is recomputed per batch, which ``cost`` counts.
        held: sites that :meth:`effects` may freeze at the base run's values (severed paths).
        progress: show progress bars in loops over this tracer.

    Raises:
        TypeError: not a TransformerLens model, or a metric that is not callable.
        ValueError: prompts that do not fit the model or the metric, padding without lengths, an unknown span.
        HookError: a hook point that does not fire or ignores edits.
        NonFiniteError: the base run is not finite.
    """

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
        memory_limit: int | None = None,
        held: HookGroups | None = None,
        progress: bool | None = None,
    ) -> None:
        self.view = ModelView(model)
        self.model, self.pairs, self.groups = model, pairs, groups
        self.metric = as_metric(LogitDiff() if metric is None else metric)
        self.intervention = Interchange() if intervention is None else intervention
        self.progress = bool(progress)
        self.dtype = dtype or (torch.float64 if self.view.dtype == torch.float64 else torch.float32)
        check_inputs(self.view, pairs, groups, self.metric)
        kind = self.view.device.type
        self.memory_limit = memory_limit if memory_limit is not None else DEFAULT_LIMIT.get(kind, 2 << 30)
        by_row = self.intervention.averages in (None, "zero")  # means are taken over prompts that are not ours to pack
        self.rows = Rows.of(pairs, packed=by_row and can_pack(self.view, pairs))
        self.batch_size = batch_size or default_batch_size(self.view, self.rows, self.memory_limit)
        self._batches: list[Batch] = self._make_batches()
        sources = Sources(limit=self.memory_limit, chunk=self.batch_size * 2)
        self._engine = Engine(
            view=self.view,
            rows=self.rows,
            groups=groups,
            intervention=self.intervention,
            sources=sources,
            dtype=self.dtype,
            held=held_sites(held, self.view.device, sources) if held is not None else None,
            needs_last=bool(self.metric.needs_last or self.metric.surrogate.needs_last),
        )
        self._base: list[Answers] = []
        self._origin = Prefix(np.zeros(len(groups)))
        self._restarts = Restarts(self._engine, self._batches, self._origin, self.memory_limit)
        self._prefix_bytes = block_input_bytes(self.view, self.rows, groups)
        self._start()

    # ------------------------------------------------------------------ set-up

    def _make_batches(self) -> list[Batch]:
        everyone = torch.arange(self.rows.n_examples)
        parts = everyone.chunk(-(-len(everyone) // self.batch_size))  # of equal size, rather than a small last one
        return [self.rows.batch(part, self.view.device) for part in parts]

    def _start(self) -> None:
        """Base run, source runs, and the check that hooks work."""
        with self.session(), torch.no_grad():
            self._engine.probe(self.rows.batch(torch.tensor([0]), self.view.device))
            self._engine.cost = new_cost(self.n)
            base_run = self.intervention.base_run(self.rows, self.view)
            self._engine.set_base(base_run)
            record = [self._origin] if 0 < 2 * self._prefix_bytes <= self.memory_limit else []
            for batch in self._batches:
                answers = self._engine.answers(batch, record=record)
                self._check(answers.token_logp, batch, None, "the base run")
                self._base.append(answers)
            self._engine.sources.prepare(self._engine)
            if self._engine.held is not None:
                self._engine.held.prepare(self._engine, base_run)
            pairs = zip(self._batches, self._base, strict=True)
            values = [self._check(self.metric(a, a), batch, None, "the metric of the base run") for batch, a in pairs]
        self._base_values = torch.cat(values)
        logger.info("base run of %d pairs on %s: %s", self.n, self.view.device, self.memory)

    @contextmanager
    def session(self) -> Iterator[Tracer]:
        """Keep hooks attached and weights frozen over several calls; solvers do this for you."""
        with self._engine.session():
            yield self

    # ------------------------------------------------------------------ facts

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def n(self) -> int:
        """Number of prompt pairs."""
        return len(self.pairs)

    @property
    def cost(self) -> Cost:
        """Forwards, backwards and seconds so far, base and source runs included."""
        return self._engine.cost

    @property
    def base_metric(self) -> Float[Tensor, " n"]:
        """The metric of the unpatched base run, per example."""
        return self._unsorted(self._base_values[None])[0]

    @property
    def memory(self) -> dict[str, Any]:
        """Bytes of stored activations and the limit they were held against."""
        return {
            "limit": self.memory_limit,
            "source_bytes": self._engine.sources.needed,
            "source_kept": self._engine.sources.keeps,
            "block_input_bytes": self._prefix_bytes if self._origin.residuals else 0,
            "keys_values_bytes": self._restarts.stored_bytes,
            "batch_size": self.batch_size,
        }

    def on(self, pairs: PromptPairs | None = None, **changes: Any) -> Tracer:
        """A tracer on other prompts, such as held-out ones, or with other arguments; None keeps this one's."""
        kept = ("groups", "metric", "intervention", "dtype", "memory_limit", "progress")
        own = {name: getattr(self, name) for name in kept}
        given = {name: value for name, value in changes.items() if value is not None}
        return Tracer(self.model, self.pairs if pairs is None else pairs, **own | given)

    def __repr__(self) -> str:
        return (
            f"Tracer({self.view.name}, {self.n} pairs, {self.groups!r}, metric={self.metric.name or 'custom'}, "
            f"intervention={self.intervention.name})"
        )

    def forget(self) -> None:
        """Drop block inputs stored by earlier calls: the next call costs, and rounds, as it would on a fresh tracer."""
        self._restarts.forget()

    @property
    def causal(self) -> bool:
        """Whether it was found that tokens do not act on earlier ones, so that runs restart at later tokens."""
        with self.session():
            return self._restarts.causal

    # ------------------------------------------------------------------ effects

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
        stacked = self.groups.as_masks(masks).to(self.dtype).cpu()
        values = self._metric_values(stacked, reference, held, tick or (lambda _: None))
        return self._unsorted(values - self._base_values)

    def log_effect(self, mask: Any) -> Float[Tensor, " n"]:
        """Change of the metric's inner quantity, per example: the log-odds for ``OddsRatio``, in nats."""
        values = self.groups.as_mask(mask).to(self.view.device, self.dtype)[None, None]
        out = self._base_values.new_empty(self.rows.n_examples)
        with self.session(), torch.no_grad():
            for batch, base in zip(self._batches, self._base, strict=True):
                change = self.metric.inner(self._engine.answers(batch, values), base) - self.metric.inner(base, base)
                out[batch.examples] = self._check(change, batch, values, "the metric's inner quantity")
        return self._unsorted(out[None])[0]

    def _metric_values(
        self, masks: Tensor, reference: Any, held: Tensor | None, tick: Callable[[int], object]
    ) -> Float[Tensor, "k n"]:
        """The metric itself under each mask; examples in internal order."""
        values, end, plan = masks.cpu().numpy(), self.view.n_layers, self._restarts
        out = self._base_values.new_empty(len(masks), self.rows.n_examples)
        with self.session(), torch.no_grad():
            plan.consider(len(values))
            if reference is not None:
                several = isinstance(reference, Tensor) and reference.ndim == 2
                plan.set_references(self.groups.as_masks(reference if several else [reference]).to(self.dtype))
            for start, jobs, runs in plan.by_first_block(values, with_references=held is None):
                for i, (batch, base) in enumerate(zip(self._batches, self._base, strict=True)):
                    if start >= end:  # nothing differs from stored runs
                        for job, run in zip(jobs.tolist(), runs, strict=True):
                            known, mask = run.answers[i] if run.answers else base, masks[job, None, None].to(out.device)
                            value = self.metric(known, base)
                            out[job, batch.examples] = self._check(value, batch, mask, "the metric", known.token_logp)
                        tick(len(jobs) * len(batch.examples))
                        continue
                    for part, column in plan.tiles(values[jobs.numpy()], batch):
                        tile, prefixes = jobs[part], [runs[p] for p in part]
                        frozen = None if held is None else held[tile]
                        out[tile.to(out.device)[:, None], batch.examples] = self._evaluate(
                            masks[tile], batch, base, start, prefixes, frozen, column
                        )
                        tick(len(tile) * len(batch.examples))
        return out

    def _evaluate(
        self,
        masks: Tensor,
        batch: Batch,
        base: Answers,
        start: int,
        prefix: Sequence[Prefix],
        held: Tensor | None,
        column: int,
    ) -> Tensor:
        mask = masks[:, None].to(self.view.device, self.dtype)
        frozen = None if held is None else held[:, None].to(mask)
        past = self._restarts.cache(batch, column, len(masks)) if column else None
        answers = self._engine.answers(batch, mask, start=start, prefix=prefix, held=frozen, column=column, past=past)
        values = self.metric(answers, base.repeated(len(masks)))
        return self._check(values, batch, mask, "the metric", answers.token_logp).reshape(len(masks), -1)

    # ------------------------------------------------------------------ gradients

    def gradient(self, mask: Any) -> Float[Tensor, "n groups"]:
        """Per-example derivative of the effect to every mask entry, in one backward per batch.

        A metric without a gradient is replaced by its ``surrogate``.

        Raises:
            ValueError: a mask of the wrong length or outside [0, 1].
            NonFiniteError: a derivative is NaN or infinite.
        """
        return self.effect_and_gradient(mask)[1]

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
        values = self.groups.as_mask(mask).to(self.view.device, self.dtype)
        metric = self.metric.surrogate
        measure = metric.inner if inner else metric
        effects = self._base_values.new_empty(self.rows.n_examples)
        gradient = self._base_values.new_zeros(self.rows.n_examples, len(self.groups))
        plan = self._restarts
        record = plan.new_references(values[None]) if as_reference and dtype is None else []
        with self.session(), self._gradients(dtype) as soft:
            for batch, base in zip(self._batches, self._base, strict=True):
                leaf = values.expand(1, batch.n_rows, -1).clone().requires_grad_()
                answers, share = soft.answers(batch, leaf, record)
                out = measure(answers, base)
                by_row = soft.backward(out.sum(), leaf, share)[0]
                gradient.index_add_(0, batch.examples[batch.example], by_row)
                effects[batch.examples] = out.detach() - (0.0 if inner else measure(base, base))
                self._check(effects[batch.examples], batch, leaf.detach(), "the metric", answers.token_logp.detach())
                self._check(gradient[batch.examples], batch, leaf.detach(), "the gradient")
        plan.references = record or plan.references
        return self._unsorted(effects[None])[0], gradient[self._inverse()]

    def loss_gradient(
        self, mask: Any, loss: Callable[[Float[Tensor, " e"]], Tensor], examples: Sequence[int] | Tensor | None = None
    ) -> tuple[Float[Tensor, " e"], Float[Tensor, " groups"]]:
        """Effects of some pairs under a soft mask, and the gradient of ``loss(effects)`` with respect to the mask.

        Args:
            mask: as :meth:`effect` takes it.
            loss: differentiable mean over the effects; pairs that run in several parts are combined as a weighted mean.
            examples: pair numbers, all by default; one forward and one backward over just these.
        """
        leaf = self.groups.as_mask(mask).to(self.view.device, self.dtype).clone().requires_grad_()
        chosen = self._inverse()[torch.as_tensor(examples).long()] if examples is not None else None
        metric = self.metric.surrogate
        parts = self._minibatches(chosen)
        with self.session(), self._gradients() as soft:
            effects = []
            total = torch.zeros_like(leaf)
            for batch, base in parts:
                answers, share = soft.answers(batch, leaf[None, None])
                out = metric(answers, base) - metric(base, base)
                weight = len(out) / sum(len(b.examples) for b, _ in parts)
                total = total + soft.backward(loss(out) * weight, leaf, share)
                self._check(out.detach(), batch, leaf.detach()[None, None], "the metric", answers.token_logp.detach())
                self._check(total[None], batch, leaf.detach()[None, None], "the gradient")
                effects.append(out.detach())
        together = torch.cat(effects)
        if chosen is None:
            return together[self._inverse()], total
        back = torch.argsort(torch.cat([b.examples.cpu() for b, _ in parts]))
        return together[back[torch.argsort(torch.argsort(chosen))]], total

    @contextmanager
    def _gradients(self, dtype: torch.dtype | None = None) -> Iterator[Gradients]:
        name = getattr(self.metric, "label", self.metric.name)
        soft = Gradients(self._engine, self._restarts, self._origin, name)
        soft.prepare()
        with self._engine.reduced(dtype), torch.enable_grad():  # notebooks often switch gradients off for good
            yield soft

    def _minibatches(self, chosen: Tensor | None) -> list[tuple[Batch, Answers]]:
        if chosen is None:
            return list(zip(self._batches, self._base, strict=True))
        whole = Answers.joined(self._base)
        parts = chosen.sort().values.chunk(-(-len(chosen) // self.batch_size))
        return [(self.rows.batch(part, self.view.device), whole.picked(part.to(self.view.device))) for part in parts]

    # ------------------------------------------------------------------ small things

    def _inverse(self) -> Int[Tensor, " n"]:
        return torch.argsort(self.rows.order)

    def _unsorted(self, values: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        return values[:, self._inverse().to(values.device)]

    def _check(self, values: Tensor, batch: Batch, mask: Tensor | None, what: str, logp: Any = None) -> Tensor:
        return checked(self._engine, self._batches, values, batch, mask, what, logp)
