"""Prompt pairs as tensors: alignment, answers, subsets, exchange, identity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Example, pairs_of, random_examples, unchecked, unequal_pairs

import tl_multitrace as mt
from tiny_models import word_tokenizer
from tl_multitrace.rows import Rows

TOKENS = torch.arange(12).reshape(3, 4) + 3


def test_answers_in_every_form() -> None:
    one = mt.PromptPairs.from_tokens(TOKENS, TOKENS, [20, 21, 22], [23, 24, 25])
    assert one.candidates.tolist() == [[[20], [23]], [[21], [24]], [[22], [25]]]
    tensor = mt.PromptPairs.from_tokens(TOKENS, TOKENS, torch.tensor([20, 21, 22]), torch.tensor([23, 24, 25]))
    assert tensor.digest() == one.digest()
    several = mt.PromptPairs.from_tokens(TOKENS, TOKENS, torch.tensor([[20, 30], [21, 31], [22, 32]]))
    assert several.candidates.tolist() == [[[20], [30]], [[21], [31]], [[22], [32]]]
    assert several.right.all()
    nested = mt.PromptPairs.from_tokens(TOKENS, TOKENS, [[[20, 1, 2]], [[21], [9, 9]], [22]], [[[5]], [], [6]])
    assert nested.candidates.tolist()[0] == [[20, 1, 2], [5, -1, -1]]
    assert nested.candidates.tolist()[1] == [[21, -1, -1], [9, 9, -1]]
    assert nested.right.tolist() == [[True, False], [True, True], [True, False]]


def test_lengths_trim_what_is_behind() -> None:
    pairs = mt.PromptPairs.from_tokens(TOKENS, TOKENS + 20, [1, 1, 1], lengths=[2, 4, 3])
    assert pairs.base_tokens[0].tolist() == [3, 4, 0, 0]
    assert pairs.answer_positions.tolist() == [1, 3, 2]
    changed = TOKENS.clone()
    changed[0, 2:] = 99
    assert mt.PromptPairs.from_tokens(changed, TOKENS + 20, [1, 1, 1], lengths=[2, 4, 3]).digest() == pairs.digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source_tokens": TOKENS[:, :3]},
            r"two \[n, pos\] tensors of one shape with n > 0, got \(3, 4\) and \(3, 3\)",
        ),
        ({"base_tokens": TOKENS[:0], "source_tokens": TOKENS[:0]}, r"n > 0, got \(0, 4\)"),
        ({"base_tokens": TOKENS[0], "source_tokens": TOKENS[0]}, r"got \(4,\) and \(4,\)"),
        ({"lengths": [4, 4]}, r"lengths must be 3 numbers from 1 to 4, got \[4, 4\]"),
        ({"lengths": [0, 4, 4]}, r"from 1 to 4, got \[0, 4, 4\]"),
        ({"lengths": [5, 4, 4]}, r"from 1 to 4, got \[5, 4, 4\]"),
        ({"answers": [1, 2]}, r"2 answers for 3 pairs"),
        ({"wrong_answers": [1, 2, 3, 4]}, r"4 wrong_answers for 3 pairs"),
        ({"labels": ["a", "b"]}, r"2 labels for 3 pairs: give one label per pair"),
        (
            {"answer_positions": [0, 1, 4]},
            r"answer_positions must be 3 positions inside their prompts, got \[0, 1, 4\]",
        ),
        ({"answers": [[], [], []]}, r"no answer"),
        ({"answers": [[7], [], [7]]}, r"pair 1: no answer"),
        ({"answers": [[7], [[]], [7]]}, r"pair 1: an answer without tokens"),
        ({"answers": [7, -1, 7]}, r"pair 1: the token id -1"),
        ({"wrong_answers": [8, 8, 7]}, r"pair 2: an answer and a wrong answer are the same tokens \[7\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    fitting = {"base_tokens": TOKENS, "source_tokens": TOKENS, "answers": [7, 7, 7], **changes}
    with unchecked(), pytest.raises(ValueError, match=message):
        mt.PromptPairs.from_tokens(**fitting)


# ------------------------------------------------------------------------------------------------------ subsets
def labelled(n: int = 10) -> mt.PromptPairs:
    return pairs_of(random_examples(n, tokens=2), labels=["ab"[i % 2] for i in range(n)])


def same(one: mt.PromptPairs, i: int, other: mt.PromptPairs, j: int) -> bool:
    names = ("base_tokens", "source_tokens", "lengths", "candidates", "right", "answer_positions")
    return (
        all(torch.equal(getattr(one, n)[i], getattr(other, n)[j]) for n in names) and one.labels[i] == other.labels[j]
    )


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        (slice(2, 5), [2, 3, 4]),
        (slice(None, None, -4), [9, 5, 1]),
        (3, [3]),
        (-1, [9]),
        ([7, 0, 7], [7, 0, 7]),
        (torch.tensor([4, -2]), [4, 8]),
        (torch.arange(10) % 5 == 1, [1, 6]),
        ([i in (0, 9) for i in range(10)], [0, 9]),
    ],
)
def test_picking(index: Any, wanted: list[int]) -> None:
    pairs = labelled()
    picked = pairs[index]
    assert len(picked) == len(wanted)
    assert all(same(picked, k, pairs, i) for k, i in enumerate(wanted))
    assert torch.equal(picked.spans["subject"], pairs.spans["subject"][wanted])


def test_picking_nothing_or_outside() -> None:
    with pytest.raises(ValueError, match=r"no pair is left: slice\(5, 5, None\) of 10 pairs"):
        labelled()[5:5]
    with pytest.raises(IndexError, match=r"index 10 is outside the 10 that there are"):
        labelled()[[0, 10]]
    with pytest.raises(IndexError, match=r"index -11 is outside the 10"):
        labelled()[[0, -11]]


@settings(max_examples=25, deadline=None)
@given(fraction=st.floats(0.2, 0.8), seed=st.integers(0, 1000))
def test_split_is_a_balanced_partition(fraction: float, seed: int) -> None:
    pairs = labelled()
    parts = pairs.split(fraction, seed)
    rows = [tuple(row) for part in parts for row in part.base_tokens.tolist()]
    assert sorted(rows) == sorted(tuple(row) for row in pairs.base_tokens.tolist())
    for label in "ab":
        assert parts[0].labels.count(label) == round(fraction * 5)
    assert [p.digest() for p in pairs.split(fraction, seed)] == [p.digest() for p in parts]


def test_split_draws_by_seed() -> None:
    digests = {labelled().split(0.6, seed)[0].digest() for seed in range(5)}
    assert len(digests) == 5


@pytest.mark.parametrize("fraction", [0.0, 0.05, 1.0, 1.5, -0.5])
def test_split_refuses_an_empty_part(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"split\({fraction}\) of 10 pairs leaves a part empty"):
        labelled().split(fraction)


def test_subgroup() -> None:
    part = labelled().subgroup("b")
    assert (len(part), set(part.labels)) == (5, {"b"})
    with pytest.raises(KeyError, match=r"no pair is labelled 'c'; the labels are \['a', 'b'\]"):
        labelled().subgroup("c")


def test_swap_twice_is_the_same_and_once_is_exchanged() -> None:
    pairs = labelled()
    swapped = pairs.swap()
    assert torch.equal(swapped.base_tokens, pairs.source_tokens)
    assert torch.equal(swapped.candidates, pairs.candidates)
    assert swapped.swap().digest() == pairs.digest() != swapped.digest()


def test_swap_moves_spans_and_answer_positions() -> None:
    base, source = [[3, 4, 5, 6]], [[9, 3, 4, 5, 6]]
    subject = [word_tokenizer().decode([4, 5])]
    pairs = unequal_pairs([Example(base[0], source[0], [[7]], [[8]])], "right", subject=subject)
    swapped = pairs.swap()
    assert (swapped.shifts.tolist(), swapped.lengths.tolist()) == ([-1], [5])
    assert swapped.answer_positions.tolist() == [4]
    assert swapped.spans["subject"].tolist() == [[2, 4]]
    assert swapped.base_tokens[0, 2:4].tolist() == [4, 5] == base[0][1:3]


def test_digest_tells_prompts_apart() -> None:
    pairs = labelled()
    others = [pairs[1:], pairs[list(range(9, -1, -1))], pairs.swap()]
    assert len({p.digest() for p in [pairs, *others]}) == 4
    assert pairs[:].digest() == pairs.digest()


def test_repr_shows_counts_labels_and_a_pair() -> None:
    text = repr(labelled())
    assert "PromptPairs(10 pairs, 5-8 tokens, 2 candidates each)" in text
    assert "labels  a 5, b 5" in text
    frame = labelled().to_dataframe()
    assert frame.tokens.tolist() == labelled().lengths.tolist()
    assert frame.label.tolist() == list(labelled().labels)


# --------------------------------------------------------------------------------------------------------- rows
def test_candidates_share_the_rows_that_they_can() -> None:
    answers = [[[20, 21, 22], [20, 21, 40], [20]], [[30]], [[31, 5]]]
    wrong = [[[20, 50], [51, 52]], [[32]], [[33, 6]]]
    pairs = mt.PromptPairs.from_tokens(TOKENS, TOKENS + 30, answers, wrong)
    rows = Rows.of(pairs)
    assert rows.order.tolist() == [1, 2, 0]  # by length, the answer counted
    assert [row[:k].tolist() for row, k in zip(rows.base, rows.lengths, strict=True)] == [
        [7, 8, 9, 10],  # one-token answers need the prompt alone
        [11, 12, 13, 14, 31],
        [11, 12, 13, 14, 33],
        [3, 4, 5, 6, 20, 21],  # [20, 21, 22], [20, 21, 40], [20] and [20, 50] are all read here
        [3, 4, 5, 6, 51],
    ]
    assert rows.candidate_row[2].tolist() == [0, 0, 0, 0, 1]
    assert rows.reads.tolist() == [1, 2, 2, 3, 2]
    assert rows.source[3, 4:].tolist() == [20, 21]


def test_an_answer_of_several_tokens_is_read_behind_the_prompt() -> None:
    pairs = mt.PromptPairs.from_tokens(TOKENS, TOKENS, [[[20, 21]], [[20]], [[20]]], answer_positions=[1, 1, 1])
    with pytest.raises(ValueError, match="pair 0: a multi-token answer must be read at the prompt's last position"):
        Rows.of(pairs)
