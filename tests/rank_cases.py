"""What the tests of several processes run on every one of them: started by ``torchrun``, one file of results per rank.

Usage: torchrun --nproc-per-node 2 tests/rank_cases.py FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from oracles import binary_mask, pairs_of, random_examples, soft_mask
from safetensors.torch import save_file
from torch import Tensor

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build, word_tokenizer
from tl_multitrace.distributed import RankError, leave, ranks_of

N = 13
"""Prompt pairs: of no number of ranks a multiple."""

FACTS = [("The old doctor said that", "old doctor", " he"), ("The capital of France is", "France", " Paris")]
SOLVERS: dict[str, Callable[[], Any]] = {
    "screened": mt.ScreenedSearch,
    "greedy": mt.Greedy,
    "pgbct": lambda: mt.PGBCT(epochs=4, batch_size=5, shuffle=True),
    "pgbct path": lambda: mt.PGBCT(epochs=3, path=True, runs=3),
    "hard concrete": lambda: mt.HardConcrete(runs=3, steps=12, batch_size=6),
}


@dataclass(frozen=True)
class Case:
    """Arguments of a tracer."""

    pairs: mt.PromptPairs
    groups: mt.HookGroups
    metric: Any = None
    intervention: Any = None

    def tracer(self, model: Any, **options: Any) -> mt.Tracer:
        return mt.Tracer(model, self.pairs, self.groups, self.metric, self.intervention, **options)


def tiny() -> Any:
    """The model of all cases."""
    return build(MODEL_NAMES[0], tokenizer=word_tokenizer())


def cases(model: Any) -> dict[str, Case]:
    """Tracers of every kind that prompts, metrics and interventions can make different."""
    heads, last = mt.heads(model), mt.heads(model).at("last")
    uneven = pairs_of(random_examples(N, seed=1, right=2, wrong=2, tokens=1))
    long = pairs_of(random_examples(N, seed=2, right=2, wrong=1, tokens=3))
    equal = pairs_of(random_examples(N, seed=3, equal=True))
    reference = pairs_of(random_examples(5, seed=4, equal=True))
    return {
        "odds": Case(uneven, heads, mt.OddsRatio()),
        "odds, last token": Case(uneven, last, mt.OddsRatio()),
        "equal lengths": Case(equal, last, mt.LogitDiff()),
        "neurons": Case(uneven, mt.neurons(model).at("last"), mt.LogitDiff()),
        "answers of several tokens": Case(long, heads, mt.LogitDiff()),
        "means": Case(equal, heads, mt.LogitDiff(), mt.MeanAblation()),
        "means of others": Case(equal, heads, mt.LogitDiff(), mt.MeanAblation(reference)),
        "resampled": Case(uneven, heads, mt.LogitDiff(), mt.ResampleAblation(seed=3)),
        "noise": Case(uneven, heads, mt.AnswerProb(), mt.NoiseCorruption(at=(1, 3), seed=5)),
        "one pair": Case(uneven[:1], heads, mt.LogitDiff()),
        "three pairs": Case(uneven[:3], heads, mt.OddsRatio()),
        "five pairs": Case(uneven[:5], last, mt.OddsRatio()),
        "seven pairs": Case(uneven[:7], heads, mt.LogitDiff()),
    }


def numbers(tracer: mt.Tracer) -> dict[str, Tensor]:
    """Everything that a tracer computes, derivatives of examples included."""
    n = len(tracer.groups)
    masks = torch.stack([binary_mask(n, seed) for seed in range(9)])
    near = torch.cat([masks[:1], (masks[:1] + torch.eye(n)[:5]).clamp(max=1)])
    soft = soft_mask(n)
    effects, gradient = tracer.loss_gradient(soft, lambda e: torch.sigmoid(-e).mean(), [*range(0, tracer.n, 2)])
    return {
        "base": tracer.base_metric,
        "effect": tracer.effect(masks[0]),
        "effects": tracer.effects(masks),
        "near a reference": tracer.effects(near, masks[0]),
        "gradient": tracer.gradient(soft),
        "log effect": tracer.log_effect(masks[1]),
        "mean gradient": tracer.mean_gradient(soft),
        "predicted changes": tracer.predicted_changes(masks[2]),
        "near a gradient": tracer.effects(near, masks[2]),
        "loss": effects,
        "loss gradient": gradient,
        "cost": torch.tensor([tracer.cost.forwards, tracer.cost.backwards], dtype=torch.float64),
    }


def searched(path: mt.SubsetPath, tracer: mt.Tracer) -> tuple[dict[str, list[str]], Tensor]:
    """The sets of a path, and their effects on every prompt pair."""
    sets = {str(size): list(path[size].labels) for size in path.sizes}
    return sets, tracer.effects(
        [tracer.groups.as_mask(labels or [0.0] * len(tracer.groups)) for labels in sets.values()]
    )


def objective(model: Any, **options: Any) -> mt.Objective:
    """A goal within a bound."""
    made = cases(model)
    kept = mt.Tracer(model, made["means"].pairs, mt.heads(model), mt.KLDivergence(), **options)
    goal = mt.Goal("odds", made["odds"].tracer(model, **options))
    return mt.Objective([goal], [mt.Constraint("kl", kept, at_most=1.0)])


class Fails(mt.LogitDiff):
    """A metric that fails on one rank, once it is armed."""

    failing: int | None = None

    def __call__(self, out: Any, base: Any) -> Tensor:
        if self.failing == ranks_of(distributed=True).rank:
            raise ArithmeticError("the sum of all fears")
        return super().__call__(out, base)


def failures(model: Any) -> Iterator[tuple[str, str]]:
    """What ranks say when one of them fails, and when they are asked for different things."""
    ranks, case = ranks_of(distributed=True), cases(model)["odds"]
    tracer = Case(case.pairs, case.groups, Fails()).tracer(model, distributed=True)
    Fails.failing = ranks.size - 1
    yield "one fails", _said(lambda: tracer.effect([0.0] * len(case.groups)) and None)
    yield "one fails in a run", _said(lambda: tracer.effect(binary_mask(len(case.groups))))
    Fails.failing = None
    yield "and then goes on", _said(lambda: tracer.effect(binary_mask(len(case.groups))))
    yield "different masks", _said(lambda: tracer.effect(binary_mask(len(case.groups), ranks.rank)))
    other = {"prompts": [Case(case.pairs[ranks.rank :], case.groups, case.metric), model]}
    other["model"] = [case, build(MODEL_NAMES[0], seed=ranks.rank)]
    other["metric"] = [Case(case.pairs, case.groups, mt.OddsRatio(reduce="sum" if ranks.rank else "mean")), model]
    other["intervention"] = [Case(case.pairs, case.groups, case.metric, mt.ResampleAblation(seed=ranks.rank)), model]
    for what, (made, on) in other.items():
        yield f"different {what}", _said(lambda made=made, on=on: made.tracer(on, distributed=True))
    yield "and goes on again", _said(lambda: tracer.effect(binary_mask(len(case.groups))))


def _said(do: Callable[[], Any]) -> str:
    try:
        do()
    except (ArithmeticError, RankError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def grids(model: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Trace grids, of one question and of several facts."""
    options: dict[str, Any] = {"samples": 5, "distributed": True}
    prompt, subject, answer = FACTS[0]
    one = {"subject": subject, "answer": answer, **options}
    for restore in ("resid", "mlp", "head"):
        window = {"window": 2} if restore == "mlp" else {}
        grid = mt.causal_trace(model, prompt, restore=restore, **window, **one)
        yield f"trace of {restore}", grid.restored
    severed = mt.causal_trace(model, prompt, severed="mlp", **one)
    yield "severed", severed.restored
    yield "average", mt.average_causal_trace(model, FACTS, known_only=False, folder=folder, **options).restored


def main(folder: Path) -> None:
    """Run everything on this rank, and write what came out."""
    warnings.simplefilter("ignore")
    model, ranks = tiny(), ranks_of(distributed=True)
    found: dict[str, Tensor] = {}
    sets: dict[str, Any] = {}
    for name, case in cases(model).items():
        tracer = case.tracer(model, distributed=True)
        found |= {f"{name}: {what}": value for what, value in numbers(tracer).items()}
    for name, make in SOLVERS.items():
        tracer = cases(model)["odds"].tracer(model, distributed=True)
        sets[name], found[name] = searched(mt.select(tracer, range(1, 6), make(), seed=1), tracer)
    goals = objective(model, distributed=True)
    for name in ("screened", "pgbct"):
        path = mt.select(goals, [2, 4], SOLVERS[name]())
        sets[f"{name} within a bound"], found[f"{name} within a bound"] = searched(path, goals.tracers[0])
    found |= dict(grids(model, folder / "facts"))
    said = dict(failures(model))
    save_file({k: v.contiguous() for k, v in found.items()}, folder / f"rank{ranks.rank}.safetensors")
    (folder / f"rank{ranks.rank}.json").write_text(json.dumps({"sets": sets, "said": said}))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
