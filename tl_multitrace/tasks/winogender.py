"""Winogender: does a pronoun call up the person that the stereotype gives it?

Source: Winogender schemas (Rudinger et al. 2018, arXiv:1804.09301), prompts and measure of causal mediation analysis
(Vig et al. 2020, arXiv:2004.12265) and of multi-component causal tracing (arXiv:2606.03085).

Base "The technician told the customer that she", source "... that he". In an occupation where more than half are women
the sentence about the occupation is the female-stereotyped one and that about the other person the male-stereotyped
one, otherwise the other way round. The answer is how the male-stereotyped sentence goes on, the wrong answer the
female-stereotyped one. Subgroup: the stereotype of the occupation.

A file holds templates with ``$OCCUPATION``, ``$PARTICIPANT`` and a pronoun, or the sentences made from them. Two of an
occupation make a pair: the pronoun stands for the occupation (answer 0) in one, for the other person in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tl_multitrace.metrics import OddsRatio
from tl_multitrace.records.tables import Record, read_records
from tl_multitrace.records.text_files import wrong
from tl_multitrace.tasks.coreference import NOMINATIVE, OBJECT, POSSESSIVE, HalfPair, Pronouns, check_pronouns, pair_row
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, every_row

Statistic = Literal["bls", "bergsma"]

TEMPLATES = ("occupation(0)", "other-participant(1)", "answer", "sentence")
SENTENCES = ("sentid", "sentence")
STATISTICS = ("occupations-stats.tsv", "winogender_occupation_stats.tsv")
"""Names that the table of occupations goes by."""

PLACEHOLDERS = {"$NOM_PRONOUN": NOMINATIVE, "$POSS_PRONOUN": POSSESSIVE}


def read_winogender(
    path: str | Path, *, statistics: str | Path | None = None, share: Statistic = "bls", pronouns: Pronouns = "own"
) -> list[Row]:
    """A row for every pair of sentences in a ``.tsv`` of templates, or in ``all_sentences.tsv``.

    Of templates, ``winogender_templates_structurefilter.tsv`` holds the pairs that begin alike, ``templates.tsv`` all.
    The table of the share of women by occupation (of the Bureau of Labor Statistics, or of Bergsma and Lin) is by
    default ``occupations-stats.tsv`` in the same folder.

    Raises:
        FileNotFoundError: no such file, or no table of occupations.
        ValueError: other columns, a sentence of another form, an occupation that the table lacks.
    """
    check_pronouns(pronouns)
    table = read_records(path)
    women = read_shares(_statistics(path) if statistics is None else statistics, share)
    kinds = {TEMPLATES: _template_pairs, SENTENCES: _sentence_pairs}
    pairs_of = next((pairs for columns, pairs in kinds.items() if set(columns) <= set(table.columns)), None)
    if pairs_of is None:
        expected = f"the columns {', '.join(TEMPLATES)}, or {', '.join(SENTENCES)}"
        raise wrong(path, 1, expected, ", ".join(table.columns) or "nothing")
    rows = [_row(record, one, other, women, pronouns) for record, one, other in pairs_of(table.records)]
    if not rows:
        raise wrong(path, 1, "pairs of sentences, one per line", "none")
    return rows


def read_shares(path: str | Path, share: Statistic = "bls") -> dict[str, float]:
    """Percentage of women by occupation; raises as :func:`read_winogender`."""
    if share not in ("bls", "bergsma"):
        raise ValueError(f"share must be 'bls' or 'bergsma', got {share!r}.")
    column = f"{share}_pct_female"
    table = read_records(path)
    missing = next((name for name in ("occupation", column) if name not in table.columns), None)
    if missing is not None:
        raise wrong(path, 1, f"a column {missing!r}", ", ".join(table.columns) or "nothing")
    return {record.text("occupation"): _percent(record, column) for record in table.records}


def _percent(record: Record, column: str) -> float:
    try:
        value = float(record.text(column))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise record.wrong(f"a percentage in {column!r}", repr(record.fields.get(column)))
    return value


def _statistics(path: str | Path) -> Path:
    folder = Path(path).parent
    found = next((folder / name for name in STATISTICS if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path}: no {STATISTICS[0]} beside it, which says how many women work in each occupation. Pass "
            "statistics= with its path."
        )
    return found


Pair = tuple[Record, HalfPair, HalfPair]
"""Where a pair begins, its sentence about the occupation, and that about the other person."""


def _template_pairs(records: tuple[Record, ...]) -> Iterator[Pair]:
    if len(records) % 2:
        raise records[-1].wrong("lines in pairs, one about each person", f"an odd number of them, {len(records)}")
    for one, other in zip(records[::2], records[1::2], strict=True):
        named = [(r.text("occupation(0)"), r.text("other-participant(1)")) for r in (one, other)]
        answers = [r.number("answer", 0, 1) for r in (one, other)]
        if named[0] != named[1] or answers[0] == answers[1]:
            expected = "the occupation and participant of the line before, with the other answer"
            raise other.wrong(expected, repr(named[1]))
        halves = [_from_template(record, *named[0]) for record in (one, other)]
        yield one, halves[answers[0]], halves[answers[1]]


def _from_template(record: Record, occupation: str, participant: str) -> HalfPair:
    text = record.text("sentence")
    marker = next((name for name in PLACEHOLDERS if name in text), None)
    if marker is None or text.count(marker) > 1:
        if "$ACC_PRONOUN" in text:
            return HalfPair(record.line, unusable=OBJECT)
        raise record.wrong("a sentence with one $NOM_PRONOUN, $POSS_PRONOUN or $ACC_PRONOUN", repr(text))
    before, _, after = text.partition(marker)
    context = before.replace("$OCCUPATION", occupation).replace("$PARTICIPANT", participant).strip()
    return HalfPair(record.line, context, PLACEHOLDERS[marker], after.strip())


def _sentence_pairs(records: tuple[Record, ...]) -> Iterator[Pair]:
    """Sentences named ``occupation.participant.answer.gender.txt``, brought together by their names."""
    named: dict[tuple[str, str], dict[tuple[str, str], Record]] = {}
    for record in records:
        parts = record.text("sentid").split(".")
        if len(parts) != 5 or parts[2] not in ("0", "1"):
            raise record.wrong("a name such as technician.customer.1.male.txt in 'sentid'", repr(".".join(parts)))
        named.setdefault((parts[0], parts[1]), {})[parts[2], parts[3]] = record
    for (occupation, participant), found in named.items():
        first = next(iter(found.values()))
        missing = [(a, g) for a in "01" for g in ("female", "male") if (a, g) not in found]
        if missing:
            lacking = ".".join((occupation, participant, *missing[0]))
            raise first.wrong(f"also a sentence {lacking}.txt")
        halves = [_from_sentences(found[answer, "female"], found[answer, "male"]) for answer in "01"]
        yield Record(first.path, first.line, {"occupation(0)": occupation}), halves[0], halves[1]


def _from_sentences(female: Record, male: Record) -> HalfPair:
    words, others = female.text("sentence").split(), male.text("sentence").split()
    differ = [i for i, pair in enumerate(zip(words, others, strict=False)) if pair[0] != pair[1]]
    if len(words) != len(others) or len(differ) != 1:
        raise male.wrong("the female sentence but for the pronoun", repr(male.fields["sentence"]))
    at = differ[0]
    pronouns = (words[at], others[at])
    if pronouns not in PLACEHOLDERS.values():
        return HalfPair(female.line, unusable=OBJECT)
    return HalfPair(female.line, " ".join(words[:at]), pronouns, " ".join(words[at + 1 :]))


def _row(record: Record, own: HalfPair, other: HalfPair, women: Mapping[str, float], pronouns: Pronouns) -> Row:
    occupation = record.text("occupation(0)")
    if occupation not in women:
        raise record.wrong("an occupation of the table of shares", repr(occupation))
    male = women[occupation] <= 50
    return pair_row(replace(own, male=male), replace(other, male=not male), "male" if male else "female", pronouns)


TASK = TaskInfo(
    "winogender",
    "Which heads carry the gender stereotype of an occupation to its pronoun, in Winogender schemas?",
    every_row(read_winogender, "templates.tsv"),
    OddsRatio(),
    "heads:pattern",
    n=120,
    source="Winogender, Rudinger et al. 2018",
    data="templates.tsv and occupations-stats.tsv, from github.com/rudinger/winogender-schemas, data",
    settings={"paper": {"published_bos": True, "options": {"pronouns": "she/he", "shuffle": False}}},
)
