"""Files of tensors, which may be anybody's: read within bounds, nothing in them is run; written whole or not at all."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from tl_multitrace.records.read import MAX_BYTES, MAX_DEPTH, checked_path
from tl_multitrace.records.write import write_bytes


def load_tensors(path: str | Path) -> Any:
    """The content of a ``.pt`` or ``.pth`` file of tensors, numbers, text and plain containers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large (also once unpacked), cut off, or with Python objects in it, which are not made.
    """
    place = checked_path(path)
    try:
        if zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > MAX_BYTES:
                raise ValueError(f"{unpacked} bytes when unpacked; at most {MAX_BYTES} are read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds here, and RecursionError
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(
            f"{place} is not a file of tensors and plain values, or is cut off ({reason}). Nothing in it was run."
        ) from None
    if _too_deep(content):
        raise ValueError(f"{place} is nested deeper than {MAX_DEPTH} levels.")
    return content


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            v for x in level if isinstance(x, dict | list | tuple) for v in (x.values() if isinstance(x, dict) else x)
        ]
        if not level:
            return False
    return True


def save_tensors(path: str | Path, content: Any, *, overwrite: bool = False) -> Path:
    """``torch.save``; raises FileExistsError where the file exists, unless ``overwrite``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_bytes(Path(path), buffer.getvalue(), overwrite=overwrite)
