"""Stable digests: equal in another process where two things compute the same, different where they may not.

Values count by content, functions and classes of a library by name and version, everybody else's by their code and by
whatever that code reads: defaults, closures, module constants and the helpers it calls. What can neither be read nor
pickled (a lock, a generator, an open file) cannot be told from another and is refused.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl_multitrace.bytecode import code_parts, functions_in, read_by, written_by
from tl_multitrace.tensors import hashed, tensor_digest

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
OWN = "tl_multitrace"

MOST = 50_000
"""Objects that a digest may be made of; more hang on a closure over something that was hardly meant."""

MADE = frozenset("__dict__ __weakref__ __module__ __doc__ __annotations__ __annotate__ __annotate_func__".split())
MADE |= frozenset("__dataclass_fields__ __dataclass_params__ __match_args__ __firstlineno__ __orig_bases__".split())
MADE |= frozenset("__static_attributes__ __parameters__ __abstractmethods__ _abc_impl __qualname__ __slots__".split())
MADE |= frozenset("__annotations_cache__ __type_params__ __init_subclass__ __jaxtyping__".split())
"""Of a class: what Python writes into it and no computation reads."""

PARTS = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
NOTES = frozenset(vars(torch.nn.Module()))
"""Attributes of every module; those above count, the rest says how it trains, saves and loads."""

GENERATED = frozenset("__init__ __repr__ __eq__ __hash__ __lt__ __le__ __gt__ __ge__ __setattr__ __delattr__".split())
"""What ``dataclass`` writes, from fields that count themselves."""


def digest_of(*things: Any) -> str:
    """A digest that is the same in another process where the things are, and another one where they differ.

    Raises:
        TypeError: something cannot be told from another; the message says what, why, and what to do.
    """
    return Telling().of(things, "it").hex()


def is_library(module: str | None) -> bool:
    """Whether a module is installed, so that name and version say what is in it, rather than somebody's own file."""
    return _is_library((module or "builtins").partition(".")[0])


@functools.lru_cache(maxsize=4096)
def _is_library(root: str) -> bool:
    if root == "__main__":  # a script or a notebook, whatever file started it
        return False
    if root in (OWN, "builtins") or root in sys.stdlib_module_names:
        return True
    file = str(getattr(sys.modules.get(root), "__file__", None) or "")
    if not file:  # a namespace package
        file = str(next(iter(getattr(sys.modules.get(root), "__path__", ())), ""))
    return any(part in ("site-packages", "dist-packages") for part in PurePath(file).parts)


class Untellable(TypeError):
    """Whether something is the same in another process cannot be told."""


_NOTHING = object()


def _attribute(thing: Any, name: str) -> Any:
    """An attribute, or nothing where reading it fails: a configuration may refuse what differs between its layers."""
    try:
        return getattr(thing, name)
    except Exception:  # whatever a stranger's class raises; what it holds stands in its __dict__ too
        return _NOTHING


class Telling:
    """Digests of values and code; one object per digest, so that what occurs twice is read once.

    Args:
        known: names of objects by ``id`` that stand for themselves, such as the modules of a model.
        skip: attributes of objects that do not count.
        settings: what of a module's own attributes counts, beside its weights, parts and hooks.
        refuse: whether to raise where something cannot be told; else it counts by its type, and is noted in
            :attr:`untold` where it is code or read by code.
    """

    def __init__(
        self,
        known: Mapping[int, str] | None = None,
        skip: frozenset[str] = frozenset(),
        *,
        settings: Callable[[torch.nn.Module], Mapping[str, Any]] = vars,
        refuse: bool = True,
    ) -> None:
        self.untold: list[tuple[str, Any, str]] = []
        self._known, self._skip, self._settings, self._refuse = known or {}, skip, settings, refuse
        self._in_code = 0
        self._done: dict[int, bytes] = {}
        self._kept: list[Any] = []  # an id is free again once its object is gone

    def of(self, thing: Any, where: str) -> bytes:
        """The digest of one thing.

        Args:
            thing: anything.
            where: its place, for the message of a refusal.

        Raises:
            TypeError: it cannot be told from another.
        """
        if type(thing) in PLAIN:
            return hashed(type(thing).__name__.encode(), repr(thing).encode())
        number = id(thing)
        if number in self._known:
            return hashed(b"known", self._known[number].encode())
        if number not in self._done:
            self._kept.append(thing)
            self._done[number] = b"itself"  # what refers to itself on the way
            self._done[number] = self._told(thing, where)
        return self._done[number]

    def _told(self, thing: Any, where: str) -> bytes:
        if self._refuse and len(self._kept) > MOST:
            raise _untellable(thing, where, f"it hangs together with more than {MOST} objects")
        try:
            return hashed(*self._parts(thing, where))
        except Untellable as error:
            if self._refuse:
                raise
            if self._in_code or callable(thing):  # a lock or a logger elsewhere takes no part in a computation
                self.untold.append((where, thing, str(error)))
            return hashed(b"untold", type(thing).__qualname__.encode())

    def _parts(self, thing: Any, where: str) -> Iterator[bytes]:
        """A thing piece by piece, its type first."""
        kind = type(thing)
        if isinstance(thing, Tensor):
            yield tensor_digest(thing)
        elif isinstance(thing, np.ndarray | np.generic) and thing.dtype != object:
            values = np.ascontiguousarray(thing)
            yield from (b"array", str(values.dtype).encode(), str(np.shape(thing)).encode(), values.tobytes())
        elif isinstance(thing, torch.dtype | torch.device | torch.layout | PurePath):
            yield from (kind.__name__.encode(), str(thing).encode())
        elif isinstance(thing, Enum):
            yield from (b"enum", self.of(kind, where), thing.name.encode(), self.of(thing.value, where))
        elif isinstance(thing, type):
            yield from self._class(thing, where)
        elif isinstance(thing, types.ModuleType):
            yield from (b"module", thing.__name__.encode())
        elif isinstance(thing, slice | range):
            yield from (kind.__name__.encode(), *(self.of(x, where) for x in (thing.start, thing.stop, thing.step)))
        elif kind in (list, tuple, dict, set, frozenset, types.MappingProxyType):
            yield from self._container(thing, where)
        elif isinstance(thing, weakref.ReferenceType):
            yield from (b"reference", self.of(thing(), where))
        elif isinstance(thing, torch.nn.Module):
            yield from self._module(thing, where)
        elif callable(thing) and (found := self._callable(thing, where)) is not None:
            yield from found
        else:
            yield from self._object(thing, where)

    # ------------------------------------------------------------------ values

    def _container(self, thing: Any, where: str) -> Iterator[bytes]:
        yield type(thing).__name__.encode()
        if isinstance(thing, set | frozenset):
            yield from sorted(self.of(item, where) for item in thing)
        elif isinstance(thing, list | tuple):
            yield from (self.of(item, f"{where}[{i}]") for i, item in enumerate(thing))
        else:
            for key, value in sorted(thing.items(), key=lambda item: repr(item[0])):
                if key not in self._skip:
                    yield from (self.of(key, where), self.of(value, f"{where}[{key!r}]"))

    def _object(self, thing: Any, where: str) -> Iterator[bytes]:
        """An instance: its class, and its state as pickle would take it."""
        kind, known = type(thing), self._named_state(thing)
        if kind.__module__.partition(".")[0] == OWN and not is_dataclass(kind):
            raise _untellable(thing, where, "it holds a run in progress")
        yield self.of(kind, where)
        if known is None:
            yield from self._reduced(thing, where)
            return
        notes = kind.__module__.startswith("transformer_lens.")  # made during a forward
        for name, value in sorted(known.items()):
            if name not in self._skip and not (notes and name[0] == "_"):
                yield from (name.encode(), self.of(value, f"{kind.__name__}.{name}"))

    @staticmethod
    def _named_state(thing: Any) -> dict[str, Any] | None:
        """Attributes of an instance of a class without a pickle of its own; of a dataclass, those that it compares."""
        kind = type(thing)
        if is_dataclass(kind):
            unequal = {f.name for f in fields(kind) if not f.compare and kind.__module__.partition(".")[0] == OWN}
            own = {f.name: _attribute(thing, f.name) for f in fields(kind)}
            own = {name: value for name, value in own.items() if value is not _NOTHING}
            return {k: v for k, v in (own | dict(getattr(thing, "__dict__", {}))).items() if k not in unequal}
        plain = not any(name in vars(cls) for cls in kind.__mro__[:-1] for name in ("__reduce__", "__reduce_ex__"))
        if plain and hasattr(thing, "__dict__") and kind.__basicsize__ <= _BARE and not _slots(kind):
            return dict(vars(thing))
        return None

    def _reduced(self, thing: Any, where: str) -> Iterable[bytes]:
        try:
            found = thing.__reduce_ex__(4)
        except Exception as error:  # whatever a stranger's class raises
            raise _untellable(thing, where, (str(error) or type(error).__name__).splitlines()[0]) from None
        if isinstance(found, str):
            return (b"name", found.encode())
        make, arguments, *rest = found
        state = [list(part) if i and part is not None else part for i, part in enumerate(rest[:3])]
        return (self.of(make, where), self.of(arguments, where), self.of(state, where))

    def _module(self, module: torch.nn.Module, where: str) -> Iterator[bytes]:
        """A neural network that is not part of the model at hand, such as a probe that a metric holds."""
        yield self.of(type(module), where)
        parts = {name: getattr(module, name) for name in PARTS} | dict(self._settings(module))
        for name, value in sorted(parts.items()):
            if name in PARTS or (name not in NOTES and name not in self._skip):
                yield from (name.encode(), self.of(value, f"{type(module).__name__}.{name}"))

    # ------------------------------------------------------------------ code

    def _callable(self, thing: Any, where: str) -> Iterator[bytes] | None:
        """Parts of a function of any kind; None for an instance that can be called."""
        original = getattr(thing, "_torchdynamo_orig_callable", None)
        if original is not None:
            return iter((b"compiled", self.of(original, where)))
        if isinstance(thing, types.FunctionType):
            return self._function(thing, where)
        if isinstance(thing, types.MethodType):
            return iter((b"method", self.of(thing.__func__, where), self.of(thing.__self__, where)))
        if isinstance(thing, functools.partial):
            return iter((b"partial", self.of([thing.func, thing.args, thing.keywords], where)))
        if isinstance(thing, types.BuiltinFunctionType | types.MethodWrapperType):
            owner = thing.__self__
            bound = b"" if owner is None or isinstance(owner, types.ModuleType) else self.of(owner, where)
            return iter((b"builtin", _name_of(thing), bound))
        if isinstance(thing, types.MethodDescriptorType | types.WrapperDescriptorType):
            return iter((b"builtin", _name_of(thing)))
        if isinstance(thing, functools._lru_cache_wrapper):
            return iter((b"cached", self.of(thing.__wrapped__, where)))
        if isinstance(thing, torch.jit.ScriptFunction):
            return iter((b"script", str(thing.code).encode()))
        if type(thing).__module__ == "torch._ops":
            return iter((b"operator", str(thing).encode()))
        return None

    def _function(self, fn: types.FunctionType, where: str) -> Iterator[bytes]:
        if is_library(fn.__module__) and _reached(fn.__module__, fn.__qualname__) is fn:
            yield from (b"named", _name_of(fn), _version(fn.__module__))
            return
        self._in_code += 1
        try:
            yield from self._function_parts(fn, f"{fn.__qualname__} (in {where})" if where else fn.__qualname__)
        finally:
            self._in_code -= 1

    def _function_parts(self, fn: types.FunctionType, where: str) -> Iterator[bytes]:
        yield from (b"function", *code_parts(fn.__code__))
        yield self.of([fn.__defaults__, fn.__kwdefaults__], f"a default of {where}")
        notes = written_by(fn.__code__)  # what it notes is no part of what it computes from
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            if name in notes:
                continue
            with suppress(ValueError):  # empty as yet
                yield from (name.encode(), self.of(cell.cell_contents, f"{name}, which {where} reads,"))
        if vars(fn):
            yield self.of(dict(vars(fn)), f"an attribute of {where}")
        if not is_library(fn.__globals__.get("__name__")):
            yield from self._globals(fn, where)

    def _globals(self, fn: types.FunctionType, where: str) -> Iterator[bytes]:
        """What a function reads of its module, and of other modules of the user's."""
        read, names = read_by(fn.__code__)
        for name in sorted(read - written_by(fn.__code__)):
            value = fn.__globals__.get(name, sys.modules.get(name))
            if isinstance(value, types.ModuleType):
                yield from self._of_module(value, names, where)
            elif name in fn.__globals__:
                yield from (name.encode(), self.of(value, f"{name}, which {where} reads,"))

    def _of_module(self, module: types.ModuleType, names: set[str], where: str) -> Iterator[bytes]:
        yield from (module.__name__.encode(), _version(module.__name__))
        if is_library(module.__name__):
            return
        for name in sorted(names & vars(module).keys()):
            value, place = vars(module)[name], f"{module.__name__}.{name}, which {where} reads,"
            if isinstance(value, types.ModuleType):
                if value is not module:
                    yield from (name.encode(), value.__name__.encode(), *self._of_module_once(value, names, where))
            else:
                yield from (name.encode(), self.of(value, place))

    def _of_module_once(self, module: types.ModuleType, names: set[str], where: str) -> Iterator[bytes]:
        if id(module) not in self._done:
            self._kept.append(module)
            self._done[id(module)] = b"module"
            yield from self._of_module(module, names, where)

    def _class(self, kind: type, where: str) -> Iterator[bytes]:
        yield from (b"class", kind.__qualname__.encode())
        own = vars(kind)
        if is_library(kind.__module__):
            yield from (_name_of(kind), _version(kind.__module__))
            own = types.MappingProxyType({name: value for name, value in own.items() if _put_in(value)})
            bases = [base for base in kind.__mro__[1:] if is_library(base.__module__)] if own else []
        else:
            bases = [base for base in kind.__bases__ if base is not object]
        yield from (self.of(base, where) for base in bases)
        for name, value in sorted(own.items()):
            if name in MADE or isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
                continue
            for part in functions_in(value):
                if name not in GENERATED or getattr(getattr(part, "__code__", None), "co_filename", "") != "<string>":
                    yield from (name.encode(), self.of(part, f"{kind.__name__}.{name}"))


# ---------------------------------------------------------------------- helpers


def _untellable(thing: Any, where: str, why: str) -> Untellable:
    return Untellable(
        f"{where} is a {type(thing).__name__}, and whether it is the same in another run cannot be told ({why}), so "
        "nothing that depends on it can be kept on disk. Give plain values, arrays or functions instead (a metric: a "
        "function of what it is given, or a frozen dataclass, a subclass of tl_multitrace.metric_base.Metric), or "
        "leave cache_dir out."
    )


_BARE = type("Bare", (), {}).__basicsize__
"""Bytes of an instance with nothing but attributes."""


def _slots(kind: type) -> bool:
    return any(getattr(cls, "__slots__", ()) for cls in kind.__mro__)


def _name_of(thing: Any) -> bytes:
    module = getattr(thing, "__module__", None) or getattr(getattr(thing, "__self__", None), "__name__", "")
    return f"{module}.{getattr(thing, '__qualname__', '')}".encode()


def _version(module: str) -> bytes:
    return str(getattr(sys.modules.get(module.partition(".")[0]), "__version__", "")).encode()


def _reached(module: str | None, name: str) -> Any:
    """What a name leads to today, which need not be what it was made as."""
    found: Any = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _put_in(value: Any) -> bool:
    """Whether what stands in an installed class is code of somebody else."""
    parts = [part for part in functions_in(value) if isinstance(part, types.FunctionType)]
    return any(not is_library(part.__module__) for part in parts)
