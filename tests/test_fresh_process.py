"""The same seed gives the same bits in another process, whatever order Python hashes texts in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tl_multitrace as mt

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def numbers(seed: int = 3) -> dict[str, Any]:
    """A little of everything that draws random numbers or goes through sets and dictionaries, without its timings."""
    model = mt.load_model("demo", "cpu")
    found, held = mt.task("professions", model, n=16, seed=seed).pairs.split(0.5, seed=seed)
    tracer = mt.Tracer(model, found, mt.heads(model) + mt.mlps(model), metric=mt.OddsRatio())
    solvers = (mt.ScreenedSearch(), mt.PGBCT(epochs=2, shuffle=True), mt.HardConcrete(steps=8), mt.RandomSubset(4))
    paths = [mt.select(tracer, [1, 3, 5], solver, seed=seed, held_out=held) for solver in solvers]
    prompt = "The Falcon Tower is in the city of"
    grid = mt.causal_trace(model, prompt, subject="Falcon Tower", answer=" Rome", samples=3, seed=seed)
    repeated = mt.stability(tracer, mt.TopK(), 3, seed, budget=3)
    noisy = tracer.on(intervention=mt.NoiseCorruption(seed=seed))
    results = [*paths, mt.evaluate(paths[0][5], held, draws=20, seed=seed), repeated, paths[0][5]]
    return {
        "results": [
            repr(untimed(result.to_dict() if hasattr(result, "to_dict") else vars(result))) for result in results
        ],
        "grid": [x.hex() for x in grid.restored.flatten().double().tolist()],
        "noise": [x.hex() for x in noisy.effect([1.0] * len(tracer.groups)).tolist()],
        "digest": found.digest(),
    }


def untimed(value: Any) -> Any:
    """A result without seconds, and without the objects that it was computed with."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in ("seconds", "tracer", "objective", "groups")}
        return {k: untimed(v) for k, v in kept.items()}
    if isinstance(value, list | tuple):
        return [untimed(v) for v in value]
    if type(value).__module__.startswith("tl_multitrace") and hasattr(value, "__dict__"):
        return untimed({name: getattr(value, name) for name in vars(value)})  # what is measured when it is read, too
    return value


def in_a_process(hash_seed: str) -> dict[str, Any]:
    code = (
        "import json, sys; sys.path.insert(0, 'tests'); import test_fresh_process as t; print(json.dumps(t.numbers()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_two_fresh_processes_agree_to_the_bit() -> None:
    one, two = in_a_process("1"), in_a_process("2")
    assert one == two
    assert len(one["results"]) == 7 and all(len(text) > 200 for text in one["results"])
