"""Reading what may be anybody's: within bounds of size, depth and range, and never outside of a folder.

Nothing that is read is ever run or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 256 << 20
MAX_DEPTH = 24
MAX_NUMBER = 1 << 128
"""Above every seed and count, and small enough to be a floating-point number."""

MAX_NAME = 255

MAX_SAID = 1000
"""Characters of an error about a file's contents."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def short(value: Any, most: int = 80) -> str:
    """A value as an error shows it, however large it is."""
    shown = repr(value)
    return shown if len(shown) <= most else shown[:most] + " ..."


def printable(text: str) -> str:
    """Text as a terminal may be given it: control characters, which it would obey, are spelt out."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """What is wrong with a file's contents is said with the file's name in front."""
    try:
        yield
    except ValueError as error:
        said = str(error)  # which may name a key of the file, however long
        raise ValueError(f"{path}: {said if len(said) <= MAX_SAID else said[:MAX_SAID] + ' ...'}") from None


def checked_path(path: str | Path) -> Path:
    """The path of a file that may be read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is too large.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"no file {str(place)!r}.")
    check_size(place)
    return place


def check_size(place: Path) -> None:
    """Raises ValueError for a file that is too large to be read."""
    if place.stat().st_size > MAX_BYTES:
        raise ValueError(f"{place} has {place.stat().st_size} bytes; at most {MAX_BYTES} are read.")


def member(folder: Path, name: str) -> Path:
    """The place of a file in a folder, where the name, or the folder itself, may be somebody else's.

    Raises:
        ValueError: the name is not that of a file in this folder, or what is there is a link out of it.
    """
    plain = name and name == Path(name).name and len(name) <= MAX_NAME and name.isprintable()
    if not plain or "\\" in name or name in (".", "..") or len(os.fsencode(name)) > MAX_NAME:
        raise ValueError(f"{short(name)} is not a plain file name; nothing outside of {folder} is read.")
    place = folder / name
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place} is a link out of its folder, and is not followed: put the file itself there.")
    return place


def load_json(path: str | Path, *, nan: bool = False) -> Any:
    """The content of a JSON file of anybody's, within bounds.

    With ``nan`` a bare ``NaN``, which Python writes where there is no number, comes as None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, too deeply nested, not UTF-8, not JSON, or with a number that is not finite.
    """
    place = checked_path(path)
    try:
        return plain_json(place.read_text(encoding="utf-8"), nan=nan)
    except RecursionError:
        raise ValueError(f"{place} is nested deeper than {MAX_DEPTH} levels.") from None
    except _UnsoundError as error:
        raise ValueError(f"{place} {error}.") from None
    except ValueError as error:  # also what is not UTF-8, and numbers of thousands of digits
        raise ValueError(f"{place} is not complete JSON ({error}): the file is cut off or of another kind.") from None


def load_arrays(path: str | Path, names: Collection[str], sha256: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name, of any shapes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, cut off, not the file of this SHA-256, or with other names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = checked_path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the array file that is described (cut off, or of another trace).")
    try:
        found: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({str(error)[:160]}).") from None
    if set(found) != set(names):
        raise ValueError(f"{path} holds {short(sorted(found))} instead of {sorted(names)}.")
    return found


def load_table(path: str | Path) -> pd.DataFrame:
    """A CSV table with a header, every cell as its text: numbers then come back bit by bit.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, or not a table.
    """
    import pandas as pd

    return pd.read_csv(checked_path(path), dtype=str, keep_default_na=False)


def plain_json(text: str, *, nan: bool = False) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, a number that is not finite, half a character, or too deeply nested.
        RecursionError: nested so deeply that it cannot even be parsed.
    """
    content = json.loads(text, parse_constant=_no_number if nan else _not_finite)
    _check_sound(content, halves=_SURROGATE.search(text) is not None)
    return content


class _UnsoundError(ValueError):
    """JSON, but not of a kind that is read."""


def _no_number(name: str) -> None:
    if name != "NaN":
        _not_finite(name)


def _not_finite(name: str) -> None:
    raise _UnsoundError(f"holds {name}, which is not a finite number")


def _check_sound(content: Any, *, halves: bool) -> None:
    """Refuse what Python reads as JSON and nobody may have meant; level by level, without recursion."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        _check_values(level, halves)
        level = [v for x in level if isinstance(x, dict | list) for v in (x.values() if isinstance(x, dict) else x)]
    raise _UnsoundError(f"is nested deeper than {MAX_DEPTH} levels")


def _check_values(values: list[Any], halves: bool) -> None:
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise _UnsoundError("holds a number too large for a floating-point number")
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise _UnsoundError(f"holds a whole number above {MAX_NUMBER:.0e}")
        if halves and any(map(_is_half, value if isinstance(value, dict) else (value,))):
            raise _UnsoundError("holds half a character (a surrogate), which is no text")


def _is_half(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)
