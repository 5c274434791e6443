"""What a search, and the tables of its circuits, may run: counted in forwards."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor
from toy_tracer import Toy

import tl_multitrace as mt
from tl_multitrace.distributed import Ranks

CHANCE_SETS = 20


def weighed(m: Tensor) -> Tensor:
    return m @ Tensor([0.5, -0.4, 0.9, 0.05, -0.1, 0.3, 0.7, -0.9]).to(m) + m[0] * m[2]


def searched(toy: Toy) -> mt.SubsetPath:
    return mt.select(toy, [1, 2, 4], mt.Greedy())


# ------------------------------------------------------------------------------------------- tables of circuits
def test_taking_a_circuit_runs_nothing_and_its_table_says_what_it_takes() -> None:
    toy = Toy(weighed)
    path = searched(toy)
    spent, searching = toy.cost.equivalents, path.cost["equivalents"]
    circuit = path[4]
    assert path[4] is circuit and circuit.mask.sum() == len(circuit.labels) == 4 and circuit.share is not None
    assert circuit.with_scores(effect=2.0).unread.keys() == {"chance", "marginals"}
    assert toy.cost.equivalents == spent and circuit.cost == {"search": searching, "table": 0}
    text = repr(circuit)
    assert toy.cost.equivalents - spent == circuit.cost["table"] == 5 + CHANCE_SETS
    assert f"{searching:.0f} forward equivalents" in text and "; 25 more for this table" in text
    assert repr(circuit) == text and not circuit.to_dataframe().marginal.isna().any() and not circuit.unread
    assert toy.cost.equivalents - spent == 25 and path.cost["equivalents"] == searching


def test_each_column_is_measured_when_it_is_read() -> None:
    toy = Toy(weighed)
    circuit = searched(toy)[2]
    spent = toy.cost.equivalents
    assert circuit.indices == (0, 2) and circuit.marginals == pytest.approx([1.5, 1.9])
    assert toy.cost.equivalents - spent == circuit.cost["table"] == 3
    other = circuit.with_scores(held_out=circuit.score)
    assert other.marginals == circuit.marginals and other.unread.keys() == {"chance"}
    assert circuit.chance is not None and circuit.chance.n == CHANCE_SETS
    assert toy.cost.equivalents - spent == 3 + CHANCE_SETS
    given = searched(toy)[2].with_scores(chance=circuit.chance, marginals=circuit.marginals)
    spent = toy.cost.equivalents
    assert repr(given) and toy.cost.equivalents == spent and given.cost["table"] == 0


def test_what_leaves_the_process_is_measured_before(tmp_path: Path) -> None:
    toy = Toy(weighed)
    path = searched(toy)
    expected = repr(searched(Toy(weighed))[4]).rpartition("cost")[0]
    back = mt.Circuit.load(path[4].save(tmp_path / "circuit.json"))
    assert repr(back) == repr(path[4]) and repr(back).startswith(expected) and back.cost == path[4].cost
    assert back.cost["table"] == 25 and not back.unread
    spent = toy.cost.equivalents
    assert copy.copy(path[2]).marginals == path[2].marginals and toy.cost.equivalents - spent == 3 + CHANCE_SETS
    assert replace(path[1], certificate="").unread == {}  # it reads all fields
    assert pickle.loads(pickle.dumps(path[1].marginals)) == path[1].marginals


def test_ranks_measure_at_once_so_that_the_first_alone_may_print() -> None:
    toy = Toy(weighed)
    path = searched(toy)
    spent = toy.cost.equivalents
    toy.ranks = Ranks(1, 2)
    assert not path[2].unread and toy.cost.equivalents - spent == path[2].cost["table"] == 3 + CHANCE_SETS


def test_a_loaded_path_has_nothing_to_measure_with(tmp_path: Path) -> None:
    path = mt.SubsetPath.load(searched(Toy(weighed)).save(tmp_path / "path.json"))
    assert path[2].marginals == () and path[2].chance is None and path[2].cost["table"] == 0
