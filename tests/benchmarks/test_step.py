"""One optimisation step of PGB-CT over 32 pairs and 144 heads, against the plain loop of the published code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memory import measured
from sides import Timed, figures, nothing, plain_step, show, traced_step

ROUNDS = 3


@pytest.mark.parametrize("n_tokens", [1, 3], ids=["one-token", "three-token"])
def test_pgbct_step(benchmark: Any, capsys: Any, gpt2: Any, n_tokens: int) -> None:
    step, tracer = traced_step(gpt2, n_tokens)
    plain, ours = Timed(plain_step(gpt2, n_tokens)), Timed(step)

    # no session around both: it would freeze the weights under the plain loop
    benchmark.pedantic(ours, setup=nothing(plain), rounds=ROUNDS, warmup_rounds=1)
    torch.testing.assert_close(ours.result.to(plain.result), plain.result, atol=1e-5, rtol=1e-4)
    before = tracer.cost.equivalents
    step()
    memory = {side: measured(side, n_tokens) for side in ("plain", "ours")}
    benchmark.extra_info.update(
        figures(plain, ours),
        forward_equivalents=round(tracer.cost.equivalents - before, 2),
        peak_mib_plain=memory["plain"],
        peak_mib_ours=memory["ours"],
        peak_ratio=round(memory["ours"] / memory["plain"], 2),
    )
    show(capsys, f"PGB-CT step, two answers of {n_tokens} token(s)", benchmark.extra_info)
