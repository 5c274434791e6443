"""Readers of files of others: the real files, every layout, and data sets of the hub."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import prompt_files
import pytest

from tl_multitrace.causal_trace import load_facts
from tl_multitrace.tasks import benchmarks, hub
from tl_multitrace.tasks.coreference import CONTEXTS, OBJECT, SEVERAL_PRONOUNS
from tl_multitrace.tasks.counterfact import NO_SUBJECT
from tl_multitrace.tasks.ioi import KINDS, read_ioi
from tl_multitrace.tasks.professions import read_professions
from tl_multitrace.tasks.readers import read_prompts
from tl_multitrace.tasks.sieve import Row
from tl_multitrace.tasks.winobias import read_winobias
from tl_multitrace.tasks.winogender import read_shares, read_winogender


# ------------------------------------------------------------------------------------------------ the real files
def reasons(rows: Any) -> dict[str, int]:
    return dict(Counter(row.unusable for row in rows))


WINOBIAS = {
    "pro_stereotyped_type1.txt.dev": {"": 160, CONTEXTS: 30, SEVERAL_PRONOUNS: 7, OBJECT: 1},
    "pro_stereotyped_type1.txt.test": {"": 130, CONTEXTS: 45, SEVERAL_PRONOUNS: 22, OBJECT: 1},
    "anti_stereotyped_type1.txt.dev": {"": 160, CONTEXTS: 27, SEVERAL_PRONOUNS: 7, OBJECT: 4},
    "anti_stereotyped_type1.txt.test": {"": 131, CONTEXTS: 46, SEVERAL_PRONOUNS: 20, OBJECT: 1},
    "pro_stereotyped_type2.txt.dev": {CONTEXTS: 21, SEVERAL_PRONOUNS: 4, OBJECT: 173},
    "pro_stereotyped_type2.txt.test": {CONTEXTS: 28, SEVERAL_PRONOUNS: 3, OBJECT: 167},
    "anti_stereotyped_type2.txt.dev": {CONTEXTS: 14, SEVERAL_PRONOUNS: 3, OBJECT: 181},
    "anti_stereotyped_type2.txt.test": {CONTEXTS: 29, SEVERAL_PRONOUNS: 3, OBJECT: 166},
}


@pytest.mark.parametrize("name", WINOBIAS)
def test_winobias_files(name: str, shared_data: Path) -> None:
    rows = read_winobias(shared_data / "winobias" / name)
    assert len(rows) == 198 and reasons(rows) == WINOBIAS[name]


def test_winobias_stereotypes_are_those_of_the_published_lists(shared_data: Path) -> None:
    folder = shared_data / "winobias"
    male, female = (
        {line.strip().lower() for line in (folder / f"{sex}_occupations.txt").read_text().splitlines()}
        for sex in ("male", "female")
    )
    lines = (folder / "pro_stereotyped_type1.txt.dev").read_text().splitlines()
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    for kind in ("pro", "anti"):
        rows = read_winobias(folder / f"{kind}_stereotyped_type1.txt.dev")
        for (first, second), row in zip(pairs, rows, strict=True):
            if row.unusable or kind == "anti":
                continue
            answer = next(line for line in (first, second) if line.endswith(row.answers[0]))
            who = answer[answer.index("[") + 1 : answer.index("]")].lower().removeprefix("the ")
            assert (who in male) and (who not in female)


def test_pro_and_anti_files_give_the_same_pairs(shared_data: Path) -> None:
    kinds = [
        {row.base: row for row in read_winobias(shared_data / "winobias" / f"{kind}_stereotyped_type1.txt.dev")}
        for kind in ("pro", "anti")
    ]
    both = [base for base in kinds[0] if base in kinds[1] and not kinds[0][base].unusable]
    same = [kinds[0][base] == kinds[1][base] for base in both]
    assert len(both) > 150 and sum(same) > 0.9 * len(same)  # typing errors differ between the files


@pytest.mark.parametrize("model", ["distilgpt2", "gpt2"])
def test_winobias_pairs_are_the_published_ones(model: str, shared_data: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "gpt2_tokenizer")
    rows = read_winobias(shared_data / "winobias" / "pro_stereotyped_type1.txt.dev")
    ours = {(row.base, row.source): row for row in rows if not row.unusable}
    path = shared_data / "winobias_published_effects" / f"attention_intervention_{model}_filtered_dev.json"
    published = json.loads(path.read_text())

    def shown(text: str) -> str:  # the published strings are tokens with spaces between them
        return " ".join(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])).replace("\u0120", "")

    assert len(ours) == published["num_examples_loaded"] == 160
    assert len(published["results"]) == published["num_examples_analyzed"]
    for example in published["results"]:
        row = ours[example["base_string1"], example["base_string2"]]
        assert (shown(row.wrong[0]), shown(row.answers[0])) == (example["candidate1"], example["candidate2"])


def test_winobias_with_she_and_he_everywhere(shared_data: Path) -> None:
    path = shared_data / "winobias" / "pro_stereotyped_type1.txt.dev"
    own, forced = read_winobias(path), read_winobias(path, pronouns="she/he")
    changed = [row.base for row, other in zip(own, forced, strict=True) if row != other and not row.unusable]
    assert len(changed) == 6 and all(base.endswith(" her") for base in changed)
    assert {tuple(text.split()[-1] for text in (row.base, row.source)) for row in forced if not row.unusable} == {
        ("she", "he")
    }


@pytest.mark.parametrize(
    ("name", "count", "kept", "shares"),
    [
        ("winogender_templates_structurefilter.tsv", 44, 44, {"bls": 22, "bergsma": 35}),
        ("templates.tsv", 60, 44, {"bls": 22, "bergsma": 35}),
        ("all_sentences.tsv", 120, 88, {"bls": 44, "bergsma": 70}),
    ],
)
def test_winogender_files(name: str, count: int, kept: int, shares: dict[str, int], shared_data: Path) -> None:
    for share, male in shares.items():
        rows = read_winogender(shared_data / "winogender" / name, share=share)  # type: ignore[arg-type]
        usable = [row for row in rows if not row.unusable]
        assert (len(rows), len(usable)) == (count, kept)
        assert Counter(row.label for row in usable) == {"male": male, "female": kept - male}
        assert set(reasons(rows)) <= {"", CONTEXTS, OBJECT}


def test_winogender_sentences_and_templates_agree(shared_data: Path) -> None:
    folder = shared_data / "winogender"
    templates = {row for row in read_winogender(folder / "templates.tsv") if not row.unusable}
    sentences = {row for row in read_winogender(folder / "all_sentences.tsv") if not row.unusable}
    assert templates <= sentences  # the others speak of "someone"
    assert len(read_shares(folder / "occupations-stats.tsv")) == 60


def test_profession_lists(shared_data: Path) -> None:
    folder = read_professions(shared_data / "professions")
    assert (len(folder.male), len(folder.female), len(folder.templates)) == (130, 29, 17)
    assert 17 * (130 + 29) == 2703  # the pairs of the published experiment
    scored = read_professions(shared_data / "professions" / "professions.json")
    assert (len(scored.male), len(scored.female), len(scored.neutral)) == (229, 70, 21)
    assert sum(map(len, (scored.male, scored.female, scored.neutral))) == 320
    assert "adjunct professor" in scored.male and "nurse" in scored.female
    for sex, count in (("male", 229), ("female", 70)):
        one = read_professions(shared_data / "professions" / f"professions_{sex}_stereo.json")
        assert len(one.male) + len(one.female) + len(one.neutral) == count


def test_ioi_templates(shared_data: Path) -> None:
    path = shared_data / "ioi" / "ioi_templates_names.json"
    counts = {kind: len(read_ioi(path, kind).frames) for kind in KINDS}
    assert list(counts.values()) == [15, 15, 8, 8]
    lists = read_ioi(path)
    assert (len(lists.names), len(lists.places), len(lists.objects)) == (99, 8, 8)
    assert lists.frames[0] == "Then, {a} and {b} went to the {place}. {s} gave a {object} to"


def test_fact_files(shared_data: Path) -> None:
    known = read_prompts(shared_data / "known_1000" / "known_1000.json")
    assert (len(known.rows), reasons(known.rows)) == (1209, {"": 1209})
    derived = read_prompts(shared_data / "counterfact" / "counterfact_compmech_gpt2_10k.json")
    assert (len(derived.rows), reasons(derived.rows)) == (10_000, {"": 9_855, NO_SUBJECT: 145})
    row = derived.rows[0]
    assert (row.base, row.answers, row.wrong) == ("Toyota Camry XV30 is a product of", (" Toyota",), (" Chrysler",))


def test_greater_than_file(shared_data: Path) -> None:
    rows = read_prompts(shared_data / "greater_than" / "greater_than_data.csv").rows
    assert len(rows) == 1000 and not any(row.unusable for row in rows)
    row = rows[0]
    assert row.source.endswith("1352 to the year 13") and row.base.endswith("1301 to the year 13")
    assert (row.answers[0], row.wrong[-1], len(row.answers) + len(row.wrong)) == ("53", "52", 100)


# ------------------------------------------------------------------------------------------------- every layout
@pytest.mark.parametrize("name", prompt_files.FILES)
def test_every_layout_is_read(name: str, tmp_path: Path) -> None:
    found = prompt_files.read(name, prompt_files.write(name, tmp_path))
    rows = getattr(found, "rows", found)
    if expected := prompt_files.FILES[name][3]:
        assert len(rows) == expected


def rows_of(name: str, folder: Path) -> Any:
    return prompt_files.read(name, prompt_files.write(name, folder)).rows


def test_what_the_layouts_mean(tmp_path: Path) -> None:
    assert rows_of("auto-circuit", tmp_path)[0] == Row("John gave", "Mary gave", (" John",), (" Mary", " Tom"))
    one = rows_of("mib", tmp_path)[0]
    assert (one.source, one.answers, one.wrong) == (prompt_files.MIB_IOI["prompt"], (" Mary",), (" John",))
    assert one.base == prompt_files.MIB_IOI["s2_io_flip_counterfactual"]["prompt"]  # type: ignore[index]
    assert [rows_of("mib choices", tmp_path)[0].answers, rows_of("mib sums", tmp_path)[0].wrong] == [(" A",), (" 7",)]
    assert rows_of("hypernyms", tmp_path)[0].answers == (" animals", " pets")
    assert rows_of("capitals", tmp_path)[0].wrong == (" Norway",)
    assert [row.answers[0] for row in rows_of("agreement", tmp_path)] == [" are", " is"]
    assert rows_of("greater than, newer", tmp_path)[0].wrong[-1] == "04"
    assert rows_of("greater than, mib", tmp_path)[0].wrong[-1] == "52"
    assert rows_of("truthful", tmp_path)[0].wrong == (" Yes", " Yes, green")
    assert rows_of("truthful table", tmp_path)[0].wrong == (" Yes", " Always")
    assert [row.unusable for row in rows_of("known", tmp_path)] == ["", NO_SUBJECT]
    for name in ("counterfact", "derived"):
        row = rows_of(name, tmp_path)[0]
        assert (row.base, row.subject, row.answers, row.wrong) == (row.source, "Rome", (" Italy",), (" France",))


def test_records_without_a_counterfactual_are_left_out(tmp_path: Path) -> None:
    records = [prompt_files.MIB_SUM, {**prompt_files.MIB_SUM, "random_counterfactual": None}]
    records.append({**prompt_files.MIB_SUM, "label": 7})
    (tmp_path / "sums.json").write_text(json.dumps(records))
    assert [row.unusable for row in read_prompts(tmp_path / "sums.json").rows] == ["", benchmarks.NONE, benchmarks.SAME]


def test_columns_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("q,good,bad,note\nThe sky is,blue,green,!\n")
    names = {"prompt": "q", "answer": "good", "wrong_answer": "bad"}
    assert read_prompts(tmp_path / "x.csv", columns=names).rows[0].answers == (" blue",)
    with pytest.raises(ValueError, match=r"x\.csv, line 1: expected a column 'worse', found q, good, bad, note"):
        read_prompts(tmp_path / "x.csv", columns={**names, "wrong_answer": "worse"})


# ------------------------------------------------------------------------------------------------ data sets of the hub
def test_a_data_set_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.csv").write_text("q,good,bad\nThe sky is,blue,green\nSnow is,white,black\n")
    names = {"prompt": "q", "answer": "good", "wrong_answer": "bad"}
    rows = read_prompts(f"hf:{tmp_path / 'mine'}", columns=names).rows
    assert [row.base for row in rows] == ["The sky is", "Snow is"]


class FakeDatasets:
    """Stands for the ``datasets`` package."""

    def __init__(self, result: Any, version: str = "5.0.1") -> None:
        self.result, self.calls, self.options, self.__version__ = result, list[Any](), list[Any](), version

    def load_dataset(self, name: str, config: str | None, *, split: str, **options: Any) -> Any:
        self.calls.append((name, config, split))
        self.options.append(options)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets([prompt_files.MIB_CHOICE])
    monkeypatch.setitem(sys.modules, "datasets", fake)  # type: ignore[arg-type]
    prompts = read_prompts("hf:mib-bench/copycolors_mcqa:4_answer_choices@test")
    assert fake.calls == [("mib-bench/copycolors_mcqa", "4_answer_choices", "test")]
    assert (prompts.rows[0].answers, prompts.layout.name) == ((" A",), "MIB, choices")


def test_no_script_of_a_data_set_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    off = {"trust_remote_code": False}
    for version, options in (("2.19.2", off), ("3.6.0", off), ("4.0.0", {})):  # from 4 on there are no scripts
        fake = FakeDatasets([prompt_files.MIB_SUM], version)
        monkeypatch.setitem(sys.modules, "datasets", fake)  # type: ignore[arg-type]
        read_prompts("hf:a/b")
        assert fake.options == [options]


def test_a_data_set_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets(ConnectionError("no route")))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"hf:a/b: the data set could not be loaded \(no route\).*local cache"):
        read_prompts("hf:a/b")
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"hf:a/b: .*pip install datasets"):
        read_prompts("hf:a/b")
    with pytest.raises(ValueError, match="expected hf:owner/name"):
        read_prompts("hf:a@b@c")


def test_a_part_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets([prompt_files.MIB_SUM] * 3)
    monkeypatch.setitem(sys.modules, "datasets", fake)  # type: ignore[arg-type]
    assert len(read_prompts("hf:a/b@test[:3]").rows) == 3
    assert fake.calls == [("a/b", None, "test[:3]")]
    monkeypatch.setattr(hub, "MAX_ROWS", 2)
    with pytest.raises(ValueError, match=r"hf:a/b has more than 2 rows: name a part of them, such as @train\[:1000\]"):
        read_prompts("hf:a/b")


# ------------------------------------------------------------------------------------------ tables of spreadsheets
SHEET = [
    ["prompt", "subject", "answer"],
    ["Rome; a city, is in", "Rome", "Italy"],
    ['The "Louvre" is in', "Louvre", "Paris"],
]


def sheet(delimiter: str, rows: list[list[str]]) -> str:
    """Rows as a spreadsheet writes them."""
    cells = [
        '"' + cell.replace('"', '""') + '"' if set(cell) & set(f'{delimiter}"') else cell
        for row in rows
        for cell in row
    ]
    width = len(rows[0])
    return "".join(delimiter.join(cells[i : i + width]) + "\r\n" for i in range(0, len(cells), width))


DIALECTS: dict[str, bytes] = {
    "commas": sheet(",", SHEET).encode(),
    "semicolons": sheet(";", SHEET).encode(),
    "tabs": sheet("\t", SHEET).encode(),
    "said above": ("sep=;\r\n" + sheet(";", SHEET)).encode(),
    "an odd one, said above": ("sep=|\r\n" + sheet("|", SHEET)).encode(),
    "byte-order mark": ("\ufeff" + sheet(";", SHEET)).encode(),
    "unicode text": sheet("\t", SHEET).encode("utf-16"),
    "old line ends": sheet(";", SHEET).replace("\r\n", "\r").encode(),
    "empty columns and rows": sheet(",", [[*row, "", ""] for row in SHEET] + [[""] * 5] * 2).encode(),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_facts_table_is_one_everywhere_in_every_dialect(dialect: str, tmp_path: Path) -> None:
    (tmp_path / "facts.csv").write_bytes(DIALECTS[dialect])
    prompts = read_prompts(tmp_path / "facts.csv")
    assert [(r.base, r.subject, r.answers) for r in prompts.rows] == [(p, s, (f" {a}",)) for p, s, a in SHEET[1:]]
    facts = load_facts(tmp_path / "facts.csv")
    assert [(f.prompt, f.subject, f.answer) for f in facts] == [(p, s, f" {a}") for p, s, a in SHEET[1:]]


def test_a_line_of_a_spreadsheet_is_named_as_it_stands_there(tmp_path: Path) -> None:
    (tmp_path / "facts.csv").write_text("sep=;\nprompt;subject;answer\nRome is in;Rome;Italy\nOslo is in;Oslo\n")
    with pytest.raises(
        ValueError, match=r"line 4: expected 3 fields, found 2\. Put text that holds a semicolon in double"
    ):
        load_facts(tmp_path / "facts.csv")
    (tmp_path / "facts.csv").write_text("prompt;subject;answer\nRome is in;Rome;Italy\n;Oslo;Norway\n")
    for read in (load_facts, read_prompts):
        with pytest.raises(ValueError, match=r"facts\.csv, line 3: expected a fact, found a fact needs a prompt"):
            read(tmp_path / "facts.csv")


@pytest.mark.parametrize("name", ["known", "counterfact", "derived"])
def test_facts_of_every_layout_are_the_same_in_a_table(name: str, tmp_path: Path) -> None:
    records = json.loads(prompt_files.FILES[name][1])
    path = tmp_path / "facts.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(records)  # what is nested stands there as Python writes it
    (tmp_path / "facts.json").write_text(json.dumps(records))
    assert load_facts(path) == load_facts(tmp_path / "facts.json")
    assert read_prompts(path).rows == read_prompts(tmp_path / "facts.json").rows
    assert [f.prompt for f in load_facts(path)] == [row.base for row in read_prompts(path).rows]


def test_an_answer_is_text_or_a_whole_number(tmp_path: Path) -> None:
    path, fact = tmp_path / "facts.json", {"prompt": "The war began in ", "subject": "The war"}
    path.write_text(json.dumps([{**fact, "answer": 1914}]))
    assert load_facts(path)[0].answer == "1914" and read_prompts(path).rows[0].answers == ("1914",)
    for answer in (True, [" a"], {"a": "b"}, float("nan"), 1.5):
        path.write_text(json.dumps([{**fact, "answer": answer}]))
        for read in (load_facts, read_prompts):
            with pytest.raises(ValueError, match=r"facts\.json, line 1: expected a fact, found fact \d has the answer"):
                read(path)
