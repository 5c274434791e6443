"""How often a circuit is called significant where there is nothing to find, on the demo model, by every test alone.

python tests/benchmarks/null_tasks.py [TASKS]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402

import tl_multitrace as mt  # noqa: E402
from tl_multitrace.evaluation import shuffled_answers  # noqa: E402

BUDGET, LEVEL = 2, 0.05


def rates(metric: mt.Metric, tasks: int) -> dict[str, float]:
    """Share of the null tasks on which each test rejects."""
    model = mt.load_model("demo")
    pairs, groups = mt.task("professions", model).pairs, mt.heads(model)
    rng, rejected = np.random.default_rng(0), []
    for i in range(tasks):
        order = rng.permutation(len(pairs)).tolist()
        half = len(order) // 2
        train = shuffled_answers(pairs[order[:half]], seed=2 * i)
        held_out = shuffled_answers(pairs[order[half:]], seed=2 * i + 1)
        path = mt.select(mt.Tracer(model, train, groups, metric), [BUDGET], mt.TopK())
        found = mt.significance(path, held_out, draws=39, replacements=39)
        both = (found.p_value, found.p_zero, found.p_chance)
        rejected.append([p <= LEVEL for p in both] + [bool(found.components(LEVEL))])
    names = ("both", "zero effect alone", "random sets alone", "any component, corrected")
    return dict(zip(names, np.mean(rejected, axis=0).tolist(), strict=True))


def main(tasks: str = "100") -> None:
    """Print the rates of two metrics, in Markdown."""
    torch.set_num_threads(1)
    sys.stdout.write("| metric | both tests | zero effect alone | random sets alone | any component, corrected |\n")
    sys.stdout.write("|---|---|---|---|---|\n")
    for metric in (mt.LogitDiff(), mt.OddsRatio()):
        found = rates(metric, int(tasks))
        sys.stdout.write(f"| `{metric.name}` | " + " | ".join(f"{x:.0%}" for x in found.values()) + " |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
