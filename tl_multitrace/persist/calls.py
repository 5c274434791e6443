"""One call of a tracer: taken from the disk where an earlier run has computed it, else computed by all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_multitrace._version import __version__
from tl_multitrace.compat import installed_version
from tl_multitrace.cost import Cost
from tl_multitrace.distributed import Found, Ranks
from tl_multitrace.engine.identity import Unchanged, base_numbers, cache_name
from tl_multitrace.evaluator import Evaluator
from tl_multitrace.forward.restart import RunState
from tl_multitrace.identity import digest_of
from tl_multitrace.models.digest import ModelState
from tl_multitrace.persist.cache import Cache, Shapes, StateFile, Values, key_of
from tl_multitrace.prompts import PromptPairs


@dataclass
class Calls:
    """Where the calls of one tracer go.

    Attributes:
        own: computes the examples of this process.
        ranks: the processes that share the prompts.
        counts: examples per rank.
        order: puts the examples of rank after rank into the caller's order.
        unchanged: holds the tracer to its model and metric.
        cache: results of earlier runs.
    """

    own: Evaluator
    ranks: Ranks
    counts: Sequence[int]
    order: Int[Tensor, " n"]
    unchanged: Unchanged
    cache: Cache | None = None
    _resumed: RunState | None = None
    _batches: int = 0

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        return self.own._engine.cost

    @property
    def state(self) -> RunState:
        """What later calls' cost and rounding depend on."""
        return self.own.state if self._resumed is None else self._resumed

    def begin(self, cache_dir: Path | None, pairs: PromptPairs, parts: int) -> Tensor:
        """The base run, on all ranks, and the cache that it belongs to; its metric in the caller's order.

        Args:
            cache_dir: where results are kept.
            pairs: all prompts.
            parts: in how many batches.

        Raises:
            TypeError: with a cache, a metric, an intervention or a hook that another run cannot recognise.
        """
        name = None if cache_dir is None else name_of(self.own, self.unchanged.state, pairs, parts)

        def start() -> Found:
            self.own._surviving(self.own._start)
            numbers = base_numbers(self.own._base).to(self.own._base_values)
            return Found(torch.cat([self.own._base_values[None], numbers]), torch.zeros(0))

        base = self._gathered("the base run", 4, 0, start).each
        if cache_dir is not None and name is not None:
            tolerance = 2e-2 if self.own.view.dtype in (torch.bfloat16, torch.float16) else 1e-4
            self.cache = Cache.of_base(cache_dir / name, self.ranks, base, tolerance=tolerance)
        self.unchanged.leave()
        return base[0]

    def make(
        self, what: str, given: Sequence[bytes], rows: int, totals: int, run: Callable[[], Found], *, keep: bool = True
    ) -> Found:
        """What a call finds, examples in the caller's order.

        Args:
            what: name of the call.
            given: everything that it depends on beside the tracer and its state.
            rows: rows of numbers per example.
            totals: sums over examples.
            run: computes this rank's part.
            keep: whether to look in the cache, and to keep what was found there.
        """
        if self.ranks.size == 1:  # else where a failure reaches the others
            self.unchanged.check()
        try:
            return self._made(what, given, rows, totals, run, self.cache if keep else None)
        finally:
            self.unchanged.leave()

    def _made(
        self, what: str, given: Sequence[bytes], rows: int, totals: int, run: Callable[[], Found], cache: Cache | None
    ) -> Found:
        key = key_of(what, *given, self.state.key(), self._batches)
        shapes: Shapes = {"each": (rows, sum(self.counts)), "sums": (totals,), **_shapes(self.own)}
        known = None if cache is None else cache.get(key, shapes)
        if known is not None:
            return self._recalled(known)
        before = self.cost.copy()

        def live() -> Found:
            self.unchanged.check()
            if self._resumed is not None:
                self.own._surviving(self._go_on)
            return self.own._surviving(run)

        found = self._gathered(f"{what} {key}", rows, totals, live)
        if cache is not None:
            cache.put(key, {"each": found.each, "sums": found.sums, **_record(self.cost - before, self.state)})
        return found

    def _gathered(self, call: str, rows: int, totals: int, run: Callable[[], Found]) -> Found:
        """What all ranks find; and how many batches they ran it in, since one that ran out of memory makes more."""

        def counted() -> Found:
            own = run()
            return Found(own.each, torch.cat([own.sums, own.sums.new_tensor([len(self.own._batches)])]))

        found = self.ranks.gathered(call, self.counts, rows, totals + 1, self.cost, counted)
        self._batches = int(found.sums[-1])
        return Found(found.each[:, self.order.to(found.each.device)], found.sums[:-1])

    def _go_on(self) -> None:
        if self._resumed is not None:
            self.own._go_on_from(self._resumed)
            self._resumed = None

    def resume(self, record: Values) -> None:
        """Go on after calls that are not made: charge them; what they stored is stored when something is computed."""
        flags = record["flags"].tolist()
        spent = zip(self.cost.numbers, record["cost"].tolist(), strict=True)
        self.cost.become(Cost(*(a + b for a, b in spent)))
        asked, tried, answered, early = flags
        self._resumed = RunState(asked, bool(tried), record["references"].numpy(), bool(answered), bool(early))

    def _recalled(self, known: Values) -> Found:
        self.resume(known)
        device = self.own.view.device
        return Found(known["each"].to(device), known["sums"].to(device))

    def forget(self) -> None:
        """Start from nothing stored."""
        self._resumed = None
        self.own._restarts.forget()


class Loop:
    """A solver's own loop over calls that are not kept one by one: its latest state, so that it goes on from there.

    Args:
        calls: of the tracers that it works on.
        what: everything that its course depends on.
    """

    def __init__(self, calls: Sequence[Calls], *what: Any) -> None:
        caches = [c.cache for c in calls if c.cache is not None]
        self._calls, self._file = calls, None
        if len(caches) == len(calls):
            cache, name = caches[0], digest_of([c.folder.name for c in caches], what)
            self._file = StateFile(cache.folder / f"{name}.state", cache.ranks, cache.every)
        self._began = [c.cost.copy() for c in calls]

    def read(self, expected: Shapes | None = None) -> Values | None:
        """The latest state, with what it has cost charged; None to begin at the beginning.

        Args:
            expected: shapes of the solver's own part, by name.
        """
        records = {f"{i}.{n}": s for i, calls in enumerate(self._calls) for n, s in _shapes(calls.own).items()}
        state = None if self._file is None else self._file.read({**records, **(expected or {})})
        if state is None:
            return None
        for i, calls in enumerate(self._calls):
            calls.resume({name: state.pop(f"{i}.{name}") for name in RECORD})
        return state

    def write(self, state: Callable[[], Values], *, now: bool = False) -> None:
        """Keep the state, if the last one is some seconds old, or ``now``."""
        if self._file is not None:
            self._file.write(lambda: state() | self._records(), now=now)

    def _records(self) -> Values:
        return {
            f"{i}.{name}": value
            for i, (calls, began) in enumerate(zip(self._calls, self._began, strict=True))
            for name, value in _record(calls.cost - began, calls.state).items()
        }


def name_of(own: Evaluator, state: ModelState, pairs: PromptPairs, parts: int) -> str:
    """The name of the folder of a tracer's results: another one wherever they may differ.

    Raises:
        TypeError: a metric, an intervention or a hook that another run cannot recognise.
    """
    held, device = own._engine.held, own.view.device.type
    versions = (__version__, installed_version(), torch.__version__)
    what = (pairs, own.groups, own.metric, own.intervention, own.dtype, device, parts, held and held.groups)
    return cache_name(state, *versions, *what)


RECORD = ("cost", "flags", "references")


def _record(cost: Cost, state: RunState) -> Values:
    return {
        "cost": torch.tensor(cost.numbers, dtype=torch.float64),
        "flags": torch.tensor([state.asked, state.tried, state.answered, state.early], dtype=torch.long),
        "references": torch.from_numpy(state.references),
    }


def _shapes(own: Evaluator) -> Shapes:
    return {"cost": (3,), "flags": (4,), "references": (None, len(own.groups))}
