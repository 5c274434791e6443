"""Fields of a result that are measured when they are first read, so that taking the result runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


class WhenRead:
    """A field that may hold a function in the place of its value: it is called at the first read, once."""

    def __init__(self, name: str, default: Any) -> None:
        self.name, self.default = name, default

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        if owner is None:
            return self.default
        if callable(vars(owner)[self.name]):
            vars(owner)[self.name] = vars(owner)[self.name]()
        return vars(owner)[self.name]

    def __set__(self, owner: Any, value: Any) -> None:
        vars(owner)[self.name] = value


def when_read(*names: str) -> Callable[[type[R]], type[R]]:
    """A dataclass whose fields of these names may be measured when they are read; see :func:`later`."""

    def changed(kind: type[R]) -> type[R]:
        for name in names:
            setattr(kind, name, WhenRead(name, getattr(kind, name)))
        return kind

    return changed


def later(result: R, measures: dict[str, Callable[[], Any]]) -> R:
    """The result, with the functions that measure some of its fields in the place of these."""
    vars(result).update(measures)
    return result
