"""Results on disk: what is kept, when it counts as the same, and that what was stopped ends with the same numbers."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import interrupted
import pytest
import torch
from interrupted import WORK, Killed, agree, done, killed_after, tracer
from planted_searches import nightly_but

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.engine import cache as cache_module
from tl_multitrace.engine.cache import Cache, StateFile, key_of, pack, read_folder, unpack, write_whole
from tl_multitrace.identity import digest_of

ROOT = Path(__file__).resolve().parents[1]
KILLS = 2
"""Kills per piece of work."""

BY_DAY = ("screened", "pgbct path", "hard concrete", "trace")
"""One piece of work of each way of going on: from stored calls, from a loop's own state, from cells of a trace."""


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "EVERY", 0.0)


@cache
def uninterrupted(name: str) -> tuple[str, int]:
    """What a piece of work comes to without a cache, and its forwards."""
    with killed_after(None) as forwards:
        return done(name, None), forwards[0]


# ------------------------------------------------------------------------------------------- the same after a kill
@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_but(BY_DAY, list(WORK)))
def test_what_was_killed_anywhere_ends_with_the_same(name: str, tmp_path: Path) -> None:
    expected, forwards = uninterrupted(name)
    generator = random.Random(name)
    for trial in range(KILLS):
        folder = tmp_path / str(trial)
        for _ in range(generator.choice([1, 2])):
            with suppress(Killed), killed_after(generator.randrange(1, forwards)):  # the second may have less to do
                done(name, folder)
        with killed_after(None) as left:
            agree(done(name, folder), expected)
        assert left[0] <= forwards + 20  # what is stored again to go on from is all that runs twice


@pytest.mark.parametrize("name", ["greedy", "hard concrete", "early slope", "trace"])
def test_work_that_is_repeated_runs_nothing_but_the_base_run(name: str, tmp_path: Path) -> None:
    expected, forwards = uninterrupted(name)
    assert done(name, tmp_path) == expected
    with killed_after(None) as again:
        assert done(name, tmp_path) == expected
    assert again[0] <= min(12, forwards)  # the check of the hooks, the base run and, in a search, that of the held-out


def test_another_tracer_takes_what_one_has_found_and_counts_its_cost(tmp_path: Path) -> None:
    eye = torch.eye(len(mt.heads(interrupted.model())))
    first = tracer(tmp_path)
    found, gradient = first.effects(eye), first.gradient(0.5 * eye[0])
    second = tracer(tmp_path)
    assert torch.equal(second.effects(eye), found) and torch.equal(second.gradient(0.5 * eye[0]), gradient)
    assert second.calls.cache is not None and second.calls.cache.hits == 2
    assert second.cost.numbers[:2] == pytest.approx(first.cost.numbers[:2])


# ----------------------------------------------------------------------------------------------------------------- keys
def folder_of(folder: Path, model: Any = None, **changes: Any) -> str:
    """The folder that a tracer keeps its results in."""
    model = model or interrupted.model()
    given = {"pairs": interrupted.prompts(), "groups": mt.heads(model), "metric": mt.OddsRatio(), **changes}
    made = mt.Tracer(model, **given, cache_dir=folder)
    assert made.calls.cache is not None
    return made.calls.cache.folder.name


def test_the_same_arguments_have_the_same_key(tmp_path: Path) -> None:
    assert folder_of(tmp_path) == folder_of(tmp_path) == folder_of(tmp_path, build(MODEL_NAMES[0], torch.float64))


CHANGES: dict[str, Any] = {
    "prompts": {"pairs": interrupted.prompts(seed=5)},
    "fewer prompts": {"pairs": interrupted.prompts()[:5]},
    "metric": {"metric": mt.LogitDiff()},
    "metric's option": {"metric": mt.OddsRatio(reduce="sum")},
    "intervention": {"intervention": mt.ZeroAblation()},
    "intervention's option": {"intervention": mt.ResampleAblation(interrupted.prompts(20, seed=4), seed=1)},
    "intervention's other option": {"intervention": mt.ResampleAblation(interrupted.prompts(20, seed=4), seed=2)},
    "dtype": {"dtype": torch.float32},
    "batches": {"batch_size": 2},
}


def test_whatever_changes_a_number_changes_the_key(tmp_path: Path) -> None:
    model = interrupted.model()
    kept = {"as it is": folder_of(tmp_path)} | {what: folder_of(tmp_path, **c) for what, c in CHANGES.items()}
    kept["positions"] = folder_of(tmp_path, groups=mt.heads(model).at("last"))
    kept["fewer components"] = folder_of(tmp_path, groups=mt.heads(model, layers=[0, 1]))
    kept["held sites"] = folder_of(tmp_path, held=mt.mlps(model))
    assert len(set(kept.values())) == len(kept)


def test_one_changed_weight_changes_the_key(tmp_path: Path) -> None:
    before, model = folder_of(tmp_path, build(MODEL_NAMES[0])), build(MODEL_NAMES[0])
    with torch.no_grad():
        last = list(model.parameters())[-1].view(-1)
        last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))
    assert folder_of(tmp_path, model) != before


METRIC = """
from dataclasses import dataclass
import tl_multitrace as mt

@dataclass(frozen=True)
class Half(mt.LogitDiff):
    def __call__(self, out, base):
        return {factor} * super().__call__(out, base)
"""


def metric_of(path: Path, factor: float) -> Any:
    """A user's metric from a file of its own."""
    path.write_text(METRIC.format(factor=factor), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.Half()


def test_a_metric_whose_source_changes_has_another_key(tmp_path: Path) -> None:
    half, half_again, third = (
        metric_of(tmp_path / f"metric_{i}.py", factor) for i, factor in enumerate((0.5, 0.5, 0.33))
    )
    for metric in (half, half_again, third):
        type(metric).__module__ = "metric"  # as a notebook's cell that is run again
    sys.modules["metric"] = sys.modules["metric_0"]
    try:
        assert digest_of(half) == digest_of(half)
    finally:
        del sys.modules["metric"]
    sources = [digest_of(m) for m in (half, half_again, third) if _put(m)]
    assert sources[0] == sources[1] != sources[2]


def _put(metric: Any) -> bool:
    """Make the module of a class the one that it was made in."""
    sys.modules["metric"] = next(
        module for name, module in sys.modules.items() if name.startswith("metric_") and module.Half is type(metric)
    )
    return True


def test_what_cannot_be_told_is_not_kept_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot be told.*frozen dataclass.*Metric.*leave cache_dir out"):
        folder_of(tmp_path, metric=lambda out, base: out.scores()[:, lock.locked()])
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Plain:
    """Fields of every kind."""

    values: Any = None


def test_digests_tell_things_apart_that_print_alike() -> None:
    things = [1, 1.0, True, "1", b"1", None, [1], (1,), {1}, {1: 1}, {"1": 1}, torch.ones(1), torch.ones(1, 1), [[1]]]
    things += [torch.float32, "torch.float32", slice(1), range(1), Plain(), Plain(1), [], (), {}]
    assert len({digest_of(t) for t in things}) == len(things)
    assert digest_of("ab", "c") != digest_of("a", "bc") and key_of("ab", "c") != key_of("a", "bc")


# ------------------------------------------------------------------------------------------------------------ bad files
def filled(folder: Path) -> Cache:
    """A cache of three files."""
    made = Cache(folder)
    for i in range(3):
        made.put(f"key{i}", {"each": torch.full((2, 3), float(i))})
    return made


def test_files_that_are_not_as_they_were_written_are_left_out(tmp_path: Path, caplog: Any) -> None:
    filled(tmp_path)
    cut, altered, whole = sorted(tmp_path.iterdir())
    cut.write_bytes(cut.read_bytes()[:-5])
    altered.write_bytes(altered.read_bytes()[:-1] + b"\x01")
    with caplog.at_level(logging.WARNING):
        assert len(Cache(tmp_path)) == 1
    assert [r.args[0] for r in caplog.records] == [cut, altered] and "computed again" in caplog.text
    assert unpack(whole.read_bytes()).keys() == read_folder(tmp_path).keys()


def test_work_goes_on_from_damaged_files(tmp_path: Path) -> None:
    expected, forwards = uninterrupted("hard concrete")
    with pytest.raises(Killed), killed_after(forwards * 2 // 3):
        done("hard concrete", tmp_path)
    for number, path in enumerate(sorted(p for p in tmp_path.rglob("*") if p.is_file())):
        if number % 3 == 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif number % 3 == 1:
            path.write_bytes(b"\xff" + path.read_bytes()[1:])
    agree(done("hard concrete", tmp_path), expected)


def test_links_and_foreign_files_are_neither_followed_nor_touched(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "cache"
    filled(elsewhere)
    folder.mkdir()
    kept = next(iter(sorted(elsewhere.iterdir())))
    (folder / kept.name).symlink_to(kept)
    (folder / "notes.txt").write_text("mine")
    (folder / "model.safetensors").write_bytes(pack({"key9": {"each": torch.ones(1)}}))
    (folder / "own.state.safetensors").symlink_to(kept)
    assert len(Cache(folder)) == 0 and StateFile(folder / "own.state").read() is None
    filled(folder)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "model.safetensors").exists()


def test_large_values_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "LARGEST", 100)
    made = Cache(tmp_path)
    made.put("large", {"each": torch.zeros(26)})
    made.put("small", {"each": torch.zeros(25)})
    assert read_folder(tmp_path).keys() == {"small"}


def test_a_state_that_was_cut_off_gives_way_to_the_one_before(tmp_path: Path, caplog: Any) -> None:
    state = StateFile(tmp_path / "a.state", every=0.0)
    for step in range(3):
        state.write(lambda step=step: {"step": torch.tensor(step)})
    assert int(state.read()["step"]) == 2  # type: ignore[index]
    state.path.write_bytes(state.path.read_bytes()[:-3])
    assert int(state.read()["step"]) == 1 and "the state before it is used" in caplog.text  # type: ignore[index]
    state.previous.write_bytes(b"")
    assert state.read() is None


# ------------------------------------------------------------------------------------- disks that are full or read-only
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_leaves_earlier_files_whole(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=r"cannot be written .*is whole: free space.* to go on") as raised:
            made.put("key3", {"each": torch.ones(1)})
    assert raised.value.errno == number and os.strerror(number) in str(raised.value)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before  # and no temporary file
    made.flush()  # nothing in memory was lost
    assert read_folder(tmp_path).keys() == {f"key{i}" for i in range(4)}


def test_a_search_on_a_full_disk_ends_with_that_error_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = uninterrupted("hard concrete")
    written: list[Path] = []

    def full(path: Path, content: bytes) -> None:
        if len(written) == 8:
            raise cache_module._unwritable(path.parent, OSError(errno.ENOSPC, "No space left on device"))
        written.append(path)
        write_whole(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "write_whole", full)
        with pytest.raises(OSError, match="No space left on device"):
            done("hard concrete", tmp_path)
    agree(done("hard concrete", tmp_path), expected)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match="make the folder writable"):
            filled(tmp_path / "cache")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="cannot be written"):
        filled(tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "a file"


# ------------------------------------------------------------------------------------------------------------ processes
def test_two_processes_may_share_a_cache(tmp_path: Path) -> None:
    code = "import sys, interrupted as i; from pathlib import Path; print(i.done('hard concrete', Path(sys.argv[1])))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        agree(process.communicate(timeout=300)[0].strip().splitlines()[-1], uninterrupted("hard concrete")[0])
    assert [process.returncode for process in both] == [0, 0]


@pytest.mark.slow
def test_work_that_is_killed_for_real_ends_with_the_same(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    try:
        import kills
    finally:
        sys.path.pop(0)
    began = time.monotonic()
    told = kills.run(tmp_path, 6, seed=int(began))
    assert (told["same"], told["different"], told["corrupt"]) == (6, [], []), told


def test_a_copy_of_a_cache_elsewhere_is_as_good(tmp_path: Path) -> None:
    expected, _ = uninterrupted("greedy")
    done("greedy", tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    with killed_after(None) as again:
        assert done("greedy", tmp_path / "b") == expected
    assert again[0] <= 12


def test_a_tracer_on_other_prompts_keeps_its_results_beside(tmp_path: Path) -> None:
    first = tracer(tmp_path)
    first.on(interrupted.prompts(5, seed=9)).effect([0.0] * len(first.groups))
    first.effect([0.0] * len(first.groups))
    assert len(list(tmp_path.iterdir())) == 2
