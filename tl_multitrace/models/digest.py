"""What a model computes, as a digest: weights of every dtype, configuration, code, adapters and hooks.

A digest reads everything and costs a good part of a second on a hundred million weights, so it is taken once and kept
until a look at the model shows a change. The look costs milliseconds: which objects stand in every module's attributes,
parameters and hooks, each tensor's version, and a sample of its numbers with at least one of every row and every column
(edits through ``tensor.data`` leave the version as it was).
"""

from __future__ import annotations

import dis
import functools
import itertools
import operator
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tl_multitrace.identity import Telling, Untellable, is_library
from tl_multitrace.models.offload import placeholders
from tl_multitrace.tensors import hashed, sample, tensor_digest

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

STRUCTURE = frozenset(("real_components", "submodules"))
"""Where a TransformerLens model lists its own modules once more."""

PLACE = frozenset(
    "_name_or_path name_or_path model_name tokenizer_name tokenizer _tokenizer processor device n_devices "
    "tokenizer_prepends_bos tokenizer_appends_eos default_prepend_bos default_padding_side generation_config "
    "_commit_hash transformers_version use_cache seed init_weights initializer_range adapter _driver _hf_hook "
    "_old_forward to cuda npu xpu mlu musa sdaa _capture_hook_handles checkpoint_value checkpoint_label_type "
    "_is_hf_initialized hf_device_map architectures model_type dtype torch_dtype".split()
)
"""Attributes that say where a model came from or where it is, not what it computes."""


INTERNAL = frozenset(vars(nn.Module())) | {"fwd_hooks", "bwd_hooks", "ctx"} | STRUCTURE | PLACE
"""Attributes of modules that are read on their own, or that no forward depends on."""

OFFLOADED = INTERNAL | {"forward"}
"""The same where accelerate's own forward fetches weights, and then runs the one that was there."""


@dataclass(frozen=True, eq=False)
class ModelState:
    """What a model computes at one time.

    Attributes:
        parts: digests by what they are of, such as ``"weights of blocks.0.attn"``.
        untold: ``(place, object, reason)`` of what cannot be told from another in another process.
    """

    parts: dict[str, bytes]
    untold: tuple[tuple[str, Any, str], ...] = ()

    @property
    def digest(self) -> str:
        """Equal where the parts are; what cannot be told counts by its type alone."""
        return hashed(*itertools.chain(*((k.encode(), v) for k, v in sorted(self.parts.items())))).hex()[:16]

    @property
    def identity(self) -> str:
        """The digest, where everything that the model depends on can be told.

        Raises:
            TypeError: something cannot.
        """
        if self.untold:
            raise Untellable(self.untold[0][2])
        return self.digest

    def same(self, other: ModelState) -> bool:
        """Whether both are of one computation in this process."""
        ours, theirs = ([thing for _, thing, _ in state.untold] for state in (self, other))
        return self.parts == other.parts and len(ours) == len(theirs) and all(map(operator.is_, ours, theirs))

    def changes(self, other: ModelState) -> list[str]:
        """What differs in another state, in words; at least one entry where the two are not the same."""
        names = [k for k in self.parts.keys() | other.parts.keys() if self.parts.get(k) != other.parts.get(k)]
        return sorted(names) or [place for place, _, _ in (*other.untold, *self.untold)][:1]


def watched(model: nn.Module) -> Watched:
    """What is known of a model's state, one object per model for as long as somebody holds it."""
    found = _WATCHED.get(id(model))
    if found is None or found.model is not model:
        found = _WATCHED[id(model)] = Watched(model)
    return found


# ---------------------------------------------------------------------- reading


def read(model: nn.Module) -> ModelState:
    """A model's state, read anew."""
    modules = modules_of(model)
    known = {id(module): name for name, module in modules.items()}
    known |= {id(notes): "notes" for module in modules.values() for notes in _notes(module)}
    telling = Telling(known, PLACE | STRUCTURE, settings=settings_of, refuse=False)
    parts: dict[str, bytes] = {}
    offloaded = dict(placeholders(model))
    own = {id(t) for module in modules.values() for t in (*module._parameters.values(), *module._buffers.values())}
    for place, module in modules.items():
        parts[f"weights of {place}"] = _weights(module, offloaded)
        for name, value in settings_of(module).items():
            # a second name of a weight, or of what stands for one that is elsewhere: read as a weight
            again = isinstance(value, Tensor) and (value.is_meta or id(value) in own)
            parts[_part(place, name)] = b"a weight" if again else telling.of(value, place)
        parts[f"code of {place}"] = telling.of(type(module), f"the class of {place}")
        hooks = [_hooks(module, kind) for kind in HOOKS]
        if any(hooks):
            parts[f"hooks at {place}"] = telling.of(hooks, f"a hook at {place}")
    parts["hooks on every module"] = telling.of([list(hooks.values()) for hooks in _global_hooks()], "a global hook")
    return ModelState({k: v for k, v in parts.items() if v}, tuple(telling.untold))


def _hooks(module: nn.Module, kind: str) -> list[Any]:
    """Hooks of a module, but those that a bridge puts on the model it wraps, some of them at its first forward."""
    found = getattr(module, kind).values()
    return [h for h in found if type(module).__name__ == "HookPoint" or not _is_plumbing(h)]


WRITES = frozenset("append appendleft extend insert add update setdefault pop clear".split())


def _notes(module: nn.Module) -> list[Any]:
    """Lists, mappings and sets that a module's hooks write to.

    They count as what the hooks note, not as what they compute from: a hook that records activations changes them in
    every run, and the model not at all.
    """
    hooks = itertools.chain.from_iterable(_hooks(module, kind) for kind in HOOKS)
    return [notes for hook in hooks for notes in _written(hook)]


def _written(hook: Any, depth: int = 4) -> list[Any]:
    """The containers that a hook, or a function that it closes over, writes to; a notebook's are globals."""
    if isinstance(hook, functools.partial | types.MethodType) and depth:
        return _written(getattr(hook, "func", None) or getattr(hook, "__func__", None), depth - 1)
    if not isinstance(hook, types.FunctionType) or not depth:
        return []
    steps = [(step.opname, step.argval) for step in dis.get_instructions(hook)]
    writes = any(name in ("STORE_SUBSCR", "DELETE_SUBSCR") or value in WRITES for name, value in steps)
    names = {str(value) for name, value in steps if name == "LOAD_GLOBAL"}
    mine = [] if is_library(hook.__module__) else [hook.__globals__.get(name) for name in names]
    read = _Cells(hook).values() + mine
    own = [c for c in read if isinstance(c, list | dict | set)] if writes else []
    return own + [notes for c in read for notes in _written(c, depth - 1)]


def _is_plumbing(hook: Any) -> bool:
    module = str(getattr(getattr(hook, "__func__", hook), "__globals__", {}).get("__name__"))
    return module.partition(".")[0] in ("transformer_lens", "transformers", "accelerate")


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, with those of a wrapped model that a bridge does not count among its own."""
    named = {name or "the model": module for name, module in model.named_modules()}
    wrapped = vars(model).get("original_model")
    if isinstance(wrapped, nn.Module):
        own = set(map(id, named.values()))
        named |= {f"original_model.{name}": m for name, m in wrapped.named_modules() if id(m) not in own}
    return named


def _weights(module: nn.Module, offloaded: dict[int, Tensor]) -> bytes:
    found = []
    for name, tensor in itertools.chain(module._parameters.items(), module._buffers.items()):
        if tensor is not None:
            found += [name.encode(), _memoised(offloaded.get(id(tensor), tensor))]
    return hashed(*found) if found else b""


def _part(place: str, attribute: str) -> str:
    return f"settings of {place}: {attribute}"


_NOTED: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
"""Attributes that modules have been seen to write in a forward (:meth:`Watched.settled`)."""


def settings_of(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes that a forward may depend on.

    Private ones of the libraries' modules are notes made during a forward, and hook points have no others.
    """
    if type(module).__name__ == "HookPoint":
        return {}
    private = type(module).__module__.partition(".")[0] in ("transformer_lens", "transformers")
    skipped = (OFFLOADED if "_hf_hook" in vars(module) else INTERNAL) | _NOTED.get(module, set())
    return {k: v for k, v in vars(module).items() if k not in skipped and not (private and k[0] == "_")}


def _global_hooks() -> list[Any]:
    module = nn.modules.module
    return [module._global_forward_pre_hooks, module._global_forward_hooks, module._global_backward_hooks]


# ---------------------------------------------------------------------- large tensors, read once

LARGE = 1 << 20
_DIGESTS: dict[tuple[Any, ...], bytes] = {}
MOST_DIGESTS = 4096


def _memoised(tensor: Tensor) -> bytes:
    """A tensor's digest; of a large one that is where it was, as it was, the one taken before."""
    small = tensor.numel() < LARGE or tensor.is_inference()
    taken = None if small else sample(tensor)
    if taken is None:
        return tensor_digest(tensor)
    where = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor._version)
    key = (*where, tensor_digest(taken.contiguous()))
    if key not in _DIGESTS:
        if len(_DIGESTS) >= MOST_DIGESTS:
            _DIGESTS.clear()
        _DIGESTS[key] = tensor_digest(tensor)
    return _DIGESTS[key]


# ---------------------------------------------------------------------- looking


@dataclass(eq=False)
class Watched:
    """A model and its state when it was last looked at.

    Attributes:
        model: any module.
        pins: calls that go on, during which nothing is looked at.
    """

    model: nn.Module
    pins: int = 0
    _state: ModelState | None = None
    _look: _Look | None = None

    def state(self) -> ModelState:
        """The present state; cheap where nothing has changed since it was last asked for."""
        if self._state is not None and (self.pins or (self._look is not None and self._look.unchanged())):
            return self._state
        with torch.inference_mode(False), torch.no_grad():
            found = read(self.model)
            self._look = _Look(self.model)
        if self._state is None or not self._state.same(found):
            self._state = found
        return self._state

    def settled(self) -> ModelState:
        """The state after first runs: what modules wrote about themselves in them, such as a counter, is no setting.

        What else has changed meanwhile, such as a weight, stays as it was here, so that the next look shows it.
        """
        if self._state is None or self._look is None or self._look.unchanged():
            return self.state()
        before, noted = self._state, set[str]()
        with torch.inference_mode(False), torch.no_grad():
            now = read(self.model).parts
            for place, module in modules_of(self.model).items():
                for name in settings_of(module):
                    if now[_part(place, name)] != before.parts.get(_part(place, name)):
                        _NOTED.setdefault(module, set()).add(name)
                        noted.add(_part(place, name))
            was, found = ({k: v for k, v in parts.items() if k not in noted} for parts in (before.parts, now))
            self._state = ModelState(was, before.untold) if noted else before
            self._look = _Look(self.model) if was == found else None
        return self._state


@contextmanager
def pinned(model: nn.Module) -> Iterator[None]:
    """For the duration, a model that is watched has the state of the start: hooks that come and go do not count."""
    seen = _WATCHED.get(id(model))
    if seen is None or seen.model is not model:
        yield
        return
    seen.state()
    seen.pins += 1
    try:
        yield
    finally:
        seen.pins -= 1


@dataclass(eq=False)
class _Look:
    """The objects that make up a model, kept so that none of their ids is given to another."""

    model: nn.Module
    containers: list[Any] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    versions: list[Any] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        modules = list(modules_of(self.model).values())
        for module in modules:
            self.containers += [getattr(module, kind) for kind in HOOKS]
            for hook in itertools.chain(*(getattr(module, kind).values() for kind in HOOKS)):
                notes = set(map(id, _written(hook)))
                self.containers += [c for c in _nested(hook) if id(c) not in notes]
            if type(module).__name__ == "HookPoint":  # hundreds, of which nothing but their hooks is ever changed
                continue
            self.containers += [_Settings(module), module._parameters, module._buffers, module._modules]
            for value in settings_of(module).values():
                self.containers += _nested(value)
        kinds = {cls for module in modules for cls in type(module).__mro__ if issubclass(cls, nn.Module)}
        self.containers += [vars(cls) for cls in kinds - {nn.Module}] + _global_hooks()
        self.containers = list({id(c): c for c in self.containers}.values())
        self.entries = self._entries()
        self.tensors = [t for t in {id(t): t for t in self.entries if isinstance(t, Tensor)}.values() if not t.is_meta]
        self.versions, self.samples = self._versions(), self._samples()

    def _entries(self) -> list[Any]:
        found: list[Any] = []
        for container in self.containers:
            found += container if isinstance(container, list | tuple | set) else container.values()
        return found

    def _versions(self) -> list[Any]:
        return [(t.data_ptr(), t.shape, t.dtype, 0 if t.is_inference() else t._version) for t in self.tensors]

    def _samples(self) -> list[Tensor]:
        """One row of numbers per device and width: few, since each costs a call."""
        parts: dict[Any, list[Tensor]] = {}
        for tensor in self.tensors:
            taken = sample(tensor)
            if taken is not None:
                parts.setdefault((taken.device, taken.dtype), []).append(taken)
        return [torch.cat(part) for part in parts.values()]

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        with torch.no_grad(), torch.inference_mode(False):
            now = self._entries()
            same = len(now) == len(self.entries) and all(map(operator.is_, now, self.entries))
            if not same or self._versions() != self.versions:
                return False
            samples = self._samples()
            return len(samples) == len(self.samples) and all(map(torch.equal, samples, self.samples))


@dataclass(eq=False)
class _Settings:
    """A module's settings as they are now."""

    module: nn.Module

    def values(self) -> Iterable[Any]:
        return settings_of(self.module).values()


@dataclass(eq=False)
class _Cells:
    """What a function closes over."""

    function: types.FunctionType

    def values(self) -> list[Any]:
        found = []
        for cell in self.function.__closure__ or ():
            with suppress(ValueError):  # empty as yet
                found.append(cell.cell_contents)
        return found


def _nested(value: Any, depth: int = 6) -> list[Any]:
    """The containers in an attribute of a module: of lists, mappings, closures, and of objects like configurations."""
    if isinstance(value, nn.Module | Tensor | type | str) or depth == 0:
        return []
    if isinstance(value, types.FunctionType):
        cells = _Cells(value)
        return [cells, *_within(cells.values(), depth)] if value.__closure__ else []
    if isinstance(value, functools.partial):
        return _within([value.func, *value.args, *value.keywords.values()], depth)
    if isinstance(value, types.MethodType):
        return _within([value.__func__, value.__self__], depth)
    if isinstance(value, dict):
        return [value, *_within(value.values(), depth)]
    if isinstance(value, list | tuple | set):
        return [value, *_within(value, depth)]
    own = getattr(value, "__dict__", None)
    return _nested(own, depth - 1) if isinstance(own, dict) else []


def _within(values: Iterable[Any], depth: int) -> list[Any]:
    return list(itertools.chain.from_iterable(_nested(value, depth - 1) for value in values))


_WATCHED: weakref.WeakValueDictionary[int, Watched] = weakref.WeakValueDictionary()
