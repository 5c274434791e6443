"""A user's own prompts from a CSV or JSON-lines file, as a task."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl_multitrace.metrics import AnswerLogProb, LogitDiff, Metric
from tl_multitrace.tasks.registry import Task
from tl_multitrace.tasks.rows import Alignment, Row, pairs_of, sieve_of

REQUIRED = ("base", "source", "answer")
OPTIONAL = ("wrong_answer", "group", "subject")
COLUMNS = "base, source, answer, and optionally wrong_answer, group, subject"


def task_from_file(path: str | Path, model: Any, *, metric: Metric | None = None, align: Alignment = "drop") -> Task:
    """Read prompts from a file with the columns base, source, answer, wrong_answer, group, subject.

    Args:
        path: ``.csv`` with a header line, or ``.jsonl`` with one object per line. Answers carry their leading space; in
            JSON an answer may be a list of alternatives. ``wrong_answer``, ``group`` and ``subject`` are optional.
        model: a TransformerLens model with a tokenizer.
        metric: default ``LogitDiff()`` where every prompt has a wrong answer, else ``AnswerLogProb()``.
        align: as in :func:`~tl_multitrace.tasks.task`.

    Returns:
        A task; prompts that don't tokenise cleanly are counted in its ``dropped``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed file, with its line and what was expected there; or no prompt is left.
    """
    path = Path(path)
    rows = read_rows(path)
    pairs = pairs_of(model, rows, sieve_of(model, align=align))
    default = LogitDiff() if all(row.wrong for row in rows) else AnswerLogProb()
    return Task(
        name=path.stem,
        pairs=pairs,
        metric=default if metric is None else metric,
        groups="heads",
        question="prompts of a file",
        source=path.name,
        licence="the file's own",
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of a prompt file; raises as :func:`task_from_file`."""
    if not path.is_file():
        raise FileNotFoundError(f"no prompts file {str(path)!r}.")
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: a prompts file is .csv or .jsonl, got {path.suffix or 'no suffix'!r}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise ValueError(f"{path}, line {line}: expected UTF-8 text, found the byte {byte:#04x}.") from None
    rows = {line: _row(path, line, fields) for line, fields in readers[path.suffix.lower()](path, text)}
    if not rows:
        raise ValueError(f"{path}, line 1: expected prompt pairs, one per line ({COLUMNS}), found none.")
    _same_columns(path, rows)
    return list(rows.values())


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        _check_columns(path, header)
        for record in reader:
            if not record:  # an empty line
                continue
            if len(record) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields, found {len(record)}. Put text "
                    "that holds a comma in double quotes."
                )
            yield reader.line_num, dict(zip(header, record, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: expected CSV, found a row that is not ({error}).") from None


def _check_columns(path: Path, found: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in found]
    strange = [name for name in found if name not in (*REQUIRED, *OPTIONAL)]
    if missing or strange:
        what = f"no column {missing[0]!r}" if missing else f"an unknown column {strange[0]!r}"
        raise ValueError(
            f"{path}, line 1: expected the columns {COLUMNS}; found {what} ({', '.join(found) or 'nothing'})."
        )


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: expected one JSON object, found no JSON ({error}).") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(record).__name__}.")
        strange = [name for name in record if name not in (*REQUIRED, *OPTIONAL)]
        if strange:
            raise ValueError(f"{path}, line {number}: expected the fields {COLUMNS}; found {strange[0]!r}.")
        yield number, record


def _row(path: Path, line: int, fields: Mapping[str, Any]) -> Row:
    for name in REQUIRED:
        if not fields.get(name):
            raise ValueError(f"{path}, line {line}: expected text in {name!r}, found nothing. Needed: {COLUMNS}.")
    texts = {name: fields.get(name) for name in ("base", "source", "group", "subject")}
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{path}, line {line}: expected text in {name!r}, found {value!r}.")
    answers, wrong = (_answers(path, line, name, fields.get(name)) for name in ("answer", "wrong_answer"))
    return Row(str(texts["base"]), str(texts["source"]), answers, wrong, texts["group"] or "", texts["subject"] or None)


def _answers(path: Path, line: int, name: str, value: Any) -> tuple[str, ...]:
    found = [] if value in (None, "", []) else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(a, str) and a.strip() for a in found):
        raise ValueError(f"{path}, line {line}: expected text, or a list of texts, in {name!r}, found {value!r}.")
    return tuple(found)


def _same_columns(path: Path, rows: Mapping[int, Row]) -> None:
    """An optional field is for every prompt or for none: a metric, a span or subgroups need all of them."""
    for name in OPTIONAL:
        has = {line: bool(_optional(row, name)) for line, row in rows.items()}
        if any(has.values()) and not all(has.values()):
            line = next(line for line, there in has.items() if not there)
            raise ValueError(
                f"{path}, line {line}: expected text in {name!r}, found nothing, though other lines have it. Give it "
                "in every line or in none."
            )


def _optional(row: Row, name: str) -> object:
    return {"wrong_answer": row.wrong, "group": row.label, "subject": row.subject}[name]
