"""Tables and lists of records, whatever they are written in: CSV, TSV, JSON lines, JSON. Each record knows its line.

A table may be in any dialect that spreadsheets write: fields parted by commas, semicolons or tabs, a first line
``sep=;``, a byte-order mark, UTF-16, empty columns and lines at the end. Nothing else is guessed.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tl_multitrace.records.text_files import JsonItems, check_text, json_lines, read_text, wrong

MAX_NESTED = 1 << 16
"""Characters of a list within a cell: Python's parser, unlike that of JSON, takes far more memory than its text."""

TABLES, SUFFIXES = (".csv", ".tsv"), (".csv", ".tsv", ".json", ".jsonl")
_FIRST = re.compile(r"([^\r\n]*)(?:\r\n|\r|\n)?(.*)", re.S)
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


@dataclass(frozen=True)
class Record:
    """One record of a file, whose fields are read with checks; each raises ValueError with file and line.

    Attributes:
        path: the file, or the name of a data set.
        line: where the record begins; the row of a data set.
        fields: values by column.
        needed: what the file's layout asks for, for errors.

    Examples:
        >>> from tl_multitrace.tasks.readers import Record
        >>> record = Record("mine.csv", line=2, fields={"base": "The nurse", "n": "3"})
        >>> record.text("base"), record.number("n"), record.has("source")
        ('The nurse', 3, False)
    """

    path: str
    line: int
    fields: Mapping[str, Any] = field(repr=False)
    needed: str = ""

    def wrong(self, expected: str, found: object = "nothing") -> ValueError:
        """The error that something else was expected in this record."""
        return wrong(self.path, self.line, expected, found)

    def has(self, name: str) -> bool:
        """Whether the column is there and not empty."""
        return self.fields.get(name) not in (None, "", [], {})

    def text(self, name: str) -> str:
        """The text of a column that must have one."""
        value = self.fields.get(name)
        if value is None or value == "":
            raise self.wrong(f"text in {name!r}", f"nothing. Needed: {self.needed}" if self.needed else "nothing")
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"text in {name!r}", repr(value))
        return check_text(self.path, self.line, value)

    def optional(self, name: str) -> str | None:
        """The text of a column that may be empty."""
        return self.text(name) if self.fields.get(name) not in (None, "") else None

    def texts(self, name: str) -> tuple[str, ...]:
        """One text or a list of texts, none where the column is empty."""
        value = self.fields.get(name)
        found = [] if value in (None, "", []) else [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(a, str) and a.strip() for a in found):
            raise self.wrong(f"text, or a list of texts, in {name!r}", repr(value))
        return tuple(check_text(self.path, self.line, text) for text in found)

    def number(self, name: str, low: int = 0, high: int = 1 << 31) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.fields.get(name)
        found = value.strip() if isinstance(value, str) else value
        if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 12:
            found = int(found)
        if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
            raise self.wrong(f"a whole number from {low} to {high} in {name!r}", repr(value))
        return found

    def nested(self, name: str) -> Any:
        """The lists and mappings of a column; where a CSV holds them as text, what the text says."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            return value
        if len(value) > MAX_NESTED:
            raise self.wrong(f"a list or an object of at most {MAX_NESTED} characters in {name!r}", repr(value))
        for parse in (json.loads, ast.literal_eval):  # lists as Python writes them: ['gem', 'gems']
            try:
                return parse(value.strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                pass
        raise self.wrong(f"a list or an object in {name!r}", repr(value))

    def listed(self, name: str) -> Record:
        """The record with one column's list or object in place of its text."""
        return replace(self, fields={**self.fields, name: self.nested(name)})

    def inner(self, name: str) -> Record:
        """The record inside a column."""
        value = self.nested(name)
        if not isinstance(value, Mapping):
            raise self.wrong(f"an object in {name!r}", repr(value))
        return replace(self, fields={str(k): v for k, v in value.items()})


@dataclass(frozen=True)
class Table:
    r"""A file's records.

    Attributes:
        path: the file, or the name of a data set.
        columns: of the header line, or of the first record.
        records: in the file's order.
        header: whether the columns stand in a line of their own, and so are the same for every record.

    Examples:
        >>> from pathlib import Path
        >>> from tl_multitrace.tasks.readers import read_records
        >>> _ = Path("mine.csv").write_text("question;best\nIs it true?; Yes")
        >>> table = read_records("mine.csv").renamed({"prompt": "question"})
        >>> table.columns, len(table.records)
        (('prompt',), 1)
    """

    path: str
    columns: tuple[str, ...]
    records: tuple[Record, ...] = field(repr=False)
    header: bool = False

    def renamed(self, columns: Mapping[str, str]) -> Table:
        """The table with the columns that a user named, and only those; ``columns`` says which is which.

        Raises:
            ValueError: a column that is not there.
        """
        missing = next((theirs for theirs in columns.values() if theirs not in self.columns), None)
        if missing is not None:
            raise wrong(self.path, 1, f"a column {missing!r}", ", ".join(self.columns) or "nothing")
        named = [{ours: record.fields.get(theirs) for ours, theirs in columns.items()} for record in self.records]
        records = tuple(replace(record, fields=f) for record, f in zip(self.records, named, strict=True))
        return replace(self, columns=tuple(columns), records=records)


def read_records(path: str | Path, what: str = "prompts file") -> Table:
    r"""The records of a ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` file (a list, or an object with a list of objects).

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, not UTF-8, not CSV or JSON, a short or long row; the message gives the line.

    Examples:
        >>> from pathlib import Path
        >>> from tl_multitrace.tasks.readers import read_records
        >>> _ = Path("mine.jsonl").write_text('{"base": "The nurse said that"}\n')
        >>> read_records("mine.jsonl").records[0].text("base")
        'The nurse said that'
    """
    path = Path(path)
    suffix = path.suffix.lower()
    text = read_text(path, what, utf16=suffix in TABLES)
    if suffix not in SUFFIXES:
        got = repr(path.suffix or "no suffix")
        raise ValueError(f"{path}: a {what} is .csv or .jsonl, got {got} (.tsv and .json are read too).")
    if suffix in TABLES:
        return _table(path, text, "," if suffix == ".csv" else "\t")
    items = json_lines(path, text) if suffix == ".jsonl" else JsonItems(path, text).records()
    records = tuple(_record(path, line, value) for line, value in items)
    return Table(str(path), tuple(records[0].fields) if records else (), records)


def _record(path: Path, line: int, value: object) -> Record:
    if not isinstance(value, dict):
        raise wrong(path, line, "a JSON object", type(value).__name__)
    return Record(str(path), line, value)


# ---------------------------------------------------------------------- tables


def _table(path: Path, text: str, usual: str) -> Table:
    first, rest = _FIRST.fullmatch(text).groups("")  # type: ignore[union-attr]
    told = first.strip().strip('"').lower()
    above = int(told.startswith("sep=") and len(told) == 5)  # lines above the header
    text, delimiter = (rest, told[4]) if above else (text, _delimiter(first, usual))
    lines = io.StringIO(text, newline="")
    plain: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if usual == "\t" else {}  # a mark in a .tsv is just a mark
    reader = csv.reader(lines, delimiter=delimiter, strict=True, **plain)
    try:
        header = [name.strip() for name in next(reader, [])]
        rows, last = list[tuple[int, list[str]]](), reader.line_num
        for cells in reader:
            begins, last = last + 1, reader.line_num
            if any(cells):  # spreadsheets end a sheet with rows of empty cells
                rows.append((begins + above, cells))
    except csv.Error as error:
        what = "CSV" if reader.line_num > 1 else "a header of column names"
        raise wrong(path, max(reader.line_num, 1) + above, what, f"a row that is not ({error})") from None
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise wrong(path, 1 + above, "columns of different names", f"{twice!r} twice")
    for line, cells in rows:
        if len(cells) != len(header):
            hint = f"Put text that holds a {DELIMITERS.get(delimiter, delimiter)} in double quotes"
            raise wrong(path, line, f"{len(header)} fields", f"{len(cells)}. {hint}")
    # a spreadsheet's empty columns at the end have no name and no cells
    width = len(header)
    while width > 1 and not header[width - 1] and not any(cells[width - 1] for _, cells in rows):
        width -= 1
    names = tuple(header[:width])
    records = [Record(str(path), line, dict(zip(names, cells, strict=False))) for line, cells in rows]
    return Table(str(path), names, tuple(records), header=True)


def _delimiter(header: str, usual: str) -> str:
    """What parts the fields of a header: what stands in it most often; the usual one where that is undecided."""
    return max((usual, *DELIMITERS), key=header.count)
