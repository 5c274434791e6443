"""Effects and derivatives of masks on this process's own prompts, batch by batch, in the order in which they run.

Base and source activations are kept between calls, evaluations restart from the first block (and token) that the mask
changes, masks are batched when prompts are few, and logits are computed only where answers are read. Where memory runs
out, the work starts again on smaller batches (:meth:`Batches.attempts`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.cost import Cost
from tl_multitrace.distributed import Found
from tl_multitrace.engine.estimate import MemoryEstimate
from tl_multitrace.engine.exhausted import does_not_fit, is_out_of_memory, release, trim
from tl_multitrace.engine.finite import checked
from tl_multitrace.engine.forward import session
from tl_multitrace.engine.mask_runs import MaskRuns
from tl_multitrace.engine.metric_check import check_metric
from tl_multitrace.engine.restart import Plans, Restarts
from tl_multitrace.engine.sources import StoredRun
from tl_multitrace.metrics import Metric
from tl_multitrace.rows import Batch

logger = logging.getLogger(__name__)

CLAMP = 6.0
"""Largest step in the inner quantity (nats) that is believed: beyond it the linear picture means nothing."""

LARGE = 256 << 20
"""Bytes from which on it is worth a call to give freed memory back."""

PREDICTIONS = 1 << 22
"""Predicted values held at a time."""

RUNS = 2
"""A forward and a backward save as much as two runs where they restart at a later token."""


@dataclass(eq=False)
class Batches:
    """Evaluates masks over hook groups on some of a prompt set's rows.

    Attributes:
        runs: run the model.
        metric: per-example numbers.
        plan: what is kept, and where.
        parts: the batches.
        eager: see :class:`~tl_multitrace.engine.restart.Restarts`.
        halved: how often batches were halved because memory ran out.
    """

    runs: MaskRuns
    metric: Metric
    plan: MemoryEstimate
    parts: list[Batch]
    eager: bool = False
    halved: int = 0

    def __post_init__(self) -> None:
        self.base: list[Answers] = []
        self.base_values = torch.zeros(0)
        self.origin = StoredRun(np.zeros(len(self.runs.groups)))
        self.restarts = Restarts(self.runs, self.parts, self.origin, eager=self.eager)
        self.plan.follow(self.runs, self.restarts)

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.runs.rows.n_examples

    @property
    def size(self) -> int:
        """Examples of the largest batch."""
        return max(len(batch.examples) for batch in self.parts)

    def start(self) -> None:
        """Base run, source runs, and the check that hooks work."""
        runs = self.runs
        with session(runs.view), torch.no_grad():
            runs.probe(runs.rows.batch(torch.tensor([0]), runs.view.device))
            runs.cost.become(Cost())
            record = [self.origin] if self.plan.stored_runs else []
            self.base.clear()  # of an attempt that ran out of memory
            for batch in self.parts:
                answers = runs.answers(batch, record=record)
                self.check(answers.token_logp, batch, None, "the base run")
                self.base.append(answers)
            runs.sources.prepare(runs)
            if runs.frozen is not None:
                runs.frozen.prepare(runs, runs.base)
            check_metric(self.metric, self.base[0])
            pairs = zip(self.parts, self.base, strict=True)
            values = [self.check(self.metric(a, a), batch, None, "the metric of the base run") for batch, a in pairs]
        self.base_values = torch.cat(values)
        if self.plan.needed > LARGE:
            trim()  # source runs of two batches have left holes that no later step fills

    # ------------------------------------------------------------------ effects

    def effects(
        self,
        masks: Float[Tensor, "k groups"],
        reference: Float[Tensor, "r groups"] | None,
        frozen: Float[Tensor, "k frozen"] | None,
        tick: Callable[[int], object],
        out: Float[Tensor, "k n"],
    ) -> Found:
        """Per-example effects of each mask.

        Args:
            masks: in [0, 1].
            reference: masks to store block inputs of, for masks that differ little from one of them.
            frozen: per mask, which frozen sites stay at the base run's values.
            tick: called with the number of values found.
            out: the metric itself, filled batch by batch; NaN where an attempt that ran out of memory did not come.
        """
        with session(self.runs.view), torch.no_grad():
            plans = self._plans(masks.cpu().numpy(), reference, frozen)
            # batch by batch: source activations that are not on the device are fetched once for all masks
            for i, batch in enumerate(self.parts):
                if not bool(out[:, batch.examples].isfinite().all()):
                    self._plain(out, i, plans, masks, tick)
                    for start, jobs, runs, column in self._jobs(masks, batch, plans):
                        mask = masks[jobs][:, None].to(self.runs.view.device, self.runs.dtype)
                        held = None if frozen is None else frozen[jobs][:, None].to(mask)
                        past = self.restarts.cache(batch, column, len(jobs)) if column else None
                        where = {"start": start, "runs": runs, "frozen": held, "column": column, "past": past}
                        answers = self.runs.answers(batch, mask, **where)  # type: ignore[arg-type]
                        found = self.metric(answers, self.base[i].repeated(len(jobs)))
                        found = self.check(found, batch, mask, "the metric", answers.token_logp)
                        out[jobs.to(out.device)[:, None], batch.examples] = found.reshape(len(jobs), -1)
                        tick(len(jobs) * len(batch.examples))
        return Found(out - self.base_values, torch.zeros(0))

    def _plans(self, masks: Float[np.ndarray, "k groups"], reference: Tensor | None, frozen: Tensor | None) -> Plans:
        """Where each mask starts, with stored what that takes."""
        self.restarts.consider(len(masks))
        if reference is not None:
            self.restarts.set_references(reference)
        return self.restarts.by_first_block(masks, with_references=frozen is None)

    def _plain(self, out: Tensor, i: int, plans: Plans, masks: Tensor, tick: Callable[[int], object]) -> None:
        """The metric of masks that differ in nothing from a stored run."""
        batch, base = self.parts[i], self.base[i]
        for start, jobs, runs in plans:
            if start >= self.runs.view.n_layers:
                for job, run in zip(jobs.tolist(), runs, strict=True):
                    known, mask = run.answers[i] if run.answers else base, masks[job, None, None].to(out.device)
                    value = self.metric(known, base)
                    out[job, batch.examples] = self.check(value, batch, mask, "the metric", known.token_logp)
                tick(len(jobs) * len(batch.examples))

    def _jobs(
        self, masks: Tensor, batch: Batch, plans: Plans
    ) -> Iterator[tuple[int, Int[Tensor, " _"], list[StoredRun], int]]:
        """What runs together: first block, masks, the stored run of each, and first token."""
        for start, jobs, runs in plans:
            if start < self.runs.view.n_layers:
                for part, column in self.restarts.tiles(masks[jobs].cpu().numpy(), batch):
                    yield start, jobs[part], [runs[p] for p in part], column

    def inner_changes(self, mask: Float[Tensor, " groups"]) -> Float[Tensor, " n"]:
        """Change of the metric's inner quantity."""
        values = mask.to(self.runs.view.device, self.runs.dtype)[None, None]
        out = torch.empty_like(self.base_values)
        with session(self.runs.view), torch.no_grad():
            for batch, base in zip(self.parts, self.base, strict=True):
                change = self.metric.inner(self.runs.answers(batch, values), base) - self.metric.inner(base, base)
                out[batch.examples] = self.check(change, batch, values, "the metric's inner quantity")
        return out

    # ------------------------------------------------------------------ gradients

    def slopes(
        self, mask: Float[Tensor, " groups"], inner: bool, as_reference: bool, dtype: torch.dtype | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n groups"]]:
        """Effect (or inner quantity) and its derivative; see ``Tracer.effect_and_gradient``."""
        effects = self.base_values.new_empty(self.n)
        gradient = self.base_values.new_empty(self.n, len(self.runs.groups))
        for examples, effect, slope in self.slopes_by_batch(mask, inner, as_reference, dtype):
            effects[examples], gradient[examples] = effect, slope
        return effects, gradient

    def slopes_by_batch(
        self, mask: Float[Tensor, " groups"], inner: bool, as_reference: bool, dtype: torch.dtype | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The same, batch by batch: examples, effects and derivatives. All of them at once may be large."""
        values = mask.to(self.runs.view.device, self.runs.dtype)
        metric = self.metric.surrogate
        measure = metric.inner if inner else metric
        record = self.restarts.new_references(values[None]) if as_reference and dtype is None else []
        with self._gradients(dtype):
            for batch, base in zip(self.parts, self.base, strict=True):
                leaf = values.expand(1, batch.n_rows, -1).clone().requires_grad_()
                answers, share = self._soft_answers(batch, leaf, record)
                out = measure(answers, base)
                by_row = self._backward(out.sum(), leaf, share)[0]
                gradient = self.base_values.new_zeros(len(batch.examples), len(self.runs.groups))
                gradient.index_add_(0, batch.example, by_row)
                effect = out.detach() - (0.0 if inner else measure(base, base))
                self.check(effect, batch, leaf.detach(), "the metric", answers.token_logp.detach())
                self.check(gradient, batch, leaf.detach(), "the gradient")
                yield batch.examples, effect, gradient
        if record:
            self.restarts.references = record

    def slope_sum(self, mask: Float[Tensor, " groups"], dtype: torch.dtype | None) -> Float[Tensor, " groups"]:
        """Sum over examples of the effect's derivative."""
        total = torch.zeros(len(self.runs.groups), dtype=torch.float64, device=self.base_values.device)
        for _, _, slope in self.slopes_by_batch(mask, False, False, dtype):
            total += slope.sum(0, dtype=torch.float64)
        return total

    def predictions(self, mask: Float[Tensor, " groups"], dtype: torch.dtype | None) -> Float[Tensor, " groups"]:
        """Sum over examples of the predicted change of the metric from switching each entry of a binary mask."""
        metric = self.metric.surrogate
        total = torch.zeros(len(mask), dtype=torch.float64, device=self.base_values.device)
        for _, inner, slope in self.slopes_by_batch(mask, True, True, dtype):
            for rows in torch.arange(len(inner)).split(max(1, PREDICTIONS // max(1, slope.shape[1]))):
                now, switched = predicted(metric, inner[rows], slope[rows], mask)
                total += (switched - now[:, None]).sum(0, dtype=torch.float64)
        return total

    def loss_slope(
        self,
        mask: Float[Tensor, " groups"],
        loss: Callable[[Float[Tensor, " e"]], Tensor],
        chosen: Int[Tensor, " e"] | None,
        of: int,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " groups"]]:
        """Effects of the chosen examples (0 elsewhere) and the gradient of a mean loss over ``of`` examples."""
        leaf = mask.to(self.runs.view.device, self.runs.dtype).clone().requires_grad_()
        metric = self.metric.surrogate
        effects, total = torch.zeros_like(self.base_values), torch.zeros_like(leaf.detach(), dtype=torch.float64)
        with self._gradients():
            for batch, base in self._minibatches(chosen):
                answers, share = self._soft_answers(batch, leaf[None, None])
                out = metric(answers, base) - metric(base, base)
                total += self._backward(loss(out) * (len(out) / of), leaf, share)
                self.check(out.detach(), batch, leaf.detach()[None, None], "the metric", answers.token_logp.detach())
                self.check(total[None], batch, leaf.detach()[None, None], "the gradient")
                effects[batch.examples] = out.detach()
        return effects, total

    @contextmanager
    def _gradients(self, dtype: torch.dtype | None = None) -> Iterator[None]:
        self.restarts.consider(RUNS)
        self.runs.autocast = dtype
        try:
            with session(self.runs.view), torch.enable_grad():  # notebooks often switch gradients off for good
                yield
        finally:
            self.runs.autocast = None

    def _soft_answers(
        self, batch: Batch, leaf: Float[Tensor, "1 r groups"], record: Sequence[StoredRun] = ()
    ) -> tuple[Answers, float]:
        """Answers under a mask that requires a gradient, and the share of a whole forward that they cost."""
        first = min(self.runs.starts)
        start = first if first in self.origin.residuals else 0
        column, past = self.restarts.gradient_start(batch)
        found = self.runs.answers(batch, leaf, start=start, runs=[self.origin], record=record, column=column, past=past)
        for run in record:
            self.restarts.complete(run, batch, column)
        return found, self.runs.fraction(batch, start, column)

    def _backward(self, scalar: Tensor, leaf: Tensor, share: float) -> Tensor:
        """Derivative of a number with respect to the mask; raises ValueError where there is none."""
        if not scalar.requires_grad:
            raise ValueError(
                f"the metric {getattr(self.metric, 'label', self.metric.name)!r} has no gradient with respect to the "
                "mask (it rounds or detaches what it reads). Use a solver that needs none, such as Greedy()."
            )
        began = time.perf_counter()
        (grad,) = torch.autograd.grad(scalar, leaf)
        self.runs.cost.seconds += time.perf_counter() - began
        self.runs.cost.backwards += share
        return grad

    def _minibatches(self, chosen: Int[Tensor, " e"] | None) -> Sequence[tuple[Batch, Answers]]:
        if chosen is None:
            return [*zip(self.parts, self.base, strict=True)]
        if not len(chosen):
            return []
        whole, chosen, device = Answers.joined(self.base), chosen.sort().values, self.runs.view.device
        if self.eager:  # those of each batch, which is the same whatever processes have the others
            own = (chosen[torch.isin(chosen, batch.examples.cpu())] for batch in self.parts)
            parts = [part for part in own if len(part)]
        else:
            parts = [*chosen.chunk(-(-len(chosen) // self.size))]
        return [(self.runs.rows.batch(part, device), whole.picked(part.to(device))) for part in parts]

    # ------------------------------------------------------------------ checks

    def check(self, values: Tensor, batch: Batch, mask: Tensor | None, what: str, logp: Tensor | None = None) -> Tensor:
        """``values``, where they are finite; see :func:`~tl_multitrace.engine.finite.checked`."""
        return checked(self.runs, self.parts, values, batch, mask, what, logp)

    def unsorted(self, values: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Values in the caller's order, where this process has all examples."""
        return values[:, torch.argsort(self.runs.rows.order).to(values.device)]

    # ------------------------------------------------------------------ when memory runs out

    def attempts(self) -> Iterator[Attempt]:
        """Attempts at some work until one does not run out of memory, each on smaller batches than the one before.

        Use: ``for attempt in batches.attempts(): with attempt: ...``.

        Raises:
            MemoryError: a single prompt pair under a single mask does not fit.
        """
        while True:
            attempt = Attempt()
            yield attempt
            if attempt.ran_out is None:
                return
            self._halve(attempt.ran_out)

    def _halve(self, why: str) -> None:
        size, restarts, view = self.size, self.restarts, self.runs.view
        restarts.forget()  # what a later call makes anew
        for sources in self.runs.stored:
            sources.drop_batch()
        if size == 1 and restarts.tile == 1:  # one prompt pair, and no other mask beside it
            raise does_not_fit(self.runs.rows.base.shape[1], view.device, self.plan.limits.device, why)
        self._rebatch((size + 1) // 2)
        restarts.tile = max(1, min(restarts.tile // 2, max(batch.tokens.numel() for batch in self.parts)))
        self.halved += 1
        release(view.device)
        logger.warning("memory ran out (%s): going on with %d prompt pairs per forward", why, self.size)

    def _rebatch(self, size: int) -> None:
        """Batches of at most so many examples, of equal size rather than a small last one."""
        everyone = torch.arange(self.n)
        parts = everyone.chunk(-(-self.n // size))
        whole = Answers.joined(self.base) if sum(len(a.right) for a in self.base) == self.n else None
        self.parts[:] = [self.runs.rows.batch(part, self.runs.view.device) for part in parts]  # others hold it too
        self.base[:] = [] if whole is None else [whole.picked(batch.examples) for batch in self.parts]
        ends = torch.tensor([batch.n_rows for batch in self.parts]).cumsum(0)[:-1].tolist()
        for sources in self.runs.stored:
            sources.chunk, sources.ends = self.size, tuple(ends) if sources.ends else ()


class Attempt:
    """A block that may run out of memory; anything else is raised.

    Attributes:
        ran_out: what the allocator said, where it did.
    """

    ran_out: str | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Note an exhausted memory. The error is dropped with the tensors of the frames that it passed."""
        if not isinstance(error, MemoryError | RuntimeError) or not is_out_of_memory(error):
            return False
        self.ran_out = str(error) or type(error).__name__
        return True


def predicted(
    metric: Metric, inner: Float[Tensor, " n"], slope: Float[Tensor, "n groups"], mask: Float[Tensor, " groups"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n groups"]]:
    """The metric per example at a binary mask, and as predicted through its inner quantity with each entry switched."""
    step = (slope * (1 - 2 * mask).to(slope)).clamp(-CLAMP, CLAMP)
    return metric.outer(inner), metric.outer(inner[:, None] + step)
