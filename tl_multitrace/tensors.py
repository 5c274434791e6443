"""Digests of tensors: exact ones, the same on every device, and samples that are cheap enough for every call."""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 16
"""Numbers per partial sum of a digest, on whatever device a tensor is."""

SMALL, MOST = 1 << 12, 1 << 13
"""Numbers up to which a sample is the whole tensor, and about the most that it has."""


def hashed(*parts: bytes) -> bytes:
    """A digest of byte strings, their lengths included."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.digest()[:16]


def tensor_digest(tensor: Tensor) -> bytes:
    """Digest of a tensor's type, shape and bits, the same on every device; any changed number changes it."""
    values, kind = _bits(tensor), f"tensor {tensor.dtype} {tuple(tensor.shape)}".encode()
    if values is None:
        return hashed(kind, b"no values")
    weights = _weights(values.device)
    chunk = BLOCK * (1 if values.device.type == "cpu" else 1024)  # few launches there, no large copies here
    sums = [_sums(part.to(torch.int32), weights) for part in values.split(chunk)]
    return hashed(kind, torch.cat(sums).cpu().numpy().tobytes())


def _sums(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of blocks; weights are odd, so that no change of one number is lost modulo 2^32."""
    if len(values) < BLOCK:
        return (values * weights[: len(values)]).sum()[None]
    whole = len(values) // BLOCK * BLOCK
    found = (values[:whole].view(-1, BLOCK) * weights).sum(1)
    return found if whole == len(values) else torch.cat([found, _sums(values[whole:], weights)])


@functools.lru_cache(maxsize=16)
def _weights(device: torch.device) -> Tensor:
    drawn = np.random.default_rng(0).integers(-(2**31), 2**31, BLOCK, dtype=np.int64).astype(np.int32) | 1
    return torch.from_numpy(drawn).to(device)


def _bits(tensor: Tensor) -> Tensor | None:
    """A tensor's numbers as integers in a row; None for a placeholder without values."""
    if tensor.is_meta:
        return None
    values = tensor.detach()
    if values.is_quantized:
        values = values.int_repr()
    if values.layout != torch.strided:
        values = values.to_dense()
    if hasattr(values, "__tensor_flatten__"):
        names, _ = values.__tensor_flatten__()
        inner = [bits for name in names if (bits := _bits(getattr(values, name))) is not None]
        return torch.cat([part.to(torch.int32) for part in inner]) if inner else None
    values = values.resolve_conj().resolve_neg().contiguous().view(-1)
    return values.view(_integers(values))


def _integers(values: Tensor) -> torch.dtype:
    return {1: torch.uint8, 2: torch.int16}.get(values.element_size(), torch.int32)


def sample(tensor: Tensor) -> Tensor | None:
    """Some of a tensor's numbers, without a copy; of a matrix up to 8,192 wide, one of every row and column.

    None where they cannot be read without computing.
    """
    values = tensor.detach()
    if values.is_meta or values.is_quantized or values.layout != torch.strided or not values.numel():
        return None
    if hasattr(values, "__tensor_flatten__"):
        return None
    span = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    step = _step(span, values.shape[-1] if values.ndim else 1)
    return values.as_strided((-(-span // step),), (step,), values.storage_offset())


def _step(n: int, columns: int) -> int:
    """Distance between samples that share no factor with the row length, so that they walk through all columns."""
    if n <= SMALL:
        return 1
    rows = max(1, n // max(1, columns))
    wanted = max(min(rows, columns), n // MOST)
    return next(step for step in range(max(1, wanted), 0, -1) if math.gcd(step, columns) == 1 or columns <= 1)
