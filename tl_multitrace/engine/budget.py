"""How much memory a trace may take, and what that leaves for a batch.

What is measured here is rounded down to a power of two before it decides anything. Batch sizes and restarts move a
result by a rounding error, and this way they follow from the machine's size and not from what else runs on it. Traces
that need less than half a gibibyte come out alike on every machine that has one to spare.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch

from tl_multitrace.engine.sources import Place
from tl_multitrace.engine.step_bytes import StepBytes
from tl_multitrace.models.memory import available
from tl_multitrace.rows import Rows

SHARE = 0.6
"""Of what is free, how much stored activations and one batch may take; the rest is headroom."""

ACTIVATIONS = {"cpu": 256 << 20, "cuda": 4 << 30}
"""Bytes of activations that one forward may keep for its backward, by device type; at most half the limit."""

BATCH_TOKENS = 2048
"""Tokens per forward at most: beyond it a larger batch is no faster."""

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
UNITS["Ti"] = 1 << 40


def bytes_from(limit: int | float | str) -> int:
    """A number of bytes, or text such as ``"6GiB"``, ``"512 MB"`` or ``"1.5g"``.

    ``KiB``, ``MiB``, ``GiB`` and ``TiB`` are powers of 1024, ``kB``, ``MB``, ``GB`` and ``TB`` of 1000; the B may be
    left out.

    Raises:
        ValueError: something else.
    """
    if isinstance(limit, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", limit, re.IGNORECASE)
        if found and not (found[3] and not found[2]):
            return int(float(found[1]) * UNITS[found[2].upper() + found[3].lower()])
    elif not isinstance(limit, bool) and limit >= 0:
        return int(limit)
    raise ValueError(f'memory limit {limit!r} is no number of bytes: write one such as 6_000_000_000, or "6GiB".')


@dataclass(frozen=True)
class Limits:
    """Bytes that stored activations and one batch may take together.

    Attributes:
        device: on the model's device.
        host: in host memory, beside a GPU; 0 for a model that is itself there.
    """

    device: int
    host: int = 0

    @classmethod
    def of(cls, device: torch.device, given: int | str | None = None) -> Limits:
        """What was given, in each of the two memories; else what is measured."""
        beside = device.type not in ("cpu", "mps")  # whose memory is the host's
        if given is not None:
            return cls(bytes_from(given), bytes_from(given) if beside else 0)
        return cls(measured_limit(device), measured_limit("cpu") if beside else 0)


def measured_limit(device: torch.device | str) -> int:
    """A share of a device's free memory, rounded down to a power of two.

    Processes that ``torchrun`` started beside this one measure the same free host memory, and share it.
    """
    beside = torch.device(device).type != "cuda"  # a GPU is one process's own
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if beside else 1
    return power_of_two(SHARE * available(device) / max(1, processes))


def power_of_two(value: float) -> int:
    """The largest power of two that is not above a number; 0 below 1."""
    return 1 << (int(value).bit_length() - 1) if value >= 1 else 0


@dataclass
class Room:
    """What is left of the limits while places are given out.

    Attributes:
        limits: bytes that may be taken.
        device: bytes left on the model's device.
        host: bytes left in host memory, beside a GPU.
    """

    limits: Limits
    device: int = 0
    host: int = 0

    def __post_init__(self) -> None:
        self.device, self.host = self.limits.device, self.limits.host

    def take(self, size: int) -> Place:
        """The fastest memory that has room, which is then taken; ``"none"`` where there is none."""
        if size <= self.device:
            self.device -= size
            return "device"
        if size <= self.host:
            self.host -= size
            return "host"
        return "none"


def batch_size_for(rows: Rows, step: StepBytes, limit: int, kind: str) -> int:
    """Prompt pairs per forward, so that what a backward needs fits.

    Args:
        rows: all rows.
        step: what one prompt pair takes.
        limit: bytes for everything.
        kind: device type.
    """
    per_row = max(1, step.backward // step.rows)
    fitting = max(1, min(step_budget(limit, kind) // per_row, BATCH_TOKENS // rows.base.shape[1] or 1))
    return max(1, int(fitting * rows.n_examples // len(rows)))


def step_budget(limit: int, kind: str) -> int:
    """Bytes for one batch."""
    return min(limit // 2, ACTIVATIONS.get(kind, ACTIVATIONS["cpu"]))
