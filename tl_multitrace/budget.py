"""How much memory a trace may take, and what that leaves for a batch."""

from __future__ import annotations

import torch

from tl_multitrace.compat import ModelView
from tl_multitrace.groups import HookGroups
from tl_multitrace.rows import Rows

DEFAULT_LIMIT = {"cpu": 2 << 30, "cuda": 8 << 30}
"""Bytes of stored activations by device type."""

ACTIVATIONS = {"cpu": 256 << 20, "cuda": 4 << 30}
"""Bytes of activations that one forward may keep for its backward, by device type; at most half the limit."""

TILE_TOKENS = {"cpu": 512, "cuda": 16384}
"""Tokens per forward up to which several masks share a batch."""

FORWARD_TOKENS = {"cpu": 24, "cuda": 4096}
"""Tokens that take as long as starting a forward does."""


def default_batch_size(view: ModelView, rows: Rows, limit: int) -> int:
    """Prompt pairs per forward, so that what a backward needs fits."""
    width = rows.base.shape[1]
    per_token = view.n_layers * (14 * view.d_model + 3 * view.d_mlp + 2 * view.n_heads * width) * 4
    budget = min(limit // 2, ACTIVATIONS.get(view.device.type, 256 << 20))
    fitting = max(1, min(budget // max(1, per_token * width), 2048 // width or 1))
    return max(1, int(fitting * rows.n_examples // len(rows)))


def block_input_bytes(view: ModelView, rows: Rows, groups: HookGroups) -> int:
    """Bytes of the block inputs that evaluations restart from, one per first block of a group."""
    layers = len({int(layer) for layer in groups.first_layers} - {0})
    size = torch.empty((), dtype=view.dtype).element_size()
    return int(layers * rows.base.numel() * view.d_model * size)
