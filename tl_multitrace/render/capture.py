"""What the views show, from the model: attention, activations and answer probabilities of three runs of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.circuit import Circuit
from tl_multitrace.engine.forward import Forward
from tl_multitrace.groups import Component
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.render.views import ExampleView, RunName, RunView, Views, trim
from tl_multitrace.rows import Batch
from tl_multitrace.tokens import NO_TOKEN
from tl_multitrace.tracer import Tracer

MOST_ANSWERS = 4


def make_views(
    circuit: Circuit, tracer: Tracer, *, examples: int | Sequence[int] = 3, heads: int = 8, neurons: int = 8
) -> Views:
    """Run the model on a few prompts and keep what the views show.

    Args:
        circuit: chosen from the groups of ``tracer``.
        tracer: model, prompts, metric and intervention.
        examples: places among the tracer's pairs, or how many: evenly spaced from the largest effect to the smallest.
        heads: attention heads to show, those with the largest marginal effect first.
        neurons: neurons or MLP dimensions to show, likewise.

    Raises:
        ValueError: the circuit is of another mask; a pair number out of range; an activation that is not finite.
    """
    if circuit.n_groups != len(tracer.groups):
        raise ValueError(
            f"the circuit was chosen from {circuit.n_groups} hook groups, the tracer has {len(tracer.groups)}: "
            "pass the tracer it was found with."
        )
    effects = tracer.effect(circuit.mask).double().cpu().numpy()
    tracer = tracer.on(distributed=False) if tracer.ranks.size > 1 else tracer  # any prompt may be shown
    pairs = choose_examples(effects, examples)
    shown = _Shown.of(circuit, tracer, heads, neurons)
    views = Views(
        heads=[c.label for c in shown.heads],
        neurons=[c.label for c in shown.neurons],
        examples=[_example(tracer, circuit, i, float(effects[i]), shown) for i in pairs],
        left_out=shown.left_out,
    )
    return trim(views)


def choose_examples(effects: Float[np.ndarray, " n"], examples: int | Sequence[int]) -> list[int]:
    """Pair numbers: those given, or evenly spaced ranks from the largest effect to the smallest."""
    if not isinstance(examples, int):
        outside = [i for i in examples if not 0 <= i < len(effects)]
        if outside:
            raise ValueError(f"pair {outside[0]} is not one of the {len(effects)} pairs.")
        return list(examples)
    ranked = np.argsort(-effects, kind="stable")
    places = np.linspace(0, len(ranked) - 1, min(max(examples, 0), len(ranked))).round().astype(int)
    return [int(ranked[p]) for p in dict.fromkeys(places.tolist())]


@dataclass(frozen=True)
class _Shown:
    """The components whose activations are kept, and the hook points they are read at."""

    heads: list[Component]
    neurons: list[Component]
    left_out: list[str]

    @classmethod
    def of(cls, circuit: Circuit, tracer: Tracer, heads: int, neurons: int) -> _Shown:
        sizes = [abs(m) for m in circuit.marginals] or [0.0] * len(circuit)
        ranked = [c for _, c in sorted(zip(sizes, circuit.components, strict=True), key=lambda item: -item[0])]
        patterns = [Component("head", c.layer, c.index, site="pattern") for c in ranked if c.kind == "head"]
        readable = [c for c in dict.fromkeys(patterns) if tracer.view.has_point(c.hook_name)]
        activations = list(dict.fromkeys(replace(c, position=None) for c in ranked if c.kind in ("neuron", "mlp_dim")))
        left = _more("attention of", readable[heads:]) + _more("activations of", activations[neurons:])
        if patterns and not readable:
            left.append("attention: this model computes no attention pattern that can be read")
        return cls(readable[:heads], activations[:neurons], left)

    @property
    def hooks(self) -> set[str]:
        return {c.hook_name for c in (*self.heads, *self.neurons)}


def _more(what: str, components: list[Component]) -> list[str]:
    if not components:
        return []
    names = ", ".join(c.label for c in components[:12]) + (", ..." if len(components) > 12 else "")
    return [f"{what} {len(components)} more component(s) with smaller marginal effects: {names}"]


# ---------------------------------------------------------------------- one example


def _example(tracer: Tracer, circuit: Circuit, pair: int, effect: float, shown: _Shown) -> ExampleView:
    batch = tracer.rows.batch(torch.argsort(tracer.rows.order)[pair : pair + 1], tracer.view.device)
    candidates, names, n_right = _answers(tracer.pairs, pair)
    words = {side: _words(tracer, pair, side) for side in ("base", "source")}
    runs: dict[RunName, RunView] = {}
    for name, forward in _runs(tracer, circuit, batch):
        side = words["source"] if name == "source" else words["base"]
        runs[name] = _view(tracer, forward, side, candidates, shown, f"pair {pair}, {name} run")
    return ExampleView(
        pair=tracer.pairs.number(pair),
        label=tracer.pairs.labels[pair] if tracer.pairs.labels else "",
        answers=names,
        n_right=n_right,
        effect=effect,
        read=int(tracer.pairs.answer_positions[pair]),
        runs=runs,
    )


def _answers(pairs: PromptPairs, pair: int) -> tuple[Int[Tensor, " k"], list[str], int]:
    """First tokens of the candidates, their texts (right ones first), and how many are right."""
    present = (pairs.candidates[pair] != NO_TOKEN).any(-1)
    right = [k for k in range(len(present)) if present[k] and pairs.right[pair, k]]
    wrong = [k for k in range(len(present)) if present[k] and not pairs.right[pair, k]]
    chosen = (right[: max(1, MOST_ANSWERS - len(wrong))] + wrong)[:MOST_ANSWERS]
    first = pairs.candidates[pair, chosen, 0]
    texts = pairs.answer_words[pair] if pairs.answer_words else [f"#{int(r[0])}" for r in pairs.candidates[pair]]
    return first, [texts[k] for k in chosen], sum(k in right for k in chosen)


def _words(tracer: Tracer, pair: int, side: str) -> list[str]:
    pairs = tracer.pairs
    words = pairs.base_words if side == "base" else pairs.source_words
    if words:
        return list(words[pair])
    tokens, lengths = (
        (pairs.base_tokens, pairs.lengths) if side == "base" else (pairs.source_tokens, pairs.source_lengths)
    )
    return [f"#{t}" for t in tokens[pair, : int(lengths[pair])].tolist()]


def _runs(tracer: Tracer, circuit: Circuit, batch: Batch) -> Iterator[tuple[RunName, Forward]]:
    """The three runs, as the tracer makes them; the source run only where it is a run of this prompt's partner."""
    runs = tracer.batches.runs
    mask = tracer.groups.as_mask(circuit.mask).to(tracer.view.device, tracer.dtype)[None, None]
    yield "base", runs.forward(batch)
    source = tracer.intervention.source_run(runs.whole, tracer.view) if tracer.intervention.aligned else None
    if source is not None:
        yield "source", runs.of_run(source, batch.rows)
    with tracer.session():  # activations that are not kept are taken anew
        yield "patched", runs.forward(batch, mask)


def _view(
    tracer: Tracer, forward: Forward, words: list[str], candidates: Int[Tensor, " k"], shown: _Shown, where: str
) -> RunView:
    """What a run shows of its first row, at every token of the prompt."""
    n = len(words)
    columns = torch.arange(n, device=tracer.view.device)
    wanted = replace(forward, keep_after=frozenset(shown.hooks), reads=(torch.zeros_like(columns), columns))
    with torch.no_grad():
        ran = tracer.batches.runs.ran(wanted, 0.0)
    kept = {name: value[:1].float().cpu() for name, value in ran.kept_after.items()}
    probabilities = ran.logits[0].float().softmax(-1)[:, candidates.to(ran.logits.device)].cpu()
    return RunView(
        words=words,
        attention=[_rounded(kept[c.hook_name][0, c.index, :n, :n], f"{where}, {c.label}") for c in shown.heads],
        neurons=_columns([kept[c.hook_name][0, :n, c.index] for c in shown.neurons], where),
        answers=_significant(probabilities, f"{where}, answers"),
    )


def _finite(values: Tensor, where: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise ValueError(f"{where}: the activation is not finite, so there is nothing to show. Check the weights.")
    return values


def _rounded(values: Float[Tensor, "dest src"], where: str) -> list[list[float]]:
    rows = _finite(values, where).double().clamp(0, 1).tolist()
    return [[round(v, 3) for v in row] for row in rows]


def _significant(values: Float[Tensor, "tokens k"], where: str) -> list[list[float]]:
    return [[float(f"{v:.4g}") for v in row] for row in _finite(values, where).tolist()]


def _columns(columns: list[Tensor], where: str) -> list[list[float]]:
    return _significant(torch.stack(columns, -1), f"{where}, neurons") if columns else []
