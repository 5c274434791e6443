"""Text and JSON of anybody's, with line numbers, and the one form of error that every reader gives.

A malformed file raises ``ValueError``, one that is not there ``FileNotFoundError``; no other error leaves a reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl_multitrace.records.read import check_size

UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SPACE = re.compile(r"[ \t\n\r]*")


def wrong(path: str | Path, line: int, expected: str, found: object = "nothing") -> ValueError:
    """The error of a malformed file: which file, which line, what was expected there and what stands there."""
    shown = found if isinstance(found, str) else repr(found)
    return ValueError(f"{path}, line {line}: expected {_short(expected, 400)}, found {_short(shown, 120)}.")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def read_text(path: str | Path, what: str = "file", *, utf16: bool = False) -> str:
    """The text of a UTF-8 file (or one of UTF-16, where that is allowed); ``what`` names it in the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, or not UTF-8; the message gives the line and the byte.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder, not a file" if path.is_dir() else "not there"
        raise FileNotFoundError(f"no {what} {str(path)!r}: it is {kind}.")
    check_size(path)
    raw = path.read_bytes()
    wide = utf16 and raw[:2] in UTF16
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte-order mark, so the bytes are taken from the error itself.
        line = error.object[: error.start].count(b"\n") + 1
        expected = "UTF-16 text" if wide else "UTF-8 text"
        raise wrong(path, line, expected, f"the byte {error.object[error.start]:#04x}") from None


def read_lines(path: str | Path, what: str = "file") -> list[tuple[int, str]]:
    """The lines of a file that hold something, with their numbers; not split at the exotic ends of ``splitlines``.

    Raises:
        ValueError: as :func:`read_text`, and for a file without text.
    """
    text = read_text(path, what)
    found = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not found:
        raise wrong(path, 1, f"a {what} with text")
    return [(number, check_text(path, number, line)) for number, line in found]


def check_text(path: str | Path, line: int, text: str) -> str:
    """``text`` itself, unless a control character shows that the file is not text; raises ValueError."""
    odd = next((c for c in text if (c < " " and c not in "\t\n\r") or "\ud800" <= c <= "\udfff"), None)
    if odd is not None:
        raise wrong(path, line, "text", f"the character {odd!r}")
    return text


def json_lines(path: str | Path, text: str) -> Iterator[tuple[int, Any]]:
    """Line and value of every line that is not empty; raises ValueError for one that is no JSON."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise wrong(path, number, "one JSON object", f"no JSON ({error})") from None


class JsonItems:
    """A JSON text with line numbers; ``path`` is for errors."""

    def __init__(self, path: str | Path, text: str) -> None:
        self.path, self.text = path, text
        self._at, self._line, self._counted = 0, 1, 0
        self._decoder = json.JSONDecoder()

    def records(self) -> Iterator[tuple[int, Any]]:
        """Line and value of every element of the list, or of the first list of objects in the object.

        Raises:
            ValueError: no JSON, or neither a list nor an object with a list of objects.
        """
        opening = self._peek()
        if opening == "[":
            yield from self._elements()
            if self._peek():
                raise self._wrong("the end of the file behind the list", repr(self._peek()))
        elif opening == "{":
            yield from self._inside_object()
        else:
            raise self._wrong("a JSON list of objects", repr(opening) if opening else "nothing")

    def value(self) -> Any:
        """The next value; raises ValueError with its line where it is no JSON."""
        self._peek()
        try:
            value, self._at = self._decoder.raw_decode(self.text, self._at)
        except json.JSONDecodeError as error:
            raise wrong(self.path, error.lineno, "JSON", f"{error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            raise self._wrong("JSON", str(error)) from None
        return value

    def whole(self) -> Any:
        """The one value that the text is; raises ValueError with its line where it is none."""
        value = self.value()
        if self._peek():
            raise self._wrong("JSON", f"Extra data, {self._peek()!r}")
        return value

    def _inside_object(self) -> Iterator[tuple[int, Any]]:
        """What else the object holds (labels, settings) is not needed."""
        self._at += 1
        while self._peek() != "}":
            name = self.value()
            if not isinstance(name, str):
                raise self._wrong("a name in double quotes", repr(name))
            self._take(":")
            if self._peek() == "[" and self.text.startswith("{", self._after(self._at + 1)):
                yield from self._elements()
                return
            self.value()
            if self._peek() != "}":
                self._take(",")
        raise wrong(self.path, 1, "a JSON list of objects, or an object with such a list", "an object without one")

    def _elements(self) -> Iterator[tuple[int, Any]]:
        self._at += 1
        while self._peek() != "]":
            line = self._line_here()
            yield line, self.value()
            if self._peek() != "]":
                self._take(",")
                if self._peek() == "]":
                    raise self._wrong("JSON", "a comma before the end of a list")
        self._at += 1

    def _after(self, place: int) -> int:
        space = _SPACE.match(self.text, place)
        return space.end() if space else place

    def _peek(self) -> str:
        """The next character that is no space, or nothing at the end."""
        self._at = self._after(self._at)
        return self.text[self._at : self._at + 1]

    def _take(self, wanted: str) -> None:
        if self._peek() != wanted:
            found = repr(self._peek()) if self._peek() else "the end of the file"
            raise self._wrong(f"JSON with {wanted!r} here", found)
        self._at += 1

    def _line_here(self) -> int:
        self._line += self.text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _wrong(self, expected: str, found: str) -> ValueError:
        return wrong(self.path, self._line_here(), expected, found)
