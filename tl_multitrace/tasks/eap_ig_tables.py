"""The prompt tables of EAP-IG (Hanna et al. 2024, arXiv:2403.17806): clean and corrupted prompts and their answers.

The corrupted prompt is the base and the clean one the source, so that here too the answer is what the source prompt
calls for; ``pairs.swap()`` gives the other reading. Where a table has the answers as text, the text is used, on any
tokenizer; where it has token ids alone, they must be those of the model's tokenizer.
"""

from __future__ import annotations

from tl_multitrace.metrics import LogitDiff, ProbDiff
from tl_multitrace.pair_reader import Row
from tl_multitrace.records.tables import Record
from tl_multitrace.tasks.readers import PromptLayout, RowReader, Vocabulary, some, spaced

YEARS = tuple(f"{year:02d}" for year in range(100))
SINGULAR = (" is", " was", " has", " does")
PLURAL = (" are", " were", " have", " do")
"""The published table names the number of the subject and no verbs; these are the commonest ones."""

IDS = {
    "gender bias": ("clean_answer_idx", "corrupted_answer_idx"),
    "names": ("correct_idx", "incorrect_idx"),
    "capitals": ("country_idx", "corrupted_country_idx"),
}
NO_LATER_YEAR = "no two-digit year is greater"


def _prompts(record: Record) -> tuple[str, str]:
    return record.text("corrupted"), record.text("clean")


def _years(column: str) -> RowReader:
    """Reads the year that the answers have to be above."""

    def row(record: Record, vocabulary: Vocabulary) -> Row:
        base, source = _prompts(record)
        year = record.number(column, 0, 9999 if column == "year" else 99) % 100
        if YEARS[year] not in source:  # a label of another kind, such as 0 and 1 for two classes
            raise record.wrong(f"a prompt that names the year ..{YEARS[year]} of {column!r} in 'clean'", repr(source))
        unusable = "" if year < 99 else NO_LATER_YEAR
        return Row(base, source, YEARS[year + 1 :], YEARS[: year + 1], joined=True, unusable=unusable)

    return row


def _single(right: str, other: str) -> RowReader:
    """Reads one token id for the clean prompt and one for the corrupted one."""

    def row(record: Record, vocabulary: Vocabulary) -> Row:
        base, source = _prompts(record)
        answer, wrong = (vocabulary.text(record, name, source, record.number(name)) for name in (right, other))
        _check_names(record, source, right, answer)
        return Row(base, source, (answer,), (wrong,))

    return row


def _check_names(record: Record, prompt: str, name: str, answer: str) -> None:
    """Ids of another tokenizer can be words here too; but the answers of these tables are known words."""
    pronoun = name == IDS["gender bias"][0]
    foreign = (
        answer.strip() not in ("he", "she") if pronoun else "corrupted_hard" in record.fields and answer not in prompt
    )
    if foreign:
        expected = "he or she" if pronoun else "a name of the prompt"
        raise record.wrong(
            f"a token id that stands for {expected} in {name!r}",
            f"{record.fields[name]}, which is {answer!r} here: the file was made for another tokenizer",
        )


def _country(record: Record, vocabulary: Vocabulary) -> Row:
    base, source = _prompts(record)
    answer, wrong = (spaced(record.text(name), source) for name in ("country", "corrupted_country"))
    return Row(base, source, (answer,), (wrong,))


def _hypernyms(record: Record, vocabulary: Vocabulary) -> Row:
    base, source = _prompts(record)
    lists = {name: record.listed(name).texts(name) for name in ("answers", "corrupted_answers")}
    right, wrong = (tuple(spaced(a, source) for a in some(record, name, texts)) for name, texts in lists.items())
    return Row(base, source, right, tuple(w for w in wrong if w not in right))


def _number(record: Record, vocabulary: Vocabulary) -> Row:
    base, source = _prompts(record)
    right, wrong = (PLURAL, SINGULAR) if record.number("plural", 0, 1) else (SINGULAR, PLURAL)
    return Row(base, source, right, wrong, record.optional("group") or "")


def _layout(
    name: str, columns: tuple[str, ...], row: RowReader, *, prob: bool = False, also: tuple[str, ...] = ()
) -> PromptLayout:
    metric = ProbDiff(reduce="sum") if prob else LogitDiff()
    return PromptLayout(f"EAP-IG, {name}", ("clean", "corrupted", *columns), row, also, metric)


LAYOUTS = (
    _layout("gender bias", IDS["gender bias"], _single(*IDS["gender bias"])),
    _layout("names (ioi) or colours", IDS["names"], _single(*IDS["names"]), also=("corrupted_hard",)),
    _layout("capitals", ("country", "corrupted_country"), _country),
    _layout("capitals as ids", IDS["capitals"], _single(*IDS["capitals"])),
    _layout("hypernyms", ("answers", "corrupted_answers"), _hypernyms, prob=True),
    _layout("subject-verb agreement", ("plural",), _number, prob=True, also=("group",)),
    _layout("greater than", ("label",), _years("label"), prob=True),
    _layout("greater than", ("correct_idx",), _years("correct_idx"), prob=True),
    _layout("greater than (MIB)", ("year",), _years("year"), prob=True),
)
