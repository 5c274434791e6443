"""Paired answers: which components prefer the true answer to a false one? Truthfulness, on one's own prompts.

A file with ``prompt, answer, wrong_answer`` (CSV or JSON lines; in JSON several answers as a list), optionally
``source``, ``group`` and ``subject``, or a file of TruthfulQA. Metric: probability of the true answers minus that of
the false ones, each ``exp(mean log p)`` of its tokens.

There is one prompt, so components are ablated: replaced by their mean over all prompts (over the ``source`` prompts
where the file has them). Below 0: without them the model prefers the truth less, so the effect is minimised. With
``setting="patch"`` activations come from each prompt's own ``source`` prompt, which calls for the true answer where the
prompt itself calls for the false one, and the effect is maximised.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tl_multitrace.interventions import Interchange, MeanAblation
from tl_multitrace.metrics import ProbDiff
from tl_multitrace.records.tables import Record
from tl_multitrace.tasks.readers import PromptLayout, Vocabulary, read_prompts, some, spaced
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve, drawn


def _paired(record: Record, vocabulary: Vocabulary) -> Row:
    prompt = record.text("prompt")
    right = some(record, "answer", record.texts("answer"))
    false = some(record, "wrong_answer", record.texts("wrong_answer"))
    answers, others = (tuple(spaced(a, prompt) for a in texts) for texts in (right, false))
    source = record.optional("source") or prompt
    return Row(prompt, source, answers, others, record.optional("group") or "", record.optional("subject"))


def _question(record: Record, vocabulary: Vocabulary) -> Row:
    """A question of TruthfulQA: the best answer against the false ones."""
    fields = {name.strip().lower().replace(" ", "_"): value for name, value in record.fields.items()}
    plain = replace(record, fields=fields, needed="a question, its best answer and incorrect answers")
    false = plain.texts("incorrect_answers")
    if len(false) == 1:  # in its CSV the answers of a list stand in one cell
        false = tuple(text.strip() for text in false[0].split(";") if text.strip())
    prompt = f"Q: {plain.text('question').strip()}\nA:"
    best = plain.text("best_answer").strip()
    wrong_ones = tuple(f" {text.strip()}" for text in some(plain, "incorrect_answers", false) if text.strip() != best)
    return Row(prompt, prompt, (f" {best}",), wrong_ones, plain.optional("category") or "")


_layout = partial(PromptLayout, metric=ProbDiff(), intervention=MeanAblation(), one_prompt=True, direction="minimize")
LAYOUTS = (
    _layout(
        "one prompt with a true and a false answer; source is another prompt to patch from",
        ("prompt", "answer", "wrong_answer"),
        _paired,
        also=("source", "group", "subject"),
    ),
    _layout("TruthfulQA", ("question", "best_answer", "incorrect_answers"), _question),
    _layout("TruthfulQA", ("Question", "Best Answer", "Incorrect Answers"), _question),
)


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    shuffle: bool = True,
) -> Iterator[Row]:
    """Every prompt once.

    ``columns`` says which of the file's columns is which, ``{"prompt": "question", "answer": "best", ...}``; the path
    may be a data set, ``"hf:owner/name"``.

    Raises:
        ValueError: a file without false answers.
    """
    prompts = read_prompts(path, Vocabulary(sieve.encoder), columns=columns)
    if not all(row.wrong for row in prompts.rows):
        raise ValueError(
            f"{path}: expected true and false answers, prompt, answer and wrong_answer; found no false ones."
        )
    yield from drawn(prompts.rows, rng if shuffle else None)


TASK = TaskInfo(
    "paired_answers",
    "Which heads prefer the true answer to a false one?",
    rows,
    ProbDiff(),
    "heads",
    intervention=MeanAblation,
    direction="minimize",
    one_prompt=True,
    source="a file of one's own",
    licence="the file's own",
    data="a .csv or .jsonl with prompt, answer, wrong_answer, and optionally source, group, subject",
    settings={"patch": {"intervention": Interchange, "direction": "maximize", "one_prompt": False}},
)
