"""From text to token ids, on a tokenizer of words, on GPT-2's and on a SentencePiece-like one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import tl_multitrace as mt
from tiny_models import word_tokenizer


def reader(tokenizer: Any, *, prepend_bos: bool = True) -> Any:
    """What ``PromptPairs`` needs of a model to read text."""
    model: Any = torch.nn.Module()
    model.cfg = SimpleNamespace(default_prepend_bos=prepend_bos, model_name="reader")
    model.hook_dict, model.tokenizer, model.blocks = {}, tokenizer, torch.nn.ModuleList([torch.nn.Identity()])
    return model


WORDS = reader(word_tokenizer(leading_space=True))
BASE, SOURCE = ["The doctor said that", "The nurse said that"], ["The woman said that", "The man said that"]


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Any:
    return reader(AutoTokenizer.from_pretrained(shared_data / "gpt2_tokenizer"))


@pytest.fixture(scope="module")
def pieces(shared_data: Path) -> Any:
    return reader(AutoTokenizer.from_pretrained(shared_data / "stories260K"))


def word_ids(text: str) -> list[int]:
    return list(WORDS.tokenizer(text)["input_ids"])


# -------------------------------------------------------------------------------------------------- BOS, words
@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("asked", [None, True, False])
def test_bos_stands_in_front_exactly_once(default: bool, asked: bool | None) -> None:
    wanted = default if asked is None else asked
    for add_bos in (False, True):  # the tokenizers of Llama and Gemma put one there by themselves
        model = reader(word_tokenizer(leading_space=True, add_bos=add_bos), prepend_bos=default)
        pairs = mt.PromptPairs.from_text(model, BASE, SOURCE, [" he", " she"], prepend_bos=asked)
        assert pairs.base_tokens[0].tolist() == [0] * wanted + word_ids(BASE[0])
        assert pairs.lengths.tolist() == [4 + wanted] * 2
        assert pairs.answer_positions.tolist() == [3 + wanted] * 2


def test_a_bos_in_the_text_is_not_doubled() -> None:
    pairs = mt.PromptPairs.from_text(WORDS, ["<bos>The doctor said"], ["The nurse said"], [" he"])
    assert pairs.base_tokens[0].tolist() == [0, *word_ids("The doctor said")]


def test_no_bos_token_at_all() -> None:
    tokenizer = word_tokenizer(leading_space=True)
    tokenizer.bos_token = None
    pairs = mt.PromptPairs.from_text(reader(tokenizer), BASE, SOURCE, [" he", " she"])
    assert pairs.lengths.tolist() == [4, 4]
    with pytest.raises(ValueError, match=r"prepend_bos=True, but the tokenizer has no BOS token.*prepend_bos=False"):
        mt.PromptPairs.from_text(reader(tokenizer), BASE, SOURCE, [" he", " she"], prepend_bos=True)


def test_words_read_like_the_prompts(gpt2: Any, pieces: Any) -> None:
    for model in (WORDS, gpt2, pieces):
        pairs = mt.PromptPairs.from_text(model, BASE, SOURCE, [" he", " she"], align="right", prepend_bos=False)
        assert ["".join(w) for w in pairs.base_words] == BASE
        assert [len(w) for w in pairs.source_words] == pairs.source_lengths.tolist()
        assert "|".join(["*doctor*" if model is pieces else "* doctor*"]) in repr(pairs) or model is pieces


# --------------------------------------------------------------------------------------------------- candidates
def test_candidates_of_several_tokens_and_counts() -> None:
    answers = [[" he", " that she said"], [" she"]]
    wrong = [[" she"], [" he", " him book"]]
    pairs = mt.PromptPairs.from_text(WORDS, BASE, SOURCE, answers, wrong)
    he, she = word_ids(" he"), word_ids(" she")
    rows = [[[i for i in c if i >= 0] for c in e] for e in pairs.candidates.tolist()]
    assert rows[0] == [he, word_ids(" that she said"), she]
    assert rows[1] == [she, he, word_ids(" him book")]
    assert pairs.right.tolist() == [[True, True, False], [True, False, False]]
    frame = pairs.to_dataframe()
    assert frame.answers.tolist() == answers
    assert frame.wrong_answers.tolist() == wrong


def test_gpt2_answers_split_where_they_split(gpt2: Any) -> None:
    pairs = mt.PromptPairs.from_text(gpt2, ["The nurse said that"], ["The man said that"], [" he's"], [" anaesthetist"])
    assert pairs.candidates[0].tolist() == [[339, 338, -1, -1], [44763, 395, 3202, 396]]
    assert pairs.base_tokens[0].tolist() == [50256, 464, 15849, 531, 326]


def test_a_missing_leading_space_is_named(gpt2: Any, pieces: Any) -> None:
    for model in (WORDS, gpt2, pieces):
        with pytest.raises(ValueError, match=r"pair 1: the answer 'she' has no leading space.*'thatshe'.*Write ' she'"):
            mt.PromptPairs.from_text(model, BASE, SOURCE, [" he", "she"], align="right")


def test_digits_may_continue_digits(gpt2: Any) -> None:
    pairs = mt.PromptPairs.from_text(gpt2, ["the year 18"], ["the year 16"], ["32"], ["58"])
    assert pairs.answer_words[0] == ("32", "58")
    assert pairs.candidates[0].shape == (2, 1)
    with pytest.raises(
        ValueError, match=r"pair 0: the answer '60' does not tokenise as a continuation of 'the year 18'"
    ):
        mt.PromptPairs.from_text(gpt2, ["the year 18"], ["the year 16"], ["60"], ["58"])


def test_scripts_without_spaces_need_none(gpt2: Any) -> None:
    pairs = mt.PromptPairs.from_text(gpt2, ["日本の首都は"], ["日本の首都は"], ["東京"], ["大阪"])
    ids = gpt2.tokenizer("日本の首都は東京")["input_ids"]
    assert [i for i in pairs.candidates[0, 0].tolist() if i >= 0] == ids[int(pairs.lengths[0]) - 1 :]


def test_an_answer_that_merges_with_the_prompt_is_refused(gpt2: Any, pieces: Any) -> None:
    for model in (gpt2, pieces):
        with pytest.raises(
            ValueError, match=r"pair 0: the answer 'he' does not tokenise as a continuation of '.*that '"
        ):
            mt.PromptPairs.from_text(model, ["The nurse said that "], ["The woman said that "], ["he"], align="right")


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_empty_answer_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=r"pair 1: the answer '\s*' is empty"):
        mt.PromptPairs.from_text(WORDS, BASE, SOURCE, [" he", answer])


def test_an_unknown_word_is_refused(pieces: Any) -> None:
    with pytest.raises(ValueError, match=r"pair 0: the answer ' xylophone' holds a word this tokenizer does not know"):
        mt.PromptPairs.from_text(WORDS, BASE, SOURCE, [" xylophone", " he"])
    tokens = mt.PromptPairs.from_text(pieces, ["Once"], ["Once"], [" xylophone"]).candidates[0, 0]
    assert len(tokens) > 3  # pieces spell it out


def test_answers_of_the_same_tokens_are_refused() -> None:
    model = reader(word_tokenizer())  # drops spaces, so " he" and "  he" meet
    with pytest.raises(ValueError, match=r"pair 1: answer ' he' and wrong answer '  he' are the same tokens \[\d+\]"):
        mt.PromptPairs.from_text(model, BASE, SOURCE, [" he", " he"], [" she", "  he"])


# -------------------------------------------------------------------------------------------------------- spans
def test_a_span_is_found_by_tokens(gpt2: Any, pieces: Any) -> None:
    prompts, subject = ["The Space Needle is in the city of"], ["Space Needle"]
    for model in (gpt2, pieces):
        for bos in (True, False):
            pairs = mt.PromptPairs.from_text(model, prompts, prompts, [" Seattle"], subject=subject, prepend_bos=bos)
            start, stop = pairs.spans["subject"][0].tolist()
            assert "".join(pairs.base_words[0][start:stop]).strip() == "Space Needle"
    assert pairs.spans["subject"].shape == (1, 2)


def test_a_span_without_offsets(gpt2: Any) -> None:
    class Slow:
        """A tokenizer that gives no offsets, as SentencePiece's own Python classes do."""

        is_fast, bos_token_id, pad_token_id, unk_token_id = False, 50256, None, None

        def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
            return {"input_ids": gpt2.tokenizer(text, add_special_tokens=False)["input_ids"]}

        def decode(self, ids: Any) -> str:
            return str(gpt2.tokenizer.decode(ids))

    text = ["The anaesthetist said that"]
    spans = [
        mt.PromptPairs.from_text(m, text, text, [" he"], subject=["anaesthetist"]).spans["subject"].tolist()
        for m in (gpt2, reader(Slow()))
    ]
    assert spans[0] == spans[1] == [[2, 6]]


def test_a_subject_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pair 1: the subject 'farmer' is not in the prompt 'The nurse said that'"):
        mt.PromptPairs.from_text(WORDS, BASE, SOURCE, [" he", " he"], subject=["doctor", "farmer"])


def test_a_subject_inside_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pair 0: the subject 'doc' does not end at token boundaries.*'\s?doctor'"):
        mt.PromptPairs.from_text(WORDS, BASE, SOURCE, [" he", " he"], subject=["doc", "nurse"])


# ----------------------------------------------------------------------------------------------- unequal lengths
UNEQUAL = (["The doctor said that", "The old doctor said that"], ["The old nurse said that", "The nurse said that"])


def test_pairs_of_unequal_length_are_named() -> None:
    wanted = (
        r"pair 0: base has 5 tokens, source has 6 \('The doctor said that' / 'The old nurse said that'\).*"
        r'Pass align="right", or align="drop".*filter_aligned'
    )
    with pytest.raises(ValueError, match=wanted):
        mt.PromptPairs.from_text(WORDS, *UNEQUAL, [" he", " he"])


def test_alignments() -> None:
    right = mt.PromptPairs.from_text(WORDS, *UNEQUAL, [" he", " he"], align="right")
    left = mt.PromptPairs.from_text(WORDS, *UNEQUAL, [" he", " he"], align="left")
    assert (right.shifts.tolist(), left.shifts.tolist()) == ([1, -1], [0, 0])
    assert right.lengths.tolist() == left.lengths.tolist() == [5, 6]
    assert right.source_lengths.tolist() == [6, 5]
    assert right.digest() != left.digest()
    # what lines up at the right is marked as equal, what has no partner as different
    assert "|<bos>|The|* doctor*| said| that|" in repr(right[[0]]) or "|*<bos>*|" in repr(right[[0]])


def test_drop_leaves_unequal_pairs_out_and_counts_them() -> None:
    base, source = [*UNEQUAL[0], *BASE], [*UNEQUAL[1], *SOURCE]
    pairs = mt.PromptPairs.from_text(
        WORDS, base, source, [" he"] * 4, labels=list("abcd"), subject=["doctor"] * 3 + ["nurse"], align="drop"
    )
    assert (len(pairs), pairs.labels, pairs.dropped) == (2, ("c", "d"), {"token lengths differ": 2})
    assert pairs.spans["subject"].tolist() == [[2, 3], [2, 3]]
    assert "dropped token lengths differ: 2" in repr(pairs)
    kept = mt.PromptPairs.from_text(WORDS, base, source, [" he"] * 4, align="right").filter_aligned()
    assert torch.equal(kept.base_tokens[:, :5], pairs.base_tokens[:, :5])
    assert kept.dropped == pairs.dropped
    with pytest.raises(ValueError, match=r"all 2 pairs differ in token length: nothing is left. Pass align='right'"):
        mt.PromptPairs.from_text(WORDS, *UNEQUAL, [" he", " he"], align="drop")
