"""The same work on 1, 2 and 4 processes: the same bits everywhere, errors on all ranks, and no rank left waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from safetensors.torch import load_file
from torch import Tensor

import tl_multitrace as mt
from tl_multitrace.cost import Cost
from tl_multitrace.distributed import ALONE, Found, RankError, Ranks, ranks_of, started_by_torchrun

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1, 2, 4)
JOB = ["run", "--task", "ioi", "--components", "heads", "--budget", "2", "-n", "24", "--device", "cpu"]
JOB += ["--solver", "greedy", "--stability", "0"]
SLOWLY = """
import sys, time
from tl_multitrace.engine.mask_runs import MaskRuns
from tl_multitrace.engine import cache
from tl_multitrace.cli.app import main
cache.EVERY = 0.0
forward = MaskRuns.answers
def answers(*args, **options):
    time.sleep(0.1)
    return forward(*args, **options)
MaskRuns.answers = answers
main()
"""


# ------------------------------------------------------------------------------------------------------ without others
@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 8, 9, 13, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_same_batches_on_any_number_of_ranks(n: int, batch_size: int) -> None:
    def dealt(size: int) -> list[list[int]]:
        by_rank = [Ranks(rank, size, shared=True).deal(n, batch_size) for rank in range(size)]
        assert all(_same(parts, by_rank[0]) for parts in by_rank)
        assert all(len(part) <= batch_size for parts in by_rank[0] for part in parts)
        return sorted(part.tolist() for parts in by_rank[0] for part in parts)

    whole = dealt(1)
    assert sorted(i for part in whole for i in part) == list(range(n))
    for size in (2, 4, 8):
        if size <= n and -(-n // batch_size) <= 8:
            assert dealt(size) == whole
    assert all(Ranks(0, 3, shared=True).deal(n, batch_size)) or n < 3


def _same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return [[p.tolist() for p in parts] for parts in a] == [[p.tolist() for p in parts] for parts in b]


def test_one_process_alone_deals_batches_of_equal_size() -> None:
    assert [len(part) for part in ALONE.deal(10, 4)[0]] == [4, 4, 2]
    assert [len(part) for part in ALONE.deal(9, 4)[0]] == [3, 3, 3]


def test_fewer_prompts_than_ranks_run_on_every_rank_as_on_one(caplog: Any) -> None:
    ranks = Ranks(2, 4, shared=True)
    assert ranks.for_examples(4) is ranks
    assert ranks.for_examples(3) == Ranks(shared=True) and "every rank runs them all" in caplog.text


def test_a_single_rank_exchanges_nothing() -> None:
    ranks, found = Ranks(shared=True), Found(torch.ones(2, 3), torch.ones(1))
    assert ranks.joined("a call", [3], 2, 1, Cost(), Cost(), found, None) is found
    with pytest.raises(ArithmeticError, match="its own"):
        ranks.joined("a call", [3], 2, 1, Cost(), Cost(), None, ArithmeticError("its own"))
    assert ranks.share_bytes(b"abc") == b"abc" and ranks.least(5) == 5
    done: list[int] = []
    ranks.after_first(lambda: done.append(1))
    assert done == [1]


class Scripted(Ranks):
    """Ranks whose others say what a test has written down."""

    def _exchange(self, mine: Tensor) -> Tensor:
        return torch.stack([mine if other is None else other.to(mine) for other in self.others])  # type: ignore[attr-defined]

    def saying(self, others: list[Tensor | None]) -> Scripted:
        object.__setattr__(self, "others", others)
        return self


def test_a_rank_that_was_asked_for_something_else_is_refused() -> None:
    header = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    ranks = Scripted(0, 2, shared=True).saying([None, header])
    with pytest.raises(
        RankError, match=r"asked for different things \(here: effects.*Run the same script with the same"
    ):
        found = Found(torch.zeros(1, 1), torch.zeros(0))
        ranks.joined("effects 12", [1, 1], 1, 0, Cost(), Cost(), found, None)


def test_distributed_without_other_processes_says_how_to_start_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not started_by_torchrun() and ranks_of(False) is ALONE
    with pytest.raises(ValueError, match=r"distributed=True, but nothing started .*torchrun --nproc-per-node 4"):
        mt.Tracer(model(), cases()["odds"].pairs, mt.heads(model()), distributed=True)


# ----------------------------------------------------------------------------------------------------------- torchrun
def environment(**variables: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}


def launch(size: int, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A script, or ``-m`` module, on so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port), *arguments]
    return subprocess.Popen(
        command, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


@cache
def model() -> Any:
    return rank_cases.tiny()


@cache
def cases() -> dict[str, rank_cases.Case]:
    return rank_cases.cases(model())


Results = dict[int, list[tuple[dict[str, Tensor], dict[str, Any]]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What every rank of every number of ranks has written: one launch for each number."""
    found: Results = {}
    for size in SIZES:
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        process = launch(size, "tests/rank_cases.py", str(folder))
        output = process.communicate(timeout=900)[0]
        assert process.returncode == 0, output[-4000:]
        files = [(folder / f"rank{r}.safetensors", folder / f"rank{r}.json") for r in range(size)]
        found[size] = [(load_file(tensors), json.loads(text.read_text())) for tensors, text in files]
    return found


@pytest.mark.slow
def test_every_rank_has_the_same_bits(results: Results) -> None:
    for size in SIZES:
        first, said = results[size][0]
        for tensors, own in results[size][1:]:
            assert [name for name in first if not _equal(first[name], tensors[name])] == []
            assert own["sets"] == said["sets"]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES[1:])
def test_one_two_and_four_ranks_find_the_same_bits(results: Results, size: int) -> None:
    (one, said), (several, told) = results[1][0], results[size][0]
    assert one.keys() == several.keys() and said["sets"] == told["sets"]
    assert [name for name in one if "cost" not in name and not _equal(one[name], several[name])] == []


def _equal(a: Tensor, b: Tensor) -> bool:
    """Bit by bit; classes of tokens without a member are NaN on both sides."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_ranks_find_what_a_plain_tracer_finds(results: Results, name: str) -> None:
    plain, found = rank_cases.numbers(cases()[name].tracer(model())), results[1][0][0]
    for what, value in plain.items():
        if what != "cost":  # which ranks decide about keys and values without weighing
            torch.testing.assert_close(found[f"{name}: {what}"].to(value), value, atol=3e-5, rtol=2e-4)


@pytest.mark.slow
def test_the_cost_of_all_ranks_together_is_that_of_one(results: Results) -> None:
    one = results[1][0][0]
    for size in SIZES[1:]:
        for name in (name for name in one if "cost" in name and "means" not in name):
            torch.testing.assert_close(results[size][0][0][name], one[name])
        each = results[size][0][0]["means: cost"] - one["means: cost"]  # every rank takes the means, over all prompts
        assert each.tolist() == pytest.approx([size - 1, 0], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("solver", rank_cases.SOLVERS)
def test_ranks_choose_what_one_plain_process_chooses(results: Results, solver: str) -> None:
    tracer = cases()["odds"].tracer(model())
    path = mt.select(tracer, range(1, 6), rank_cases.SOLVERS[solver](), seed=1)
    assert results[4][0][1]["sets"][solver] == {str(size): list(path[size].labels) for size in path.sizes}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_an_error_on_one_rank_is_raised_on_all(results: Results, size: int) -> None:
    said = [told["said"] for _, told in results[size]]
    for what in ("one fails", "one fails in a run"):
        assert said[-1][what] == "ArithmeticError: the sum of all fears"
        expected = f"RankError: rank {size - 1} of {size} failed: ArithmeticError: the sum of all fears"
        assert {s[what] for s in said[:-1]} <= {expected}
    assert {s[what] for s in said for what in ("and then goes on", "and goes on again")} == {""}
    if size > 1:
        assert all(s["different masks"].startswith("RankError: the ranks were asked for different") for s in said)
        for what in ("prompts", "model", "metric", "intervention"):
            expected = f"RankError: ranks 0 and 1 of {size} have different {what}, so their results cannot"
            assert all(s[f"different {what}"].startswith(expected) for s in said)


# ----------------------------------------------------------------------------------------------------------- lost ranks
def chosen(out: Path) -> Any:
    """The sets of a finished run, with their scores."""
    content = json.loads((out / "path.json").read_text())
    return {k: v for k, v in content.items() if k != "provenance"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("runs") / "whole"
    process = launch(2, "-m", "tl_multitrace", *JOB, "--out", str(out))
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output[-4000:]
    return chosen(out)


def rank_processes(launcher: int) -> list[int]:
    """The processes that ``torchrun`` started, by rank."""
    import psutil

    found: dict[int, int] = {}
    for child in psutil.Process(launcher).children(recursive=True):
        variables = child.environ()
        if "LOCAL_RANK" in variables and "--out" in child.cmdline():
            found[int(variables["LOCAL_RANK"])] = child.pid
    return [found[rank] for rank in sorted(found)]


def until(happens: Any, process: subprocess.Popen[str], seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not happens():
        assert process.poll() is None and time.monotonic() < ends, process.communicate(timeout=60)[0][-4000:]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "then"), [(1, 2), *(pytest.param(*way, marks=pytest.mark.nightly) for way in ((0, 4), (1, 1)))]
)
def test_a_lost_rank_ends_the_others_and_resume_completes(
    lost: int, then: int, tmp_path: Path, uninterrupted: Any
) -> None:
    out, slowly = tmp_path / "run", tmp_path / "slowly.py"
    slowly.write_text(SLOWLY)
    process = launch(2, str(slowly), *JOB, "--out", str(out), TL_MULTITRACE_TIMEOUT="60")
    until(lambda: len(list((out / "checkpoint" / "found").glob("*/*.s*"))) > 3, process)
    os.kill(rank_processes(process.pid)[lost], signal.SIGKILL)
    began = time.monotonic()
    process.communicate(timeout=90)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert (out / "checkpoint" / "run.json").is_file() and json.loads((out / "run.json").read_text())[
        "status"
    ] != "complete"
    again = launch(then, "-m", "tl_multitrace", *JOB, "--out", str(out), "--resume")
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0, output[-4000:]
    assert chosen(out) == uninterrupted and not (out / "checkpoint").exists()


LOST = """
import os, signal, sys, time
import rank_cases
from tl_multitrace.distributed import RankError, ranks_of
model, ranks = rank_cases.tiny(), ranks_of(True)
tracer = rank_cases.cases(model)["odds"].tracer(model, distributed=True)
if ranks.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "killed" else time.sleep(1000)
try:
    tracer.effect([0.5] * len(tracer.groups))
except RankError as error:
    print("SAID", error, flush=True)
    os._exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "stuck"])
def test_a_rank_that_waits_says_what_happened_within_the_timeout(how: str, tmp_path: Path) -> None:
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TL_MULTITRACE_TIMEOUT": "15"}
    ranks = [
        subprocess.Popen(  # without torchrun, which would end the rank that waits before it can say anything
            [sys.executable, str(script), how],
            env=environment(RANK=str(rank), **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output = ranks[0].communicate(timeout=240)[0]
        assert ranks[0].returncode == 7, output[-4000:]
        assert "rank 0 of 2 lost touch with the others" in output and "TL_MULTITRACE_TIMEOUT" in output
    finally:
        ranks[1].kill()
        ranks[1].communicate()
