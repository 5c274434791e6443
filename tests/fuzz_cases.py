"""Every loader with a valid file of its own, and the errors that its documentation promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import interop_cases
import prompt_files
import torch
from hypothesis import Phase, given, settings
from render_cases import measured, run
from test_evaluation_results import result
from test_flow_files import small
from test_front import objective_of
from test_trace_grid import made

import tl_multitrace as mt
from tl_multitrace import interop
from tl_multitrace.causal_trace import CausalTokens, TraceGrid, load_facts
from tl_multitrace.causal_trace.average import FactsRunFile
from tl_multitrace.cli.show import shown
from tl_multitrace.evaluation.pareto import Front
from tl_multitrace.evaluation.recovery import read_truth
from tl_multitrace.evaluation.side_effects import SideEffect, SideEffects
from tl_multitrace.flow import load_graph, save_graph
from tl_multitrace.render import load_views
from tl_multitrace.reproduce.mediation import read_effects as read_published
from tl_multitrace.reproduce.result import Curve, Published, Reproduction, Row
from tl_multitrace.runs.folder import RunFile, read_record, read_run
from tl_multitrace.runs.run import Run, read_effects
from tl_multitrace.solvers.compare_solvers import SolverComparison

DOCUMENTED = (ValueError, FileNotFoundError)


@dataclass(frozen=True)
class Loader:
    """A loader and what it is given.

    Attributes:
        files: makes the valid files by name, as bytes, or as what JSON or ``torch.save`` makes bytes of.
        read: reads them from their folder, and does what comes first with what was read.
        errors: what it may raise; all of them stand in its documentation.
        steady: names of files that are left whole.
    """

    files: Callable[[], dict[str, Any]]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...] = DOCUMENTED
    steady: tuple[str, ...] = field(default=())


def looked_at(value: Any) -> Any:
    """What anyone does first with a result: it is printed, and made a table."""
    assert repr(value)
    for name in ("_repr_html_", "to_dataframe", "summary"):
        getattr(value, name, lambda: None)()
    return value


def one(name: str, load: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Reads one file of the folder."""
    return lambda folder: looked_at(load(folder / name))


def of(save: Callable[[Path], Any]) -> Callable[[], dict[str, bytes]]:
    """The files that ``save`` writes into an empty folder."""

    @cache
    def files() -> dict[str, bytes]:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file()}

    return files


def saving(make: Callable[[], Any], name: str = "a.json") -> Callable[[], dict[str, bytes]]:
    return of(lambda folder: make().save(folder / name))


def writing(name: str, content: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {name: content}


def example(strategy: Any) -> Any:
    """One example of a strategy, always the same."""
    found: list[Any] = []

    @settings(max_examples=12, derandomize=True, database=None, phases=[Phase.generate], deadline=None)
    @given(strategy)
    def gather(value: Any) -> None:
        found.append(value)

    gather()
    return max(found, key=lambda x: len(str(x)))


# ---------------------------------------------------------------------- the package's own


def circuit() -> mt.Circuit:
    return run().path[4]


def side_effects() -> SideEffects:
    score = mt.Score(0.5, 0.25, 0.75, 0.5, 4)
    effect = SideEffect("neutral", "kl", "nats", score, score, score, score)
    return SideEffects(circuit().components, "mean", "source", (effect,), ("a note",), circuit().provenance)


def reproduction() -> Reproduction:
    row = Row("effect", "nats", 1.0, 0.5, 1.5, 0.9, 7, Published(1.1, "gpt2", "a paper"))
    curve = Curve("ours", (1.0, 2.0), (0.5, 0.75), "line", (0.25, 0.5), (0.75, 1.0))
    return Reproduction("a", "b", "c", "d", (row,), (curve,), ("x", "y"), {"seed": 0}, ("n",), {"seconds": 1.0})


def tokens() -> CausalTokens:
    grid = made()
    effects = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    facts = {"model": {"name": "m", "n_layers": 3}, "corruption_text": "noise"}
    return CausalTokens(grid.tokens, (1, 2), 0.9, grid.corrupted, effects, -effects, " he", provenance=facts)


def record() -> RunFile:
    return RunFile(
        status="complete",
        started="2024-01-01T00:00:00+00:00",
        finished="2024-01-01T00:00:10+00:00",
        seed=0,
        arguments={"model": "demo", "prompts": "../prompts.csv"},
        versions={"torch": "2"},
        timings={"search": 1.5},
        cost={"equivalents": 3.0},
        facts={"title": "A run", "question": "Which?"},
    )


def trace_settings() -> FactsRunFile:
    return FactsRunFile(settings={"samples": 10}, facts="ab", model="cd")


def written_record(folder: Path) -> None:
    record().save(folder / "run.json")


RUN_FILES = ("circuit.json", "path.json", "path-1.json", "effects.csv", "views.json", "flow.json", "evaluation.json")
RUN_FILES += ("stability.json", "side_effects.json", "run.json")


def run_folder(folder: Path) -> None:
    """What a run leaves, with few and small files."""
    full = measured()
    views = replace(full.views, examples=full.views.examples[:1]) if full.views else None
    judged = {"evaluation": result("report"), "stability": result("stability"), "side_effects": side_effects()}
    small_run = Run(full.path, full.circuit, others=full.others, effects=full.effects, views=views, **judged)
    for name in ("circuit", "path", "evaluation", "stability", "side_effects"):
        getattr(small_run, name).save(folder / f"{name}.json")
    small_run.others[0].save(folder / "path-1.json")
    (folder / "effects.csv").write_text(full.effects.to_csv(index=False) if full.effects is not None else "")
    if views:
        views.save(folder / "views.json")
    save_graph(small(), folder / "flow.json")
    written_record(folder)


whole_run = of(run_folder)


def only(name: str) -> Callable[[], dict[str, bytes]]:
    """One file of a run folder."""
    return lambda: {name: whole_run()[name]}


def read_folder(folder: Path) -> Any:
    """What ``show`` does with a run, and the first things that a report does."""
    found = read_run(folder)
    assert isinstance(found.name, str)
    return found.subgroups(), list(shown(folder))


def comparison() -> SolverComparison:
    found = run()
    return SolverComparison({"greedy": (found.path,), "top": found.others}, {"greedy": "effect"}, "loss")


OWN: dict[str, Loader] = {
    "circuit": Loader(saving(circuit), one("a.json", mt.Circuit.load)),
    "path": Loader(saving(lambda: run().path), one("a.json", mt.SubsetPath.load)),
    "comparison of solvers": Loader(saving(comparison), one("a.json", SolverComparison.load)),
    "trace": Loader(saving(made), one("a.json", TraceGrid.load)),
    "trace of windows": Loader(saving(lambda: made(kind="mlp", window=3)), one("a.json", TraceGrid.load)),
    "trace of heads": Loader(saving(lambda: made(units=2)), one("a.json", TraceGrid.load)),
    "causal tokens": Loader(saving(tokens), one("a.json", CausalTokens.load)),
    "settings of traces": Loader(saving(trace_settings), one("a.json", FactsRunFile.load)),
    "flow": Loader(of(lambda folder: save_graph(small(), folder / "a.json")), one("a.json", load_graph)),
    "evaluation": Loader(saving(lambda: result("report")), one("a.json", mt.CircuitReport.load)),
    "mib": Loader(saving(lambda: result("mib")), one("a.json", mt.MibScores.load)),
    "recovery": Loader(saving(lambda: result("recovery")), one("a.json", mt.Recovery.load)),
    "significance": Loader(saving(lambda: result("significance")), one("a.json", mt.Significance.load)),
    "stability": Loader(saving(lambda: result("stability")), one("a.json", mt.Stability.load)),
    "comparison of circuits": Loader(saving(lambda: result("comparison")), one("a.json", mt.CircuitComparison.load)),
    "side effects": Loader(saving(side_effects), one("a.json", SideEffects.load)),
    "front": Loader(saving(lambda: mt.pareto(objective_of(), 2)), one("a.json", Front.load)),
    "reproduction": Loader(saving(reproduction), one("a.json", Reproduction.load)),
    "views": Loader(only("views.json"), one("views.json", load_views)),
    "effects": Loader(only("effects.csv"), one("effects.csv", read_effects)),
    "run record": Loader(of(written_record), read_record),
    "run folder": Loader(whole_run, read_folder),
    "show a circuit": Loader(saving(circuit), lambda folder: list(shown(folder / "a.json"))),
    "show a trace": Loader(saving(made), lambda folder: list(shown(folder / "a.json"))),
}


# ---------------------------------------------------------------------- other tools', and prompts


@cache
def content(name: str) -> Any:
    """A valid content of another tool's file."""
    return example(getattr(interop_cases, name)())


def foreign(name: str, strategy: str, suffix: str) -> Loader:
    """Reads a file of another tool and takes its nodes as a circuit."""

    def read(folder: Path) -> Any:
        return looked_at(interop.FORMATS[name].read(folder / f"a{suffix}"))

    return Loader(lambda: {f"a{suffix}": content(strategy)}, read)


FOREIGN: dict[str, Loader] = {
    "eap-ig json": foreign("eap-ig", "eap_ig_contents", ".json"),
    "eap-ig pt": foreign("eap-ig", "eap_ig_tensors", ".pt"),
    "auto-circuit": foreign("auto-circuit", "prune_scores", ".pt"),
    "acdc": foreign("acdc", "acdc_edges", ".pth"),
    "edge pruning": foreign("edge-pruning", "kept_edges", ".json"),
    "head lists": foreign("dcm", "head_groups", ".json"),
    "neuronpedia": foreign("neuronpedia", "graph_documents", ".json"),
    "convert": Loader(
        lambda: {"a.json": content("eap_ig_contents")},
        lambda folder: interop.convert(folder / "a.json", folder / "b.json", "eap-ig", "circuit", overwrite=True),
    ),
}

PUBLISHED = {
    "model_version": "distilgpt2",
    "results": [
        {
            "base_string1": "The nurse ran because she",
            "base_string2": "The nurse ran because he",
            "candidate1": "was late",
            "candidate2": "was ill",
            "total_effect": 1.5,
            "indirect_effect_head": [[0.5, 0.25], [0.0, -0.5]],
            "indirect_effect_model": 0.75,
        }
    ]
    * 2,
}
TRUTH = {"ioi": {"movers": [[9, 6], [9, 9]], "mlps": [[0, None]]}, "other": {"a": [[1, 1]]}}
FACTS = {
    "known_1000": [{**prompt_files.FACT, "known_id": 3}, {**prompt_files.FACT, "known_id": 4}],
    "counterfact": [{**prompt_files.REWRITE, "case_id": 1}],
    "plain": [{"prompt": "The sky is", "subject": "The sky", "answer": " blue"}, ["a b", "a", "c"]],
}

TABLES: dict[str, Loader] = {
    "published effects": Loader(writing("a.json", PUBLISHED), lambda folder: read_published(folder / "a.json")),
    "published circuits": Loader(writing("a.json", TRUTH), lambda folder: read_truth(folder / "a.json", "ioi")),
    **{
        f"facts, {name}": Loader(writing("a.json", records), lambda folder: load_facts(folder / "a.json"))
        for name, records in FACTS.items()
    },
    "facts, table": Loader(
        lambda: {"a.csv": b"sep=;\nprompt;subject;answer\nRome is in;Rome;Italy\nOslo is in;Oslo;Norway\n"},
        lambda folder: load_facts(folder / "a.csv"),
    ),
    "facts, lines": Loader(
        lambda: {"a.jsonl": "\n".join(map(json.dumps, FACTS["known_1000"])).encode()},
        lambda folder: load_facts(folder / "a.jsonl"),
    ),
}


def prompts(name: str) -> Loader:
    """A reader of prompt files, with what lies beside its file."""
    file = prompt_files.FILES[name][0]

    def files() -> dict[str, bytes]:
        beside = {other: text.encode() for other, text in prompt_files.BESIDE.items()}
        return {**beside, file: prompt_files.FILES[name][1].encode()}

    beside = tuple(other for other in prompt_files.BESIDE if other != file)
    return Loader(files, lambda folder: prompt_files.read(name, folder / file), steady=beside)


PROMPTS = {f"prompts, {name}": prompts(name) for name in prompt_files.FILES}
LOADERS: dict[str, Loader] = {**OWN, **FOREIGN, **TABLES, **PROMPTS}
