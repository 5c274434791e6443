"""SIGKILLs at random moments, each followed by another start: does everything end as if nothing had happened?

Usage: python tests/benchmarks/kills.py [KILLS] [SEED]

Every round takes one kind of work (searches, causal traces, a folder of traces, a whole ``tl-multitrace run``), starts
it in a process of its own, kills that after a random part of the time that it takes, sometimes once more, and lets the
last attempt finish. What it comes to is compared with an uninterrupted process's: the same sets, and effects, scores
and grids up to rounding. Every file that a kill leaves has to be whole.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from interrupted import differences  # noqa: E402

KINDS = ("screened", "pgbct path", "greedy", "hard concrete", "trace", "average trace", "run")
JOB = ["run", "--task", "ioi", "--components", "heads", "--budget", "2", "--n", "16", "--device", "cpu", "-q"]
JOB += ["--solver", "greedy", "--stability", "0"]
TEMPORARY = "."
"""What the names of files begin with that are not in their place yet: a kill may leave one, which nobody reads."""

WORKER = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
import interrupted
from tl_multitrace.engine import cache
cache.EVERY = 0.05
interrupted.model()
print("started", flush=True)
text = interrupted.done(sys.argv[1], Path(sys.argv[2]))
Path(sys.argv[3]).write_text(text)
"""

COMMAND = """
import sys
import torch
torch.set_num_threads(1)
from tl_multitrace.engine import cache
from tl_multitrace.cli.app import main
cache.EVERY = 0.05
print("started", flush=True)
main()
"""


def start(kind: str, place: Path) -> subprocess.Popen[str]:
    """The work in a process of its own."""
    if kind == "run":
        arguments = [sys.executable, "-c", COMMAND, *JOB, "--out", str(place / "run"), "--resume"]
    else:
        arguments = [sys.executable, "-c", WORKER, kind, str(place / "kept"), str(place / "outcome.json")]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline().startswith("started"), process.communicate()[1]
    return process


def outcome(kind: str, place: Path) -> str:
    """What came out, without times; the numbers in full."""
    if kind != "run":
        return (place / "outcome.json").read_text()
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["status"] == "complete" and not (place / "run" / "checkpoint").exists()
    parts = [timeless({k: record[k] for k in ("arguments", "cost", "steps", "facts", "seed")})]
    for path in sorted((place / "run").glob("*.json")):
        if path.name != "run.json":
            parts.append(timeless(json.loads(path.read_text())))
    table = list(csv.reader((place / "run" / "effects.csv").open(encoding="utf-8")))
    return json.dumps([*parts, [[number(cell) for cell in row] for row in table]], sort_keys=True)


def number(cell: str) -> float | str:
    """A cell of a table, as a number where it is one."""
    try:
        return float(cell)
    except ValueError:
        return cell


def timeless(content: Any) -> Any:
    """A record without its times."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k not in ("seconds", "started", "finished", "timings")}
    return [timeless(v) for v in content] if isinstance(content, list) else content


def finish(kind: str, place: Path) -> float:
    """Let the work end; the seconds that it took after its imports."""
    process, began = start(kind, place), time.monotonic()
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{kind} ended with {process.returncode}: {errors[-2000:]}")
    return time.monotonic() - began


def damaged(place: Path) -> Iterator[str]:
    """Files in their place that are not whole."""
    for path in place.rglob("*"):
        if not path.is_file() or path.name.startswith(TEMPORARY):
            continue
        content = path.read_bytes()
        try:
            if path.suffix == ".json":
                json.loads(content)
            elif ".state" in path.name or ".previous" in path.name:
                if hashlib.sha256(content[32:]).digest() != content[:32]:
                    yield f"{path.name}: state"
            elif path.suffix == ".safetensors":
                load(content)
                named = len(path.stem) == 32  # by what is in them; a trace by its number
                if named and hashlib.sha256(content).hexdigest()[:32] != path.stem:
                    yield f"{path.name}: results"
        except (ValueError, SafetensorError) as error:
            yield f"{path.name}: {error}"


def killed(kind: str, place: Path, seconds: float, generator: random.Random) -> bool:
    """Start the work and kill it at some moment; whether it was still at work."""
    process = start(kind, place)
    time.sleep(generator.random() * seconds)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def run(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """So many kills.

    Args:
        folder: to work in.
        kills: SIGKILLs that hit a process at work, each followed by another start.
        seed: of the moments.

    Returns:
        ``same``: kills after which the result was the same; ``different`` and ``corrupt``: what was not.
    """
    generator = random.Random(seed)
    expected: dict[str, tuple[str, float]] = {}
    told: dict[str, Any] = {"kills": 0, "same": 0, "different": [], "corrupt": [], "kinds": {}}
    number = 0
    while told["kills"] < kills:
        kind = KINDS[number % len(KINDS)]
        number += 1
        if kind not in expected:
            place = folder / f"whole-{kind}"
            place.mkdir(parents=True)
            seconds = finish(kind, place)
            expected[kind] = outcome(kind, place), seconds
        place, hits = folder / str(number), 0
        place.mkdir(parents=True)
        for _ in range(min(generator.choice([1, 1, 2, 3]), kills - told["kills"])):
            hits += killed(kind, place, expected[kind][1], generator)
            told["corrupt"] += [f"{kind}: {text}" for text in damaged(place)]
        finish(kind, place)
        told["kills"] += hits
        told["kinds"][kind] = told["kinds"].get(kind, 0) + hits
        wrong = list(differences(json.loads(outcome(kind, place)), json.loads(expected[kind][0])))
        told["same"] += 0 if wrong else hits
        told["different"] += [f"{kind}, round {number}: {wrong[0]}"] if wrong else []
        sys.stderr.write(
            f"{time.strftime('%H:%M:%S')} {kind}: {hits} kills, {told['same']} of {told['kills']} the same\n"
        )
    return told


def main() -> None:
    """Run, and say what came of it."""
    arguments = [int(a) for a in sys.argv[1:3]]
    kills, seed = [*arguments, *(100, 0)[len(arguments) :]]
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(run(Path(folder), kills, seed), indent=1) + "\n")


if __name__ == "__main__":
    main()
