"""What a search, and the tables of its circuits, may run: counted in forwards."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oracles import pairs_of, random_examples
from torch import Tensor
from toy_tracer import Toy, model_of

import tl_multitrace as mt
from tl_multitrace.distributed import Ranks
from tl_multitrace.groups import mask_of
from tl_multitrace.solvers.search import CostReached, Search

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
    toy.ranks = Ranks(1, 2, shared=True)
    assert not path[2].unread and toy.cost.equivalents - spent == path[2].cost["table"] == 3 + CHANCE_SETS


def test_a_loaded_path_has_nothing_to_measure_with(tmp_path: Path) -> None:
    path = mt.SubsetPath.load(searched(Toy(weighed)).save(tmp_path / "path.json"))
    assert path[2].marginals == () and path[2].chance is None and path[2].cost["table"] == 0


# ------------------------------------------------------------------------------------------------- max_cost
class Impatient:
    """A user's solver that goes on after it was stopped."""

    name = "impatient"

    def search(self, search: Search) -> None:
        for i in range(8):
            for sets in ([[i]], [[i, j] for j in range(8)]):
                with contextlib.suppress(CostReached):
                    search.scores(sets, reference=[i])


SOLVERS: dict[str, Any] = {
    "screened": mt.ScreenedSearch(),
    "screened high": mt.ScreenedSearch(effort="high"),
    "greedy": mt.Greedy(),
    "exhaustive": mt.Exhaustive(),
    "random": mt.RandomSubset(),
    "top-k": mt.TopK(),
    "attribution": mt.AttributionPatching(),
    "integrated": mt.IntegratedGradients(),
    "PGB-CT": mt.PGBCT(sweep=(0.2, 1.0), epochs=8),
    "PGB-CT path": mt.PGBCT(path=True, epochs=8),
    "hard concrete": mt.HardConcrete(steps=20),
    "of a user": Impatient(),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def bounded() -> mt.Objective:
    """The second goal's prompts are forwards, too; nothing that holds component 2 is allowed."""
    kept = mt.Constraint("kept", Toy(lambda m: m[2] + 0.01 * m[3]), at_most=0.1)
    return mt.Objective([mt.Goal("up", Toy(weighed))], [kept])


def best_of(asked: list[tuple[int, ...]], size: int) -> float:
    return max(float(weighed(mask_of(8, s).double())) for s in asked if len(s) <= size)


@every_solver
@pytest.mark.parametrize("cap", [1, 4.5, 12, 40])
def test_a_search_stops_before_max_cost_and_gives_the_best_sets_seen(solver: str, cap: float) -> None:
    whole, toy = mt.select(Toy(weighed), [1, 2, 4], SOLVERS[solver]), Toy(weighed)
    path = mt.select(toy, [1, 2, 4], SOLVERS[solver], max_cost=cap)
    assert path.cost["equivalents"] <= cap
    assert toy.cost.equivalents <= cap + 2 * 3 + 1 + 1  # scores and log effects of three choices, and the whole mask
    assert path.effects == pytest.approx([best_of(toy.asked, size) for size in path.sizes])
    if whole.cost["equivalents"] + 2 <= cap:
        assert path.success and path.choices == whole.choices and path.message.startswith("finished: ")
    if whole.cost["equivalents"] > cap:
        assert not path.success
    if not path.success:
        spent = f"stopped at max_cost: {path.cost['equivalents']:.4g} of {cap:g} forward equivalents spent, "
        assert path.message.startswith(spent) and path.message in repr(path)
        assert path[4].certificate.endswith("; stopped at max_cost")


@every_solver
def test_most_of_what_may_be_spent_is_spent(solver: str) -> None:
    path = mt.select(Toy(weighed), [1, 2, 4], SOLVERS[solver], max_cost=12)
    assert path.success or path.cost["equivalents"] >= 8
    assert path.success or path.effects[-1] > 0  # also soft masks are made into sets in time


@pytest.mark.parametrize("solver", ["screened", "greedy", "PGB-CT path", "hard concrete", "random"])
@pytest.mark.parametrize("cap", [8, 20, 60])
def test_max_cost_counts_the_prompts_of_all_goals(solver: str, cap: float) -> None:
    path = mt.select(bounded(), [1, 2, 4], SOLVERS[solver], max_cost=cap)
    assert path.cost["equivalents"] <= cap
    assert all(2 not in choice.members for choice in path.choices)
    assert path.success == (mt.select(bounded(), [1, 2, 4], SOLVERS[solver]).cost["equivalents"] <= cap)


@pytest.mark.parametrize("solver", ["screened", "greedy", "PGB-CT", "hard concrete"])
def test_max_cost_holds_on_a_model_whose_runs_restart(solver: str) -> None:
    tracer = mt.Tracer(model_of(), pairs_of(random_examples(4)), mt.heads(model_of()), mt.LogitDiff())
    assert mt.select(tracer, [1, 2, 6], SOLVERS[solver]).cost["equivalents"] > 12
    before = tracer.cost.equivalents
    path = mt.select(tracer, [1, 2, 6], SOLVERS[solver], max_cost=12)
    assert not path.success and 8 <= path.cost["equivalents"] <= 12
    assert tracer.cost.equivalents - before <= 12 + 4 * 2


def test_how_a_search_ended_is_saved(tmp_path: Path) -> None:
    stopped = mt.select(Toy(weighed), [1, 2, 4], mt.Greedy(), max_cost=10)
    back = mt.SubsetPath.load(stopped.save(tmp_path / "path.json"))
    assert not back.success and back.message == stopped.message and repr(back) == repr(stopped)
    old = replace(stopped, provenance={k: v for k, v in stopped.provenance.items() if k != "outcome"})
    assert old.success and old.message == ""  # files of 0.1 say nothing about it


@pytest.mark.parametrize("cap", [0, -1.0, math.inf, math.nan])
def test_what_is_no_cost_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match="max_cost is a number of forward equivalents above 0"):
        mt.select(Toy(weighed), 2, mt.Greedy(), max_cost=cap)


def test_a_cost_that_pays_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_cost=0.5 does not even pay for the empty set"):
        mt.select(Toy(weighed), 2, mt.Greedy(), max_cost=0.5)
    with pytest.raises(ValueError, match=r"max_cost=3 does not even pay for the empty set"):
        mt.select(bounded(), 2, mt.Greedy(), max_cost=3)


def test_solvers_are_compared_at_one_cost() -> None:
    found = mt.compare_solvers(Toy(weighed), [1, 2, 4], ["greedy", "exhaustive"], max_cost=15)
    assert all(13 <= path.cost["equivalents"] <= 15 for path in found.paths.values())
    assert [path.success for path in found.paths.values()] == [False, False]
