"""Prompts from a file, a user's own or one that others publish, as a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_multitrace.interventions import Interchange, MeanAblation
from tl_multitrace.metrics import AnswerLogProb, Metric
from tl_multitrace.records.tables import Record, Table
from tl_multitrace.records.text_files import wrong
from tl_multitrace.tasks.readers import PromptLayout, Prompts, Vocabulary, read_prompts, some
from tl_multitrace.tasks.registry import Task
from tl_multitrace.tasks.sieve import Alignment, Row, pairs_of, sieve_of

REQUIRED = ("base", "source", "answer")
OPTIONAL = ("wrong_answer", "group", "subject")


def _check(table: Table) -> None:
    """Refuse a table without the required columns or with unknown ones; raises ValueError."""
    if not table.header:
        for record in table.records:
            strange = [name for name in record.fields if name not in (*REQUIRED, *OPTIONAL)]
            if strange:
                raise record.wrong(f"the fields {PLAIN.needed}", repr(strange[0]))
        return
    missing = [name for name in REQUIRED if name not in table.columns]
    strange = [name for name in table.columns if name not in (*REQUIRED, *OPTIONAL)]
    if missing or strange:
        what = f"no column {missing[0]!r}" if missing else f"an unknown column {strange[0]!r}"
        raise wrong(table.path, 1, f"the columns {PLAIN.needed}", f"{what} ({', '.join(table.columns) or 'nothing'})")


def _row(record: Record, vocabulary: Vocabulary) -> Row:
    answers, wrong = some(record, "answer", record.texts("answer")), record.texts("wrong_answer")
    group, subject = record.optional("group"), record.optional("subject")
    return Row(record.text("base"), record.text("source"), answers, wrong, group or "", subject)


PLAIN = PromptLayout("prompt pairs of one's own", REQUIRED, _row, also=OPTIONAL, check=_check)


def task_from_file(
    path: str | Path,
    model: Any,
    *,
    metric: Metric | None = None,
    align: Alignment = "drop",
    columns: Mapping[str, str] | None = None,
    prepend_bos: bool | None = None,
) -> Task:
    r"""Read prompts from a file, whose layout is told by its columns.

    Layouts, each with the metric and intervention usual for it:

    - a user's own: ``base, source, answer`` and optionally ``wrong_answer, group, subject``; or one prompt with a true
      and a false answer, ``prompt, answer, wrong_answer`` and optionally ``source, group, subject`` (TruthfulQA too);
    - EAP-IG tables (``clean, corrupted`` and the answers), MIB (``prompt, choices, answerKey`` and counterfactuals),
      auto-circuit (``clean, corrupt, answers, wrong_answers``): the corrupted prompt is the base, the clean one the
      source;
    - facts (``prompt, subject, answer``), ``known_1000``, CounterFact and its single-prompt derivatives: noise on the
      subject, clean activations restored.

    Args:
        path: ``.csv`` or ``.tsv`` with a header line (parted by commas, semicolons or tabs), ``.json`` with a list of
            objects, ``.jsonl`` with one a line, or ``"hf:owner/name:config@split"`` for a Hugging Face data set.
            Answers carry their leading space; in JSON an answer may be a list of alternatives.
        model: a TransformerLens model with a tokenizer; prompts that it cannot say are counted in ``dropped``.
        metric: default ``LogitDiff()`` where every prompt has a wrong answer, else ``AnswerLogProb()``; for published
            layouts theirs.
        align: as in :func:`~tl_multitrace.tasks.task`.
        columns: which of the file's columns is which of a layout's, ``{"prompt": "question", ...}``; others are left
            out.
        prepend_bos: put a BOS token in front of prompts; default: what TransformerLens does for this model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed file, with its line; columns of no known layout; token ids of another tokenizer; or no
            prompt is left.

    Examples:
        >>> from pathlib import Path
        >>> lines = ["base,source,answer,wrong_answer", "The nurse said that,The man said that, he, she"]
        >>> _ = Path("mine.csv").write_text("\n".join(lines), encoding="utf-8")
        >>> task = mt.task_from_file("mine.csv", mt.load_model("demo"))
        >>> task.kept, task.metric.name
        (1, 'logit_diff')
    """
    sieve = sieve_of(model, align=align, prepend_bos=prepend_bos)
    prompts = read_prompts(path, Vocabulary(sieve.encoder), columns=columns)
    layout = prompts.layout
    pairs = pairs_of(model, prompts.rows, replace(sieve, one_prompt=layout.one_prompt))
    two = isinstance(layout.intervention, MeanAblation) and all(row.base != row.source for row in prompts.rows)
    return Task(
        name=prompts.name,
        pairs=pairs,
        metric=metric or _metric(prompts),
        groups=layout.groups,
        intervention=Interchange() if two else layout.intervention,
        direction="maximize" if two else layout.direction,
        question="prompts of a file",
        source=f"{path if str(path).startswith('hf:') else Path(path).name} ({layout.name})",
        licence="the file's own",
    )


def _metric(prompts: Prompts) -> Metric:
    """The layout's metric, or the log probability of the answer where that needs wrong answers and there are none."""
    usual = prompts.layout.metric
    has_wrong = all(row.wrong for row in prompts.rows if not row.unusable)
    return AnswerLogProb() if usual.needs_wrong and not has_wrong else usual
