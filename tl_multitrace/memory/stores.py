"""Where stored activations lie: on the model's device, in host memory, or in a file.

A file is read part by part, not mapped: mapped pages would count as the process's memory as soon as they are touched.
It has no name in its folder (on Windows: it is deleted with its handle), so nothing is left behind when the process is
killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Place = Literal["device", "host", "disk", "recomputed", "none"]
"""Where something is kept. ``host`` is the memory of the CPU where the model is on a GPU; ``recomputed``: nowhere, a
forward gives it again; ``none``: nowhere, and runs do without it."""

Picked = slice | Int[Tensor, " b"]


def rows_on(device: torch.device, rows: slice | Int[Tensor, " b"]) -> slice | Int[Tensor, " b"]:
    """Rows of a batch as an index into tensors on a device."""
    return rows if isinstance(rows, slice) else rows.to(device)


class StoreError(OSError):
    """A file of activations that cannot be written or read."""


@runtime_checkable
class Store(Protocol):
    """Activations of all rows by name."""

    place: Place

    def reserve(self, name: str, shape: tuple[int, ...], like: Tensor) -> None:
        """Make room for a tensor ``[rows, ...]`` of zeros, of the type of another one."""

    def put(self, name: str, first: int, value: Float[Tensor, "b ..."]) -> None:
        """Write rows from ``first`` on; where other axes are shorter than the reserved ones, the rest stays zero."""

    def get(self, name: str, rows: Picked) -> Float[Tensor, "b ..."]:
        """Some rows, wherever the store keeps its tensors."""

    def __contains__(self, name: object) -> bool: ...


@dataclass
class TensorStore:
    """Activations as tensors.

    Attributes:
        device: where; None: where the values come from, which may be several GPUs.
        place: what that is to the model.
        pinned: in memory that a GPU reads directly.
        tensors: by name ``[rows, ...]``.
    """

    device: torch.device | None = None
    place: Place = "device"
    pinned: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def reserve(self, name: str, shape: tuple[int, ...], like: Tensor) -> None:
        """See :class:`Store`."""
        device = self.device or like.device
        self.tensors[name] = torch.zeros(shape, dtype=like.dtype, device=device, pin_memory=self.pinned)

    def put(self, name: str, first: int, value: Float[Tensor, "b ..."]) -> None:
        """See :class:`Store`."""
        place = self.tensors[name][first : first + len(value)]
        place[tuple(slice(0, size) for size in value.shape)] = value.to(place.device)

    def get(self, name: str, rows: Picked) -> Float[Tensor, "b ..."]:
        """See :class:`Store`; a view where ``rows`` is a slice."""
        kept = self.tensors[name]
        return kept[rows_on(kept.device, rows)]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors


@dataclass(frozen=True)
class _Part:
    """One tensor of a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize


class FileStore:
    """Activations in one file without a name.

    Args:
        folder: where; made where it is missing.

    Raises:
        StoreError: the folder cannot be written, or has no space left.
    """

    place: Place = "disk"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: dict[str, _Part] = {}
        self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=".activations-", buffering=0)
        except OSError as error:
            raise self._failed(error) from None

    def reserve(self, name: str, shape: tuple[int, ...], like: Tensor) -> None:
        """See :class:`Store`; takes the space at once, so that a full disk shows before the work is done."""
        part = _Part(self._size, shape, like.dtype)
        size = shape[0] * part.row_bytes
        try:
            if shutil.disk_usage(self.folder).free < size:
                raise OSError(28, "No space left on device")
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), part.offset, size)
            else:
                self._file.truncate(part.offset + size)
        except OSError as error:
            raise self._failed(error) from None
        self._parts[name], self._size = part, self._size + size

    def put(self, name: str, first: int, value: Float[Tensor, "b ..."]) -> None:
        """See :class:`Store`."""
        part = self._parts[name]
        rows = torch.zeros(len(value), *part.shape[1:], dtype=part.dtype)
        rows[tuple(slice(0, size) for size in value.shape)] = value.cpu()
        self._move(part, first, rows, write=True)

    def get(self, name: str, rows: Picked) -> Float[Tensor, "b ..."]:
        """See :class:`Store`."""
        part = self._parts[name]
        if isinstance(rows, slice):
            found = torch.empty(rows.stop - rows.start, *part.shape[1:], dtype=part.dtype)
            self._move(part, rows.start, found, write=False)
            return found
        found = torch.empty(len(rows), *part.shape[1:], dtype=part.dtype)
        for i, row in enumerate(rows.tolist()):
            self._move(part, row, found[i : i + 1], write=False)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def _move(self, part: _Part, first: int, rows: Tensor, *, write: bool) -> None:
        """Write rows, or fill them from the file."""
        content = memoryview(rows.view(-1).view(torch.uint8).numpy().data)
        try:
            self._file.seek(part.offset + first * part.row_bytes)
            while content:
                done = self._file.write(content) if write else self._file.readinto(content)  # type: ignore[attr-defined]
                if not done:
                    raise OSError(5, "the file ended early")
                content = content[done:]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"activations cannot be kept in {self.folder}: {error.strerror or error}. They are recomputed per batch, "
            "which takes a forward each time; free space there, or raise memory_limit=."
        )


def store_for(place: Place, device: torch.device, folder: Path | None) -> Store:
    """An empty store.

    Args:
        place: ``device``, ``host`` or ``disk``.
        device: the model's.
        folder: of the file.

    Raises:
        StoreError: no file can be made there.
        ValueError: a place where nothing is kept.
    """
    if place == "device":
        return TensorStore()
    if place == "host":
        return TensorStore(torch.device("cpu"), "host", pinned=device.type == "cuda")
    if place == "disk" and folder is not None:
        return FileStore(folder)
    raise ValueError(f"nothing is kept at {place!r}.")
