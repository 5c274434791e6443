"""Old names that still work for a while, and say so where the caller sees it.

Python hides ``DeprecationWarning`` outside ``__main__``, so a notebook that imports a helper never shows it. What is
said here is a ``FutureWarning``: shown by default, once per place, at the line that uses the old name.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["deprecated", "renamed", "renamed_argument"]


def deprecated(instead: str, *, removed_in: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Mark a function or method as one that goes away; it works as before, with a ``FutureWarning`` for each caller.

    Args:
        instead: what to type in its place, such as ``"mt.select"``.
        removed_in: the release that no longer has it, such as ``"0.3"``.

    Examples:
        >>> import warnings
        >>> from tl_multitrace.deprecation import deprecated
        >>> @deprecated("sum", removed_in="0.3")
        ... def total(values):
        ...     return sum(values)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     total([1, 2])
        3
        >>> print(caught[0].message)
        total is deprecated and will be removed in tl_multitrace 0.3: use sum.
    """

    def mark(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def old(*args: Any, **kwargs: Any) -> T:
            _warn(function.__qualname__.rpartition("<locals>.")[2], instead, removed_in)
            return function(*args, **kwargs)

        return old

    return mark


def renamed_argument(old: str, new: str, *, removed_in: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take an argument by its old name, with a ``FutureWarning``.

    Args:
        old: the name that goes away.
        new: the name of the argument.
        removed_in: the release that no longer takes the old one.

    Raises:
        TypeError: when the function is called with both names; and when it is marked, if it has no argument ``new``.

    Examples:
        >>> import warnings
        >>> from tl_multitrace.deprecation import renamed_argument
        >>> @renamed_argument("k", "budget", removed_in="0.3")
        ... def choose(budget):
        ...     return budget
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     choose(k=3)
        3
        >>> print(caught[0].message)
        the argument k of choose is deprecated and will be removed in tl_multitrace 0.3: use budget.
    """

    def mark(function: Callable[P, T]) -> Callable[P, T]:
        name = function.__qualname__.rpartition("<locals>.")[2]
        if new not in inspect.signature(function).parameters:
            raise TypeError(f"{name} has no argument {new!r} to stand for {old!r}.")

        @functools.wraps(function)
        def takes_old(*args: Any, **kwargs: Any) -> T:
            if old in kwargs:
                if new in kwargs or new in _by_place(function, len(args)):
                    raise TypeError(f"{name} got both {new!r} and its old name {old!r}: pass {new!r} alone.")
                _warn(f"the argument {old} of {name}", new, removed_in)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return takes_old

    return mark


def renamed(module: str, names: Mapping[str, tuple[str, Any]], *, removed_in: str) -> Callable[[str], Any]:
    """What a module assigns to ``__getattr__`` so that its old names still work, with a ``FutureWarning``.

    Args:
        module: the module's ``__name__``.
        names: old name to ``(new name, value)``.
        removed_in: the release that no longer has the old names.

    Raises:
        AttributeError: from what it returns, for a name that the module neither has nor had.

    Examples:
        >>> import warnings
        >>> from tl_multitrace.deprecation import renamed
        >>> lookup = renamed("tools", {"chooser": ("select", sorted)}, removed_in="0.3")
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     lookup("chooser") is sorted
        True
        >>> print(caught[0].message)
        tools.chooser is deprecated and will be removed in tl_multitrace 0.3: use tools.select.
    """

    def lookup(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, value = names[name]
        _warn(f"{module}.{name}", f"{module}.{new}", removed_in)
        return value

    return lookup


def _by_place(function: Callable[..., Any], given: int) -> list[str]:
    """Names of the arguments that were passed without a name."""
    return list(inspect.signature(function).parameters)[:given]


def _warn(old: str, new: str, removed_in: str) -> None:
    """Warn at the line that used the old name: above this function and the wrapper that calls it."""
    text = f"{old} is deprecated and will be removed in tl_multitrace {removed_in}: use {new}."
    warnings.warn(text, FutureWarning, stacklevel=3)
