"""What was computed before, kept on disk: an interrupted search goes on where it stopped, a repeated one costs nothing.

Every call of a tracer is a pure function of the model, the prompts, what is asked, and what earlier calls left stored
(which decides about rounding). All of that is the key; the value is what the call returned and what it cost. So a run
that is repeated with the same arguments takes every finished call from the disk, and ends with the same numbers, bit by
bit, as one that was never stopped.

A cache is a folder of small safetensors files that are written whole (temporary file, fsync, rename) and never changed.
Each is named by the digest of its content: a file that was cut off or altered is left out, with a warning. Solvers with
a state of their own (Adam's moments, say) keep the last two of them, by turns, under names of their own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.distributed import ALONE, Ranks

logger = logging.getLogger(__name__)

FORMAT = "tl_multitrace.cache/1"
SUFFIX = ".safetensors"
LARGEST = 64 << 20
"""Bytes of a value above which it is computed again rather than kept: derivatives per prompt and neuron."""

EVERY = 5.0
"""Seconds between two writes: what a killed process loses at most."""

Values = dict[str, Tensor]
Shapes = Mapping[str, tuple[int | None, ...]]
"""What values have to be made of: names, and lengths of their dimensions (None: any)."""

BASE = "base"
"""The key of what the base run says, by which a computation is known whatever its name."""


@dataclass
class Cache:
    """Values by key, in memory and in a folder.

    Attributes:
        folder: where they are kept.
        ranks: processes that share the work: the first one reads and writes.
        every: seconds between two writes.
    """

    folder: Path
    ranks: Ranks = ALONE
    every: float = field(default_factory=lambda: EVERY)
    hits: int = 0
    _known: dict[str, Values] = field(default_factory=dict)
    _unwritten: dict[str, Values] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        own = read_folder(self.folder) if self.ranks.first else {}
        self._known = unpack(self.ranks.share_bytes(pack(own))) if self.ranks.size > 1 else own
        if self._known:
            logger.info("%d results of earlier calls in %s", len(self._known), self.folder)

    def __len__(self) -> int:
        return len(self._known)

    @classmethod
    def of_base(cls, folder: Path, ranks: Ranks, base: Float[Tensor, "rows n"], *, tolerance: float = 1e-4) -> Cache:
        """The cache of a computation, or, where a folder of its name holds that of another one, one beside it.

        Args:
            folder: named by the identity of the computation.
            ranks: processes that share the work.
            base: what the base run says of each example, the same on every rank.
            tolerance: largest difference between two runs of one computation, relative above 1.
        """
        for number in itertools.count():
            made = cls(folder.with_name(f"{folder.name}-{number}") if number else folder, ranks)
            wrong = _unlike(made._known.get(BASE), base, tolerance)
            if not wrong:
                break
            logger.warning("%s holds results of something else (%s): all is computed anew.", made.folder, wrong)
        if BASE not in made._known:
            made.put(BASE, {"numbers": base})
        return made

    def get(self, key: str, expected: Shapes | None = None) -> Values | None:
        """The value of a key, or None; what is not as ``expected``, or not finite, is forgotten with a warning."""
        found = self._known.get(key)
        if found is not None and (wrong := flaw(found, expected or {})):
            logger.warning("a result kept in %s %s: it is left out and computed again.", self.folder, wrong)
            del self._known[key]
            return None
        self.hits += found is not None
        return found

    def put(self, key: str, values: Values) -> None:
        """Keep a value; it reaches the disk within ``every`` seconds of work, or at :meth:`flush`."""
        if sum(v.numel() * v.element_size() for v in values.values()) > LARGEST:
            return
        self._known[key] = self._unwritten[key] = {n: v.detach().cpu().contiguous() for n, v in values.items()}
        if time.monotonic() - self._written >= self.every:
            self.flush()

    def flush(self) -> None:
        """Write what is not on the disk yet.

        Raises:
            OSError: the folder cannot be written, or the disk is full; what is there stays whole.
        """
        if self._unwritten and self.ranks.first:
            content = pack(self._unwritten)
            write_whole(self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}{SUFFIX}", content)
        self._unwritten, self._written = {}, time.monotonic()


def flaw(values: Values, expected: Shapes) -> str:
    """What is wrong with values from a file, in words; empty where nothing is."""
    for name, shape in expected.items():
        if name not in values:
            return f"lacks {name!r}"
        got = tuple(values[name].shape)
        if len(got) != len(shape) or any(want not in (None, size) for want, size in zip(shape, got, strict=True)):
            return f"has {name!r} of shape {got}, not {shape}"
    broken = [n for n, v in values.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    return f"is not finite ({broken[0]!r})" if broken else ""


def _unlike(kept: Values | None, base: Tensor, tolerance: float) -> str:
    """How the base run of a cache differs from the one at hand, in words; empty where it does not, or has none."""
    if kept is None:
        return ""
    wrong = flaw(kept, {"numbers": tuple(base.shape)})
    if wrong:
        return f"its base run {wrong}"
    error = (kept["numbers"].double() - base.detach().double().cpu()).abs() / base.detach().double().cpu().abs().clamp(
        1
    )
    return f"its base run differs by {float(error.max()):.3g}" if float(error.max()) > tolerance else ""


# ---------------------------------------------------------------------- files


def pack(values: Mapping[str, Values]) -> bytes:
    """Values by key as one safetensors file."""
    from safetensors.torch import save

    flat = {f"{key}/{name}": tensor.clone() for key, found in values.items() for name, tensor in found.items()}
    return bytes(save(flat, metadata={"format": FORMAT}))


def unpack(content: bytes) -> dict[str, Values]:
    """Values by key of such a file.

    Raises:
        ValueError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        flat = load(content)
    except (SafetensorError, KeyError, AttributeError) as error:
        raise ValueError(f"not a safetensors file ({error})") from None
    found: dict[str, Values] = {}
    for name, tensor in flat.items():
        key, _, part = name.rpartition("/")
        found.setdefault(key, {})[part] = tensor
    return found


def read_folder(folder: Path) -> dict[str, Values]:
    """All values in a folder; files that are not as they were written are left out."""
    found: dict[str, Values] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
        name = path.name.removesuffix(SUFFIX)
        if not re.fullmatch("[0-9a-f]{32}", name) or path.is_symlink():
            continue
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:32] != name:
            logger.warning("%s is not as it was written (cut off or altered): what it held is computed again.", path)
            continue
        try:
            found.update(unpack(content))
        except ValueError as error:
            logger.warning("%s is left out (%s): what it held is computed again.", path, error)
    return found


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"{folder} cannot be written ({error.strerror or error}). What was kept there before is whole: free space or "
        "make the folder writable, and run the same again to go on from there",
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename last; not every system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        logger.debug("%s cannot be synchronised: %s", folder, error)
    finally:
        os.close(handle)


# ---------------------------------------------------------------------- states of a loop


@dataclass
class StateFile:
    """The state of a solver's own loop, written now and then, with the one before it kept.

    Attributes:
        path: where the latest state is; ``.previous`` beside it is the one before.
        ranks: the first one reads and writes.
        every: seconds between two writes.
    """

    path: Path
    ranks: Ranks = ALONE
    every: float = field(default_factory=lambda: EVERY)
    _written: float = field(default_factory=time.monotonic)

    @property
    def previous(self) -> Path:
        """The state before the latest."""
        return self.path.with_suffix(f".previous{SUFFIX}")

    def read(self, expected: Shapes | None = None) -> Values | None:
        """The latest state that is whole, if it is as ``expected`` and finite."""
        content = b""
        for path in (self.path, self.previous) if self.ranks.first else ():
            content = content or _checked(path)
        content = self.ranks.share_bytes(content)
        try:
            found = unpack(content).get("state") if content else None
        except ValueError as error:
            found, wrong = None, str(error)
        else:
            wrong = "" if found is None else flaw(found, expected or {})
        if wrong:
            logger.warning("%s %s: the loop begins anew.", self.path, wrong)
        return None if wrong else found

    def write(self, state: Callable[[], Values], *, now: bool = False) -> None:
        """Keep a state, if it is time to."""
        if not now and time.monotonic() - self._written < self.every:
            return
        self._written = time.monotonic()
        if not self.ranks.first:
            return
        content = pack({"state": {n: v.detach().cpu().contiguous() for n, v in state().items()}})
        with suppress(FileNotFoundError):
            os.replace(self.path, self.previous)
        write_whole(self.path, hashlib.sha256(content).digest() + content)


def _checked(path: Path) -> bytes:
    """A state's content, or nothing where it is not as it was written."""
    if not path.is_file() or path.is_symlink():
        return b""
    content = path.read_bytes()
    digest, rest = content[:32], content[32:]
    if hashlib.sha256(rest).digest() != digest:
        logger.warning("%s is not as it was written (cut off or altered): the state before it is used.", path)
        return b""
    return rest


# ---------------------------------------------------------------------- keys


def key_of(*parts: Any) -> str:
    """A short key that differs where any part does."""
    total = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()[:32]


def bytes_of(tensor: Tensor | None) -> bytes:
    """A tensor's type, shape and values."""
    if tensor is None:
        return b"none"
    values = tensor.detach().cpu().contiguous()
    return f"{values.dtype} {tuple(values.shape)} ".encode() + values.flatten().view(torch.uint8).numpy().tobytes()
