"""Tasks: what their prompts are, on tokenizers from words to pieces, and what is left out and why."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
import tl_multitrace as mt
from tl_multitrace import tokens
from tl_multitrace.tasks import registry, sieve
from tl_multitrace.tasks.readers import read_prompts
from tl_multitrace.tasks.sieve import Row, sieve_of

NAMES = ("facts", "induction", "ioi", "professions")
TOKENIZERS = {"gpt2": "gpt2_tokenizer", "pieces": "stories260K"}


@pytest.fixture(scope="module")
def demo_model() -> Any:
    return mt.load_model("demo", device="cpu")


def model_with(tokenizer: Any, n_positions: int = 96) -> Any:
    """A random model of one layer with this tokenizer's vocabulary."""
    hf = tiny_models.hf_model("gpt2", vocab_size=len(tokenizer), n_layer=1, n_positions=n_positions)
    if tiny_models.HAS_BRIDGE:
        return tiny_models.bridge_from_hf(hf, tokenizer)
    return tiny_models.hooked_from_hf(hf, "gpt2", tokenizer)


@pytest.fixture(scope="module")
def word_model() -> Any:
    return model_with(tiny_models.word_tokenizer(leading_space=True), n_positions=16)


@pytest.fixture(scope="module", params=["demo", *TOKENIZERS])
def any_model(request: pytest.FixtureRequest, demo_model: Any) -> Any:
    if request.param == "demo":
        return demo_model
    from transformers import AutoTokenizer

    folder = request.getfixturevalue("shared_data") / TOKENIZERS[request.param]
    return model_with(AutoTokenizer.from_pretrained(folder))


def text(words: tuple[str, ...]) -> str:
    return "".join(words[1:]).strip()  # without BOS


# ------------------------------------------------------------------------------------------- on every tokenizer
@pytest.mark.parametrize("name", NAMES)
def test_every_task_runs_on_every_tokenizer(name: str, any_model: Any) -> None:
    task = mt.task(name, any_model, n=24)
    pairs, unknown = task.pairs, any_model.tokenizer.unk_token_id
    assert 8 <= task.kept == len(pairs) <= 24
    assert torch.equal(pairs.lengths, pairs.source_lengths)
    assert unknown == any_model.tokenizer.bos_token_id or not (pairs.base_tokens == unknown).any()
    assert all(not torch.equal(b, s) for b, s in zip(pairs.base_tokens, pairs.source_tokens, strict=True))
    assert set(task.dropped) <= {tokens.LENGTHS, tokens.UNKNOWN, tokens.NO_ANSWER, tokens.SEVERAL}
    tracer = mt.Tracer(any_model, pairs, task.hook_groups(any_model)[:4], task.metric, task.intervention)
    assert tracer.effect(torch.ones(4)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_prompts(name: str, demo_model: Any) -> None:
    digests = [mt.task(name, demo_model, n=20, seed=seed).pairs.digest() for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_prompts_of_unequal_length_are_dropped_and_counted_or_aligned(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    model = model_with(AutoTokenizer.from_pretrained(shared_data / "gpt2_tokenizer"))
    options = {
        "male": ["soldier", "mechanic"],
        "female": ["nurse", "hairdresser"],
        "templates": ["The {noun} said that"],
    }
    dropped, kept = mt.task("professions", model, **options), mt.task("professions", model, align="right", **options)
    assert (dropped.kept, dropped.dropped) == (3, {tokens.LENGTHS: 1})  # hair|d|ress|er
    assert (kept.kept, kept.dropped) == (4, {})
    assert sorted(kept.pairs.shifts.tolist()) == [-3, 0, 0, 0]


# --------------------------------------------------------------------------------------------- on the demo model
@pytest.mark.parametrize("name", ["facts", "induction", "ioi"])
def test_the_demo_model_answers_base_and_source_prompts(name: str, demo_model: Any) -> None:
    pairs = mt.task(name, demo_model, n=64).pairs
    groups = mt.heads(demo_model) + mt.mlps(demo_model)
    tracer = mt.Tracer(demo_model, pairs, groups, mt.LogitDiff())
    base = tracer.base_metric
    patched = base + tracer.effect(torch.ones(len(groups)))
    assert (base < 0).double().mean() > 0.9  # the base prompt calls for the wrong answer
    assert (patched > 0).double().mean() > 0.9  # the source prompt for the answer


def test_professions_measure_is_the_published_one(demo_model: Any) -> None:
    task = mt.task("professions", demo_model, n=16)
    pairs = task.pairs
    he, she = (demo_model.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ("he", "she"))

    def odds(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            last = torch.stack([demo_model(t[None, :n])[0, -1] for t, n in zip(tokens, lengths, strict=True)])
        return (last[:, he] - last[:, she]).double().exp()

    r = odds(pairs.source_tokens, pairs.lengths) / odds(pairs.base_tokens, pairs.lengths)
    expected = torch.tensor([1 / x - 1 if label == "male" else x - 1 for x, label in zip(r, pairs.labels, strict=True)])
    groups = mt.heads(demo_model) + mt.mlps(demo_model)  # everything that tells the two runs apart at the last token
    effect = mt.Tracer(demo_model, pairs, groups, task.metric).effect(torch.ones(len(groups)))
    torch.testing.assert_close(effect.double(), expected.double(), rtol=1e-3, atol=1e-3)
    assert task.labels == {"female": 8, "male": 8}
    assert (effect > 0).double().mean() > 0.9  # against the stereotype


def test_ioi_swaps_the_giver_and_nothing_else(demo_model: Any) -> None:
    pairs = mt.task("ioi", demo_model, n=12).pairs
    assert set(pairs.labels) == {"ABB", "BAB"}
    for i in range(len(pairs)):
        base, source = pairs.base_words[i], pairs.source_words[i]
        changed = [(b.strip(), s.strip()) for b, s in zip(base, source, strict=True) if b != s]
        receiver, giver = pairs.answer_words[i][1].strip(), pairs.answer_words[i][0].strip()
        assert changed == [(giver, receiver)]
        names = [w.strip() for w in base if w.strip() in (giver, receiver)]
        assert names == ([receiver, giver, giver] if pairs.labels[i] == "ABB" else [giver, receiver, giver])


def test_induction_repeats_in_the_source_only(demo_model: Any) -> None:
    pairs = mt.task("induction", demo_model, n=12, length=6).pairs
    for i in range(len(pairs)):
        source, base = text(pairs.source_words[i]).split(), text(pairs.base_words[i]).split()
        answer, wrong = (word.strip() for word in pairs.answer_words[i])
        assert source[6:] == source[: len(source) - 6] and answer == source[len(source) - 6]
        assert sorted(base[:6]) == sorted(source[:6]) and base[6:] == source[6:]
        assert not set(pairwise(base[:6])) & set(pairwise(base[6:]))  # nothing to repeat
        assert wrong == base[base.index(base[-1]) + 1] != answer


def test_facts_swap_a_subject_for_another_of_its_relation(demo_model: Any) -> None:
    from tl_multitrace.demo.grammar import FACTS

    pairs, known = mt.task("facts", demo_model, n=20).pairs, {(f.subject, f.relation): f.object for f in FACTS}
    for i in range(len(pairs)):
        start, stop = pairs.spans["subject"][i].tolist()
        subject, other = ("".join(words[start:stop]).strip() for words in (pairs.base_words[i], pairs.source_words[i]))
        answer, wrong = (word.strip() for word in pairs.answer_words[i])
        assert known[subject, pairs.labels[i]] == wrong
        assert known[other, pairs.labels[i]] == answer


def test_the_facts_of_other_models_are_well_known_ones(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    model = model_with(AutoTokenizer.from_pretrained(shared_data / "gpt2_tokenizer"))
    pairs = mt.task("facts", model, facts=[("France", "capital", "Paris"), ("Japan", "capital", "Tokyo")]).pairs
    shown = {text(words): answers for words, answers in zip(pairs.base_words, pairs.answer_words, strict=True)}
    assert shown["The capital of France is"] == (" Tokyo", " Paris")
    with pytest.raises(ValueError, match=r"no wording for the relation 'colour': pass templates="):
        mt.task("facts", model, facts=[("snow", "colour", "white")])


# --------------------------------------------------------------------------------------------- what is left out
CLEAN = Row("The nurse said that", "The man said that", (" he",), (" she",), subject="nurse")
UNCLEAN = {
    tokens.UNKNOWN: Row("The wizard said that", "The man said that", (" he",), (" she",)),
    tokens.LENGTHS: Row("The nurse said that", "The young man said that", (" he",), (" she",)),
    tokens.SAME_PROMPT: Row("The nurse said that", "The nurse said that", (" he",), (" she",)),
    tokens.TOO_LONG: Row("The" + " very" * 15, "A" + " very" * 15, (" old",), (" young",)),
    tokens.NO_ANSWER: Row("The nurse said that", "The man said that", ("he",), (" she",)),
    tokens.SAME_ANSWER: Row("The nurse said that", "The man said that", (" he",), (" she", " he")),
    tokens.SEVERAL: Row("The nurse said that", "The man said that", (" he was",), (" she",)),
    tokens.SUBJECT: Row("The nurse said that", "The man said that", (" he",), (" she",), subject="nur"),
}


@pytest.mark.parametrize("why", UNCLEAN)
def test_what_does_not_tokenise_cleanly_is_named(why: str, word_model: Any) -> None:
    sieve = sieve_of(word_model, single_token=why == tokens.SEVERAL)
    assert sieve.reason(CLEAN) is None
    assert sieve.reason(UNCLEAN[why]) == why


def test_an_answer_of_several_tokens_is_used_where_one_is_not_needed(word_model: Any) -> None:
    assert sieve_of(word_model).reason(UNCLEAN[tokens.SEVERAL]) is None


def test_the_dropped_are_counted_by_reason(word_model: Any) -> None:
    task = mt.task(
        "professions",
        word_model,
        male=["doctor", "wizard", "young engineer"],
        female=["nurse", "witch"],
        templates=["The {noun} said that"],
    )
    assert task.kept == 2
    assert task.dropped == {tokens.UNKNOWN: 2, tokens.LENGTHS: 1}
    assert "dropped a word the tokenizer does not know: 2" in repr(task)


def test_nothing_left_is_an_error_that_counts(word_model: Any) -> None:
    with pytest.raises(
        ValueError, match=r"no prompt is left .*: a word the tokenizer does not know \(100\)\. Give prompts and answers"
    ):
        mt.task("facts", word_model, facts=[("x", "r", "y"), ("z", "r", "w")], templates={"r": ["{subject} qq"] * 50})
    with pytest.raises(ValueError, match="only 0 of the words are one token"):
        mt.task("induction", word_model, words=["qqq", "www"])


def test_bad_arguments(word_model: Any) -> None:
    with pytest.raises(
        ValueError, match=r"unknown task 'profession'\. Did you mean 'professions'\? The tasks are .*ioi"
    ):
        mt.task("profession", word_model)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        mt.task("ioi", word_model, n=0)
    with pytest.raises((ValueError, TypeError), match="align"):  # a TypeError where types are checked
        mt.task("ioi", word_model, align="middle")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="colour"):
        mt.task("ioi", word_model, colour="red")
    with pytest.raises(ValueError, match="length must be at least 4 words, got 3"):
        mt.task("induction", word_model, length=3)


# --------------------------------------------------------------------------------------------------- the registry
def test_the_list_of_tasks() -> None:
    table = mt.tasks()
    assert set(NAMES) <= set(table["name"])
    assert list(table.columns) == ["name", "asks", "metric", "components", "prompts", "source", "licence", "data"]
    assert not (table == "").any().any()


def test_a_task_of_ones_own(word_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(view: sieve.Sieve, rng: random.Random, *, demo: bool = False) -> Iterator[Row]:
        while True:
            yield Row(
                f"The {rng.choice(['nurse', 'teacher'])} said that", "The man said that", (" he",), (" she",), "x"
            )

    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    info = registry.TaskInfo("mine", "Who?", make, mt.LogitDiff(), "heads", n=6)
    registry.register(info)
    task = mt.task("mine", word_model)
    assert (task.kept, task.labels, task.metric) == (6, {"x": 6}, mt.LogitDiff())
    assert "mine" in set(mt.tasks()["name"])
    with pytest.raises(ValueError, match="there is a task 'mine' already"):
        registry.register(info)


def test_a_maker_that_yields_nothing_usable_ends(word_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(view: sieve.Sieve, rng: random.Random, *, demo: bool = False) -> Iterator[Row]:
        while True:
            yield UNCLEAN[tokens.UNKNOWN]

    monkeypatch.setattr(registry, "REGISTRY", {})
    registry.register(registry.TaskInfo("hopeless", "Who?", make, mt.LogitDiff(), "heads"))
    with pytest.raises(ValueError, match=rf"does not know \({5 * sieve.PATIENCE}\)"):
        mt.task("hopeless", word_model, n=5)


# --------------------------------------------------------------------------------------------- prompts of a file
GOOD = {
    "p.csv": "base,source,answer,wrong_answer,group\n"
    "The nurse said that,The man said that, he, she,f\n"
    '"The doctor said that","The woman said that"," she"," he",m\n',
    "p.jsonl": json.dumps(
        {"base": CLEAN.base, "source": CLEAN.source, "answer": " he", "wrong_answer": [" she", " her"]}
    )
    + "\n\n"
    + json.dumps({"base": CLEAN.base, "source": CLEAN.source, "answer": [" he", " him"], "wrong_answer": " she"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_prompts_from_a_file(name: str, tmp_path: Path, word_model: Any) -> None:
    (tmp_path / name).write_text(GOOD[name], encoding="utf-8")
    task = mt.task_from_file(tmp_path / name, word_model)
    assert (task.kept, task.metric, task.dropped) == (2, mt.LogitDiff(), {})
    assert task.labels == ({"f": 1, "m": 1} if name == "p.csv" else {})
    assert task.pairs.right.sum(1).tolist() == ([1, 1] if name == "p.csv" else [1, 2])


def test_a_file_without_wrong_answers_measures_the_answer(tmp_path: Path, word_model: Any) -> None:
    (tmp_path / "p.csv").write_text("base,source,answer,subject\nThe nurse said that,The man said that, he,nurse\n")
    task = mt.task_from_file(tmp_path / "p.csv", word_model)
    assert task.metric == mt.AnswerLogProb()
    assert task.pairs.spans["subject"].tolist() == [[2, 3]]


HEAD = "base,source,answer,wrong_answer\n"
ROW = "The nurse said that,The man said that, he, she\n"
ENTRY = {"base": "a", "source": "b", "answer": " c"}
BAD = {
    "columns": (
        "p.csv",
        "base,source,target\na,b,c\n",
        r"line 1: expected the columns base, source, answer.*no column 'answer'",
    ),
    "extra column": ("p.csv", "base,source,answer,note\n", "line 1: expected the columns.*unknown column 'note'"),
    "empty": ("p.csv", "", r"line 1: expected the columns.*\(nothing\)"),
    "header only": ("p.csv", HEAD, "line 1: expected prompt pairs, one per line"),
    "short row": ("p.csv", HEAD + ROW + "a,b, c\n", "line 3: expected 4 fields, found 3"),
    "long row": ("p.csv", HEAD + "a, then b,c, d, e\n", "line 2: expected 4 fields, found 5.*double quotes"),
    "open quote": ("p.csv", HEAD + 'a,b," c, d\n', "line 2: expected CSV"),
    "no base": ("p.csv", HEAD + ",b, c, d\n", "line 2: expected text in 'base', found nothing"),
    "half": (
        "p.csv",
        HEAD + ROW + "a,b, c,\n",
        "line 3: expected text in 'wrong_answer', found nothing, though other lines",
    ),
    "encoding": ("p.csv", HEAD.encode() + b"caf\xe9,b, c, d\n", "line 2: expected UTF-8 text, found the byte 0xe9"),
    "not json": ("p.jsonl", json.dumps(ENTRY) + "\n{base", "line 2: expected one JSON object, found no JSON"),
    "a list": ("p.jsonl", "[1]", "line 1: expected a JSON object, found list"),
    "field": ("p.jsonl", json.dumps({**ENTRY, "x": 1}), "line 1: expected the fields base.*found 'x'"),
    "number": ("p.jsonl", json.dumps({**ENTRY, "base": 3}), "line 1: expected text in 'base', found 3"),
    "answers": (
        "p.jsonl",
        json.dumps({**ENTRY, "answer": [" a", 1]}),
        "line 1: expected text, or a list of texts, in 'answer'",
    ),
    "suffix": ("p.txt", "a", "a prompts file is .csv or .jsonl, got '.txt'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_file_gives_file_line_and_what_was_expected(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(path)
    assert str(error.value).startswith(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prompts file"):
        read_prompts(tmp_path / "none.csv")
