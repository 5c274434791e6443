"""What a function's code holds and reads, of which :mod:`tl_multitrace.identity` makes its digest."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from typing import Any


def functions_in(value: Any) -> tuple[Any, ...]:
    """The functions behind an attribute of a class: of a property, a class method, a cached property; else itself."""
    if isinstance(value, property):
        return tuple(part for part in (value.fget, value.fset) if part is not None)
    if isinstance(value, classmethod | staticmethod):
        return (value.__func__,)
    if isinstance(value, functools.cached_property):
        return (value.func,)
    return (value,)


def code_parts(code: types.CodeType) -> Iterator[bytes]:
    """Everything in a code object that decides about what it computes: neither its file nor its lines."""
    yield from (code.co_name.encode(), code.co_code, repr((code.co_varnames, code.co_names)).encode())
    yield repr((code.co_freevars, code.co_cellvars, code.co_argcount, code.co_flags)).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_parts(constant)
        else:
            yield f"{type(constant).__name__} {_ordered(constant)!r}".encode()


def _ordered(constant: Any) -> Any:
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant


def read_by(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Globals and modules that some code reads, and the names that it may ask modules for."""
    read, names = set(), set(code.co_names)
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"):
            read.add(str(step.argval))
    for constant in code.co_consts:
        if isinstance(constant, str):
            names.add(constant)
        elif isinstance(constant, types.CodeType):
            inner, more = read_by(constant)
            read, names = read | inner, names | more
    return read, names


def written_by(code: types.CodeType) -> set[str]:
    """Globals and closed-over variables that some code assigns to itself, such as a counter of its calls."""
    own = set(code.co_freevars)
    steps = [(step.opname, str(step.argval)) for step in dis.get_instructions(code)]
    found = {name for kind, name in steps if kind == "STORE_GLOBAL" or (kind == "STORE_DEREF" and name in own)}
    inner = (written_by(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return found.union(*inner)
