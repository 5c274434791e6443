"""The same work on several processes: who runs which prompts, and how their numbers come together.

Under ``torchrun`` every process (rank) runs the same script. Prompts are dealt out batch by batch; each call of a
tracer computes a rank's own examples, then all ranks exchange per-example numbers and sums in one step, so that every
rank holds the same result, bit by bit, and takes the same decisions. An error on one rank is raised on all; a rank that
is lost ends the others.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.cost import Cost

logger = logging.getLogger(__name__)

TIMEOUT_VARIABLE = "TL_MULTITRACE_TIMEOUT"
TIMEOUT_SECONDS = 600.0
"""Longest wait for another rank: more than the slowest call takes, since ranks differ in speed."""

PARTS = 8
"""Batches that prompts are dealt out in at least: 1, 2, 4 and 8 ranks then run the very same ones."""

MESSAGE_BYTES = 2048


class RankError(RuntimeError):
    """Another rank failed, was lost, or went another way; the message says which."""


@dataclass(frozen=True)
class Found:
    """What one call computes.

    Attributes:
        each: numbers per example, several rows of them.
        sums: sums over examples.
    """

    each: Float[Tensor, "rows n"]
    sums: Float[Tensor, " totals"]


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the prompts.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where numbers are exchanged: NCCL wants its own GPU, gloo the CPU.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    shared: bool = False

    @property
    def first(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def for_examples(self, n: int) -> Ranks:
        """These ranks, or each as if it were the only one where there are fewer examples than ranks."""
        if n >= self.size:
            return self
        logger.warning("%d prompt pairs are fewer than the %d ranks: every rank runs them all.", n, self.size)
        return Ranks(shared=True)

    def least(self, number: int) -> int:
        """The smallest of the numbers that the ranks have."""
        return number if self.size == 1 else int(self._exchange(torch.tensor([number], dtype=torch.long)).min())

    def deal(self, n: int, batch_size: int) -> list[list[Int[Tensor, " _"]]]:
        """Examples in batches, by rank; every rank has some."""
        everyone = torch.arange(n)
        parts = -(-n // batch_size)
        if not self.shared:
            return [list(everyone.chunk(parts))]  # of equal size, rather than a small last one
        parts = min(n, -(-max(parts, PARTS) // self.size) * self.size)
        return [list(everyone.tensor_split(parts)[rank :: self.size]) for rank in range(self.size)]

    def joined(
        self,
        call: str,
        counts: Sequence[int],
        rows: int,
        totals: int,
        cost: Cost,
        before: Cost,
        own: Found | None,
        error: Exception | None,
    ) -> Found:
        """Everyone's part of a call: examples rank after rank, sums over all of them.

        Args:
            call: what was asked for, the same on every rank.
            counts: examples per rank.
            rows: rows of numbers per example.
            totals: sums.
            cost: charged with what the others' parts cost; seconds are those of the slowest rank.
            before: the cost before this rank's part.
            own: this rank's part, unless it failed.
            error: why it failed.

        Raises:
            RankError: another rank failed or was lost, or was asked for something else.
        """
        if self.size > 1:
            said = [error is not None, zlib.crc32(call.encode()), *(cost - before).numbers]
            headers = self._exchange(torch.tensor(said, dtype=torch.float64))
            self._check(headers, call, error)
            _charge(cost, before, headers[:, 2:])
        if error is not None:
            raise error
        assert own is not None
        width = rows * max(counts)
        if self.size == 1 or not width + totals:
            return own
        mine = torch.zeros(width + totals, dtype=torch.float64)
        mine[: own.each.numel()] = own.each.double().cpu().flatten()
        mine[width:] = own.sums.double().cpu()
        all_of = self._exchange(mine)
        parts = [values[: rows * n].view(rows, n) for values, n in zip(all_of, counts, strict=True)]
        return Found(torch.cat(parts, 1).to(own.each), all_of[:, width:].sum(0).to(own.sums))

    def _check(self, headers: Float[Tensor, "ranks numbers"], call: str, error: Exception | None) -> None:
        """What every rank says of itself: whether it failed, what it was asked for (and what that has cost)."""
        failed = headers[:, 0].nonzero().flatten().tolist()
        if failed:
            told = self._exchange(_as_bytes("" if error is None else f"{type(error).__name__}: {error}"))
            if error is not None:
                raise error
            raise RankError(f"rank {failed[0]} of {self.size} failed: {_as_text(told[failed[0]])}")
        if len(set(headers[:, 1].tolist())) > 1:
            raise RankError(
                f"the ranks were asked for different things (here: {call[:60]}), so their results cannot be put "
                "together. Run the same script with the same arguments, files and seeds on every rank."
            )

    def check_same(self, digests: Mapping[str, str]) -> None:
        """Check that every rank has the same things.

        Args:
            digests: hexadecimal, by what they are of; the same names on every rank.

        Raises:
            RankError: they differ; on every rank, and the message says in what.
        """
        if self.size == 1:
            return
        numbers = [int(digest[:15], 16) for digest in digests.values()]
        all_of = self._exchange(torch.tensor(numbers, dtype=torch.long))
        first, other = all_of[0], next((r for r in range(self.size) if not torch.equal(all_of[r], all_of[0])), 0)
        different = [name for name, same in zip(digests, (all_of[other] == first).tolist(), strict=True) if not same]
        if different:
            raise RankError(
                f"ranks 0 and {other} of {self.size} have different {' and '.join(different)}, so their results cannot "
                "be put together. Run the same script with the same arguments, files and seeds on every rank; a model "
                "with random weights needs a seed, and a metric must not depend on the rank."
            )

    def share_bytes(self, content: bytes) -> bytes:
        """The first rank's bytes, on every rank."""
        if self.size == 1:
            return content
        length = int(self._exchange(torch.tensor([len(content)], dtype=torch.long))[0])
        buffer = torch.zeros(length, dtype=torch.uint8, device=self.device)
        if self.first:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else buffer)
        _guarded(lambda: torch.distributed.broadcast(buffer, src=0), self)
        return buffer.cpu().numpy().tobytes()

    def after_first(self, do: Callable[[], Any]) -> None:
        """Let the first rank do something, such as writing files; the others wait, and fail where it fails."""
        error: Exception | None = None
        try:
            if self.first:
                do()
        except Exception as failed:
            error = failed
        nothing = Found(torch.zeros(0, 0), torch.zeros(0))
        self.joined("the first rank's work", [0] * self.size, 0, 0, Cost(), Cost(), nothing, error)

    def _exchange(self, mine: Tensor) -> Tensor:
        """Everyone's tensor of one shape, stacked by rank."""
        mine = mine.to(self.device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        _guarded(lambda: torch.distributed.all_gather(found, mine), self)
        return torch.stack(found).cpu()


ALONE = Ranks()


def ranks_of(distributed: bool | Ranks) -> Ranks:
    """This process's rank, from an initialised process group or from what ``torchrun`` sets.

    Raises:
        ValueError: there are no other processes to be found.
    """
    if isinstance(distributed, Ranks):
        return distributed
    if not distributed:
        return ALONE
    if not torch.distributed.is_available():
        raise ValueError("distributed=True, but this build of torch has no torch.distributed.")
    if not torch.distributed.is_initialized():
        _join()
    backend = str(torch.distributed.get_backend())
    device = f"cuda:{torch.cuda.current_device()}" if "nccl" in backend else "cpu"
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, shared=True)


def started_by_torchrun() -> bool:
    """Whether ``torchrun`` (or another launcher that sets its variables) started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)


def local_device() -> str:
    """The device of this process: its own GPU where there are GPUs."""
    if not torch.cuda.is_available():
        return "cpu"
    if not started_by_torchrun():
        return "cuda"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def _join() -> None:
    if not started_by_torchrun():
        raise ValueError(
            "distributed=True, but nothing started this process as one of several. Start it with torchrun "
            "--nproc-per-node 4 your_script.py, or call torch.distributed.init_process_group first."
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(torch.device(local_device()))
    seconds = float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_SECONDS))
    backend = "nccl" if cuda else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
    logger.info("rank %d of %d (%s)", torch.distributed.get_rank(), torch.distributed.get_world_size(), backend)


def leave() -> None:
    """End this process's part in the group that :func:`ranks_of` joined, if it did."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _guarded(exchange: Callable[[], Any], ranks: Ranks) -> None:
    try:
        exchange()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise RankError(
            f"rank {ranks.rank} of {ranks.size} lost touch with the others: one was killed, ran out of memory, or took "
            f"longer than the timeout ({TIMEOUT_VARIABLE}, in seconds). With a run folder or cache_dir, what was found "
            "so far is kept: start all ranks again to go on. If another has ended its script: whatever measures, such "
            f"as path[4], has to be called on every rank, and only printing and writing on the first. ({first})"
        ) from error


def _charge(cost: Cost, before: Cost, spent: Float[Tensor, "ranks 3"]) -> None:
    cost.forwards = before.forwards + float(spent[:, 0].sum())
    cost.backwards = before.backwards + float(spent[:, 1].sum())
    cost.seconds = before.seconds + float(spent[:, 2].max())


def _as_bytes(text: str) -> Tensor:
    content = text.encode()[:MESSAGE_BYTES]
    return torch.tensor([*content, *[0] * (MESSAGE_BYTES - len(content))], dtype=torch.uint8)


def _as_text(content: Tensor) -> str:
    return bytes(content.tolist()).rstrip(b"\0").decode(errors="replace")
