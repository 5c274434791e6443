"""Files of other tools: read with every doubt, written whole or not at all.

Nothing in a file is ever run. JSON is bounded in size and depth. A ``.pt`` or ``.pth`` file is read by
``torch.load(weights_only=True)``, which knows tensors, numbers, text and plain containers and refuses all else; its
contents are bounded before they are unpacked.
"""

from __future__ import annotations

import io
import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_multitrace.records import read
from tl_multitrace.records.read import MAX_BYTES, MAX_DEPTH, checked_path
from tl_multitrace.records.write import write_bytes, write_text

SHOWN = 60


def load_json(path: str | Path) -> Any:
    """The content of a JSON file; bare ``NaN``, which Python writes where there is no number, comes as None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, too deeply nested, not UTF-8, not JSON, or with an infinite number.
    """
    return read.load_json(path, nan=True)


def too_deep(value: Any) -> bool:
    """Whether lists, tuples and dictionaries stand in one another more than ``MAX_DEPTH`` times."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [v for x in level for v in _inside(x)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()


def load_tensors(path: str | Path) -> Any:
    """The content of a ``.pt`` or ``.pth`` file of tensors and plain values.

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
    if too_deep(content):
        raise ValueError(f"{place} is nested deeper than {MAX_DEPTH} levels.")
    return content


def save_json(path: str | Path, content: Any, *, overwrite: bool = False) -> Path:
    """Write compact JSON, as the other tools do, whole or not at all.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False.
        ValueError: a number is not finite.
    """
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} was not written: it would hold a number that is not finite ({error}).") from None
    return write_text(Path(path), text + "\n", overwrite=overwrite)


def save_tensors(path: str | Path, content: Any, *, overwrite: bool = False) -> Path:
    """``torch.save``, whole or not at all; raises FileExistsError unless ``overwrite``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_bytes(Path(path), buffer.getvalue(), overwrite=overwrite)


# ---------------------------------------------------------------------- pieces of a file


def mapping(value: Any, place: str) -> dict[str, Any]:
    """A dictionary with text keys; raises ValueError for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise ValueError(f"{place} must be a dictionary of names, got {_shown(value)}.")
    return dict(value)


def listing(value: Any, place: str) -> list[Any]:
    """A list; raises ValueError for anything else."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{place} must be a list, got {_shown(value)}.")
    return list(value)


def text(value: Any, place: str) -> str:
    """A text; raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{place} must be text, got {_shown(value)}.")
    return value


def whole(value: Any, place: str) -> int:
    """A whole number from 0; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{place} must be a whole number from 0, got {_shown(value)}.")
    return value


def flag(value: Any, place: str) -> bool:
    """True or False; raises ValueError for anything else."""
    if not isinstance(value, bool):
        raise ValueError(f"{place} must be true or false, got {_shown(value)}.")
    return value


def score(value: Any, place: str) -> float | None:
    """A finite number, or None for NaN and null, which stand for "not scored"; raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (math.inf, -math.inf):
        raise ValueError(f"{place} must be a finite number or NaN, got {_shown(value)}.")
    try:
        return None if value != value else float(value)
    except OverflowError:
        raise ValueError(f"{place} must be a finite number or NaN, got a whole number too large for one.") from None


def tensor(value: Any, place: str, shape: tuple[int, ...], *, boolean: bool = False) -> Tensor:
    """A plain tensor of this shape with finite numbers or NaN (float64), or booleans.

    The shape is checked before anything is copied: a file of a few bytes can hold a view of any size.

    Raises:
        ValueError: something else.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise ValueError(f"{place} must be a dense tensor, got {_shown(value)}.")
    if tuple(value.shape) != shape:
        raise ValueError(f"{place} must have the shape {list(shape)}, got {list(value.shape)[:6]}.")
    if value.is_quantized or value.is_complex() or (boolean and value.dtype != torch.bool):
        raise ValueError(f"{place} must be {'boolean' if boolean else 'numbers'}, got {value.dtype}.")
    found = value.detach()
    if boolean:
        return found
    if bool(found.double().isinf().any()):
        raise ValueError(f"{place} holds an infinite number.")
    return found.double()


def numbers(values: Tensor) -> list[Any]:
    """Nested lists with None for NaN."""
    if values.ndim > 1:
        return [numbers(row) for row in values]
    return [None if v != v else v for v in values.tolist()]


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)[:6]} of {value.dtype}"
    plain = isinstance(value, str | float | bool | type(None)) or (isinstance(value, int) and abs(value) < 10**SHOWN)
    shown = repr(value) if plain else type(value).__name__
    return shown if len(shown) <= SHOWN else shown[:SHOWN] + " ..."
