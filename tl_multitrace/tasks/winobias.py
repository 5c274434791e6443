"""WinoBias: does a pronoun call up the occupation that the stereotype gives it?

Source: sentences of WinoBias (Zhao et al. 2018, arXiv:1804.06876), prompts and measure of causal mediation analysis
(Vig et al. 2020, arXiv:2004.12265) and of multi-component causal tracing (arXiv:2606.03085).

Base "The nurse examined the farmer for injuries because she", source "... because he". The answer is how the sentence
about the male-stereotyped occupation goes on, the wrong answer that about the female-stereotyped one, both of several
tokens. Above 0: the patch moves probability towards the male-stereotyped continuation, as "he" does. Subgroup: the
stereotype of the occupation that the sentence names first.

A line of a file reads ``1 [The developer] argued with the designer because [he] did not like the design.``.
"""

from __future__ import annotations

import re
from pathlib import Path

from tl_multitrace.metrics import OddsRatio
from tl_multitrace.records.text_files import read_lines, wrong
from tl_multitrace.tasks.coreference import (
    NOMINATIVE,
    OBJECT,
    POSSESSIVE,
    SEVERAL_PRONOUNS,
    HalfPair,
    Pronouns,
    check_pronouns,
    pair_row,
)
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, every_row

FILE = "pro_stereotyped_type1.txt.dev"
OBJECTS = ("him", "himself", "herself")
KNOWN = (*NOMINATIVE, *POSSESSIVE, *OBJECTS)
_NUMBERED = re.compile(r"\d+\s+(?P<sentence>\S.*)")
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")


def read_winobias(path: str | Path, *, pronouns: Pronouns = "own", stereotype: str | None = None) -> list[Row]:
    """A row for every pair of sentences in a ``pro_stereotyped_type1.txt.dev`` or its like, also the unusable ones.

    Two lines make a pair. Which occupation is stereotyped as male is read from the sentences themselves: in a
    pro-stereotyped file (which ``stereotype``, or the beginning of its name, tells) it is the one that "he" stands for,
    in an anti-stereotyped file the other one. Sentences of type 1 go on differently behind the pronoun, those of type 2
    end there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of another form, or an odd number of lines; the message gives the line.
    """
    check_pronouns(pronouns)
    lines = read_lines(path, "WinoBias file")  # a file that is not there is that first, whatever its name
    pro = _is_pro(path, stereotype)
    sentences = [_sentence(path, line, text, pro) for line, text in lines]
    if len(sentences) % 2:
        raise wrong(path, sentences[-1].line, "lines in pairs", f"an odd number of them, {len(sentences)}")
    return [_row(path, *pair, pronouns) for pair in zip(sentences[::2], sentences[1::2], strict=True)]


def _is_pro(path: str | Path, stereotype: str | None) -> bool:
    named = stereotype or Path(path).name.partition("_")[0]
    if named not in ("pro", "anti"):
        raise ValueError(
            f"{path}: cannot tell whether the sentences follow the stereotype: pass stereotype='pro' or 'anti' (got "
            f"{stereotype!r}), or keep the name pro_stereotyped_... or anti_stereotyped_..."
        )
    return named == "pro"


def _sentence(path: str | Path, line: int, text: str, pro: bool) -> HalfPair:
    numbered = _NUMBERED.fullmatch(text)
    sentence = numbered["sentence"] if numbered else ""
    found = list(_BRACKETED.finditer(sentence))
    people, pronouns = ([m for m in found if (m[1] in KNOWN) is known] for known in (False, True))
    whole = sentence.count("[") == sentence.count("]") == len(found)
    if not whole or len(people) != 1 or not people[0][1].strip() or not pronouns:
        expected = "a number, and a sentence with an occupation and its pronoun in square brackets"
        raise wrong(path, line, expected, repr(text))
    who = re.sub(r"^(the|a|an) ", "", people[0][1].strip().lower())
    male = (pronouns[0][1] in ("he", "his", "him", "himself")) is pro
    if len(pronouns) > 1:
        return HalfPair(line, who=who, male=male, unusable=SEVERAL_PRONOUNS)
    if pronouns[0][1] in OBJECTS:
        return HalfPair(line, who=who, male=male, unusable=OBJECT)
    context = re.sub(r"[\[\]]", "", sentence[: pronouns[0].start()]).strip()
    fitting = NOMINATIVE if pronouns[0][1] in NOMINATIVE else POSSESSIVE
    after = re.sub(r"[\[\]]", "", sentence[pronouns[0].end() :]).strip()
    return HalfPair(line, context, fitting, after, who, male)


def _row(path: str | Path, first: HalfPair, second: HalfPair, pronouns: Pronouns) -> Row:
    if first.male == second.male and not (first.unusable or second.unusable):
        expected = "one sentence with a female and one with a male pronoun in each pair of lines"
        raise wrong(path, second.line, expected, "two alike")

    def named_at(sentence: HalfPair) -> int:
        """Where a sentence first names the person that its pronoun stands for."""
        at = sentence.context.lower().find(sentence.who)
        return at if at >= 0 else len(sentence.context)

    named_first = min((first, second), key=named_at)
    return pair_row(first, second, "male" if named_first.male else "female", pronouns)


TASK = TaskInfo(
    "winobias",
    "Which heads carry the gender stereotype of an occupation to its pronoun?",
    every_row(read_winobias, FILE),
    OddsRatio(),
    "heads:pattern",
    n=198,
    source="WinoBias, Zhao et al. 2018",
    data="pro_stereotyped_type1.txt.dev or .test, from github.com/uclanlp/corefBias, WinoBias/wino/data",
    settings={"paper": {"published_bos": True, "options": {"pronouns": "she/he", "shuffle": False}}},
)
