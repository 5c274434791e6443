"""What the process around a call has set up and a result must not depend on: torch's modes, defaults, other threads.

A call runs with inference mode and the caller's autocast off, float32 and the CPU as defaults, and alone on its model:
another thread waits until it is done. Weights made under inference mode, of which nothing can be differentiated, are
replaced by copies for as long as it lasts. What is given with such tensors in it is copied once (:func:`usable`).
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from tl_multitrace.cost import HookError
from tl_multitrace.models.digest import modules_of, pinned, watched

logger = logging.getLogger(__name__)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu")
"""Device types that autocast may be on for."""


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """A call on a model: no other thread's in between, and nothing of what the caller's process has switched on.

    Calls nest. Where the model is watched, its state is that of the beginning of the outermost until that ends, so that
    hooks attached in between are not taken for the user's.

    Args:
        model: a TransformerLens model.
    """
    with lock_of(model), neutral(), pinned(model), _differentiable(model):
        yield


def call(method: F) -> F:
    """A method that runs in :func:`alone`, on the ``model`` of its object or, when that is made, its first argument."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **options: Any) -> Any:
        model = vars(self).get("model", args[0] if args else options.get("model"))
        if not isinstance(model, nn.Module):  # the method says what is wrong with it
            return method(self, *args, **options)
        _ = watched(model)  # from before any hook is attached
        with alone(model):
            return method(self, *args, **options)

    return cast(F, run)


# ---------------------------------------------------------------------- threads

_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


def lock_of(model: nn.Module) -> Any:
    """The lock of a model, or of the model that a bridge wraps: hooks, flags and weights are those of both."""
    wrapped = vars(model).get("original_model")
    with _GUARD:
        return _LOCKS.setdefault(wrapped if isinstance(wrapped, nn.Module) else model, threading.RLock())


def _after_fork() -> None:
    """A child process has one thread, and nobody in it who could release what another thread held."""
    global _GUARD
    _GUARD = threading.Lock()
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ---------------------------------------------------------------------- hooks

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, list[tuple[Any, Any]]] = weakref.WeakKeyDictionary()


@contextmanager
def attached_now(model: nn.Module, hooks: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Remember hooks of a session, as ``(hook point, handle)``, so that :func:`check_attached` can look for them."""
    own = _ATTACHED.setdefault(model, [])
    own += hooks
    try:
        yield
    finally:
        del own[len(own) - len(hooks) :]  # sessions on one model nest


def check_attached(model: nn.Module) -> None:
    """Check before a forward that nobody has taken off the hooks of an open session.

    Raises:
        HookError: somebody has.
    """
    gone = [point for point, handle in _ATTACHED.get(model, ()) if not any(handle is h for h in point.fwd_hooks)]
    if gone:
        raise HookError(
            f"{len(gone)} hooks of an open session, first that at {gone[0].name}, are no longer on the model: "
            "model.reset_hooks() takes off everybody's. End the session before it (a new one puts its hooks back), or "
            "use model.hooks(...) for hooks of your own, which come off by themselves."
        )


# ---------------------------------------------------------------------- modes


@contextmanager
def neutral() -> Iterator[None]:
    """Torch as it is in a fresh process: no inference mode, no autocast, float32 and the CPU by default.

    Whether gradients are recorded is left as it is: the engine switches them on where it needs them. The default dtype
    is of the whole process: where another thread has another one, it sees float32 for as long as this lasts.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in DEVICES:
            if _autocasts(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def _autocasts(device: str) -> bool:
    try:
        return bool(torch.is_autocast_enabled(device))
    except (RuntimeError, TypeError):  # a build of torch that does not know the device
        return False


# ---------------------------------------------------------------------- inference tensors


def usable(thing: T) -> T:
    """The same thing with tensors that can take part in a gradient: those made under inference mode are copied.

    Args:
        thing: a tensor, or prompts, groups, a metric or an intervention with tensors in their fields.
    """
    with torch.inference_mode(False):
        found: T = _copied(thing, 0)
    return found


def _copied(thing: Any, depth: int) -> Any:
    if isinstance(thing, Tensor):
        return thing.clone() if thing.is_inference() else thing
    if depth > 4:
        return thing
    if type(thing) in (list, tuple):
        made = [_copied(item, depth + 1) for item in thing]
        return thing if all(a is b for a, b in zip(made, thing, strict=True)) else type(thing)(made)
    if isinstance(thing, Mapping):
        own = {key: _copied(value, depth + 1) for key, value in thing.items()}
        return thing if all(own[key] is thing[key] for key in own) else own
    if is_dataclass(thing) and not isinstance(thing, type):
        now = {f.name: getattr(thing, f.name) for f in fields(thing) if f.init}
        changed = {name: made for name, value in now.items() if (made := _copied(value, depth + 1)) is not value}
        return replace(thing, **changed) if changed else thing
    return thing


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Copies in the place of weights made under inference mode, which no gradient can pass."""
    places = _inference_weights(model)
    copies = {id(t): _copy(t) for _, _, t in places}
    if copies:
        size = sum(t.numel() * t.element_size() for t in copies.values()) / 2**20
        logger.info("the model was made under torch.inference_mode(): its weights are copied (%.0f MiB)", size)
    for table, name, tensor in places:
        table[name] = copies[id(tensor)]
    try:
        yield
    finally:
        for table, name, tensor in places:
            if table.get(name) is copies[id(tensor)]:
                table[name] = tensor


def _inference_weights(model: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Where such weights are: table, name and tensor; tied ones at every place."""
    if not any(weight.is_inference() for weight in model.parameters()):
        return []
    found = []
    for module in modules_of(model).values():
        for table in (module._parameters, module._buffers, vars(module)):
            found += [(table, k, t) for k, t in table.items() if isinstance(t, Tensor) and t.is_inference()]
    return found


def _copy(tensor: Tensor) -> Tensor:
    made = tensor.detach().clone()
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
