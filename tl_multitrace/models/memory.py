"""How much memory there is and how much of it is free, measured on the device itself.

A job of a cluster or a container may hold less than the machine has. What binds is the smallest of what the machine
has free and what every control group above the process (Linux, versions 1 and 2) and ``ulimit -v`` still allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch

MEMBERSHIP = Path("/proc/self/cgroup")
"""Where Linux says which control groups a process is in, one hierarchy per line."""

CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Where control groups are mounted."""


@dataclass(frozen=True)
class Limit:
    """What something other than the machine allows a process.

    Attributes:
        limit: bytes at most.
        used: bytes of it that are taken and could not be given back at once.
    """

    limit: int
    used: int

    @property
    def free(self) -> int:
        """Bytes that may still be taken."""
        return max(0, self.limit - self.used)


def available(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be allocated on a device, measured now.

    On a GPU: what the driver has free, and what PyTorch's allocator holds without using it. On a CPU: the smallest of
    what the machine has free without swapping and what control groups and ``ulimit -v`` still allow.

    Args:
        device: such as ``"cpu"``, ``"cuda:1"``, or a model's device.

    Raises:
        RuntimeError: a GPU that is not there (PyTorch's own error).
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + max(0, unused)
    free = min([int(psutil.virtual_memory().available), *(limit.free for limit in limits())])
    if device.type == "mps":  # a share of the machine's own memory
        ours = int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
        return max(0, min(free, ours))
    return free


def total(device: torch.device | str = "cpu") -> int:
    """Bytes that a device has, or on a CPU the least that a limit on the process allows where that is less.

    Args:
        device: such as ``"cpu"``, ``"cuda:1"``, or a model's device.

    Raises:
        RuntimeError: a GPU that is not there (PyTorch's own error).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return min([int(psutil.virtual_memory().total), *(limit.limit for limit in limits())])


def limits() -> list[Limit]:
    """Limits on this process beside the machine's memory; none that is above it, as an unset one reads."""
    machine = int(psutil.virtual_memory().total)
    found = [*_control_groups(), *address_space()]
    return [limit for limit in found if limit.limit < machine]


# ---------------------------------------------------------------------- control groups


def _control_groups() -> Iterator[Limit]:
    """The limits of the process's own control group and of every one above it."""
    for folder in _own_groups():
        for one in (folder, *folder.parents):
            if limit := _limit_of(one):
                yield limit
            if one == CONTROL_GROUPS:
                break


def _own_groups() -> Iterator[Path]:
    """Folders of the control groups that count this process's memory; the mount itself where they lie outside it.

    Inside a container the file names a group as the host sees it, which is not there; its limit is then at the mount.
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        for mount in _mounts(version_1=bool(controllers)):
            inner = PurePosixPath(path).relative_to("/") if path.startswith("/") else PurePosixPath()
            yield mount / inner if ".." not in inner.parts and (mount / inner).is_dir() else mount


def _mounts(version_1: bool) -> list[Path]:
    places = [CONTROL_GROUPS / "memory"] if version_1 else [CONTROL_GROUPS, CONTROL_GROUPS / "unified"]
    return [place for place in places if place.is_dir()]


def _limit_of(folder: Path) -> Limit | None:
    """A control group's limit, under either version's file names; None where it sets none."""
    for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        limit, usage = _number(folder / most), _number(folder / used)
        if limit is not None and usage is not None:
            return Limit(limit, max(0, usage - _droppable(folder)))
    return None


def _number(path: Path) -> int | None:
    """A number from a file of one; None for ``max``, or where it cannot be read."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _droppable(folder: Path) -> int:
    """Bytes of cached files that the kernel drops before it refuses memory: they count as used, but are not."""
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        values = {name: int(number) for name, number in pairs}
        return values.get("total_inactive_file", values.get("inactive_file", 0))
    return 0


# ---------------------------------------------------------------------- ulimit


def address_space() -> Iterator[Limit]:
    """``ulimit -v``, where there is such a thing."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield Limit(int(limit), int(psutil.Process().memory_info().vms))
