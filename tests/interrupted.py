"""Work that may be stopped anywhere: named pieces of it, what each comes to, and a way to stop it in the middle."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from oracles import pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build, word_tokenizer
from tl_multitrace.engine import cache as cache_module
from tl_multitrace.engine.mask_runs import MaskRuns

FACTS = [
    ("The old doctor said that", "old doctor", " he"),
    ("The capital of France is", "France", " Paris"),
    ("The nurse said that", "nurse", " she"),
]
SOLVERS: dict[str, Callable[[], Any]] = {
    "screened": lambda: mt.ScreenedSearch(effort="low"),
    "greedy": mt.Greedy,
    "pgbct": lambda: mt.PGBCT(epochs=6, batch_size=4, shuffle=True),
    "pgbct path": lambda: mt.PGBCT(epochs=4, path=True, runs=3),
    "hard concrete": lambda: mt.HardConcrete(runs=3, steps=8, batch_size=4),
    "exhaustive": mt.Exhaustive,
    "single effects": mt.TopK,
    "attribution": mt.AttributionPatching,
    "integrated gradients": lambda: mt.IntegratedGradients(steps=4),
    "random": lambda: mt.RandomSubset(draws=20),
}


@cache
def model() -> Any:
    """A tiny model that takes stored keys and values, in float64: where a run restarts moves a number by rounding."""
    return build(MODEL_NAMES[0], torch.float64, tokenizer=word_tokenizer())


def prompts(n: int = 7, seed: int = 1) -> mt.PromptPairs:
    """Prompt pairs of unequal lengths."""
    return pairs_of(random_examples(n, seed=seed, right=2, wrong=2))


def tracer(folder: Path | None, *, seed: int = 1, metric: Any = None, intervention: Any = None) -> mt.Tracer:
    """A tracer over heads at the last token, with keys and values to restart from."""
    groups = mt.heads(model()).at("last")
    return mt.Tracer(
        model(), prompts(seed=seed), groups, metric or mt.OddsRatio(), intervention, batch_size=4, cache_dir=folder
    )


def plain(value: Any) -> Any:
    """A result as JSON, its numbers in full; seconds are left out."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if k not in ("seconds", "elapsed")}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return [str(value.dtype), value.tolist()] if isinstance(value, torch.Tensor) else value


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two results differ: in a choice at all, in a number by more than rounding.

    Cost is not compared. What goes on again stores block inputs anew, or does without them.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        if found.keys() != expected.keys():
            yield f"{where}: {sorted(found)} for {sorted(expected)}"
        for name in (found.keys() & expected.keys()) - {"cost"}:
            yield from differences(found[name], expected[name], f"{where}.{name}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif not same_number(found, expected) and found != expected:
        yield f"{where}: {found} for {expected}"


def same_number(found: Any, expected: Any) -> bool:
    """Whether two numbers are one up to rounding; NaN is as good as NaN."""
    if isinstance(found, bool) or not (isinstance(found, int | float) and isinstance(expected, int | float)):
        return False
    return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(found) and math.isnan(expected))


def agree(found: str, expected: str) -> None:
    """Require that two pieces of work came to the same: the same choices, and numbers up to rounding."""
    wrong = list(differences(json.loads(found), json.loads(expected)))
    assert not wrong, wrong[:5]


def outcome(path: mt.SubsetPath) -> dict[str, Any]:
    """Sets, scores, loss and cost of a path."""
    cost = {k: round(v, 6) for k, v in path.cost.items() if k != "seconds"}
    chosen = {
        size: {
            "labels": list(path[size].labels),
            "score": path[size].score.to_dict(),
            "held out": None if path[size].held_out is None else path[size].held_out.to_dict(),
            "effect": path[size].effect,
        }
        for size in path.sizes
    }
    return {"chosen": plain(chosen), "full": path.full_effect, "notes": list(path.notes), "cost": cost}


def search(name: str, folder: Path | None) -> Any:
    """A search with a solver, scored on held-out prompts."""
    return outcome(mt.select(tracer(folder), [1, 3, 4], SOLVERS[name](), seed=2, held_out=prompts(5, seed=9)))


def objective(name: str, folder: Path | None) -> Any:
    """A search for a goal within a bound."""
    kept = tracer(folder, seed=3, metric=mt.KLDivergence(), intervention=mt.MeanAblation())
    goals = mt.Objective([mt.Goal("odds", tracer(folder))], [mt.Constraint("kl", kept, at_most=0.5)])
    return outcome(mt.select(goals, [1, 3], SOLVERS[name]()))


def loose_calls(folder: Path | None) -> Any:
    """Calls of a tracer in an order of a user's own, each after stored runs of another kind."""
    made, eye = tracer(folder), torch.eye(len(mt.heads(model())))
    near = (eye + eye[0]).clamp(max=1)
    found = [
        made.effects(near[:1], reference=eye[0]),
        made.effects(near[:2], reference=eye[0]),
        made.effects(near, reference=eye[0]),
        made.predicted_changes(eye[1]),
        made.effects((eye + eye[1]).clamp(max=1), reference=eye[1]),
        made.effects(near, reference=eye[:2]),
        made.effect_and_gradient(eye[2], as_reference=True)[1],
        made.effects((eye + eye[2]).clamp(max=1), reference=eye[2]),
        made.log_effect(eye[3]),
        made.mean_gradient(0.5 * eye[3]),
    ]
    made.flush()
    return {"found": plain(found), "cost": [round(number, 6) for number in made.cost.numbers[:2]]}


def early_slope(folder: Path | None) -> Any:
    """A derivative whose block inputs are stored before keys and values are tried."""
    made, eye = tracer(folder), torch.eye(len(mt.heads(model())))
    found = [made.predicted_changes(eye[1])]
    found += [made.effects((eye[k] + eye[1]).clamp(max=1)[None], reference=eye[1]) for k in range(6)]
    made.flush()
    return {"found": plain(found), "cost": [round(number, 6) for number in made.cost.numbers[:2]]}


def trace(folder: Path | None, **options: Any) -> Any:
    """A causal trace of one question."""
    prompt, subject, answer = FACTS[0]
    grid = mt.causal_trace(model(), prompt, subject=subject, answer=answer, samples=3, cache_dir=folder, **options)
    cost = {k: round(v, 6) for k, v in grid.provenance["cost"].items() if k != "seconds"}
    return {"restored": plain(grid.restored), "cost": cost}


def average(folder: Path | None) -> Any:
    """Causal traces of several facts."""
    grid = mt.average_causal_trace(model(), FACTS, samples=2, known_only=False, restore="head", folder=folder)
    return plain(grid.restored)


WORK: dict[str, Callable[[Path | None], Any]] = {
    **{name: lambda folder, name=name: search(name, folder) for name in SOLVERS},
    "screened within a bound": lambda folder: objective("screened", folder),
    "pgbct within a bound": lambda folder: objective("pgbct", folder),
    "loose calls": loose_calls,
    "early slope": early_slope,
    "trace": lambda folder: trace(folder, restore="head"),
    "trace of windows": lambda folder: trace(folder, restore="mlp", window=2),
    "severed trace": lambda folder: trace(folder, restore="resid", severed="mlp"),
    "average trace": average,
}


def done(name: str, folder: Path | None) -> str:
    """What a piece of work comes to, as text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return json.dumps(WORK[name](folder), sort_keys=True)


class Killed(BaseException):
    """Stands for a kill."""


@contextmanager
def killed_after(forwards: int | None) -> Iterator[list[int]]:
    """Stop after so many forwards: nothing is written after that, whatever is on its way out of the stack.

    Yields:
        The number of forwards so far.
    """
    count, forward = [0], MaskRuns.answers
    write, write_whole = cache_module.Cache.flush, cache_module.write_whole

    def answers(self: MaskRuns, *args: Any, **options: Any) -> Any:
        if count[0] == forwards:
            raise Killed
        count[0] += 1
        return forward(self, *args, **options)

    def flush(self: Any) -> None:
        if count[0] != forwards:
            write(self)

    MaskRuns.answers, cache_module.Cache.flush = answers, flush  # type: ignore[method-assign]
    try:
        yield count
    finally:
        MaskRuns.answers, cache_module.Cache.flush = forward, write  # type: ignore[method-assign]
        cache_module.write_whole = write_whole
