"""Memory that ran out in the middle of a trace: telling it from other errors, and what to say when nothing helps."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

import torch

SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
"""What allocators write into a plain ``RuntimeError``; PyTorch's own on a CPU is one."""


class DoesNotFit(MemoryError):
    """Nothing is left that could be made smaller."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the host, where a smaller batch may help."""
    if isinstance(error, DoesNotFit):
        return False
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more, so that the next attempt finds it free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Return freed host memory to the system, where the C library (glibc) keeps it between other allocations."""
    with suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def does_not_fit(tokens: int, device: torch.device, limit: int, why: str) -> DoesNotFit:
    """The error of a single prompt pair that does not fit.

    Args:
        tokens: of its longest row.
        device: the model's.
        limit: bytes that stored activations may take.
        why: what the allocator said.
    """
    return DoesNotFit(
        f"one prompt pair of {tokens} tokens does not fit into the memory of {device} ({why.splitlines()[0]}). Give "
        f"a smaller memory_limit= (it is {limit} bytes), so that less is kept beside it; load the model with "
        "dtype=torch.bfloat16 or over several devices; or shorten the prompts."
    )
