"""Progress bars: what is being done, how far it is, the effect and the cost so far, and the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
Numbers = Callable[[], dict[str, float | None]]

SECONDS_BETWEEN_LINES = 15.0
"""In a file every update of a bar is a line: a job on a cluster writes few of them."""


def bar(total: int | None, what: str, show: bool | None, *, leave: bool = False) -> Any:
    """A progress bar (``tqdm.auto``), silent unless asked for; a context manager with ``update(n)``.

    Args:
        total: steps, which the time left is estimated from; None where nobody knows.
        what: is being done.
        show: whether to show it.
        leave: keep the finished bar.
    """
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    every = 0.1 if watched else SECONDS_BETWEEN_LINES
    return tqdm(total=total, desc=what, disable=not show, leave=leave, mininterval=every)


def tell(shown: Any, **numbers: float | None) -> None:
    """Put numbers behind a bar, such as ``effect=`` and ``cost=``; what is not known yet is left out."""
    if shown.disable:
        return
    text = {
        name: f"{value:.0f}" if name == "cost" else f"{value:.3g}"
        for name, value in numbers.items()
        if value is not None
    }
    shown.set_postfix(text, refresh=False)


def ticking(shown: Any, numbers: Numbers) -> Callable[[int], None]:
    """``update(n)`` of a bar that also renews the numbers behind it."""

    def tick(n: int) -> None:
        if not shown.disable:
            tell(shown, **numbers())
        shown.update(n)

    return tick


def track(items: Sequence[Item], what: str, show: bool | None, numbers: Numbers) -> Iterator[Item]:
    """The items, with a bar over them."""
    with bar(len(items), what, show) as shown:
        tick = ticking(shown, numbers)
        for item in items:
            yield item
            tick(1)


class Ticks:
    """A progress bar's update: this rank's values as they come, the others' at the end."""

    def __init__(self, tick: Callable[[int], object] | None, total: int) -> None:
        self._tick, self._left = tick or (lambda _: None), total

    def __call__(self, count: int) -> None:
        """Count values that were just found."""
        self._tick(min(count, self._left))
        self._left -= min(count, self._left)

    def finish(self) -> None:
        """Count what is left."""
        if self._left:
            self(self._left)
