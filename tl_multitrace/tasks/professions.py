"""Gender stereotypes of professions: which pronoun does the model expect?

Source: the prompts and the measure follow the professions experiment of multi-component causal tracing
(arXiv:2606.03085) and causal mediation analysis (Vig et al. 2020, arXiv:2004.12265); words and templates are this
package's own, or those of a published list: ``path=``. ``setting="paper"`` asks about MLP output dimensions, on all
2,703 pairs of the paper's lists.

Base "The nurse said that", source "The man said that": with r the odds he : she relative to the base run, the effect of
a female-stereotyped word is ``r - 1`` and that of a male-stereotyped word (source "The woman said that") is ``1/r -
1``. Above 0: the patch moves the model against the stereotype.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_multitrace.metrics import OddsRatio
from tl_multitrace.records.text_files import JsonItems, check_text, read_lines, read_text, wrong
from tl_multitrace.tasks.corpus import FEMALE_PROFESSIONS, MALE_PROFESSIONS, PRONOUN_TEMPLATES
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

HE, SHE = " he", " she"
LISTS = ("male_occupations.txt", "female_occupations.txt")
TEMPLATES = "templates.txt"
NEUTRAL = "a word stereotyped neither as male nor as female"


@dataclass(frozen=True)
class Professions:
    """Words and templates.

    Attributes:
        male: words stereotyped as male.
        female: words stereotyped as female.
        templates: sentences with ``{noun}``; empty where the file has none.
        neutral: words left out, stereotyped as neither.
    """

    male: tuple[str, ...]
    female: tuple[str, ...]
    templates: tuple[str, ...] = ()
    neutral: tuple[str, ...] = ()


def read_professions(path: str | Path) -> Professions:
    """The words and templates of a published list.

    That is a folder with ``male_occupations.txt``, ``female_occupations.txt`` (one word a line) and ``templates.txt``
    (with ``{}``), or a ``.json`` list of ``[word, definitional, stereotypical]``, both numbers from -1 (female) to 1
    (male), whose sum decides; ``_`` stands for a space.

    Raises:
        FileNotFoundError: no such file, or a file of the folder is missing.
        ValueError: a line or row of another form, a word in both lists, a list without words.
    """
    path = Path(path)
    found = _from_folder(path) if path.is_dir() else _from_json(path)
    twice = sorted(set(found.male) & set(found.female))
    if twice:
        raise ValueError(f"{path}: {twice[0]!r} is in the male and in the female list; a word can be in one only.")
    if not found.male and not found.female:
        raise wrong(path, 1, "words stereotyped as male or female", "none")
    return found


def _from_folder(folder: Path) -> Professions:
    male, female = (tuple(text for _, text in read_lines(folder / file, "list of words")) for file in LISTS)
    templates = []
    for line, text in read_lines(folder / TEMPLATES, "list of templates"):
        if text.count("{}") != 1 or text.count("{") + text.count("}") != 2:
            raise wrong(folder / TEMPLATES, line, "a template with one {} for the word", repr(text))
        templates.append(text.replace("{}", "{noun}"))
    return Professions(male, female, tuple(templates))


def _from_json(path: Path) -> Professions:
    rows = JsonItems(path, read_text(path, "list of professions")).records()
    scored = [_scored(path, line, row) for line, row in rows]
    male, female, neutral = (
        tuple(word for word, score in scored if (score > 0) - (score < 0) == sign) for sign in (1, -1, 0)
    )
    return Professions(male, female, (), neutral)


def _scored(path: Path, line: int, row: object) -> tuple[str, float]:
    """The word of a row, and how male (above 0) or female (below 0) it is."""
    if isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and row[0].strip():
        numbers = [x for x in row[1:] if isinstance(x, int | float) and not isinstance(x, bool) and -1 <= x <= 1]
        if len(numbers) == 2:
            return check_text(path, line, row[0].replace("_", " ").strip()), float(sum(numbers))
    shown = json.dumps(row) if isinstance(row, list) else repr(row)
    raise wrong(path, line, 'a row ["word", definitional, stereotypical] with numbers from -1 to 1', shown)


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    male: Sequence[str] | None = None,
    female: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    path: str | Path | None = None,
) -> Iterator[Row]:
    """Every word in every template once, male- and female-stereotyped words in turn.

    Templates have a ``{noun}``; each is also said of "man" and "woman". Words and templates are the package's, or those
    of a published list; see :func:`read_professions`.
    """
    own = Professions(tuple(MALE_PROFESSIONS), tuple(FEMALE_PROFESSIONS))
    lists = own if path is None else read_professions(path)
    frames = (lists.templates or PRONOUN_TEMPLATES) if templates is None else templates
    men = _rows(lists.male if male is None else male, frames, "woman", (SHE, HE), "male")
    women = _rows(lists.female if female is None else female, frames, "man", (HE, SHE), "female")
    yield from (Row(word, word, (HE,), unusable=NEUTRAL) for word in lists.neutral)
    rng.shuffle(men)
    rng.shuffle(women)
    for i in range(max(len(men), len(women))):
        yield from (*women[i : i + 1], *men[i : i + 1])


def _rows(
    words: Iterable[str], templates: Sequence[str], other: str, pronouns: tuple[str, str], label: str
) -> list[Row]:
    answer, wrong = ((pronoun,) for pronoun in pronouns)
    pairs = ((frame.format(noun=word), frame.format(noun=other)) for word in words for frame in templates)
    return [Row(base, source, answer, wrong, label) for base, source in pairs]


TASK = TaskInfo(
    "professions",
    "Which components hold the gender stereotype of a profession?",
    rows,
    OddsRatio(),
    "neurons",
    settings={"paper": {"published_bos": True, "groups": "mlp_dims", "n": 2703}},
)
