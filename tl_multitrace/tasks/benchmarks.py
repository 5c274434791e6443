"""Prompts of MIB (Mueller et al. 2025, arXiv:2504.13151) and of auto-circuit (Miller et al. 2024, arXiv:2407.08734).

Both call the prompt with the answer clean or original and the other one counterfactual or corrupt: the counterfactual
prompt is the base, the original one the source, so that the answer is what the source prompt calls for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tl_multitrace.pair_reader import Row
from tl_multitrace.records.tables import Record, Table
from tl_multitrace.records.text_files import wrong
from tl_multitrace.tasks.readers import PromptLayout, RowReader, Vocabulary, candidates, some, spaced

COUNTERFACTUALS = ("counterfactual", "s2_io_flip_counterfactual", "symbol_counterfactual", "random_counterfactual")
"""Which of a record's counterfactuals is taken, the first that is there; else the first that is named so."""

SAME = "the counterfactual prompt calls for the same answer"
NONE = "no counterfactual prompt"


def _pair(record: Record, answer_of: Callable[[Record], str]) -> Row:
    """Base, source and answers of a record and its counterfactual."""
    prompt = record.text("prompt")
    named = [*COUNTERFACTUALS, *(name for name in record.fields if name.endswith("_counterfactual"))]
    other = next((record.inner(name) for name in named if record.has(name)), None)
    if other is None or not other.has("prompt"):
        return Row(prompt, prompt, (" ",), unusable=NONE)
    right, false = (spaced(answer_of(one), prompt) for one in (record, other))
    return Row(other.text("prompt"), prompt, (right,), (false,), unusable=SAME if right == false else "")


def _choice(record: Record) -> str:
    """The text, or the letter, of the right choice."""
    choices = record.nested("choices")
    listed = choices.get("label") if isinstance(choices, dict) else choices
    if not isinstance(listed, list) or not listed:
        raise record.wrong("a list of choices, or an object with 'label', in 'choices'", repr(choices))
    key = record.number("answerKey", 0, len(listed) - 1)
    return replace(record, fields={"choices": str(listed[key])}).text("choices")


def _label(record: Record) -> str:
    value = record.fields.get("label")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else record.text("label")


def _paired(answer_of: Callable[[Record], str]) -> RowReader:
    return lambda record, vocabulary: _pair(record, answer_of)


def _auto_circuit(record: Record, vocabulary: Vocabulary) -> Row:
    base, source = record.text("corrupt"), record.text("clean")
    right, false = (candidates(record, name, source, vocabulary) for name in ("answers", "wrong_answers"))
    return Row(base, source, some(record, "answers", right), false)


def _refuse_missing(table: Table) -> None:
    if not any(name.endswith("counterfactual") for name in table.columns):
        found = ", ".join(table.columns)
        raise wrong(table.path, 1, "a column that ends in 'counterfactual', with its own prompt and answer", found)


LAYOUTS = (
    PromptLayout("auto-circuit", ("clean", "corrupt", "answers", "wrong_answers"), _auto_circuit),
    PromptLayout(
        name="MIB, choices",
        columns=("prompt", "choices", "answerKey"),
        also=("..._counterfactual",),
        row=_paired(_choice),
        check=_refuse_missing,
    ),
    PromptLayout("MIB, arithmetic", ("prompt", "label", "random_counterfactual"), _paired(_label)),
)
