"""A full causal trace against the plain loop over its cells: one forward with full logits per cell, samples as batch.

The plain loop is written as the published code runs it, with nothing of ``tl_multitrace``: the batch holds the clean
prompt first and then the noised samples, and every cell is one run of the whole model over all of it. All its cells
take the same time, so every sixth is run, spread over the grid, and the time is multiplied; the grids are compared
where both have values.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sides import show

import tl_multitrace as mt

TOKENS, SUBJECT, ANSWER = 12, (1, 4), 262
SAMPLES, NOISE, STD, WINDOW, EVERY = 10, 3.0, 0.1, 10, 6
SITES = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}


def prompt() -> list[int]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(1, 50_000, (TOKENS,), generator=draw).tolist()


def plain_cell(model: Any, noise: torch.Tensor, kind: str, position: int, layer: int) -> float:
    """Mean p(answer) over the samples with one cell restored."""
    tokens = torch.tensor([prompt()] * (SAMPLES + 1))

    def corrupt(act: torch.Tensor, hook: Any) -> torch.Tensor:
        act = act.clone()
        act[1:, slice(*SUBJECT)] += noise[:, slice(*SUBJECT)]
        return act

    def restore(act: torch.Tensor, hook: Any) -> torch.Tensor:
        act = act.clone()
        act[1:, position] = act[0, position]
        return act

    n = model.cfg.n_layers
    width = 1 if kind == "resid" else WINDOW
    reach = range(max(0, layer - width // 2), min(n, layer - (-width // 2)))
    hooks: list[tuple[str, Callable[..., Any]]] = [("hook_embed", corrupt)]
    hooks += [(f"blocks.{i}.{SITES[kind]}", restore) for i in reach]
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, attention_mask=torch.ones_like(tokens), fwd_hooks=hooks)
    return float(logits[1:, -1].softmax(-1).mean(0)[ANSWER])


@dataclass
class Clock:
    """Wall and processor seconds; the latter do not count what other processes on the machine take."""

    wall: float = 0.0
    cpu: float = 0.0

    def time(self, call: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return result


def plain_grid(model: Any, kind: str, clock: Clock) -> dict[tuple[int, int], float]:
    """Values of the cells that are run; the clock then shows what all cells would take."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.stack([torch.randn(TOKENS, model.cfg.d_model, generator=draw) for _ in range(SAMPLES)]) * NOISE * STD
    cells = [(p, layer) for p in range(TOKENS) for layer in range(model.cfg.n_layers)]
    # the stride is coprime to the number of layers, so that every layer is met
    chosen = [cells[i * 7 % len(cells)] for i in range(len(cells) // EVERY)]
    plain_cell(model, noise, kind, *chosen[0])
    values = {cell: clock.time(lambda cell=cell: plain_cell(model, noise, kind, *cell)) for cell in chosen}
    clock.wall, clock.cpu = clock.wall * EVERY, clock.cpu * EVERY
    return values


def peak_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@pytest.mark.filterwarnings("ignore:the model does not predict", "ignore:the corruption")
def test_full_grids(benchmark: Any, capsys: Any, gpt2: Any) -> None:
    noise = mt.NoiseCorruption(noise=NOISE, std=STD, seed=0)
    options = {"subject": SUBJECT, "answer": ANSWER, "samples": SAMPLES, "corruption": noise}
    ours, plain = ({kind: Clock() for kind in SITES} for _ in range(2))
    before = peak_mib()

    def traced() -> dict[str, mt.TraceGrid]:
        return {k: ours[k].time(lambda k=k: mt.causal_trace(gpt2, prompt(), restore=k, **options)) for k in SITES}

    grids = benchmark.pedantic(traced, rounds=1)
    info: dict[str, Any] = {"peak_mib_before": before, "peak_mib_traced": peak_mib()}
    for kind, grid in grids.items():
        for cell, value in plain_grid(gpt2, kind, plain[kind]).items():
            assert float(grid.restored.mean(0)[cell]) == pytest.approx(value, abs=1e-5, rel=1e-3)
        memory = grid.provenance["memory"]
        stored = sum(memory[name] for name in ("source_bytes", "block_input_bytes", "keys_values_bytes"))
        info[f"{kind}_cpu_plain"], info[f"{kind}_cpu_ours"] = round(plain[kind].cpu, 1), round(ours[kind].cpu, 1)
        info[f"{kind}_cpu_ratio"] = round(plain[kind].cpu / ours[kind].cpu, 2)
        info[f"{kind}_forward_equivalents"] = round(grid.provenance["cost"]["equivalents"], 1)
        info[f"{kind}_stored_mib"] = round(stored / 2**20, 1)
    for what in ("wall", "cpu"):
        sums = [sum(getattr(c, what) for c in clocks.values()) for clocks in (plain, ours)]
        info[f"{what}_plain"], info[f"{what}_ours"] = (round(x, 1) for x in sums)
        info[f"{what}_ratio"] = round(sums[0] / sums[1], 2)
    info["peak_mib_plain"] = peak_mib()
    benchmark.extra_info.update(info)
    show(capsys, f"causal trace, {TOKENS} tokens x 12 layers, {SAMPLES} samples, three kinds", info)
