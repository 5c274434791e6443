"""Intervals cover what they should, and where there is nothing to find, little is called significant."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from oracles import pairs_of, random_examples
from simulated_tasks import SAMPLE, known_tasks, null_tasks, population

import tl_multitrace as mt
from tl_multitrace.evaluation import shuffled_answers

TASKS = 200


@pytest.mark.nightly
def test_held_out_intervals_cover_the_known_effect() -> None:
    """200 tasks whose effect on the whole population of prompts is known; each is seen through a sample of 48."""
    covered = np.zeros((TASKS, 2), dtype=bool)
    for i, task in enumerate(known_tasks(TASKS)):
        found = mt.evaluate(task.circuit, task.sample, draws=0, minimality=False)
        assert found.faithfulness is not None
        covered[i, 0] = found.effect.low <= task.effect <= found.effect.high
        covered[i, 1] = found.faithfulness.low <= task.faithfulness <= found.faithfulness.high
    assert (covered.mean(0) >= 0.90).all()
    assert (covered.mean(0) <= 0.99).all()


@cache
def nulls() -> tuple[list[mt.Significance], list[mt.Significance]]:
    """200 searches on answers that a coin decided: tested on held-out prompts whose coins were tossed anew, and some of
    them on the prompts of the search."""
    on_held_out, on_search = [], []
    for i, (path, train, held_out) in enumerate(null_tasks(TASKS)):
        on_held_out.append(mt.significance(path, held_out, draws=19, replacements=0))
        if i < 40:
            on_search.append(mt.significance(path, train, draws=19, replacements=0))
    return on_held_out, on_search


@pytest.mark.nightly
def test_under_the_null_few_circuits_are_significant() -> None:
    results = nulls()[0]
    assert 0 < np.mean([r.p_zero <= 0.05 for r in results]) <= 0.09
    assert np.mean([r.significant() for r in results]) <= 0.07


@pytest.mark.nightly
def test_on_the_prompts_of_the_search_the_same_test_is_too_kind() -> None:
    """Why the test is for held-out prompts: nothing is to be found here either, and more is."""
    results = nulls()[1]
    assert np.mean([r.significant() for r in results]) > 0.07
    assert all("the prompts of the search" in r.notes[0] for r in results)


def test_shuffled_answers_are_exchanged_by_a_fair_coin() -> None:
    pairs = population()
    shuffled = shuffled_answers(pairs, seed=3)
    exchanged = (shuffled.right != pairs.right).any(-1)
    assert 0.45 < exchanged.double().mean() < 0.55
    assert torch.equal(shuffled.right[exchanged], ~pairs.right[exchanged])
    assert torch.equal(shuffled.right[~exchanged], pairs.right[~exchanged])
    assert torch.equal(shuffled.candidates, pairs.candidates)
    assert torch.equal(shuffled.right, shuffled_answers(pairs, seed=3).right)
    assert not torch.equal(shuffled.right, shuffled_answers(pairs, seed=4).right)


def test_exchanged_answers_turn_effects_round() -> None:
    pairs = population()[:SAMPLE]
    task = next(known_tasks(1))
    shuffled = shuffled_answers(pairs, seed=1)
    there, back = (mt.evaluate(task.circuit, p, draws=0).ablations[0].effects for p in (pairs, shuffled))
    exchanged = (shuffled.right != pairs.right).any(-1).numpy()
    assert np.where(exchanged, -1, 1) * back == pytest.approx(np.array(there), abs=1e-4)


def test_pairs_without_wrong_answers_have_nothing_to_exchange() -> None:
    with pytest.raises(ValueError, match="pair 0 has no wrong answer"):
        shuffled_answers(pairs_of(random_examples(3, wrong=0)))
