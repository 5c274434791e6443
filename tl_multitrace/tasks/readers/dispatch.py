"""Which layout a table of prompts has, told by its columns, and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tl_multitrace.tasks.readers import benchmarks, eap_ig, facts, plain
from tl_multitrace.tasks.readers.hub import PREFIX, hub_records
from tl_multitrace.tasks.readers.layout import Layout
from tl_multitrace.tasks.readers.records import Table, read_records
from tl_multitrace.tasks.readers.text import wrong
from tl_multitrace.tasks.readers.vocabulary import Vocabulary
from tl_multitrace.tasks.rows import Row

LAYOUTS: tuple[Layout, ...] = (*plain.LAYOUTS, *benchmarks.LAYOUTS, *eap_ig.LAYOUTS, *facts.LAYOUTS)
"""In the order they are tried: the first whose columns are all there."""

OF_TASKS = {
    "occupation(0)": "winogender",
    "sentid": "winogender",
    "BABA_TEMPLATES": "ioi",
}
"""Columns of files that are read by a task of their own."""


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
    layout: Layout
    name: str


def read_prompts(
    path: str | Path,
    vocabulary: Vocabulary | None = None,
    *,
    columns: Mapping[str, str] | None = None,
) -> Prompts:
    r"""Read a file of prompts, whose layout is told by its columns.

    Args:
        path: ``.csv``, ``.tsv``, ``.json``, ``.jsonl``, or ``"hf:name"`` for a Hugging Face data set (see
            :func:`~tl_multitrace.tasks.readers.hub.hub_records`).
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
    words = vocabulary or Vocabulary()
    records = [record.needing(layout.needed) for record in table.records]
    rows = tuple(layout.row(record, words) for record in records)
    plain.check_same(records, rows)
    return Prompts(rows, layout, name.removeprefix(PREFIX) if name.startswith(PREFIX) else Path(name).stem)


def layout_of(table: Table) -> Layout:
    """The layout of a table.

    Raises:
        ValueError: its columns are those of no layout; the message lists the known ones.
    """
    found = next((layout for layout in LAYOUTS if set(layout.columns) <= set(table.columns)), None)
    if found is not None:
        return found
    if not any(table.columns) or {"base", "source"} & set(table.columns):
        return plain.PLAIN
    own = next((task for column, task in OF_TASKS.items() if column in table.columns), None)
    hint = f" This is a file of the task {own!r}: task({own!r}, model, path=...)." if own else ""
    known = "; ".join(dict.fromkeys(f"{', '.join(layout.columns)} ({layout.name})" for layout in LAYOUTS))
    raise ValueError(
        f"{table.path}, line 1: expected the columns of a known layout, found {', '.join(table.columns)[:300]}.{hint} "
        f"Known: {known}. Or say with columns= which column is which."
    )
