"""Models whose weights lie elsewhere until they are needed: accelerate's offloading to host memory or disk.

Such a weight is a placeholder on the "meta" device; a hook on its module fetches the values for each forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first weight is, or where its forward runs if it is offloaded."""
    first: torch.device = next(model.parameters()).device
    if first.type != "meta":
        return first
    for module in model.modules():
        for hook in _hooks(module):
            if getattr(hook, "execution_device", None) is not None:
                return _as_device(hook.execution_device)
    return first


def weights_of(model: nn.Module) -> dict[str, Any]:
    """A model's state with the values of offloaded weights.

    Raises:
        ValueError: weights without values.
    """
    state: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    empty = [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]
    if not empty:
        return state
    kept = dict(placeholders(model))
    missing = [name for name in empty if id(state[name]) not in kept]
    if missing:
        raise ValueError(
            f"the weight {missing[0]} has no values: it is on the meta device ({len(missing)} weights are). Load the "
            "weights, or offload them with accelerate, which keeps them."
        )
    return state | {name: kept[id(state[name])] for name in empty}


def placeholders(model: nn.Module) -> Iterator[tuple[int, Tensor]]:
    """Values of offloaded weights, by the identity of their placeholders."""
    for module in model.modules():
        for hook in _hooks(module):
            kept = getattr(hook, "weights_map", None)
            for name, placeholder in module.named_parameters(recurse=False):
                if kept is not None and name in kept:
                    yield id(placeholder), kept[name]


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook])) if hook is not None else []


def _as_device(place: Any) -> torch.device:
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
