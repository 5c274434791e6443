"""Facts (prompt, subject and answer) from the files that others publish, or a user's own; the same for every reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_multitrace.records.read import naming, short
from tl_multitrace.records.tables import TABLES, Record, read_records
from tl_multitrace.records.text_files import JsonItems, json_lines, read_text

PROMPTS, ANSWERS = ("base_prompt", "prompt"), ("answer", "attribute", "target_true")
"""Columns that hold the prompt, and the answer; the first that is there."""


@dataclass(frozen=True)
class Fact:
    """One fact to trace.

    Attributes:
        prompt: text up to the answer.
        subject: the part of it that is corrupted.
        answer: text with its leading space, or None for the model's own prediction.
        id: names the fact in files.

    Examples:
        >>> from tl_multitrace.causal_trace import Fact
        >>> fact = Fact("The Falcon Tower is in the city of", subject="Falcon Tower", answer=" Rome")
        >>> fact.subject in fact.prompt
        True
    """

    prompt: str
    subject: str
    answer: str | None = None
    id: str = ""

    def __post_init__(self) -> None:
        if not self.prompt or not self.subject:
            raise ValueError(
                f"a fact needs a prompt and a subject, got {short(self.prompt)} and {short(self.subject)}."
            )


def as_facts(facts: Sequence[Any] | str | Path) -> list[Fact]:
    """Facts from a file, mappings (layouts of :func:`load_facts`), ``(prompt, subject[, answer])`` tuples or facts.

    Raises:
        ValueError: an empty set, a record of no known layout, two facts of one id.
    """
    if isinstance(facts, str | Path):
        return load_facts(facts)
    made = [fact_of(record, i) for i, record in enumerate(facts)]
    if not made:
        raise ValueError("there are no facts.")
    twice = next((i for i, count in Counter(f.id for f in made).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two facts have the id {short(twice)}, so one would overwrite the other's result.")
    return made


def copies_of_facts(facts: Sequence[Fact]) -> list[int]:
    """Per fact, the number of the first of the same prompt, subject and answer: copies are one observation."""
    first: dict[tuple[str, str, str | None], int] = {}
    return [first.setdefault((f.prompt, f.subject, f.answer), i) for i, f in enumerate(facts)]


def load_facts(path: str | Path) -> list[Fact]:
    r"""Read facts from JSON (a list), JSON lines, or a table (``.csv``, ``.tsv``) in any dialect of spreadsheets.

    Layouts: ``known_1000`` (prompt, subject, attribute), CounterFact as published (requested_rewrite), its
    single-prompt derivatives (base_prompt, subject, target_true), and plain (prompt, subject, answer).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a record of no known layout; the message names the line or the record.

    Examples:
        >>> from pathlib import Path
        >>> from tl_multitrace.causal_trace import load_facts
        >>> _ = Path("facts.csv").write_text("prompt,subject,answer\nThe Falcon Tower is in,Falcon Tower,Rome")
        >>> [fact.answer for fact in load_facts("facts.csv")]
        [' Rome']
    """
    if Path(path).suffix.lower() in TABLES:
        records: list[Any] = list(read_records(path, "facts file").records)
    else:
        text = read_text(path, "facts file")
        items = JsonItems(path, text).records() if text.lstrip().startswith("[") else json_lines(path, text)
        records = [Record(str(path), n, value) if isinstance(value, dict) else value for n, value in items]
    made = [fact_of(record, i) if isinstance(record, Record) else record for i, record in enumerate(records)]
    with naming(path):
        return as_facts(made)


def fact_of(record: Any, i: int) -> Fact:
    """One record of :func:`load_facts`, number ``i`` of its file; raises ValueError for one of no known layout."""
    if isinstance(record, Fact):
        return record if record.id else Fact(record.prompt, record.subject, record.answer, str(i))
    if isinstance(record, Record):
        listed = record.listed("requested_rewrite") if record.has("requested_rewrite") else record
        empty = [name for name, value in listed.fields.items() if value == "" and name not in (*PROMPTS, "subject")]
        try:  # an empty cell of a table is no answer and no name
            return _from_mapping({k: v for k, v in listed.fields.items() if k not in empty}, i)
        except ValueError as error:
            raise record.wrong("a fact", str(error).rstrip(".")) from None
    if isinstance(record, Mapping):
        return _from_mapping(record, i)
    if isinstance(record, list | tuple) and len(record) in (2, 3) and all(isinstance(x, str) for x in record[:2]):
        answer = record[2] if len(record) == 3 else None
        if answer is None or isinstance(answer, str):
            return Fact(record[0], record[1], answer, str(i))
    raise ValueError(f"fact {i} is {short(record)}: give mappings or (prompt, subject, answer) tuples.")


def _from_mapping(record: Mapping[str, Any], i: int) -> Fact:
    name = str(next((record[key] for key in ("known_id", "case_id", "id") if key in record), i))
    rewrite = record.get("requested_rewrite")
    text: Any
    if isinstance(rewrite, Mapping):
        target = rewrite.get("target_true")
        answer = target.get("str") if isinstance(target, Mapping) else None
        parts: tuple[Any, ...] = (rewrite.get("prompt"), rewrite.get("subject"), answer)
        if not all(isinstance(part, str) for part in parts):
            got = short(dict(rewrite), 300)
            raise ValueError(f"fact {i}: requested_rewrite needs prompt, subject and target_true.str, got {got}.")
        text, part = parts[0].replace("{}", parts[1]), parts[1]
    else:
        text, answer = (next((record[k] for k in keys if k in record), None) for keys in (PROMPTS, ANSWERS))
        part = record.get("subject")
    if not isinstance(text, str) or not isinstance(part, str):
        raise ValueError(
            f"fact {i} has the keys {short(sorted(map(str, record)), 300)}: it needs prompt and subject, or the layout "
            "of known_1000 or CounterFact."
        )
    if answer is not None and (isinstance(answer, bool) or not isinstance(answer, str | int)):
        raise ValueError(f"fact {i} has the answer {short(answer)}, which is no text.")
    # with the space that separates it from the prompt
    spaced = None if answer is None else str(answer).strip() if text[-1:].isspace() else f" {str(answer).strip()}"
    return Fact(text, part, spaced, name)
