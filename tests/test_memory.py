"""Free and total memory: the machine's, a control group's, ``ulimit -v``'s, a GPU's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from tl_multitrace.models import memory

GIB = 1 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of control groups, on a machine of 64 GiB of which 40 are free."""
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(memory, "CONTROL_GROUPS", root)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    machine = SimpleNamespace(total=64 * GIB, available=40 * GIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(memory, "address_space", lambda: iter(()))
    return root


def member_of(line: str, groups: Path) -> None:
    (groups.parent / "membership").write_text(line + "\n", encoding="utf-8")


def group(folder: Path, limit: object, used: int, cached: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n", encoding="ascii")
    stat = f"anon 5\ninactive_file {cached}\n" + (f"total_inactive_file {cached}\n" if version == 1 else "")
    (folder / "memory.stat").write_text(stat, encoding="ascii")


def test_this_machine() -> None:
    assert 0 < memory.available() <= memory.total() <= psutil.virtual_memory().total
    assert memory.available(torch.device("cpu")) > 0


def test_no_control_groups(groups: Path) -> None:
    assert (memory.available(), memory.total()) == (40 * GIB, 64 * GIB)  # there is no membership file either


@pytest.mark.parametrize("version", [1, 2])
def test_limit_of_the_own_group(groups: Path, version: int) -> None:
    mount, line = (groups, "0::/job") if version == 2 else (groups / "memory", "4:memory:/job")
    member_of("3:cpuset:/elsewhere\n" + line, groups)
    group(mount / "job", 8 * GIB, 3 * GIB, cached=GIB, version=version)
    assert memory.total() == 8 * GIB
    assert memory.available() == 6 * GIB  # cached files are given back


def test_the_tightest_of_all_groups_above(groups: Path) -> None:
    member_of("0::/slurm/job_7/step_0", groups)
    group(groups / "slurm" / "job_7" / "step_0", "max", GIB)
    group(groups / "slurm" / "job_7", 16 * GIB, 15 * GIB)
    group(groups / "slurm", 32 * GIB, 20 * GIB)
    assert (memory.available(), memory.total()) == (GIB, 16 * GIB)


def test_a_group_named_as_the_host_sees_it(groups: Path) -> None:
    member_of("0::/../../docker/abc", groups)
    group(groups, 4 * GIB, GIB)
    assert (memory.available(), memory.total()) == (3 * GIB, 4 * GIB)


@pytest.mark.parametrize("limit", ["max", 9223372036854771712])
def test_no_limit_set(groups: Path, limit: object) -> None:
    member_of("4:memory:/job\n0::/job", groups)
    group(groups / "memory" / "job", limit, GIB, version=1)
    assert (memory.available(), memory.total()) == (40 * GIB, 64 * GIB)


def test_more_used_than_allowed_is_nothing_free(groups: Path) -> None:
    member_of("0::/", groups)
    group(groups, 2 * GIB, 3 * GIB)
    assert memory.available() == 0


def test_files_that_make_no_sense_set_no_limit(groups: Path) -> None:
    member_of("nonsense\n0::relative\n:::::\n", groups)
    group(groups, "many", 3)
    (groups / "memory.stat").write_text("one two three\n", encoding="ascii")
    assert memory.available() == 40 * GIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v works on Linux")
def test_ulimit() -> None:
    code = (
        "import resource, torch; from tl_multitrace.models import memory\n"
        "import psutil; limit = psutil.Process().memory_info().vms + (1 << 30)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "raise SystemExit(0 if memory.available() <= 1 << 30 and memory.total() <= limit else 1)\n"
    )
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_gpu_counts_what_the_allocator_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * GIB)
    assert (memory.available("cuda"), memory.total("cuda:0")) == (12 * GIB, 80 * GIB)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")
def test_a_real_gpu() -> None:
    before = memory.available("cuda")
    held = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    between = memory.available("cuda")
    del held  # goes back to the allocator, not to the driver
    assert between <= before - (1 << 28)
    assert memory.available("cuda") >= between + (1 << 28)
    assert memory.total("cuda") > memory.available("cuda")
