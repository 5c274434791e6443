"""A large trace under several memory limits, each in a process of its own: peak memory, time, and the same numbers.

24 layers, width 1024, 16 heads, 4096 neurons per layer: GPT-2 medium's shape with random weights (float32). 500 prompt
pairs of 12 tokens; all heads and all neurons are traced together (98,688 mask entries): the mean derivative to
every entry, then single masks from early to late layers, in one thread.

    python tests/benchmarks/memory_limits.py            # the table of MEMORY.md: half an hour on an idle machine
    python tests/benchmarks/memory_limits.py --small    # four layers, 40 pairs: a minute
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHAPES = {
    "large": {"n_layers": 24, "n_heads": 16, "d_model": 1024, "d_vocab": 32_000, "n_ctx": 64, "pairs": 500},
    "small": {"n_layers": 4, "n_heads": 8, "d_model": 512, "d_vocab": 2_000, "n_ctx": 64, "pairs": 200},
}
TOKENS = 12
MASKS = 3
ON = 64
"""Mask entries that are on in a single mask, all of one layer."""


def status(field: str) -> float:
    """A line of Linux' own account of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def forget_peak() -> None:
    """Let the largest resident set count from here on: making the model takes more than the model."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(shape: str, limit: int | str, folder: str | None) -> dict[str, Any]:
    """Trace under a limit in this process, and say what it took."""
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
    import torch

    import tl_multitrace as mt
    from tiny_models import random_gpt2

    torch.set_num_threads(1)
    sizes = dict(SHAPES[shape])
    n = sizes.pop("pairs")
    model = random_gpt2(**sizes)
    groups = mt.heads(model) + mt.neurons(model)
    pairs = prompts(n, sizes["d_vocab"])
    if limit == "half":
        limit = mt.memory_estimate(model, pairs, groups, memory_limit=1 << 40).needed // 2
    resident = status("VmRSS")
    forget_peak()
    began, cpu = time.perf_counter(), time.process_time()
    tracer = mt.Tracer(model, pairs, groups, memory_limit=limit, cache_dir=folder)
    ready = time.process_time() - cpu
    slope = tracer.mean_gradient(torch.zeros(len(groups)))
    effects = tracer.effects(masks(len(groups), sizes["n_layers"], sizes["n_heads"]))
    estimate = tracer.memory_estimate()
    return {
        "limit_mib": round(tracer.memory["limit"] / 2**20),
        "resident_before_mib": round(resident),
        "peak_rss_mib": round(status("VmHWM")),
        "estimated_rise_mib": round((estimate.peak - estimate.weights) / 2**20),
        "needed": estimate.needed,
        "places": dict(estimate.places),
        "batch_size": tracer.batch_size,
        "forwards": round(tracer.cost.forwards, 2),
        "cpu_seconds_start": round(ready, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "numbers": [float(effects.double().abs().mean()), float(slope.abs().mean())],
    }


def prompts(n: int, vocabulary: int) -> Any:
    """Pairs that differ in three tokens in the middle."""
    import torch

    import tl_multitrace as mt

    draw = torch.Generator().manual_seed(0)
    base = torch.randint(1, vocabulary, (n, TOKENS), generator=draw)
    source = base.clone()
    source[:, 4:7] = torch.randint(1, vocabulary, (n, 3), generator=draw)
    right = torch.randint(1, vocabulary - 1, (n, 1), generator=draw)
    return mt.PromptPairs.from_tokens(base, source, right.tolist(), (right + 1).tolist())


def masks(n_groups: int, n_layers: int, n_heads: int) -> Any:
    """One mask per layer of a few spread over the depth: all heads of the layer and some of its neurons."""
    import torch

    made = torch.zeros(MASKS, n_groups)
    per_layer = (n_groups - n_layers * n_heads) // n_layers
    for i in range(MASKS):
        layer = i * n_layers // MASKS
        made[i, layer * n_heads : (layer + 1) * n_heads] = 1.0
        first = n_layers * n_heads + layer * per_layer
        made[i, first : first + ON] = 1.0
    return made


def in_own_process(shape: str, limit: int | str, folder: str | None = None) -> dict[str, Any]:
    """The same in a fresh process."""
    command = [sys.executable, str(HERE / "memory_limits.py"), "--child", shape, json.dumps(limit), json.dumps(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(shape: str, limit: str) -> None:
    """Under a limit; under half of what would be needed, recomputed and from a file; everything kept."""
    show(in_own_process(shape, limit) | {"name": f"limit {limit}"})
    show(in_own_process(shape, "half") | {"name": "half of the need, recomputed"})
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        show(in_own_process(shape, "half", folder) | {"name": "half of the need, from a file"})
    show(in_own_process(shape, 1 << 40) | {"name": "everything kept"})


def show(run: dict[str, Any]) -> None:
    """Print a run as a line of JSON."""
    sys.stdout.write(json.dumps(run) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the table, or one process of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--limit", default="4GiB")
    parser.add_argument("--child", nargs=3)
    given = parser.parse_args()
    if given.child:
        shape, limit, folder = given.child
        show(measure(shape, json.loads(limit), json.loads(folder)))
    else:
        table("small" if given.small else "large", "200MiB" if given.small else given.limit)


if __name__ == "__main__":
    main()
