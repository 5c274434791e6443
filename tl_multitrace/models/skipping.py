"""Running a bridge from a later block on: the blocks before it made identities, and put back.

``TransformerBridge.start_at_layer`` still runs the blocks before it (4.x) or does not exist (3.x). So ``forward`` is
shadowed on the instances, and the stored residual put in their place. Each gives what the block itself gives (a tensor,
a tuple or a list), with this hidden state in it; whether that is enough for a model is tried (``engine.trials``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

_containers: WeakKeyDictionary[Any, dict[int, Callable[[Tensor], Any]]] = WeakKeyDictionary()


@contextmanager
def blocks_skipped(model: Any, start_layer: int, residual: Tensor) -> Iterator[None]:
    """Blocks before ``start_layer`` (at least 1) left out; that block gets ``residual``. A whole run comes first."""
    like = _containers[model]

    def identity(layer: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return like[layer](args[0] if args else kwargs["hidden_states"])

        return forward

    blocks = list(model.blocks)
    try:
        for layer, block in enumerate(blocks[: start_layer - 1]):
            block.__dict__["forward"] = identity(layer)
        last = like[start_layer - 1](residual)
        blocks[start_layer - 1].__dict__["forward"] = lambda *args, **kwargs: last
        yield
    finally:
        for block in blocks[:start_layer]:
            block.__dict__.pop("forward", None)


@contextmanager
def noted(model: Any) -> Iterator[None]:
    """In a bridge's first whole run, note what each block's output looks like."""
    if not hasattr(model, "original_model") or model in _containers:
        yield
        return
    found: dict[int, Callable[[Tensor], Any]] = {}

    def noter(layer: int) -> Callable[..., None]:
        def note(module: Any, args: Any, output: Any) -> None:
            found[layer] = _container_like(output)

        return note

    handles = [block.register_forward_hook(noter(layer)) for layer, block in enumerate(model.blocks)]
    try:
        yield
        _containers[model] = found
    finally:
        for handle in handles:
            handle.remove()


def _container_like(output: Any) -> Callable[[Tensor], Any]:
    """What makes an output like a block's from a hidden state; what else was in it is None."""
    if not isinstance(output, list | tuple):
        return lambda hidden: hidden
    kind, size = type(output), len(output)
    at = next((i for i, part in enumerate(output) if isinstance(part, Tensor)), 0)
    return lambda hidden: kind(hidden if i == at else None for i in range(size))
