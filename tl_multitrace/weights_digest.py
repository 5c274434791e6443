"""A short name for a set of weights, so that a result says which it was measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def weights_digest(weights: Mapping[str, Any]) -> str:
    """SHA-256 prefix over names, shapes, samples and sums of the weights; any retrained weight changes it."""
    total = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            continue
        flat = weight.detach().flatten()
        step = max(1, flat.numel() // 256)
        sample = flat[::step][:256].float().cpu()
        total.update(f"{name}{tuple(weight.shape)}{float(flat.double().sum()):.9e}".encode())
        total.update(sample.numpy().tobytes())
    return total.hexdigest()[:16]
