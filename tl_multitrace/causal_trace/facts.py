"""Sets of facts: prompt, subject and answer, from the files that others publish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_multitrace.records.read import load_records, naming, short


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
    """Read facts from JSON (a list) or JSON lines.

    Layouts: ``known_1000`` (prompt, subject, attribute), CounterFact as published (requested_rewrite), its
    single-prompt derivatives (base_prompt, subject, target_true), and plain (prompt, subject, answer).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or a record of no known layout; the message names the record.

    Examples:
        >>> from pathlib import Path
        >>> from tl_multitrace.causal_trace import load_facts
        >>> line = '{"prompt": "The Falcon Tower is in", "subject": "Falcon Tower", "answer": " Rome"}'
        >>> _ = Path("facts.jsonl").write_text(line)
        >>> [fact.answer for fact in load_facts("facts.jsonl")]
        [' Rome']
    """
    records = load_records(path)
    with naming(path):
        return as_facts(records)


def fact_of(record: Any, i: int) -> Fact:
    """One record of :func:`load_facts`, number ``i`` of its file; raises ValueError for one of no known layout."""
    if isinstance(record, Fact):
        return record if record.id else Fact(record.prompt, record.subject, record.answer, str(i))
    if isinstance(record, Mapping):
        return _from_mapping(record, i)
    if isinstance(record, list | tuple) and len(record) in (2, 3) and all(isinstance(x, str) for x in record[:2]):
        answer = record[2] if len(record) == 3 else None
        if answer is None or isinstance(answer, str):
            return Fact(record[0], record[1], answer, str(i))
    raise ValueError(f"fact {i} is {short(record)}: give mappings or (prompt, subject, answer) tuples.")


def _from_mapping(record: Mapping[str, Any], i: int) -> Fact:
    name = str(record.get("known_id", record.get("case_id", record.get("id", i))))
    rewrite = record.get("requested_rewrite")
    if isinstance(rewrite, Mapping):
        return _from_rewrite(rewrite, name, i)
    text, part = record.get("base_prompt", record.get("prompt")), record.get("subject")
    if not isinstance(text, str) or not isinstance(part, str):
        raise ValueError(
            f"fact {i} has the keys {short(sorted(map(str, record)), 300)}: it needs prompt and subject, or the layout "
            "of known_1000 or CounterFact."
        )
    answer = record.get("answer", record.get("attribute", record.get("target_true")))
    return Fact(text, part, None if answer is None else _answer(str(answer), text), name)


def _from_rewrite(rewrite: Mapping[str, Any], name: str, i: int) -> Fact:
    """A record of CounterFact as published."""
    target = rewrite.get("target_true")
    parts = (rewrite.get("prompt"), rewrite.get("subject"), target.get("str") if isinstance(target, Mapping) else None)
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"fact {i}: requested_rewrite needs prompt, subject and target_true.str, got {short(dict(rewrite), 300)}."
        )
    template, subject, answer = map(str, parts)
    prompt = template.replace("{}", subject)
    return Fact(prompt, subject, _answer(answer, prompt), name)


def _answer(answer: str, prompt: str) -> str:
    """The answer with the space that separates it from the prompt."""
    return answer.strip() if prompt[-1:].isspace() else " " + answer.strip()
