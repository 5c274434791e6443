"""Tables and lists of records, whatever they are written in: CSV, TSV, JSON lines, JSON. Each record knows its line."""

from __future__ import annotations

import ast
import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_multitrace.tasks.readers.json_items import JsonItems
from tl_multitrace.tasks.readers.text import check_text, read_text, wrong

MAX_NESTED = 1 << 16
"""Characters of a list within a cell: Python's parser, unlike that of JSON, takes far more memory than its text."""

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")


@dataclass(frozen=True)
class Record:
    """One record of a file, whose fields are read with checks.

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
        """The error that something else was expected in this record.

        Args:
            expected: what should be there.
            found: what is.
        """
        return wrong(self.path, self.line, expected, found)

    def has(self, name: str) -> bool:
        """Whether the column is there and not empty.

        Args:
            name: of the column.
        """
        return self.fields.get(name) not in (None, "", [], {})

    def text(self, name: str) -> str:
        """The text of a column that must have one; raises ValueError.

        Args:
            name: of the column.
        """
        value = self.fields.get(name)
        if value is None or value == "":
            raise self.wrong(f"text in {name!r}", f"nothing. Needed: {self.needed}" if self.needed else "nothing")
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"text in {name!r}", repr(value))
        return check_text(self.path, self.line, value)

    def optional(self, name: str) -> str | None:
        """The text of a column that may be empty; raises ValueError where it is no text.

        Args:
            name: of the column.
        """
        return self.text(name) if self.fields.get(name) not in (None, "") else None

    def texts(self, name: str) -> tuple[str, ...]:
        """One text or a list of texts, none where the column is empty; raises ValueError.

        Args:
            name: of the column.
        """
        value = self.fields.get(name)
        found = [] if value in (None, "", []) else [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(a, str) and a.strip() for a in found):
            raise self.wrong(f"text, or a list of texts, in {name!r}", repr(value))
        return tuple(check_text(self.path, self.line, text) for text in found)

    def number(self, name: str, low: int = 0, high: int = 1 << 31) -> int:
        """A whole number within bounds; raises ValueError.

        Args:
            name: of the column.
            low: the smallest that is allowed.
            high: the first that is too large.
        """
        value = self.fields.get(name)
        text = value.strip() if isinstance(value, str) else value
        if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 12:
            text = int(text)
        if not isinstance(text, int) or isinstance(text, bool) or not low <= text <= high:
            raise self.wrong(f"a whole number from {low} to {high} in {name!r}", repr(value))
        return text

    def nested(self, name: str) -> Any:
        """The lists and mappings of a column; where a CSV holds them as text, what the text says.

        Args:
            name: of the column.
        """
        value = self.fields.get(name)
        if not isinstance(value, str):
            return value
        if len(value) > MAX_NESTED:
            raise self.wrong(f"a list or an object of at most {MAX_NESTED} characters in {name!r}", repr(value))
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
        try:
            return ast.literal_eval(value.strip())  # lists as Python writes them: ['gem', 'gems']
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise self.wrong(f"a list or an object in {name!r}", repr(value)) from None

    def needing(self, needed: str) -> Record:
        """The record with what its layout asks for.

        Args:
            needed: of every record, for errors.
        """
        return Record(self.path, self.line, self.fields, needed)

    def listed(self, name: str) -> Record:
        """The record with one column's list or object in place of its text.

        Args:
            name: of the column.
        """
        return Record(self.path, self.line, {**self.fields, name: self.nested(name)}, self.needed)

    def inner(self, name: str) -> Record:
        """The record inside a column; raises ValueError where there is none.

        Args:
            name: of the column.
        """
        value = self.nested(name)
        if not isinstance(value, Mapping):
            raise self.wrong(f"an object in {name!r}", repr(value))
        return Record(self.path, self.line, {str(k): v for k, v in value.items()}, self.needed)


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
        >>> _ = Path("mine.csv").write_text("question,best\nIs it true?, Yes")
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
        chosen = tuple(
            Record(r.path, r.line, {ours: r.fields.get(theirs) for ours, theirs in columns.items()}, r.needed)
            for r in self.records
        )
        return Table(self.path, tuple(columns), chosen, self.header)


def read_records(path: str | Path) -> Table:
    r"""The records of a ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` file (a list, or an object with a list of objects).

    Args:
        path: of the file.

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
    text = read_text(path, "prompts file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        got = repr(path.suffix or "no suffix")
        raise ValueError(f"{path}: a prompts file is .csv or .jsonl, got {got} (.tsv and .json are read too).")
    if suffix in (".csv", ".tsv"):
        delimiter = "," if suffix == ".csv" else "\t"
        header = header_of(path, text, delimiter)
        return Table(str(path), tuple(header), tuple(_table(path, text, header, delimiter)), header=True)
    records = tuple(_lines(path, text) if suffix == ".jsonl" else _items(path, text))
    return Table(str(path), tuple(records[0].fields) if records else (), records)


def _reader(text: str, delimiter: str) -> Any:
    # A quotation mark in a tab-separated file is a quotation mark.
    lines = io.StringIO(text, newline="")
    if delimiter == "\t":
        return csv.reader(lines, delimiter="\t", strict=True, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def header_of(path: str | Path, text: str, delimiter: str = ",") -> list[str]:
    """The column names in the first line of a table."""
    try:
        return [name.strip() for name in next(_reader(text, delimiter), [])]
    except csv.Error as error:
        raise wrong(path, 1, "a header of column names", str(error)) from None


def _table(path: Path, text: str, header: list[str], delimiter: str) -> Iterator[Record]:
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise wrong(path, 1, "columns of different names", f"{twice!r} twice")
    reader = _reader(text, delimiter)
    try:
        next(reader, None)
        last = reader.line_num
        for cells in reader:
            begins, last = last + 1, reader.line_num
            if not cells:  # an empty line
                continue
            if len(cells) != len(header):
                hint = "Put text that holds a comma in double quotes"
                raise wrong(path, begins, f"{len(header)} fields", f"{len(cells)}. {hint}")
            yield Record(str(path), begins, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise wrong(path, max(reader.line_num, 1), "CSV", f"a row that is not ({error})") from None


def _lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise wrong(path, number, "one JSON object", f"no JSON ({error})") from None
        yield _record(path, number, value)


def _items(path: Path, text: str) -> Iterator[Record]:
    for line, value in JsonItems(path, text).records():
        yield _record(path, line, value)


def _record(path: Path, line: int, value: object) -> Record:
    if not isinstance(value, dict):
        raise wrong(path, line, "a JSON object", type(value).__name__)
    return Record(str(path), line, value)
