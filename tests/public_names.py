"""What the package offers: every public name with its owner, its docstring and the source that it stands in."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "tl_multitrace"

# The packages whose ``__all__`` is public. `groups` is one in the file system only: its names are the root's.
ROOMS = [
    "tl_multitrace",
    *(
        f"tl_multitrace.{room}"
        for room in (
            "causal_trace",
            "demo",
            "evaluation",
            "flow",
            "interop",
            "metrics",
            "objective",
            "render",
            "reproduce",
            "solvers",
            "tasks",
            "tasks.readers",
        )
    ),
]


@dataclass(frozen=True)
class Public:
    """One public name, where it is defined.

    Attributes:
        name: as a user writes it, such as ``tl_multitrace.solvers.Choice``.
        what: the object itself.
        doc: its docstring; of a constant the string under it.
    """

    name: str
    what: Any
    doc: str

    @property
    def is_class(self) -> bool:
        return inspect.isclass(self.what)


def under_constants(path: Path) -> dict[str, str]:
    """The strings under the constants of a module, by the constant's name."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = {}
    for node, after in itertools.pairwise(body):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[target.id] = inspect.cleandoc(str(after.value.value))
    return found


@functools.cache
def constants() -> dict[str, str]:
    """Strings under the constants of every module; a constant of two modules has the docstring of the last."""
    return {name: doc for path in sorted(PACKAGE.rglob("*.py")) for name, doc in under_constants(path).items()}


def own_doc(what: Any) -> str:
    """The docstring of this object, not one that it inherits."""
    return inspect.cleandoc(what.__doc__ or "")


@functools.cache
def public_names() -> tuple[Public, ...]:
    """Every public name once."""
    found: dict[int, Public] = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            what = getattr(module, name)
            if inspect.ismodule(what) or name.startswith("__") or id(what) in found:
                continue
            called = inspect.isclass(what) or inspect.isroutine(what)
            doc = own_doc(what) if called else constants().get(name, "")
            found[id(what)] = Public(f"{room}.{name}", what, doc)
    return tuple(found.values())


def unwrapped(member: Any) -> Any:
    """The function behind a property, class method or cached property; None where there is none."""
    if isinstance(member, property):
        return member.fget
    inner = getattr(member, "__func__", None) or getattr(member, "func", None) or member
    return inner if inspect.isfunction(inner) else None


def methods(owner: Public) -> Iterator[Public]:
    """The public methods and properties that a public class defines itself."""
    for name, member in vars(owner.what).items():
        function = unwrapped(member)
        if function is None or name.startswith("_") or function.__qualname__ != f"{owner.what.__qualname__}.{name}":
            continue
        yield Public(f"{owner.name}.{name}", function, own_doc(function))


def every_method() -> tuple[Public, ...]:
    """The public methods of all public classes."""
    return tuple(m for owner in public_names() if owner.is_class for m in methods(owner))
