"""Reads files of prompts, a user's own or of others, whose layout is told by their columns. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tl_multitrace.interventions import Interchange, Intervention
from tl_multitrace.metrics import LogitDiff, Metric
from tl_multitrace.pair_reader import Row
from tl_multitrace.records.tables import Record, Table, read_records
from tl_multitrace.records.text_files import wrong
from tl_multitrace.tasks.hub import PREFIX, hub_records
from tl_multitrace.tokens import Encoder

__all__ = ["Prompts", "Record", "Table", "Vocabulary", "read_prompts", "read_records"]

OF_TASKS = {"occupation(0)": "winogender", "sentid": "winogender", "BABA_TEMPLATES": "ioi"}
"""Columns of files that are read by a task of their own."""


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer, for files that hold token ids as answers.

    Attributes:
        encoder: the tokenizer; None where a file is read without a model.

    Examples:
        >>> from tl_multitrace.tasks.readers import Record, Vocabulary
        >>> record = Record("mine.json", line=1, fields={"answer": 17})
        >>> try:
        ...     Vocabulary().text(record, "answer", "The nurse said that", 17)
        ... except ValueError as error:
        ...     print(str(error).partition(", found")[0])
        mine.json, line 1: expected answers as text in 'answer'
    """

    encoder: Encoder | None = None

    def text(self, record: Record, name: str, prompt: str, token: int) -> str:
        """The text that a token, which stands in a column of a record, adds to a prompt.

        Raises:
            ValueError: no tokenizer, an id outside it, or one that is not how the tokenizer continues the prompt: the
                file was made for another tokenizer.
        """
        if self.encoder is None:
            raise record.wrong(
                f"answers as text in {name!r}",
                "token ids of one tokenizer. Read the file with task_from_file(path, model)",
            )
        why = "which this tokenizer does not have"
        if 0 <= token < len(self.encoder.tokenizer):
            added = self.encoder.words([self.encoder.prompt(prompt)[-1], token])[1]
            try:
                if self.encoder.answer(prompt, added) == [token]:
                    return added
            except ValueError:
                pass
            why = f"{added!r} here, which does not continue {prompt[-40:]!r}"
        raise record.wrong(
            f"a token id of this model's tokenizer in {name!r}",
            f"{token}, {why}: the file was made for another tokenizer",
        )


RowReader = Callable[[Record, Vocabulary], Row]


@dataclass(frozen=True)
class PromptLayout:
    """A layout of prompt files: the columns it is known by, and how one of its records becomes a row.

    Attributes:
        name: who writes such files, and for what.
        columns: a file with all of these has this layout; ``also`` may be there.
        row: reads one record.
        metric: what is usually measured on such prompts; as groups, intervention, one_prompt and direction of a task.
        check: refuses a table before its records are read.
    """

    name: str
    columns: tuple[str, ...]
    row: RowReader
    also: tuple[str, ...] = ()
    metric: Metric = field(default_factory=LogitDiff)
    groups: str = "heads"
    intervention: Intervention = field(default_factory=Interchange)
    one_prompt: bool = False
    direction: Literal["maximize", "minimize"] = "maximize"
    check: Callable[[Table], None] | None = None

    @property
    def needed(self) -> str:
        """The columns in words."""
        return ", ".join(self.columns) + (f", and optionally {', '.join(self.also)}" if self.also else "")


LAYOUTS: list[PromptLayout] = []
"""In the order they are tried: the first whose columns are all there. The first of all is a user's own."""


@dataclass(frozen=True)
class Prompts:
    r"""The prompts of a file.

    Attributes:
        rows: one for each record, also of those that no model can use.
        layout: what kind of file it is, with its usual metric, components and intervention.
        name: what the file is called.

    Examples:
        >>> from pathlib import Path
        >>> from tl_multitrace.tasks.readers import read_prompts
        >>> _ = Path("mine.csv").write_text("base,source,answer\nThe nurse said that,The man said that, he")
        >>> prompts = read_prompts("mine.csv")
        >>> prompts.name, prompts.rows[0].answers
        ('mine', (' he',))
    """

    rows: tuple[Row, ...]
    layout: PromptLayout
    name: str


def read_prompts(
    path: str | Path, vocabulary: Vocabulary | None = None, *, columns: Mapping[str, str] | None = None
) -> Prompts:
    r"""Read a file of prompts, whose layout is told by its columns.

    Args:
        path: ``.csv``, ``.tsv``, ``.json``, ``.jsonl``, or a Hugging Face data set, ``"hf:owner/name:config@split"``.
        vocabulary: the model's tokenizer, for files whose answers are token ids.
        columns: which of the file's columns is which of a layout's: ``{"prompt": "question", "answer": "best"}``.
            Columns not named are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed file, with its line and what was expected there; or columns of no known layout.

    Examples:
        >>> from pathlib import Path
        >>> from tl_multitrace.tasks.readers import read_prompts
        >>> _ = Path("mine.csv").write_text("question,best,bad\nIs it true?, Yes, No")
        >>> columns = {"prompt": "question", "answer": "best", "wrong_answer": "bad"}
        >>> read_prompts("mine.csv", columns=columns).rows[0].wrong
        (' No',)
    """
    name = str(path)
    table = hub_records(name) if name.startswith(PREFIX) else read_records(path)
    table = table if columns is None else table.renamed(columns)
    layout = layout_of(table)
    if layout.check is not None:
        layout.check(table)
    if not table.records:
        raise wrong(table.path, 1, f"prompt pairs, one per line ({layout.needed})", "none")
    records = [replace(record, needed=layout.needed) for record in table.records]
    rows = tuple(layout.row(record, vocabulary or Vocabulary()) for record in records)
    _check_same(records, rows)
    return Prompts(rows, layout, name.removeprefix(PREFIX) if name.startswith(PREFIX) else Path(name).stem)


def layout_of(table: Table) -> PromptLayout:
    """The layout of a table; raises ValueError, which lists the known ones, where its columns are of none."""
    found = next((layout for layout in LAYOUTS if set(layout.columns) <= set(table.columns)), None)
    if found is not None:
        return found
    if not any(table.columns) or {"base", "source"} & set(table.columns):
        return LAYOUTS[0]
    own = next((task for column, task in OF_TASKS.items() if column in table.columns), None)
    hint = f" This is a file of the task {own!r}: task({own!r}, model, path=...)." if own else ""
    known = "; ".join(dict.fromkeys(f"{', '.join(layout.columns)} ({layout.name})" for layout in LAYOUTS))
    raise ValueError(
        f"{table.path}, line 1: expected the columns of a known layout, found {', '.join(table.columns)[:300]}.{hint} "
        f"Known: {known}. Or say with columns= which column is which."
    )


def _check_same(records: Sequence[Record], rows: Sequence[Row]) -> None:
    """An optional field is for every prompt or for none: a metric, a span or subgroups need all of them."""
    used = [(record, row) for record, row in zip(records, rows, strict=True) if not row.unusable]
    for name, held in (("wrong_answer", "wrong"), ("group", "label"), ("subject", "subject")):
        has = [bool(getattr(row, held)) for _, row in used]
        if any(has) and not all(has):
            raise used[has.index(False)][0].wrong(
                f"text in {name!r}", "nothing, though other lines have it. Give it in every line or in none"
            )


# ---------------------------------------------------------------------- what layouts share


def spaced(answer: str, prompt: str) -> str:
    """An answer with the space that parts it from its prompt, where neither has one."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"


def candidates(record: Record, name: str, prompt: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Answers as text, a list of texts, or token ids; raises ValueError."""
    value = record.fields.get(name)
    ids: list[Any] = value if isinstance(value, list) else [value]
    if ids and all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        return tuple(vocabulary.text(record, name, prompt, token) for token in ids)
    return record.texts(name)


def some(record: Record, name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """``texts``, unless there are none; raises ValueError."""
    if not texts:
        raise record.wrong(f"text, or a list of texts, in {name!r}")
    return tuple(texts)
