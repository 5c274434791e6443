"""How often a search within bounds finds the best set: ``python tests/benchmarks/bounded_search.py``.

Eleven heads of the demo model, drawn at random, sets of up to four, nine problems each: the bias under ever
looser bounds on perplexity, indirect objects under bounds on induction and perplexity, two goals without bounds, and a
bound on accuracy, which has no gradient. Every set is evaluated; the table says where the default solver fell short.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402

import tl_multitrace as mt  # noqa: E402

SIZES = (1, 2, 3, 4)


def tracers(groups: mt.HookGroups, model: object) -> dict[str, mt.Tracer]:
    """One tracer per number that the problems are made of."""
    made = {name: mt.task(name, model, n=24) for name in ("ioi", "induction", "facts", "neutral_text")}
    bias = mt.task("professions", model, n=32)
    off = mt.MeanAblation(reference=bias.pairs)
    everywhere = groups.at("everywhere")
    found = {n: mt.Tracer(model, made[n].pairs, groups, made[n].metric, mt.MeanAblation()) for n in list(made)[:3]}
    found["bias"] = mt.Tracer(model, bias.pairs, groups, mt.LogOddsRatio(), off)
    found["text"] = mt.Tracer(model, made["neutral_text"].pairs, everywhere, mt.Perplexity(), off)
    turned = made["ioi"].pairs.swap()
    return found | {"accuracy": mt.Tracer(model, turned, groups, mt.Accuracy(), mt.MeanAblation())}


def problems(t: dict[str, mt.Tracer]) -> Iterator[tuple[str, mt.Objective]]:
    """Name and objective of each problem."""
    bias, less_ioi = mt.Goal("bias", t["bias"]), mt.Goal("ioi", t["ioi"], direction="minimize")
    less_facts = mt.Goal("facts", t["facts"], direction="minimize")
    for bound in (0.002, 0.01, 0.05, 0.2):
        yield f"bias, text <= {bound}", mt.Objective([bias], [mt.Constraint("text", t["text"], at_most=bound)])
    for bound in (0.1, 0.5, 2.0):
        kept = [mt.Constraint("induction", t["induction"], at_least=-bound)]
        kept += [mt.Constraint("text", t["text"], at_most=0.05)]
        yield f"less ioi, induction >= -{bound}, text <= 0.05", mt.Objective([less_ioi], kept)
    yield "less facts and more ioi", mt.Objective([less_facts, mt.Goal("ioi", t["ioi"], weight=0.5)])
    accurate = mt.Constraint("accuracy", t["accuracy"], at_least=-0.05)
    yield "less facts, accuracy >= -0.05", mt.Objective([less_facts], [accurate])


def best(objective: mt.Objective, sets: list[tuple[int, ...]]) -> list[float]:
    """The best allowed sum per size, over all sets."""
    masks = torch.zeros(len(sets), len(objective.groups))
    for row, members in zip(masks, sets, strict=True):
        row[list(members)] = 1.0
    amounts, allowed = objective.means(masks, pressure=0.0), [objective.holds(mask) for mask in masks]
    return [max(a for a, s, ok in zip(amounts, sets, allowed, strict=True) if ok and len(s) <= n) for n in SIZES]


def main(draws: int = 3) -> None:
    torch.set_num_threads(1)
    model = mt.load_model("demo", device="cpu")
    heads, reached, total = mt.heads(model), 0, 0
    for seed in range(draws):
        groups = heads[sorted(np.random.default_rng(seed).choice(len(heads), 11, replace=False).tolist())]
        sets = [s for k in range(SIZES[-1] + 1) for s in itertools.combinations(range(len(groups)), k)]
        for name, objective in problems(tracers(groups, model)):
            path = mt.select(objective, SIZES)
            wanted = best(objective, sets)
            short = [n for n, w, g in zip(SIZES, wanted, path.effects, strict=True) if g < w - 1e-6 - 1e-6 * abs(w)]
            reached, total = reached + len(SIZES) - len(short), total + len(SIZES)
            numbers = "  ".join(f"{g:.3f}/{w:.3f}" for g, w in zip(path.effects, wanted, strict=True))
            typer.echo(f"{seed}  {name:45s} {numbers}  {path.cost['equivalents']:4.0f} forwards  short: {short or '-'}")
    typer.echo(f"the best set at {reached} of {total} budgets")


if __name__ == "__main__":
    typer.run(main)
