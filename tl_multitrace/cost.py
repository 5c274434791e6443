"""What a trace costs, and how it can fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


class HookError(RuntimeError):
    """A hook point did not behave: it did not fire, fired twice, or ignores what a hook returns.

    Examples:
        >>> issubclass(mt.HookError, RuntimeError)
        True
    """


class NonFiniteError(ArithmeticError):
    """A number became NaN or infinite; the message names the batch, the hook and the example.

    Examples:
        >>> try:
        ...     tracer.on(metric=lambda out, base: out.scores()[:, 0] / 0)
        ... except mt.NonFiniteError as error:
        ...     print(str(error).partition(",")[0])
        the metric of the base run is not finite in batch 0
    """


@dataclass
class Cost:
    """What a trace has cost so far.

    Attributes:
        forwards: forward passes over the whole prompt set; a restart from layer k of L counts (L - k) / L.
        backwards: backward passes to the mask, counted alike (one costs about 0.9 of a forward with frozen weights).
        seconds: time spent inside them.
        off: optimisations that this model does not allow, with the reason of each: runs were whole there.

    Examples:
        >>> before = tracer.cost.copy()
        >>> _ = tracer.effect(["L0H3"])
        >>> tracer.cost.equivalents - before.equivalents
        1.0
    """

    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0
    off: tuple[str, ...] = ()

    @property
    def equivalents(self) -> float:
        """Forward equivalents: forwards + backwards."""
        return self.forwards + self.backwards

    def __sub__(self, other: Cost) -> Cost:
        forwards, backwards = self.forwards - other.forwards, self.backwards - other.backwards
        return Cost(forwards, backwards, self.seconds - other.seconds, self.off)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Forwards, backwards, seconds."""
        return self.forwards, self.backwards, self.seconds

    def become(self, other: Cost) -> None:
        """Take over the numbers of ``other``; what is off stays off."""
        self.forwards, self.backwards, self.seconds = other.forwards, other.backwards, other.seconds

    def copy(self) -> Cost:
        """A snapshot."""
        return Cost(*self.numbers, self.off)


@dataclass
class Ledger:
    """What every tracer costs that was made while the ledger was open, by whoever, until now.

    Tracers count forwards over their own prompts; here the unit is a run of one prompt pair, so that tracers on
    different prompts add up.

    Attributes:
        entries: cost and prompt pairs of every tracer.
    """

    entries: list[tuple[Cost, int]] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Enter every tracer that is made in the block; ledgers nest."""
        token = _ledgers.set((*_ledgers.get(), self))
        try:
            yield
        finally:
            _ledgers.reset(token)

    def total(self) -> Cost:
        """Runs of single prompt pairs so far, and seconds."""
        return Cost(
            sum((cost.forwards * n for cost, n in self.entries), 0.0),
            sum((cost.backwards * n for cost, n in self.entries), 0.0),
            sum((cost.seconds for cost, _ in self.entries), 0.0),
        )


_ledgers: ContextVar[tuple[Ledger, ...]] = ContextVar("ledgers", default=())


def new_cost(n: int) -> Cost:
    """An empty cost of a tracer on ``n`` prompt pairs, entered into every open ledger."""
    cost = Cost()
    for ledger in _ledgers.get():
        ledger.entries.append((cost, n))
    return cost
