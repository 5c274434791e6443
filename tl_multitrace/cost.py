"""What a trace costs, and how it can fail."""

from __future__ import annotations

from dataclasses import dataclass


class HookError(RuntimeError):
    """A hook point did not behave: it did not fire, fired twice, or ignores what a hook returns."""


class NonFiniteError(ArithmeticError):
    """A number became NaN or infinite; the message names the batch, the hook and the example."""


@dataclass
class Cost:
    """What a trace has cost so far.

    Attributes:
        forwards: forward passes over the whole prompt set; a restart from layer k of L counts (L - k) / L.
        backwards: backward passes to the mask, counted alike (one costs about 0.9 of a forward with frozen weights).
        seconds: time spent inside them.
    """

    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0

    @property
    def equivalents(self) -> float:
        """Forward equivalents: forwards + backwards."""
        return self.forwards + self.backwards

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.forwards - other.forwards, self.backwards - other.backwards, self.seconds - other.seconds)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Forwards, backwards, seconds."""
        return self.forwards, self.backwards, self.seconds

    def become(self, other: Cost) -> None:
        """Take over another's numbers."""
        self.forwards, self.backwards, self.seconds = other.forwards, other.backwards, other.seconds

    def copy(self) -> Cost:
        """A snapshot."""
        return Cost(self.forwards, self.backwards, self.seconds)
