"""What the benchmarks compare, and how: both sides in turn on one random GPT-2 of GPT-2 small's shape.

Random weights time like trained ones. They are boosted (see ``random_gpt2``) so that the numbers which both sides must
agree on are far from zero.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from plain_loop import PlainLoop

import tl_multitrace as mt
from tiny_models import random_gpt2
from tl_multitrace.solvers.search import Search

PROMPT = 15
STEP_PAIRS = 32


def model() -> Any:
    """12 layers, 12 heads, width 768, GPT-2's vocabulary."""
    return random_gpt2()


def pairs(n: int, n_tokens: int = 1) -> mt.PromptPairs:
    """Prompts that differ in four tokens, each with a right and a wrong answer of ``n_tokens`` tokens."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randint(1, 50_000, (n, PROMPT), generator=draw)
    source = base.clone()
    source[:, 3:7] = torch.randint(1, 50_000, (n, 4), generator=draw)
    right, wrong = (torch.randint(1, 50_000, (n, 1, n_tokens), generator=draw) for _ in range(2))
    wrong[..., 0] = (right[..., 0] + 1) % 50_000
    return mt.PromptPairs.from_tokens(base, source, right.tolist(), wrong.tolist())


def plain_step(model: Any, n_tokens: int) -> Callable[[], torch.Tensor]:
    """A step of the plain loop from the starting mask; gives the gradient of its loss."""
    p = pairs(STEP_PAIRS, n_tokens)
    loop = PlainLoop(model, p.base_tokens, p.source_tokens, (p.candidates[:, 0], p.candidates[:, 1]))
    return loop.step


def traced_step(model: Any, n_tokens: int) -> tuple[Callable[[], torch.Tensor], mt.Tracer]:
    """The same step by ``PGBCT``, as its search loop runs it, and the tracer that it runs on."""
    groups = mt.heads(model, site="pattern")
    tracer = mt.Tracer(model, pairs(STEP_PAIRS, n_tokens), groups, metric=mt.OddsRatio())
    search = Search(tracer, budgets=(1,), sign=1, seed=0, allowed=np.ones(len(groups), dtype=bool))
    examples = torch.arange(STEP_PAIRS)
    z = torch.full((len(groups),), 0.5)
    return lambda: mt.PGBCT().step_gradient(search, z, examples, epoch=0), tracer


@dataclass
class Timed:
    """A callable with the wall and processor seconds of its calls, the first of which is not counted."""

    call: Callable[[], Any]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    result: Any = None
    warm: bool = False

    def __call__(self) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        self.result = self.call()
        if self.warm:
            self.wall.append(time.perf_counter() - wall)
            self.cpu.append(time.process_time() - cpu)
        self.warm = True
        return self.result


def figures(plain: Timed, ours: Timed) -> dict[str, Any]:
    """Median seconds of both sides, and the median of the ratios taken round by round."""
    return {
        f"{kind}_{what}": round(value, 2)
        for kind in ("wall", "cpu")
        for what, value in {
            "plain": statistics.median(getattr(plain, kind)),
            "ours": statistics.median(getattr(ours, kind)),
            "ratio": statistics.median(a / b for a, b in zip(getattr(plain, kind), getattr(ours, kind), strict=True)),
        }.items()
    }


def show(capsys: Any, title: str, info: dict[str, Any]) -> None:
    """Print the figures past pytest's capture."""
    with capsys.disabled():
        sys.stdout.write("\n".join(["", title, *(f"    {name:<20} {value}" for name, value in info.items()), ""]))


def nothing(call: Callable[[], Any]) -> Callable[[], None]:
    """The call without its result, as pytest-benchmark wants a set-up."""

    def run() -> None:
        call()

    return run
