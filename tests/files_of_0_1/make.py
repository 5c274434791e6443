"""How the files of this folder were made, by tl_multitrace 0.1: ``python tests/files_of_0_1/make.py FOLDER``.

They are kept as they are: a later version reads them (``test_files_of_0_1.py``) and never writes them anew.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from typer.testing import CliRunner

import tl_multitrace as mt
from tl_multitrace.cli.app import app
from tl_multitrace.render import save_views
from tl_multitrace.runs.checkpoint import Checkpoint
from tl_multitrace.self_test import Check

FACT = ("The Falcon Tower is in the city of", "Falcon Tower", " Rome")
RUN = "run --model demo --task professions --components heads --n 12 --budget 2 --solver greedy --stability 2 --quiet"


def searches(out: Path) -> mt.Circuit:
    """What a search leaves, and what is judged of it."""
    model = mt.load_model("demo")
    task = mt.task("professions", model, n=12)
    train, held = task.pairs.split(0.5, seed=0)
    tracer = mt.Tracer(model, train, mt.heads(model, [0, 2]), task.metric)
    path = mt.select(tracer, [1, 2], mt.Greedy(), held_out=held)
    circuit = path[2]
    circuit.save(out / "circuit.json")
    (path[1] | circuit).save(out / "circuit-unmeasured.json")
    path.save(out / "path.json")
    mt.compare_solvers(tracer, [1, 2], [mt.Greedy(), mt.TopK()]).save(out / "solvers.json")
    mt.evaluate(circuit, held, draws=20).save(out / "evaluation.json")
    mt.significance(circuit, held, draws=39, replacements=5).save(out / "significance.json")
    mt.stability(tracer, mt.TopK(), resamples=2, budget=2).save(out / "stability.json")
    mt.compare(path[1], circuit).save(out / "comparison.json")
    mt.recovery(circuit, truth=["L0H3", "L2H5"]).save(out / "recovery.json")
    mt.cpr_cmd(path, held).save(out / "mib.json")
    mt.side_effects(circuit, {"ioi": mt.task("ioi", model, n=8)}).save(out / "side_effects.json")
    goals = [mt.Goal(n, tracer.on(train.subgroup(n))) for n in ("female", "male")]
    objective = mt.Objective(goals)
    mt.pareto(objective, budget=2, levels=2, solver=mt.Greedy()).save(out / "front.json")
    mt.select(objective, [1, 2], mt.Greedy()).save(out / "path-goals.json")
    mt.save_graph(mt.information_flow(circuit), out / "flow.json")
    save_views(circuit.show(examples=1).views, out / "views.json")
    return circuit


def traces(out: Path) -> None:
    """What causal tracing leaves."""
    model, (prompt, subject, answer) = mt.load_model("demo"), FACT
    options = {"subject": subject, "answer": answer, "samples": 2}
    mt.causal_trace(model, prompt, restore="mlp", window=2, **options).save(out / "trace.json")
    mt.causal_trace(model, prompt, restore="head", layers=[2], units=[1, 7], **options).save(out / "trace-heads.json")
    mt.causal_trace(model, prompt, restore=mt.heads(model, [0]), **options).save(out / "trace-groups.json")
    facts = [FACT, ("The Harbor Museum is in the city of", "Harbor Museum", " Paris")]
    kept = out / "traces"
    average = mt.average_causal_trace(model, facts, samples=2, layers=[1, 2], known_only=False, folder=kept)
    average.save(out / "trace-average.json")
    (kept / ".lock").unlink(missing_ok=True)
    mt.causal_tokens(model, prompt, answer=answer, samples=2, budgets=[2]).save(out / "tokens.json")
    mt.save_graph(mt.knowledge_graph(model, [FACT], samples=2), out / "knowledge.json")


def others(out: Path) -> None:
    """A reproduction, a diagnosis, and a run of the command line with what lies in its folder."""
    mt.reproduce("ioi", model="demo", quick=True, n=8).save(out / "reproduction.json")
    checks = (Check("heads", "ok", "as plain hooks", ""), Check("GPU", "failed", "none", "install a driver"))
    found = mt.Diagnosis({"packages": {"torch": "2.13.0"}, "memory": {"free": "2 GiB"}}, checks)
    (out / "diagnosis.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n")
    done = CliRunner().invoke(app, [*RUN.split(), "--out", str(out / "run")])
    if done.exit_code:
        raise SystemExit(done.output)
    shutil.rmtree(out / "run" / "figures")
    for large in ("report.html", "flow.graphml", "flow.dot"):
        (out / "run" / large).unlink(missing_ok=True)
    Checkpoint(out / "unfinished", {"model": "demo", "n": 12}).start()
    (out / "unfinished" / "checkpoint" / "result").rmdir()
    for beside in ("flow.json", "side_effects.json"):  # of another circuit, which no reader minds
        shutil.copy(out / beside, out / "run" / beside)
    record = json.loads((out / "run" / "run.json").read_text())
    record["machine"] = {"system": "Linux"}
    (out / "run" / "run.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    searches(place)
    traces(place)
    others(place)
