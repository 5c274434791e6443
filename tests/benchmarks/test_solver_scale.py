"""Every neuron of a GPT-2-small-shaped model (36,864) in one search: time, forward equivalents, memory.

pytest tests/benchmarks/test_solver_scale.py
python tests/benchmarks/test_solver_scale.py [bfloat16]   # one search in this process, as a line of JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import torch  # noqa: E402
from memory import peak_mib  # noqa: E402
from sides import model, pairs, show  # noqa: E402

import tl_multitrace as mt  # noqa: E402

GRID = [1, 4, 16, 64, 256, 1024]
PAIRS = 16


def searched(screen_dtype: str | None) -> dict[str, Any]:
    """One search, and integrated gradients on the same prompts."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gpt2 = model()
    before = peak_mib()
    found, other = pairs(2 * PAIRS).split(0.5, seed=0)
    tracer = mt.Tracer(gpt2, found, mt.neurons(gpt2))
    began, cpu = time.perf_counter(), time.process_time()
    path = mt.select(tracer, GRID, mt.ScreenedSearch(screen_dtype=screen_dtype), held_out=other)
    record: dict[str, Any] = {
        "groups": len(tracer.groups),
        "seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(time.process_time() - cpu),
        "forward_equivalents": round(path.cost["equivalents"]),
        "model_mib": round(before),
        "peak_mib": round(peak_mib()),
        "stored_mib": round((tracer.memory["source_bytes"] + tracer.memory["block_input_bytes"]) / 2**20),
        "effects": [round(e, 3) for e in path.effects],
        "held_out": [round(c.held_out.mean, 3) for c in path.choices if c.held_out is not None],
    }
    ranked = mt.select(tracer, GRID, mt.IntegratedGradients(), held_out=other)
    record["integrated_gradients"] = [round(e, 3) for e in ranked.effects]
    record["integrated_gradients_held_out"] = [round(c.held_out.mean, 3) for c in ranked.choices if c.held_out]
    return record


def test_every_neuron(capsys: Any) -> None:
    for dtype in ([], ["bfloat16"]):
        done = subprocess.run([sys.executable, __file__, *dtype], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        show(capsys, f"36,864 neurons, {PAIRS} pairs, screened in {(dtype or ['float32'])[0]}", found)
        assert all(a >= b for a, b in zip(found["effects"], found["integrated_gradients"], strict=True))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(searched(sys.argv[1] if len(sys.argv) > 1 else None)) + "\n")
