"""Causal tracing of known facts (Meng et al., NeurIPS 2022, arXiv:2202.05262): where is a fact restored?

    total effect       p(answer) - p(answer, subject noised)
    indirect effect    p(answer, subject noised, one state restored) - p(answer, subject noised)

Averaged over facts that the model predicts, at the last token of the subject: single states, and windows of 10 layers'
MLP or attention outputs. Noise of 3 standard deviations of the subject tokens' embeddings, 10 draws a fact.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_multitrace.causal_trace import TraceGrid, average_causal_trace, load_facts
from tl_multitrace.causal_trace.classes import CLASSES
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.fact_files import Fact
from tl_multitrace.reproduce.experiment import Request, Work, scored
from tl_multitrace.reproduce.result import Curve, Published, Reproduction, Row
from tl_multitrace.tasks import task

SOURCE = "Meng et al., NeurIPS 2022, arXiv:2202.05262, section 2.2"
XL, XL_LAYERS = "gpt2-xl", 48
PLACE = CLASSES.index("last subject token")
NAMES = {"resid": "single state", "mlp": "window of MLP layers", "attn": "window of attention layers"}
PEAKS = {"resid": 0.087, "mlp": 0.066, "attn": 0.016}
"""Average indirect effect at the last subject token; that of states is at layer 15."""

STATE_PEAK = 15.0
TOTAL = 0.186


@dataclass(frozen=True)
class KnownFacts:
    """Average traces of states, MLP and attention windows."""

    name: str = "known-facts"
    title: str = "Causal tracing of known facts: effect at the last subject token"
    source: str = SOURCE
    model: str = XL
    n: int = 1000
    samples: int = 10
    window: int = 10

    def check(self, request: Request) -> None:
        """Facts that can be read."""
        if request.data is not None:
            load_facts(request.data)
        if request.solvers or request.budget:
            raise ValueError(f"{self.name} traces every state and searches nothing: leave --solver and --budget out.")

    def run(self, work: Work) -> Reproduction:
        """One average trace for each kind of state."""
        facts, samples = self._facts(work), 2 if work.request.quick else self.samples
        window = self._window(work)
        work.settings |= {"samples": samples, "noise": "3 standard deviations", "window": window}
        for kind in NAMES:
            work.tell(f"Tracing {NAMES[kind]} on {len(facts)} facts")
            grid = self._trace(work, facts, kind, samples, window)
            work.equivalents += float(grid.provenance["cost"]["equivalents"])
            work.extras[f"trace-{kind}.json"] = grid
            if kind == "resid":
                self._total(work, grid)
            self._peak(work, kind, grid)
        work.notes += [note for note in dict.fromkeys(grid.notes) if note not in work.notes]
        return work.finish(self, ("layer", "average indirect effect (probability)"))

    def _window(self, work: Work) -> int:
        """The published 10 of 48 layers, or as large a part of a model with fewer than twice 10."""
        layers = work.view.n_layers
        if layers >= 2 * self.window:
            return self.window
        window = max(1, round(self.window / XL_LAYERS * layers))
        work.notes.append(f"a window of {window} instead of {self.window}, for {layers} layers instead of {XL_LAYERS}")
        return window

    def _trace(self, work: Work, facts: list[Fact], kind: str, samples: int, window: int) -> TraceGrid:
        options: dict[str, Any] = {"window": window, "samples": samples, "seed": work.request.seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what they say is in the trace's notes
            try:
                return average_causal_trace(work.model, facts, restore=kind, progress=work.progress, **options)
            except ValueError as error:
                if not str(error).startswith("no fact is left"):
                    raise
                why = str(error).partition(": ")[2].partition(" Pass ")[0]
                raise ValueError(f"{work.view.name} knows none of the facts ({why}) Try another --model.") from None

    def _facts(self, work: Work) -> list[Fact]:
        if work.request.data is not None:
            return load_facts(work.request.data)[: work.prompts(self.n, 12)]
        work.notes.append("facts are this package's own; pass --data known_1000.json for the published ones")
        pairs = task("facts", work.model, work.prompts(self.n, 12), work.request.seed).pairs
        bos = str(getattr(work.view.tokenizer, "bos_token", None) or "")
        return [_fact(pairs, i, bos) for i in range(len(pairs))]

    def _total(self, work: Work, grid: TraceGrid) -> None:
        published = Published(TOTAL, XL, SOURCE)
        work.rows.append(scored("average total effect", "probability", grid.total, published=published))

    def _peak(self, work: Work, kind: str, grid: TraceGrid) -> None:
        effect = grid.effect[PLACE].double().numpy()
        low, high = (x[PLACE].double().numpy() for x in grid.interval(seed=work.request.seed))
        peak, layers = int(np.nanargmax(effect)), list(grid.cells.layers)
        what = f"{NAMES[kind]}: peak at the last subject token"
        published = Published(PEAKS[kind], XL, SOURCE)
        down, up = (None if np.isnan(end[peak]) else float(end[peak]) for end in (low, high))  # of one fact: none
        n = len(grid.total_effect)
        work.rows.append(Row(what, "probability", float(effect[peak]), down, up, n=n, published=published))
        at = Published(STATE_PEAK, XL, SOURCE) if kind == "resid" else None
        work.rows.append(Row(f"{NAMES[kind]}: layer of the peak", "layer", float(layers[peak]), published=at))
        x = tuple(float(layer) for layer in layers)
        band = [() if np.isnan(low).any() else _plain(end) for end in (low, high)]
        work.curves.append(Curve(NAMES[kind], x, _plain(effect), low=band[0], high=band[1]))
        if kind == "resid" and work.view.n_layers > STATE_PEAK:
            work.curves.append(Curve(f"{XL}, published", (STATE_PEAK,), (PEAKS[kind],), "published"))


def _fact(pairs: PromptPairs, i: int, bos: str) -> Fact:
    """The base prompt of a pair as a fact: its subject by its span, its answer what is true of it."""
    words = pairs.base_words[i]
    start, stop = (int(x) for x in pairs.spans["subject"][i])
    wrong = [w for w, right in zip(pairs.answer_words[i], pairs.right[i].tolist(), strict=False) if not right]
    prompt = "".join(words).removeprefix(bos).strip()
    return Fact(prompt, "".join(words[start:stop]).strip(), wrong[0], str(i))


def _plain(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


EXPERIMENTS = (KnownFacts(),)
