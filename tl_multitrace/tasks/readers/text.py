"""Opening a text file, and the one form of error that every reader gives."""

from __future__ import annotations

from pathlib import Path

from tl_multitrace.records.read import MAX_BYTES


def wrong(path: str | Path, line: int, expected: str, found: object = "nothing") -> ValueError:
    """The error of a malformed file: which file, which line, what was expected there and what stands there."""
    shown = found if isinstance(found, str) else repr(found)
    return ValueError(f"{path}, line {line}: expected {_short(expected, 400)}, found {_short(shown)}.")


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def read_text(path: str | Path, what: str = "file") -> str:
    """The text of a UTF-8 file.

    Args:
        path: the file.
        what: what kind of file is missing, for the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, or not UTF-8; the message gives the line and the byte.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder, not a file" if path.is_dir() else "not there"
        raise FileNotFoundError(f"no {what} {str(path)!r}: it is {kind}.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read.")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte-order mark, so the bytes are taken from the error itself.
        line = error.object[: error.start].count(b"\n") + 1
        raise wrong(path, line, "UTF-8 text", f"the byte {error.object[error.start]:#04x}") from None


def read_lines(path: str | Path, what: str = "file") -> list[tuple[int, str]]:
    """The lines of a file that hold something, with their numbers; not split at the exotic ends of ``splitlines``.

    Raises:
        ValueError: as :func:`read_text`, and for a file without text.
    """
    text = read_text(path, what)
    found = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not found:
        raise wrong(path, 1, f"a {what} with text")
    for number, line in found:
        check_text(path, number, line)
    return found


def check_text(path: str | Path, line: int, text: str) -> str:
    """``text`` itself, unless a control character shows that the file is not text; raises ValueError."""
    odd = next((c for c in text if (c < " " and c not in "\t\n\r") or "\ud800" <= c <= "\udfff"), None)
    if odd is not None:
        raise wrong(path, line, "text", f"the character {odd!r}")
    return text
