"""Malformed files of prompts: file, line and what was expected; never another error than the two that are promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import prompt_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_multitrace.records.text_files import wrong
from tl_multitrace.tasks.winobias import read_winobias
from tl_multitrace.tasks.winogender import read_winogender

Bad = tuple[str, Any, str]
BAD: dict[str, Bad] = {
    "empty json": ("mib", "", "line 1: expected a JSON list of objects, found nothing"),
    "no list": ("known", '{"a": 1}', "line 1: expected a JSON list of objects, or an object with such a list"),
    "cut off": ("known", '[{"prompt": "a",\n"subj', "line 2: expected JSON, found Unterminated string"),
    "a missing comma": ("known", '[{"a": 1}\n{"a": 2}]', "line 2: expected JSON with ',' here, found '{'"),
    "a number in a list": (
        "auto-circuit",
        '{"prompts": [{"clean": "a"},\n\n 3]}',
        "line 3: expected a JSON object, found int",
    ),
    "unknown columns": (
        "known",
        '[{"x": "a", "y": 1}]',
        "line 1: expected the columns of a known layout, found x, y.*Known: base, source",
    ),
    "a missing key": (
        "auto-circuit",
        json.dumps({"prompts": [*prompt_files.AUTO_CIRCUIT["prompts"], {"clean": "a"}]}, indent=0),
        "line 24: expected text in 'corrupt', found nothing",
    ),
    "tensors": (
        "auto-circuit",
        '[{"clean": [1.0], "corrupt": [2.0], "answers": [0], "wrong_answers": [1]}]',
        r"expected text in 'corrupt', found \[2.0\]",
    ),
    "ids without a model": (
        "auto-circuit",
        '[{"clean": "a", "corrupt": "b", "answers": [7], "wrong_answers": [8]}]',
        r"answers as text in 'answers', found token ids.*task_from_file\(path, model\)",
    ),
    "no targets": (
        "counterfact",
        json.dumps([{"requested_rewrite": {"prompt": "{} is", "subject": "x"}}]),
        "line 1: expected an object in 'target_true', found None",
    ),
    "no counterfactual": (
        "mib",
        '[{"prompt": "a", "choices": ["b"], "answerKey": 0}]',
        "expected a column that ends in 'counterfactual'",
    ),
    "a key outside": (
        "mib",
        json.dumps([{**prompt_files.MIB_IOI, "answerKey": 2}]),
        "a whole number from 0 to 1 in 'answerKey', found 2",
    ),
    "a year of letters": (
        "greater than",
        prompt_files.YEARS.format("label", "x"),
        "line 2: expected a whole number from 0 to 99 in 'label', found 'x'",
    ),
    "classes for years": (
        "greater than",
        "clean,corrupted,label\nA good film,A bad film,1\n",
        r"line 2: expected a prompt that names the year \.\.01 of 'label' in 'clean', found 'A good film'",
    ),
    "a list that is none": (
        "hypernyms",
        "clean,corrupted,answers,corrupted_answers\na,b,[c,d",
        "line 2: expected a list or an object in 'answers'",
    ),
    "latin-1": (
        "winobias",
        prompt_files.WINOBIAS.encode() + b"7 [The caf\xe9",
        "line 7: expected UTF-8 text, found the byte 0xe9",
    ),
    "utf-16": (
        "ioi",
        json.dumps(prompt_files.IOI).encode("utf-16"),
        "line 1: expected UTF-8 text, found the byte 0xff",
    ),
    "no brackets": (
        "winobias",
        prompt_files.WINOBIAS.replace("[she] was ill", "she was ill"),
        "line 2: expected a number, and a sentence with an occupation and its pronoun in square",
    ),
    "no number": ("winobias", "The [nurse] ran as [she] fell.\n", "line 1: expected a number, and a sentence"),
    "odd lines": (
        "winobias",
        prompt_files.WINOBIAS[: prompt_files.WINOBIAS.index("6 ")],
        r"line 5: expected lines in pairs, found an odd number of them, 5",
    ),
    "two of one sex": (
        "winobias",
        prompt_files.WINOBIAS.replace("[she] was ill", "[he] was ill"),
        "line 2: expected one sentence with a female and one with a male pronoun",
    ),
    "empty": ("winobias", " \n\n", "line 1: expected a WinoBias file with text, found nothing"),
    "tabs lost": ("winogender", prompt_files.TEMPLATES.replace("\t", " "), "line 1: expected the columns occupation"),
    "a short line": (
        "winogender",
        prompt_files.TEMPLATES.replace("pilot\tguest", "pilot", 1),
        "line 4: expected 4 fields, found 3",
    ),
    "an unknown occupation": (
        "winogender",
        prompt_files.TEMPLATES.replace("pilot", "poet"),
        "line 4: expected an occupation of the table of shares, found 'poet'",
    ),
    "no pronoun": (
        "winogender",
        prompt_files.TEMPLATES.replace("$POSS_PRONOUN", "the"),
        r"line 4: expected a sentence with one \$NOM_PRONOUN",
    ),
    "two answers alike": (
        "winogender",
        prompt_files.TEMPLATES.replace("baker\tguest\t1", "baker\tguest\t0"),
        "line 3: expected the occupation and participant of the line before, with the other answer",
    ),
    "no share": (
        "winogender shares",
        prompt_files.SHARES.replace("60.8", "many"),
        "line 2: expected a percentage in 'bls_pct_female', found 'many'",
    ),
    "a lost sentence": (
        "winogender sentences",
        prompt_files.SENTENCES.replace("guest.1.female", "guest.1.neutral"),
        r"expected also a sentence baker\.guest\.1\.female\.txt",
    ),
    "a row of two": (
        "professions",
        '[["nurse", 0, -1],\n["pilot", 1]]',
        r'line 2: expected a row .*found \["pilot", 1\]',
    ),
    "words in both lists": ("profession words", "nurse\n", "'nurse' is in the male and in the female list"),
    "no slot": (
        "profession templates",
        "The {} said\nThe man said\n",
        "line 2: expected a template with one {} for the word, found 'The man said'",
    ),
    "no names": ("ioi", json.dumps({**prompt_files.IOI, "NAMES": []}), "expected a list of texts in 'NAMES', found"),
    "another template": (
        "ioi",
        json.dumps({**prompt_files.IOI, "BABA_TEMPLATES": ["[A] to [B]"]}),
        r"expected templates in 'BABA_TEMPLATES' with \[B\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_file_is_told_what_was_expected(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    path = prompt_files.write(name, tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        prompt_files.read(name, path)
    assert str(error.value).startswith(str(path.parent))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in prompt_files.FILES:
        path = prompt_files.write(name, tmp_path)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=path.stem[:9]):
            prompt_files.read(name, path)
    (tmp_path / "occupations-stats.tsv").unlink(missing_ok=True)
    (tmp_path / "templates.tsv").write_text(prompt_files.TEMPLATES)
    with pytest.raises(FileNotFoundError, match=r"no occupations-stats.tsv beside it.*statistics="):
        read_winogender(tmp_path / "templates.tsv")
    (tmp_path / "x.txt").write_text(
        "1 [The developer] argued with the designer because [he] did not like the design.\n"
    )
    with pytest.raises(ValueError, match="pass stereotype='pro' or 'anti'"):
        read_winobias(tmp_path / "x.txt")


PIECES = [b"\xff", b"\x00", b'"', b"'", b"[", b"]", b"{", b"}", b",", b"\t", b"\n", b"\r", b":", b"\\ud800", b"1e999"]
PIECES += [b"NaN", b"null", b"[[[[", b"9" * 5000, b"$NOM_PRONOUN", b"[he]", "\u2028".encode(), "é".encode(), b" ", b""]


@st.composite
def damages(draw: st.DrawFn) -> Any:
    """One to three changes: a piece put in, bytes taken out, a line moved or doubled, the end cut off."""
    kinds = st.sampled_from(["insert", "delete", "swap", "double", "cut"])
    place = st.floats(0, 1, allow_nan=False)
    change = st.tuples(kinds, place, place, st.sampled_from(PIECES))
    return draw(st.lists(change, min_size=1, max_size=3))


def damaged(content: bytes, changes: Any) -> bytes:
    for kind, at, other, piece in changes:
        lines = content.split(b"\n")
        i, j = int(at * len(content)), int(other * len(lines)) % len(lines)
        if kind == "insert":
            content = content[:i] + piece + content[i:]
        elif kind == "delete":
            content = content[:i] + content[i + 1 + int(other * 20) :]
        elif kind == "cut":
            content = content[:i]
        else:
            k = int(at * len(lines)) % len(lines)
            lines = lines[:k] + lines[j : j + 1] + lines[k if kind == "double" else k + 1 :]
            content = b"\n".join(lines)
    return content


@pytest.mark.parametrize("name", prompt_files.FILES)
@settings(max_examples=250, deadline=None, derandomize=True)
@given(changes=damages())
def test_a_damaged_file_is_read_or_refused(name: str, changes: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / f"damaged {name}"
    folder.mkdir(exist_ok=True)
    path = prompt_files.write(name, folder, damaged(prompt_files.FILES[name][1].encode(), changes))
    try:
        prompt_files.read(name, path)
    except (ValueError, FileNotFoundError) as error:
        assert type(error) in (ValueError, FileNotFoundError)
        assert str(folder) in str(error)


def test_a_missing_winobias_file_is_missing_whatever_its_name(tmp_path: Path) -> None:
    for name in ("nowhere.txt", "pro_stereotyped_type1.txt.dev"):
        with pytest.raises(FileNotFoundError, match=name):
            read_winobias(tmp_path / name)


def test_what_a_message_quotes_is_cut() -> None:
    assert len(str(wrong("a.tsv", 7, f"also a sentence {'9' * 9000}", "8" * 9000))) < 600
