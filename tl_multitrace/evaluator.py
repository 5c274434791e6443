"""Effects and derivatives of masks on this process's own prompts, in the order in which they run.

Base and source activations are kept between calls, evaluations restart from the first block (and token) that the mask
changes, masks are batched when prompts are few, and logits are computed only where answers are read. What a user calls,
over all prompts and in the caller's order, is :class:`~tl_multitrace.tracer.Tracer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.compat import ModelView
from tl_multitrace.cost import Cost, new_cost
from tl_multitrace.engine.metric_check import check_metric
from tl_multitrace.forward.engine import Engine, Prefix
from tl_multitrace.forward.finite import checked
from tl_multitrace.forward.gradients import Gradients
from tl_multitrace.forward.held import held_sites
from tl_multitrace.forward.restart import Restarts, RunState
from tl_multitrace.forward.sources import Sources, base_of
from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import Intervention
from tl_multitrace.memory.exhausted import trim
from tl_multitrace.metrics import Metric
from tl_multitrace.rows import Batch, Rows
from tl_multitrace.sizing.budget import Limits
from tl_multitrace.sizing.calibrate import StepBytes, count_step
from tl_multitrace.sizing.estimate import MemoryEstimate, plan_memory
from tl_multitrace.sizing.halving import Halving

Start = tuple[int, Int[Tensor, " _"], list[Prefix]]
"""A block to start at, the masks that do, and the stored run of each."""

CLAMP = 6.0
"""Largest step in the inner quantity (nats) that is believed: beyond it the linear picture means nothing."""

LARGE = 256 << 20
"""Bytes from which on it is worth a call to give freed memory back."""

PREDICTIONS = 1 << 22
"""Predicted values held at a time."""


class Evaluator(Halving):
    """Evaluates masks over hook groups on some of a prompt set's rows.

    Args:
        view: the model.
        whole: all rows of the prompt set.
        parts: the examples of each batch that is this process's.
        groups: the mask's entries.
        metric: per-example numbers.
        intervention: base and source runs.
        dtype: of masks, log probabilities and sums.
        limits: bytes of stored activations and one batch together.
        step: bytes that one prompt pair takes.
        held: sites that masks may freeze at the base run's values.
        eager: store keys and values as soon as they may pay, without weighing, so that other shares do the same.
    """

    def __init__(
        self,
        view: ModelView,
        whole: Rows,
        parts: Sequence[Int[Tensor, " _"]],
        groups: HookGroups,
        metric: Metric,
        intervention: Intervention,
        *,
        dtype: torch.dtype,
        limits: Limits,
        step: StepBytes,
        held: HookGroups | None = None,
        eager: bool = False,
    ) -> None:
        self.view, self.groups, self.metric, self.intervention = view, groups, metric, intervention
        self.dtype, self.memory_limit = dtype, limits.device
        examples = torch.cat(list(parts))
        self.rows = whole if len(examples) == whole.n_examples else whole.picked(examples)
        sizes = [len(part) for part in parts]
        self._batches = [self.rows.batch(part, view.device) for part in torch.arange(len(examples)).split(sizes)]
        ends = torch.tensor([batch.n_rows for batch in self._batches]).cumsum(0)[:-1].tolist() if eager else []
        self.batch_size = max(sizes)
        sources = Sources(chunk=2 * self.batch_size, ends=tuple(ends))
        self._engine = Engine(
            view=view,
            rows=self.rows,
            groups=groups,
            intervention=intervention,
            sources=sources,
            dtype=dtype,
            held=held_sites(held, view.device, sources) if held is not None else None,
            needs_last=bool(metric.needs_last or metric.surrogate.needs_last),
            whole=whole,
            cost=new_cost(whole.n_examples),
        )
        self._base: list[Answers] = []
        self._origin = Prefix(np.zeros(len(groups)))
        self._restarts = Restarts(self._engine, self._batches, self._origin, 0, eager=eager)
        self.limits = limits
        self._plan = plan_memory(self._engine, self.batch_size, step, limits)
        self._plan.follow(self._engine, self._restarts)

    def memory_estimate(self) -> MemoryEstimate:
        """What this trace takes, by item, and where it is kept; what one batch takes is counted on one prompt pair."""
        whole = self._engine.whole or self.rows
        step = count_step(self.view, whole, self.groups, self.dtype)
        return plan_memory(self._engine, self.batch_size, step, self.limits)

    def _start(self) -> None:
        """Base run, source runs, and the check that hooks work."""
        with self.session(), torch.no_grad():
            self._engine.probe(self.rows.batch(torch.tensor([0]), self.view.device))
            self._engine.cost.become(Cost())
            base_run = base_of(self._engine)
            self._engine.set_base(base_run)
            record = [self._origin] if self._plan.stored_runs else []
            self._base.clear()  # of an attempt that ran out of memory
            for batch in self._batches:
                answers = self._engine.answers(batch, record=record)
                self._check(answers.token_logp, batch, None, "the base run")
                self._base.append(answers)
            self._engine.sources.prepare(self._engine)
            if self._engine.held is not None:
                self._engine.held.prepare(self._engine, base_run)
            check_metric(self.metric, self._base[0])
            pairs = zip(self._batches, self._base, strict=True)
            values = [self._check(self.metric(a, a), batch, None, "the metric of the base run") for batch, a in pairs]
        self._base_values = torch.cat(values)
        if self._plan.needed > LARGE:
            trim()  # source runs of two batches have left holes that no later step fills

    @contextmanager
    def session(self) -> Iterator[Any]:
        """Keep hooks attached and weights frozen over several calls; solvers do this for you."""
        with self._engine.session():
            yield self

    # ------------------------------------------------------------------ effects

    def _metric_values(
        self, masks: Tensor, reference: Any, held: Tensor | None, tick: Callable[[int], object]
    ) -> Float[Tensor, "k n"]:
        """The metric itself under each mask."""
        out = self._base_values.new_empty(len(masks), self.rows.n_examples)
        done = torch.zeros(self.rows.n_examples, dtype=torch.bool)

        def run() -> None:
            with self.session(), torch.no_grad():
                plans = self._plans(masks, reference, held)
                # batch by batch: source activations that are not on the device are fetched once for all masks
                for i, batch in enumerate(self._batches):
                    if not bool(done[examples := batch.examples.cpu()].all()):
                        self._fill_batch(out, i, masks, plans, held, tick)
                        done[examples] = True

        self._surviving(run)
        return out

    def _plans(self, masks: Tensor, reference: Any, held: Tensor | None) -> list[Start]:
        """Where each mask starts, with stored what that takes."""
        values, plan = masks.cpu().numpy(), self._restarts
        plan.consider(len(values))
        if reference is not None:
            plan.set_references(self._references(reference))
        return plan.by_first_block(values, with_references=held is None)

    def _fill_batch(
        self,
        out: Float[Tensor, "k n"],
        i: int,
        masks: Tensor,
        plans: list[Start],
        held: Tensor | None,
        tick: Callable[[int], object],
    ) -> None:
        """The metric of a batch's examples under every mask."""
        batch, base = self._batches[i], self._base[i]
        for start, jobs, runs in plans:
            if start >= self.view.n_layers:  # nothing differs from stored runs
                for job, run in zip(jobs.tolist(), runs, strict=True):
                    known, mask = run.answers[i] if run.answers else base, masks[job, None, None].to(out.device)
                    value = self.metric(known, base)
                    out[job, batch.examples] = self._check(value, batch, mask, "the metric", known.token_logp)
                tick(len(jobs) * len(batch.examples))
                continue
            for part, column in self._restarts.tiles(masks[jobs].cpu().numpy(), batch):
                tile, prefixes = jobs[part], [runs[p] for p in part]
                frozen = None if held is None else held[tile]
                out[tile.to(out.device)[:, None], batch.examples] = self._evaluate(
                    masks[tile], batch, base, start, prefixes, frozen, column
                )
                tick(len(tile) * len(batch.examples))

    def _references(self, reference: Any) -> Float[Tensor, "r groups"]:
        several = isinstance(reference, Tensor) and reference.ndim == 2
        return self.groups.as_masks(reference if several else [reference]).to(self.dtype)

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

    def _inner_changes(self, mask: Float[Tensor, " groups"]) -> Float[Tensor, " n"]:
        """Change of the metric's inner quantity."""
        values = mask.to(self.view.device, self.dtype)[None, None]
        out = torch.empty_like(self._base_values)
        with self.session(), torch.no_grad():
            for batch, base in zip(self._batches, self._base, strict=True):
                change = self.metric.inner(self._engine.answers(batch, values), base) - self.metric.inner(base, base)
                out[batch.examples] = self._check(change, batch, values, "the metric's inner quantity")
        return out

    # ------------------------------------------------------------------ gradients

    def _slopes(
        self, mask: Float[Tensor, " groups"], inner: bool, as_reference: bool, dtype: torch.dtype | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n groups"]]:
        """Effect (or inner quantity) and its derivative; see ``Tracer.effect_and_gradient``."""
        effects = self._base_values.new_empty(self.rows.n_examples)
        gradient = self._base_values.new_empty(self.rows.n_examples, len(self.groups))
        for examples, effect, slope in self._slopes_by_batch(mask, inner, as_reference, dtype):
            effects[examples], gradient[examples] = effect, slope
        return effects, gradient

    def _slopes_by_batch(
        self, mask: Float[Tensor, " groups"], inner: bool, as_reference: bool, dtype: torch.dtype | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The same, batch by batch: examples, effects and derivatives. All of them at once may be large."""
        values = mask.to(self.view.device, self.dtype)
        metric = self.metric.surrogate
        measure = metric.inner if inner else metric
        plan = self._restarts
        record = plan.new_references(values[None]) if as_reference and dtype is None else []
        with self.session(), self._gradients(dtype) as soft:
            for batch, base in zip(self._batches, self._base, strict=True):
                leaf = values.expand(1, batch.n_rows, -1).clone().requires_grad_()
                answers, share = soft.answers(batch, leaf, record)
                out = measure(answers, base)
                by_row = soft.backward(out.sum(), leaf, share)[0]
                gradient = self._base_values.new_zeros(len(batch.examples), len(self.groups))
                gradient.index_add_(0, batch.example, by_row)
                effect = out.detach() - (0.0 if inner else measure(base, base))
                self._check(effect, batch, leaf.detach(), "the metric", answers.token_logp.detach())
                self._check(gradient, batch, leaf.detach(), "the gradient")
                yield batch.examples, effect, gradient
        if record:
            plan.keep(record)

    def _slope_sum(self, mask: Float[Tensor, " groups"], dtype: torch.dtype | None) -> Float[Tensor, " groups"]:
        """Sum over examples of the effect's derivative."""
        total = torch.zeros(len(self.groups), dtype=torch.float64, device=self._base_values.device)
        for _, _, slope in self._slopes_by_batch(mask, False, False, dtype):
            total += slope.sum(0, dtype=torch.float64)
        return total

    def _predictions(self, mask: Float[Tensor, " groups"], dtype: torch.dtype | None) -> Float[Tensor, " groups"]:
        """Sum over examples of the predicted change of the metric from switching each entry of a binary mask."""
        metric = self.metric.surrogate
        signs = (1 - 2 * mask).to(self._base_values)
        total = torch.zeros_like(signs, dtype=torch.float64)
        for _, inner, slope in self._slopes_by_batch(mask, True, True, dtype):
            now = metric.outer(inner)
            for rows in torch.arange(len(inner)).split(max(1, PREDICTIONS // max(1, slope.shape[1]))):
                step = (slope[rows] * signs).clamp(-CLAMP, CLAMP)
                change = metric.outer(inner[rows, None] + step) - now[rows, None]
                total += change.sum(0, dtype=torch.float64)
        return total

    def _loss_slope(
        self,
        mask: Float[Tensor, " groups"],
        loss: Callable[[Float[Tensor, " e"]], Tensor],
        chosen: Int[Tensor, " e"] | None,
        of: int,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " groups"]]:
        """Effects of the chosen examples (0 elsewhere) and the gradient of a mean loss over ``of`` examples."""
        leaf = mask.to(self.view.device, self.dtype).clone().requires_grad_()
        metric = self.metric.surrogate
        effects, total = torch.zeros_like(self._base_values), torch.zeros_like(leaf.detach(), dtype=torch.float64)
        with self.session(), self._gradients() as soft:
            for batch, base in self._minibatches(chosen):
                answers, share = soft.answers(batch, leaf[None, None])
                out = metric(answers, base) - metric(base, base)
                total += soft.backward(loss(out) * (len(out) / of), leaf, share)
                self._check(out.detach(), batch, leaf.detach()[None, None], "the metric", answers.token_logp.detach())
                self._check(total[None], batch, leaf.detach()[None, None], "the gradient")
                effects[batch.examples] = out.detach()
        return effects, total

    @contextmanager
    def _gradients(self, dtype: torch.dtype | None = None) -> Iterator[Gradients]:
        name = getattr(self.metric, "label", self.metric.name)
        soft = Gradients(self._engine, self._restarts, self._origin, name)
        soft.prepare()
        with self._engine.reduced(dtype), torch.enable_grad():  # notebooks often switch gradients off for good
            yield soft

    def _minibatches(self, chosen: Int[Tensor, " e"] | None) -> list[tuple[Batch, Answers]]:
        if chosen is None:
            return list(zip(self._batches, self._base, strict=True))
        if not len(chosen):
            return []
        whole, chosen = Answers.joined(self._base), chosen.sort().values
        if self._restarts.eager:  # those of each batch, which is the same whatever processes have the others
            own = (chosen[torch.isin(chosen, batch.examples.cpu())] for batch in self._batches)
            parts = [part for part in own if len(part)]
        else:
            parts = list(chosen.chunk(-(-len(chosen) // max(len(b.examples) for b in self._batches))))
        return [(self.rows.batch(part, self.view.device), whole.picked(part.to(self.view.device))) for part in parts]

    # ------------------------------------------------------------------ what earlier calls left

    @property
    def state(self) -> RunState:
        """What later calls' cost and rounding depend on."""
        return self._restarts.state

    def _go_on_from(self, state: RunState) -> None:
        """Store again what the calls stored that led to ``state``; uncounted, since those calls were."""
        before = self._engine.cost.copy()
        with self.session():
            self._restarts.repeat(state, self._record_slope)
        self._engine.cost.become(before)

    def _record_slope(self, mask: Float[Tensor, " groups"]) -> None:
        """Block inputs as a derivative at the mask stores them."""
        values, plan = mask.to(self.view.device, self.dtype), self._restarts
        record = plan.new_references(values[None])
        with self._gradients() as soft:
            for batch in self._batches:
                soft.answers(batch, values.expand(1, batch.n_rows, -1).clone().requires_grad_(), record)
        plan.keep(record)

    def _check(
        self, values: Tensor, batch: Batch, mask: Tensor | None, what: str, logp: Tensor | None = None
    ) -> Tensor:
        return checked(self._engine, self._batches, values, batch, mask, what, logp)
