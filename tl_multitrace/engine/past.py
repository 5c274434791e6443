"""Keys and values of a run, so that another run can restart at a later token.

Both kinds of model take them in a cache of their own: ``HookedTransformer`` in TransformerLens' cache, a bridge in
Hugging Face's. Here they are plain tensors per layer, cut to what a run needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.cost import HookError
from tl_multitrace.models.compat import ModelView
from tl_multitrace.rows import rows_on

KeysValues = tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]


@dataclass(frozen=True)
class Past:
    """Keys and values of some rows.

    Attributes:
        view: the model.
        layers: per layer, as the model's own cache lays them out.
        axis: their position axis.
    """

    view: ModelView
    layers: tuple[KeysValues, ...]
    axis: int

    @classmethod
    def record(cls, view: ModelView, rows: int, run: Callable[[Any], Any]) -> Past:
        """The keys and values of a run.

        Args:
            view: the model.
            rows: rows of that run.
            run: runs the model with the (empty) cache that it is given.
        """
        if view.is_bridge:
            cache, seen = _recorder()
            run(cache)
            silent = [layer for layer in range(view.n_layers) if layer not in seen]
            if silent:
                raise HookError(f"the attention of layer {silent[0]} stores no keys and values")
            return cls(view, tuple(seen[layer] for layer in range(view.n_layers)), axis=2)
        cache = _hooked_cache(view, rows)
        run(cache)
        return cls(view, tuple((e.past_keys, e.past_values) for e in cache.entries), axis=1)

    def cache(self, rows: slice | Int[Tensor, " b"], column: int, k: int) -> Any:
        """A cache of the model's own kind that holds the positions before ``column``, for ``k`` copies of some rows."""
        cut = [(self._cut(keys, rows, column, k), self._cut(values, rows, column, k)) for keys, values in self.layers]
        return _filled_bridge_cache(cut) if self.view.is_bridge else _filled_hooked_cache(self.view, cut)

    def _cut(self, value: Tensor, rows: slice | Int[Tensor, " b"], column: int, k: int) -> Tensor:
        part = value[rows_on(value.device, rows)].narrow(self.axis, 0, column)
        if part.device.type != self.view.device.type:  # kept in host memory
            part = part.to(self.view.device, non_blocking=True)
        return part.repeat(k, *[1] * (part.ndim - 1))

    def room_for(self, rows: int, width: int, device: torch.device | None) -> Past:
        """Zeros for so many rows and positions, laid out like these, on a device or where these are."""
        pinned = device is not None and device.type == "cpu" and self.view.device.type == "cuda"

        def zeros(value: Tensor) -> Tensor:
            shape = [rows, *value.shape[1:]]
            shape[self.axis] = width
            return torch.zeros(shape, dtype=value.dtype, device=device or value.device, pin_memory=pinned)

        return Past(self.view, tuple((zeros(k), zeros(v)) for k, v in self.layers), self.axis)

    def put(self, rows: slice | Int[Tensor, " b"], part: Past) -> None:
        """Write a run's keys and values at some rows, from the first position on."""
        for mine, theirs in zip(self.layers, part.layers, strict=True):
            for place, value in zip(mine, theirs, strict=True):
                room = place.narrow(self.axis, 0, value.shape[self.axis])
                room[rows_on(place.device, rows)] = value.to(place.device)


def keys_width(view: ModelView) -> int:
    """Width of a layer's keys, of all heads together; under grouped queries they are fewer than the query heads."""
    return int(getattr(view.model.cfg, "n_key_value_heads", None) or view.n_heads) * view.d_head


def _recorder() -> tuple[Any, dict[int, KeysValues]]:
    """An empty Hugging Face cache, and where it notes what it was given."""
    from transformers import DynamicCache

    seen: dict[int, KeysValues] = {}

    class Recorder(DynamicCache):  # type: ignore[misc]
        def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            seen[layer] = (keys.detach(), values.detach())
            return super().update(keys, values, layer, *args, **kwargs)

    return Recorder(), seen


def _filled_bridge_cache(layers: list[KeysValues]) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(layers):
        cache.update(keys, values, layer)
    return cache


def _hooked_cache(view: ModelView, rows: int) -> Any:
    try:
        from transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache as Cache
    except ImportError:  # its name since 3.0
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Cache
    return Cache.init_cache(view.model.cfg, view.device, rows)


def _filled_hooked_cache(view: ModelView, layers: list[KeysValues]) -> Any:
    rows, column = layers[0][0].shape[:2]
    cache = _hooked_cache(view, rows)
    for entry, (keys, values) in zip(cache.entries, layers, strict=True):
        entry.past_keys, entry.past_values = keys, values
    cache.previous_attention_mask = torch.ones(rows, column, dtype=torch.long, device=view.device)
    cache.freeze()
    return cache
