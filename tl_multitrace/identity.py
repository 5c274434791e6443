"""When two things are the same in another process: digests of models, prompts, groups, metrics and interventions."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None))
OWN = "tl_multitrace"


def digest_of(*things: Any) -> str:
    """A digest that is the same in another process where the things are, and another one where they differ.

    Dataclasses count with all their fields, and with their source code where they are not this package's.

    Raises:
        TypeError: something that cannot be told from another, such as a function.
    """
    total = hashlib.sha256()
    for part in _parts(things, "it"):
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:32]


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


def _parts(thing: Any, where: str) -> Iterable[bytes]:
    """A thing as bytes, piece by piece, each with its type."""
    if isinstance(thing, PLAIN):
        yield f"{type(thing).__name__} {thing!r}".encode()
    elif isinstance(thing, torch.dtype | torch.device):
        yield str(thing).encode()
    elif isinstance(thing, Tensor | np.ndarray):
        values = torch.as_tensor(thing).detach().cpu().contiguous()
        yield f"tensor {values.dtype} {tuple(values.shape)}".encode()
        yield values.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(thing, Mapping):
        yield f"mapping {len(thing)}".encode()
        for key in sorted(thing, key=repr):
            yield from _parts(key, where)
            yield from _parts(thing[key], f"{where}[{key!r}]")
    elif isinstance(thing, list | tuple | range | slice):
        items = (thing.start, thing.stop, thing.step) if isinstance(thing, slice) else tuple(thing)
        yield f"{type(thing).__name__} {len(items)}".encode()
        for i, item in enumerate(items):
            yield from _parts(item, f"{where}[{i}]")
    elif isinstance(thing, set | frozenset):
        yield b"set"
        yield from _parts(sorted(thing, key=repr), where)
    elif is_dataclass(thing) and not isinstance(thing, type):
        kind = type(thing)
        yield f"{kind.__module__}.{kind.__qualname__}".encode()
        yield _code(kind)
        for f in fields(thing):
            if f.compare:
                yield from _parts(getattr(thing, f.name), f"{kind.__name__}.{f.name}")
    else:
        raise TypeError(
            f"{where} is a {type(thing).__name__}, and whether it is the same in another run cannot be told, so "
            "nothing that depends on it can be kept on disk. Make it a frozen dataclass with plain fields (a metric: "
            "a subclass of tl_multitrace.metric_base.Metric), or leave cache_dir out."
        )


def _code(kind: type) -> bytes:
    """The source of a user's class and its bases, which a notebook may change under the same name."""
    found = b""
    for cls in kind.__mro__:
        if cls is object or cls.__module__.partition(".")[0] in (OWN, "builtins", "typing", "abc"):
            continue
        try:
            found += inspect.getsource(cls).encode()
        except (OSError, TypeError):
            raise TypeError(
                f"the source of {cls.__qualname__} cannot be read, so whether it is the same in another run cannot be "
                "told. Put the class into a file or a notebook cell, or leave cache_dir out."
            ) from None
    return found
