"""The result of a trace: the answer's probability with each cell restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.causal_trace.cells import Cells
from tl_multitrace.circuit import Circuit
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, result
from tl_multitrace.records.stats import Score, redraws, undefined
from tl_multitrace.records.stored import Beside, Unsaved
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd


@result("tl_multitrace.trace", arrays=("restored", "corrupted", "clean"))
@dataclass(frozen=True, repr=False, eq=False)  # tensors have no single truth to compare by
class TraceGrid(Result):
    """Probability of the answer in the clean run, the corrupted run, and with each cell restored.

    Its axes are :attr:`dims`: sample (one draw of the corruption each; one fact each in an average), then position and
    layer (and unit, for heads and neurons), or group where the user gave hook groups.

        total_effect = clean - corrupted        indirect_effect = restored - corrupted

    Both are positive where corruption hurts and restoration helps. Unit: probability. :meth:`save` writes the arrays
    into a safetensors file of the same name beside the JSON.

    Attributes:
        restored: p(answer) with one cell restored; NaN where an average has no such token.
        corrupted: p(answer) of each corrupted run.
        clean: p(answer) of each clean run.
        cells: what each cell restores.
        tokens: the prompt's tokens, or the names of token classes.
        subject: ``[start, stop)`` of the corrupted tokens.
        answer: the answer as text.
        severed: kinds of output that were frozen at their corrupted values.
        notes: what a reader must know before trusting the numbers.
        provenance: model, prompt, corruption, seed, cost, memory, versions.
        tracer: what it was measured with, for :meth:`as_circuit`; not saved.

    Examples:
        >>> prompt = "The Falcon Tower is in the city of"
        >>> grid = mt.causal_trace(model, prompt, subject="Falcon Tower", answer=" Rome", samples=4)
        >>> grid.dims, tuple(grid.indirect_effect.shape)
        (('sample', 'position', 'layer'), (4, 9, 4))
        >>> grid.best(1)[["token", "layer"]].to_dict("records")
        [{'token': ' of', 'layer': 3}]
        >>> grid.as_circuit(k=1).labels
        ['L3@8']
    """

    restored: Beside[Float[Tensor, "sample ..."]]
    corrupted: Beside[Float[Tensor, " sample"]]
    clean: Beside[Float[Tensor, " sample"]]
    cells: Cells
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    answer: str
    severed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)
    tracer: Unsaved[Tracer | None] = field(default=None, repr=False, compare=False)

    WIDTH: ClassVar[int] = 9

    def __post_init__(self) -> None:
        n = len(self.corrupted)
        if tuple(self.restored.shape) != (n, *self.cells.shape) or tuple(self.clean.shape) != (n,) or not n:
            raise ValueError(
                f"a trace of {n} samples over {self.cells.dims} {self.cells.shape} cannot hold arrays of shape "
                f"{tuple(self.restored.shape)} and {tuple(self.clean.shape)}."
            )
        if len(self.copies) != n or not all(isinstance(i, int) for i in self.copies):
            raise ValueError(f"copies must be {n} whole numbers, one per fact, got {len(self.copies)} entries.")

    # ------------------------------------------------------------------ numbers

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes of :attr:`restored` and :attr:`indirect_effect`."""
        return ("fact" if self.averaged else "sample", *self.cells.dims)

    @property
    def averaged(self) -> bool:
        """Whether this is an average over facts: samples are facts, positions are token classes."""
        return "facts" in self.provenance

    @property
    def copies(self) -> Sequence[int]:
        """One number per sample, equal for facts that are copies of each other: those are one observation."""
        found = self.provenance.get("copies")
        return tuple(found) if isinstance(found, list | tuple) else range(len(self.corrupted))

    @property
    def kind(self) -> str:
        """What was restored: ``"resid"``, ``"mlp"``, ``"attn+mlp"``, ..., or ``"groups"``."""
        return "+".join(self.cells.kinds) or "groups"

    @property
    def total_effect(self) -> Float[Tensor, " sample"]:
        """Clean minus corrupted probability, per sample."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> Float[Tensor, "sample ..."]:
        """Restored minus corrupted probability, per sample and cell."""
        return self.restored - self.corrupted.reshape(-1, *[1] * len(self.cells.shape))

    @property
    def effect(self) -> Float[Tensor, "..."]:
        """Mean indirect effect over samples (over the facts that have such a token), per cell."""
        return self.indirect_effect.nanmean(0)

    @property
    def total(self) -> Score:
        """Mean total effect with its 95 % interval over samples."""
        return Score.of(self.total_effect.double().numpy(), copies=self.copies, weighted=True)

    def interval(
        self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Percentile bootstrap interval of :attr:`effect` over samples: lower and upper ends, per cell.

        One set of resamples serves all cells. For a single prompt it is the spread over draws of the corruption, not
        over prompts. NaN where there is one sample, or one fact that has such a token: from one there is none.

        Args:
            level: coverage.
            resamples: of the samples.
            seed: of the resamples.
        """
        values = self.indirect_effect.double().flatten(1).numpy()
        there, same = np.isfinite(values), np.unique(self.copies, return_inverse=True)[1]
        n = int(same.max()) + 1  # distinct facts: copies are drawn together
        drawn = redraws(n, seed, resamples)
        weights = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(float)[:, same]
        low, high = np.empty(values.shape[1]), np.empty(values.shape[1])
        for part in np.array_split(np.arange(values.shape[1]), max(1, values.shape[1] // 512)):
            counts = weights @ there[:, part]
            sums = weights @ np.where(there[:, part], values[:, part], 0.0)
            means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
            low[part], high[part] = _quantiles(means, [(1 - level) / 2, (1 + level) / 2])
        alone = np.array([len(set(same[rows])) < 2 for rows in there.T])
        low[alone] = high[alone] = np.nan
        return torch.from_numpy(low).reshape(self.cells.shape), torch.from_numpy(high).reshape(self.cells.shape)

    # ------------------------------------------------------------------ tables

    def to_dataframe(self) -> pd.DataFrame:
        """One row per cell: position, token, layer, unit or group, mean effect, interval, share of the total effect."""
        import pandas as pd

        low, high = self.interval()
        effect, total = self.effect.flatten(), float(self.total_effect.mean())
        known = bool(total) and not undefined(self.total)  # else the share could be any number
        frame = pd.DataFrame([self._place(c) for c in range(len(self.cells))])
        frame["effect"] = effect.tolist()
        frame["low"], frame["high"] = low.flatten().tolist(), high.flatten().tolist()
        frame["restored"] = self.restored.nanmean(0).flatten().tolist()
        frame["share"] = (effect / total).tolist() if known else float("nan")
        return frame

    def _place(self, cell: int) -> dict[str, Any]:
        if self.cells.own is not None:
            return {"group": self.cells.own.labels[cell]}
        index = np.unravel_index(cell, self.cells.shape)
        position = self.cells.positions[int(index[0])]
        place: dict[str, Any] = {
            "position": position,
            "token": self.tokens[position],
            "subject": self.subject[0] <= position < self.subject[1],
            "layer": self.cells.layers[int(index[1])],
        }
        return place | ({"unit": self.cells.units[int(index[2])]} if self.cells.units else {})

    def best(self, k: int = 10) -> pd.DataFrame:
        """The ``k`` cells with the largest mean indirect effect, best first; see :meth:`to_dataframe`.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"best(k) needs k from 1, got {k}.")
        return self.to_dataframe().dropna(subset="effect").nlargest(k, "effect").reset_index(drop=True)

    # ------------------------------------------------------------------ as a circuit

    def as_circuit(self, k: int | None = None, threshold: float | None = None) -> Circuit:
        """The best cells as a :class:`~tl_multitrace.circuit.Circuit` over the cells' hook groups.

        On a grid that was just traced the chosen cells are restored together: effect, full effect and what the effect
        loses without each of them are measured. A loaded grid has no model, and hooks alone sever no paths: then the
        circuit's effect is NaN.

        Args:
            k: how many cells.
            threshold: or every cell whose mean indirect effect is at least this, in probability.

        Raises:
            ValueError: not exactly one of ``k`` and ``threshold``; no cell reaches it; an average over facts.
        """
        chosen = self._chosen(k, threshold)
        groups = self.cells.groups()
        facts = {
            "metric": "answer_prob",
            "metric_unit": "probability",
            "direction": "maximize",
            "trace": {"kind": self.kind, "window": self.cells.window, "severed": list(self.severed)},
            **{k: v for k, v in self.provenance.items() if k in ("tl_multitrace", "model", "intervention", "prompts")},
        }
        circuit = Circuit(groups[chosen], tuple(chosen), len(groups), float("nan"), provenance=facts)
        return circuit if self.tracer is None or self.severed else _measured(circuit, self.tracer, self.cells)

    def _chosen(self, k: int | None, threshold: float | None) -> list[int]:
        if self.averaged:
            raise ValueError("an average over facts has token classes, not positions: take the circuit of one fact.")
        if (k is None) == (threshold is None):
            raise ValueError("as_circuit takes either k= (how many cells) or threshold= (smallest effect).")
        effect = self.effect.flatten()
        order = effect.argsort(descending=True, stable=True)
        if k is not None:
            if not 1 <= k <= len(order):
                raise ValueError(f"k must be from 1 to {len(order)}, the number of cells, got {k}.")
            return [int(i) for i in order[:k]]
        chosen = [int(i) for i in order if float(effect[i]) >= float(threshold or 0.0)]
        if not chosen:
            raise ValueError(f"no cell has an effect of {threshold:.3g} or more; the largest is {effect.max():.3g}.")
        return chosen

    # ------------------------------------------------------------------ files and showing

    def check_whole(self) -> None:
        """Refuse positions outside the prompt, and arrays of anything but probabilities; raises ValueError."""
        n, (start, stop) = len(self.tokens), self.subject
        outside = [p for p in self.cells.positions if not 0 <= p < n]
        if outside or not 0 <= start <= stop <= n:
            raise ValueError(f"position {outside[:1] or self.subject} lies outside {n} tokens.")
        for name in ("restored", "corrupted", "clean"):
            values = getattr(self, name)
            # an average has no number where no fact has such a token
            bad = values.isinf() if self.averaged and name == "restored" else ~values.isfinite()
            if not values.is_floating_point() or bool(bad.any()):
                raise ValueError(f"{name} holds numbers that are no probabilities.")

    def show(self, **options: Any) -> Any:
        """Circuitsvis token view; see :func:`tl_multitrace.render.trace.show_trace`."""
        return self.drawn("show", **options)

    def summary(self) -> list[tuple[str, str]]:
        """What is known about the trace, line by line: name and value."""
        who = f"{len(self.corrupted)} {'fact' if self.averaged else 'sample'}{'s' * (len(self.corrupted) != 1)}"
        model = dict(self.provenance.get("model") or {}).get("name", "unknown")
        lines = [("model", str(model)), ("answer", repr(self.answer)), ("restored", self._what())]
        lines.append(("corrupted", str(self.provenance.get("corruption_text", "unknown"))))
        lines.append(("p", f"{float(self.clean.mean()):.3g} clean, {float(self.corrupted.mean()):.3g} corrupted"))
        lines.append(("total", f"{self.total} ({who})"))
        return lines + [("note", note) for note in self.notes]

    def _what(self) -> str:
        window = f", windows of {self.cells.window} layers" if self.cells.window > 1 else ""
        severed = f", {' and '.join(self.severed)} severed" if self.severed else ""
        shape = " x ".join(f"{n} {d}s" for n, d in zip(self.cells.shape, self.cells.dims, strict=True))
        return f"{self.kind}{window}{severed}: {shape}"

    def headline(self) -> str:
        """The prompt, if it is one."""
        return "TraceGrid, average over facts" if self.averaged else f"TraceGrid of {''.join(self.tokens)!r}"

    def shown(self) -> pd.DataFrame:
        """The cells of the largest effect."""
        return self.best(8)

    def remarks(self) -> tuple[str, ...]:
        """None: the notes stand in the summary."""
        return ()

    def table_lines(self) -> list[str]:
        """The cells of the largest effect."""
        order = self.effect.flatten().nan_to_num(-np.inf).argsort(descending=True, stable=True)[:5]
        low, high = (x.flatten() for x in self.interval(resamples=500))
        rows = []
        for cell in order.tolist():
            place = self._place(cell)
            token = place.get("token", "") if self.averaged else f"{place.get('token')!r}@{place.get('position')}"
            name = place.get("group") or f"{token} layer {place['layer']}"
            unit = f" {self.kind} {place['unit']}" if "unit" in place else ""
            ends = f" [{low[cell]:.3f}, {high[cell]:.3f}]" if low[cell] == low[cell] else ""
            rows.append(f"  {float(self.effect.flatten()[cell]):8.3f}{ends}  {name}{unit}")
        return ["  largest indirect effects", *rows]


def _quantiles(means: Float[np.ndarray, "resample cell"], at: Sequence[float]) -> Float[np.ndarray, "two cell"]:
    empty = ~np.isfinite(means).any(0)
    found: Float[np.ndarray, "two cell"] = np.nanquantile(np.where(empty, 0.0, means), at, axis=0)
    found[:, empty] = np.nan
    return found


def _measured(circuit: Circuit, tracer: Tracer, cells: Cells) -> Circuit:
    """The circuit with the effect of restoring all its cells together, and what is lost without each."""
    masks = [circuit.mask]
    for i in circuit.indices:
        masks.append(circuit.mask.clone())
        masks[-1][i] = 0.0
    chosen = torch.stack([*masks, torch.ones(circuit.n_groups)])
    _, table = cells.atoms()
    effects = tracer.effects(chosen if table is None else (chosen @ table).clamp(max=1.0)).double()
    means = effects.mean(1)
    return circuit.with_scores(
        effect=float(means[0]),
        score=Score.of(effects[0].cpu().numpy()),
        full_effect=float(means[-1]),
        marginals=tuple((means[0] - means[1:-1]).tolist()),
    )
