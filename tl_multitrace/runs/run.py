"""One finished job: what a report is written from, with a model or from the files it left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tl_multitrace.circuit import Circuit
from tl_multitrace.copies import copies_of
from tl_multitrace.evaluation import CircuitReport, SideEffects, Stability
from tl_multitrace.flow import load_graph, save_graph
from tl_multitrace.metrics import Metric
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.chance import Verdict
from tl_multitrace.records.read import load_table, member, naming
from tl_multitrace.records.stats import Score
from tl_multitrace.records.write import write_text
from tl_multitrace.render.capture import make_views
from tl_multitrace.render.curves import chance_by_size, plot_path, plot_subgroups, unit_of
from tl_multitrace.render.flow import check_flow, plot_flow
from tl_multitrace.render.judged import plot_report, plot_side_effects, plot_stability
from tl_multitrace.render.maps import plot_circuit
from tl_multitrace.render.style import to_file
from tl_multitrace.render.views import Views, load_views, save_views
from tl_multitrace.solvers import SubsetPath
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from matplotlib.figure import Figure

T = TypeVar("T")
EFFECT_COLUMNS = ("split", "pair", "label", "base", "source", "answers", "wrong_answers", "metric", "effect")
CIRCUIT, PATH, EFFECTS, VIEWS, OTHERS = "circuit.json", "path.json", "effects.csv", "views.json", "path-*.json"
FLOW, FLOW_EXPORTS = "flow.json", ("flow.graphml", "flow.dot")
EVALUATION, STABILITY, SIDE_EFFECTS = "evaluation.json", "stability.json", "side_effects.json"


@dataclass(frozen=True)
class Run:
    """A search, the circuit chosen from it, and what is known about both.

    Attributes:
        path: the search.
        circuit: the circuit to report, for instance ``path[8]``.
        tracer: of the search; with it, what is missing below is measured when it is needed.
        held_out: prompts that the search never saw.
        title: heading of the report.
        others: searches by other solvers, or baselines, on the same prompts.
        effects: one row per prompt; columns ``EFFECT_COLUMNS``.
        views: data of the circuitsvis views.
        facts: more provenance, such as the command that was run.
        chance: effect of random sets by size.
        flow: direct effects between the circuit's components, as ``information_flow(circuit)`` gives them.
        evaluation: of the circuit on held-out prompts.
        stability: of the search on resampled prompts.
        side_effects: of switching the circuit off, on other behaviours.

    Examples:
        >>> from tl_multitrace.render import Run
        >>> path = mt.select(tracer, [1, 2], mt.Greedy())
        >>> run = Run(path, path[2], tracer=tracer).save("found")
        >>> Run.from_folder("found").circuit.labels
        ['L0H1', 'L0H3']
    """

    path: SubsetPath
    circuit: Circuit
    tracer: Tracer | None = None
    held_out: PromptPairs | None = None
    title: str = ""
    others: tuple[SubsetPath, ...] = ()
    effects: pd.DataFrame | None = None
    views: Views | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    chance: Mapping[int, Score] | None = None
    flow: nx.MultiDiGraph | None = None
    evaluation: CircuitReport | None = None
    stability: Stability | None = None
    side_effects: SideEffects | None = None

    @property
    def name(self) -> str:
        """The title, or one made of metric and model."""
        model = dict(self.circuit.provenance.get("model") or {}).get("name", "a model")
        return self.title or f"{self.circuit.provenance.get('metric', 'Circuit')} in {model}"

    @property
    def verdict(self) -> Verdict:
        """Whether the circuit is beyond chance: on held-out prompts as evaluated, else as far as the circuit tells."""
        judged = self.evaluation is not None and self.evaluation.ablations[0].chance is not None
        return self.evaluation.verdict if judged and self.evaluation is not None else self.circuit.verdict

    def measured(self, *, examples: int = 3, heads: int = 8, neurons: int = 8) -> Run:
        """A copy with per-prompt effects, held-out effect, random baseline and views, as far as there is a tracer.

        Args:
            examples: prompts in the views.
            heads: heads in the views, at most.
            neurons: neurons in the views, at most.
        """
        if self.tracer is None:
            return self if self.chance is not None else replace(self, chance=chance_by_size(self.path))
        circuit = self.circuit
        known = self.effects is not None and (self.held_out is None or circuit.held_out is not None)
        held = None if known else self._held_tracer()
        if held is not None and circuit.held_out is None:
            circuit = circuit.with_scores(held_out=_score(held, circuit))
        effects, views = self.effects, self.views
        if effects is None:
            effects = effects_table(circuit, self.tracer, held)
        if views is None:
            views = make_views(circuit, self.tracer, examples=examples, heads=heads, neurons=neurons)
        chance = self.chance if self.chance is not None else chance_by_size(self.path)
        return replace(self, circuit=circuit, effects=effects, views=views, chance=chance)

    def _held_tracer(self) -> Tracer | None:
        if self.tracer is None or self.held_out is None:
            return None
        return self.tracer.on(self.held_out)

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Run:
        """Write circuit, path, per-prompt effects, views and figures into a folder; a report can be rewritten from it.

        Args:
            folder: made where it is not there.
            overwrite: replace what an earlier run left there.

        Returns:
            The run as it was measured for it; give it to :func:`write_report`.

        Raises:
            FileExistsError: one of the files exists and ``overwrite`` is False.
        """
        place = Path(folder)
        flow = () if self.flow is None else (FLOW, *FLOW_EXPORTS)
        files = (CIRCUIT, PATH, EFFECTS, VIEWS, EVALUATION, STABILITY, SIDE_EFFECTS, *flow)
        there = [place / name for name in files if (place / name).exists()]
        if there and not overwrite:  # before anything is measured or written
            raise FileExistsError(f"{there[0]} exists. Choose another folder, or pass overwrite=True to replace it.")
        run = self.measured()
        run.circuit.save(place / CIRCUIT, overwrite=overwrite)
        run.path_with_chance().save(place / PATH, overwrite=overwrite)
        for i, other in enumerate(run.others, 1):
            other.save(place / OTHERS.replace("*", str(i)), overwrite=overwrite)
        if run.effects is not None:
            write_text(place / EFFECTS, run.effects.to_csv(index=False, lineterminator="\n"), overwrite=overwrite)
        if run.views is not None:
            save_views(run.views, place / VIEWS, overwrite=overwrite)
        for name in flow:
            save_graph(self.flow, place / name, overwrite=overwrite)
        results = {EVALUATION: run.evaluation, STABILITY: run.stability, SIDE_EFFECTS: run.side_effects}
        for name, judged in results.items():
            if judged is not None:
                judged.save(place / name, overwrite=overwrite)
        for name, figure in run.figures().items():
            write_text(place / f"{name}.svg", to_file(figure), overwrite=overwrite)
        return run

    def figures(self) -> dict[str, Figure]:
        """The report's figures: ``circuit``, ``path``, and what else is known, by the names of this run's fields."""
        made = {"circuit": plot_circuit(self.circuit), "path": plot_path(self.path_with_chance(), *self.others)}
        parts = self.subgroups()
        if parts:
            (effects, labels), held = parts["search"], parts.get("held out")
            made["subgroups"] = plot_subgroups(effects, labels, held_out=held, unit=unit_of(self.circuit))
        if self.flow is not None:
            made["flow"] = plot_flow(self.flow)
        if self.evaluation is not None:
            made["evaluation"] = plot_report(self.evaluation)
        if self.stability is not None:
            made["stability"] = plot_stability(self.stability)
        if self.side_effects is not None:
            made["side_effects"] = plot_side_effects(self.side_effects)
        return made

    def subgroups(self) -> dict[str, tuple[list[float], list[str]]]:
        """Effects and labels of the prompts by split; empty where the prompts have fewer than two subgroups."""
        if self.effects is None or len(set(self.effects["label"])) < 2:
            return {}
        parts = self.effects.drop_duplicates([c for c in EFFECT_COLUMNS if c != "pair"]).groupby("split", sort=False)
        return {str(name): (part["effect"].tolist(), part["label"].tolist()) for name, part in parts}

    def path_with_chance(self) -> SubsetPath:
        """The path with the random baseline in its choices, so that its file has it."""
        known = self.chance or {}
        choices = tuple(replace(c, chance=c.chance or known.get(len(c.members))) for c in self.path.choices)
        return replace(self.path, choices=choices)

    @classmethod
    def from_folder(cls, folder: str | Path, *, title: str = "") -> Run:
        """Read what :meth:`save` wrote; no model is needed.

        Raises:
            FileNotFoundError: the folder has no ``circuit.json`` or ``path.json``.
            ValueError: a file is cut off, foreign, of a newer version, or a link out of the folder; ``effects.csv``
                lacks a column.
        """
        place = Path(folder)

        def there(name: str, read: Callable[[Path], T]) -> T | None:
            return read(member(place, name)) if (place / name).is_file() else None

        return cls(
            path=SubsetPath.load(member(place, PATH)),
            circuit=Circuit.load(member(place, CIRCUIT)),
            title=title,
            others=tuple(SubsetPath.load(member(place, p.name)) for p in sorted(place.glob(OTHERS))),
            effects=there(EFFECTS, read_effects),
            views=there(VIEWS, load_views),
            flow=there(FLOW, load_flow),
            evaluation=there(EVALUATION, CircuitReport.load),
            stability=there(STABILITY, Stability.load),
            side_effects=there(SIDE_EFFECTS, SideEffects.load),
        )


def load_flow(path: Path) -> nx.MultiDiGraph:
    """Read ``flow.json``.

    Raises:
        ValueError: not a graph of direct effects as this package writes it.
    """
    graph = load_graph(path)
    with naming(path):
        return check_flow(graph)


def _score(tracer: Tracer, circuit: Circuit) -> Score:
    effect = tracer.effect(circuit.mask)
    metric: Metric = tracer.metric
    log = tracer.log_effect(circuit.mask) if metric.relative and metric.needs_wrong else None
    seed = int(circuit.provenance.get("seed", 0))
    logged = None if log is None else log.cpu().numpy()
    return Score.of(effect.cpu().numpy(), log=logged, copies=copies_of(tracer), seed=seed)


def effects_table(circuit: Circuit, tracer: Tracer, held_out: Tracer | None = None) -> pd.DataFrame:
    """One row per prompt pair: texts, subgroup, the metric before and the circuit's effect on it.

    Args:
        circuit: chosen from the tracer's groups.
        tracer: of the search; its rows have ``split`` "search".
        held_out: of held-out prompts; ``split`` "held out".
    """
    import pandas as pd

    parts = [(name, t) for name, t in (("search", tracer), ("held out", held_out)) if t is not None]
    return pd.concat([_effects_of(circuit, t, name) for name, t in parts], ignore_index=True)


def _effects_of(circuit: Circuit, tracer: Tracer, split: str) -> pd.DataFrame:
    frame = tracer.pairs.to_dataframe().drop(columns="tokens")
    start = str(getattr(tracer.view.tokenizer, "bos_token", None) or "")
    for column in ("base", "source"):
        frame[column] = [_text(v).removeprefix(start) for v in frame[column]]
    for column in ("answers", "wrong_answers"):
        frame[column] = [" | ".join(_text(a) for a in v) for v in frame[column]]
    frame["split"], frame["pair"] = split, [tracer.pairs.number(i) for i in range(len(frame))]
    frame["metric"] = tracer.base_metric.double().cpu().numpy()
    frame["effect"] = tracer.effect(circuit.mask).double().cpu().numpy()
    return frame[list(EFFECT_COLUMNS)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(map(str, value))


def read_effects(path: Path) -> pd.DataFrame:
    """Read ``effects.csv``.

    Raises:
        ValueError: not a table, a missing column, or an effect that is not a finite number.
    """
    import numpy as np

    try:
        typed = load_table(path)[list(EFFECT_COLUMNS)].astype({"pair": int, "metric": float, "effect": float})
    except (ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{path} is not a table of effects ({str(error)[:160]}).") from None
    if not bool(np.isfinite(typed[["metric", "effect"]].to_numpy()).all()):
        raise ValueError(f"{path} holds a number that is not finite: it is not as this package writes it.")
    return typed
