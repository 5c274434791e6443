"""Peak memory of one side's step, in a process of its own: ``python memory.py {plain,ours} ANSWER_TOKENS``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STEPS = 2


def peak_mib() -> float:
    """Largest resident set of this process so far, from Linux' own account of it."""
    # not getrusage: a child's ru_maxrss starts at its parent's size, and the parent holds a model
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def measured(side: str, n_tokens: int) -> float:
    """Peak of a fresh process in MiB, model and libraries included."""
    command = [sys.executable, str(HERE / "memory.py"), side, str(n_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def main(side: str, n_tokens: int) -> None:
    """Run a side's step and print the peak."""
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    import sides
    import torch

    torch.set_num_threads(1)
    model = sides.model()
    step = sides.plain_step(model, n_tokens) if side == "plain" else sides.traced_step(model, n_tokens)[0]
    for _ in range(STEPS):
        step()
    sys.stdout.write(json.dumps({"peak_mib": round(peak_mib())}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
