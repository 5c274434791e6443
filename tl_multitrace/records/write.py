"""Files are written whole or not at all, and a folder is held by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def write_json(
    path: Path,
    content: Any,
    *,
    overwrite: bool = False,
    indent: int | None = 1,
    default: Callable[[Any], Any] | None = _plain,
) -> Path:
    """Write JSON to a temporary file beside ``path`` and rename it: either the whole file is there or the old one.

    What JSON has no form for is written as ``default`` makes it; without one it is refused.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False.
        ValueError: the content holds NaN or infinity.
    """
    try:
        text = json.dumps(content, indent=indent, allow_nan=False, default=default)
    except ValueError as error:
        raise ValueError(f"{path} was not written: it would hold a number that is not finite ({error}).") from None
    return write_text(path, text + "\n", overwrite=overwrite)


def as_written(content: Any) -> Any:
    """A content as it comes back from a file: lists for tuples, numbers for those of numpy and torch."""
    return json.loads(json.dumps(content, default=_plain))


def write_text(path: Path, text: str, *, overwrite: bool = False) -> Path:
    """Write a text file whole or not at all; raises FileExistsError unless ``overwrite``."""
    return write_bytes(path, text.encode("utf-8"), overwrite=overwrite)


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """Raises FileExistsError where ``path`` exists, unless ``overwrite``."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another name, or pass overwrite=True to replace it.")


def write_bytes(path: Path, content: bytes, *, overwrite: bool = False) -> Path:
    """Write a file whole or not at all; raises FileExistsError unless ``overwrite``."""
    check_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


@contextmanager
def locked(folder: Path, name: str = "lock") -> Iterator[None]:
    """Hold a folder, which is made where it is not there, for this process alone; a killed process holds nothing.

    Raises:
        FileExistsError: another process holds it.
    """
    from filelock import FileLock, Timeout

    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"another process is working in {folder}. Wait for it, stop it, or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()
        if made and folder.is_dir() and [p.name for p in folder.iterdir()] == [name]:  # nothing came of it
            shutil.rmtree(folder, ignore_errors=True)
            for place in made[1:]:
                with suppress(OSError):  # another process has put something there
                    place.rmdir()
