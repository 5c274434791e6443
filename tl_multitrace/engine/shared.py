"""One call of a tracer, around the forward: from the disk where an earlier run computed it, else by all ranks.

The order is the same for every call: ask the cache, run this rank's batches (smaller ones where memory runs out), join
what all ranks found, put it into the caller's order, and keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_multitrace._version import __version__
from tl_multitrace.cost import Cost
from tl_multitrace.distributed import Found, Ranks
from tl_multitrace.engine.batches import Batches
from tl_multitrace.engine.cache import Cache, Shapes, StateFile, Values, key_of
from tl_multitrace.engine.identity import Unchanged, base_numbers, cache_name
from tl_multitrace.identity import digest_of
from tl_multitrace.models.compat import installed_version
from tl_multitrace.models.digest import ModelState
from tl_multitrace.prompts import PromptPairs


@dataclass(eq=False)
class SharedCalls:
    """Where the calls of one tracer go.

    Attributes:
        own: computes the examples of this process.
        ranks: the processes that share the prompts.
        counts: examples per rank.
        order: puts the examples of rank after rank into the caller's order.
        unchanged: holds the tracer to its model and metric.
        cache: results of earlier runs.
    """

    own: Batches
    ranks: Ranks
    counts: Sequence[int]
    order: Int[Tensor, " n"]
    unchanged: Unchanged
    cache: Cache | None = None

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        return self.own.runs.cost

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
            self.own.start()
            values = self.own.base_values
            return Found(torch.cat([values[None], base_numbers(self.own.base).to(values)]), torch.zeros(0))

        base = self.make("the base run", [], 4, 0, start, keep=False).each
        if cache_dir is not None and name is not None:
            tolerance = 2e-2 if self.own.runs.view.dtype in (torch.bfloat16, torch.float16) else 1e-4
            self.cache = Cache.of_base(cache_dir / name, self.ranks, base, tolerance=tolerance)
        self.unchanged.settle()
        return base[0]

    def make(
        self, what: str, given: Sequence[bytes], rows: int, totals: int, work: Callable[[], Found], *, keep: bool = True
    ) -> Found:
        """What a call finds, examples in the caller's order.

        Args:
            what: name of the call.
            given: everything that it depends on beside the tracer.
            rows: rows of numbers per example.
            totals: sums over examples.
            work: computes this rank's part.
            keep: whether to look in the cache, and to keep what was found there.
        """
        if self.ranks.size == 1:  # else where a failure reaches the others
            self.unchanged.check()
        cache, key = self.cache if keep else None, key_of(what, *given)
        shapes: Shapes = {"each": (rows, sum(self.counts)), "sums": (totals,), "cost": (3,)}
        known = None if cache is None else cache.get(key, shapes)
        if known is not None:
            self.charge(known)
            device = self.own.runs.view.device
            return Found(known["each"].to(device), known["sums"].to(device))
        before, found, error = self.cost.copy(), None, None
        try:
            self.unchanged.check()
            for attempt in self.own.attempts():
                with attempt:
                    found = work()
        except Exception as failed:
            error = failed
        finally:
            self.unchanged.leave()
        joined = self.ranks.joined(f"{what} {key}", self.counts, rows, totals, self.cost, before, found, error)
        joined = Found(joined.each[:, self.order.to(joined.each.device)], joined.sums)
        if cache is not None:
            cache.put(key, {"each": joined.each, "sums": joined.sums, "cost": _numbers(self.cost - before)})
        return joined

    def charge(self, known: Values) -> None:
        """Add what a call that is not made cost when it was."""
        spent = zip(self.cost.numbers, known["cost"].tolist(), strict=True)
        self.cost.become(Cost(*(a + b for a, b in spent)))


class Loop:
    """A solver's own loop over calls that are not kept one by one: its latest state, so that it goes on from there.

    Args:
        calls: of the tracers that it works on.
        what: everything that its course depends on.
    """

    def __init__(self, calls: Sequence[SharedCalls], *what: Any) -> None:
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
        costs: Shapes = {f"{i}.cost": (3,) for i in range(len(self._calls))}
        state = None if self._file is None else self._file.read({**costs, **(expected or {})})
        if state is None:
            return None
        for i, calls in enumerate(self._calls):
            calls.charge({"cost": state.pop(f"{i}.cost")})
        return state

    def write(self, state: Callable[[], Values], *, now: bool = False) -> None:
        """Keep the state, if the last one is some seconds old, or ``now``."""
        if self._file is not None:
            self._file.write(lambda: state() | self._costs(), now=now)

    def _costs(self) -> Values:
        pairs = zip(self._calls, self._began, strict=True)
        return {f"{i}.cost": _numbers(calls.cost - began) for i, (calls, began) in enumerate(pairs)}


def name_of(own: Batches, state: ModelState, pairs: PromptPairs, parts: int) -> str:
    """The name of the folder of a tracer's results: another one wherever they may differ.

    Raises:
        TypeError: a metric, an intervention or a hook that another run cannot recognise.
    """
    runs = own.runs
    versions = (__version__, installed_version(), torch.__version__)
    what = (pairs, runs.groups, own.metric, runs.intervention, runs.dtype, runs.view.device.type, parts)
    return cache_name(state, *versions, *what, runs.frozen_groups)


def _numbers(cost: Cost) -> Tensor:
    return torch.tensor(cost.numbers, dtype=torch.float64)
