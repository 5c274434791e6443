"""Causal tracing by a plain loop: one sample, one cell, one forward with full logits at a time; hooks by hand.

Nothing here calls the engine or the tracing code. Noise is drawn as the documentation says: for each sample in turn, a
standard normal for every token and dimension, from one generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HOOK = {
    "resid": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "attn": "blocks.{}.hook_attn_out",
    "head": "blocks.{}.attn.hook_z",
    "neuron": "blocks.{}.mlp.hook_post",
}
Site = tuple[str, int, int | None]  # hook name, position, head or neuron


@dataclass
class PlainTrace:
    """One prompt, its corruption and its answer.

    Attributes:
        model: a TransformerLens model.
        ids: the clean prompt.
        span: corrupted positions.
        answer: token ids.
        shift: what the corruption adds to the embeddings at the span, per sample.
        replaced: the corrupted prompts' ids instead, per sample.
        position: whose logits predict the first answer token.
    """

    model: Any
    ids: list[int]
    span: tuple[int, int]
    answer: list[int]
    shift: Tensor | None = None
    replaced: Tensor | None = None
    position: int = -1
    clean: dict[str, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return len(self.shift) if self.shift is not None else len(self.replaced)  # type: ignore[arg-type]

    def run(self, ids: list[int], hooks: list[tuple[str, Any]]) -> float:
        tokens = torch.tensor([ids + self.answer[:-1]])
        with torch.no_grad():
            logits = self.model.run_with_hooks(tokens, attention_mask=torch.ones_like(tokens), fwd_hooks=hooks)[0]
        first = self.position % len(ids)
        probability = 1.0
        for step, token in enumerate(self.answer):
            probability *= float(logits[first + step].double().softmax(-1)[token])
        return probability

    def activations(self, ids: list[int], names: Sequence[str], hooks: list[tuple[str, Any]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(act: Tensor, hook: Any) -> None:
                found[name] = act.detach().clone()

            return hook

        self.run(ids, [*hooks, *((name, keep(name)) for name in names)])
        return found

    def corruption(self, sample: int) -> tuple[list[int], list[tuple[str, Any]]]:
        if self.replaced is not None:
            return self.replaced[sample].tolist(), []
        added = self.shift[sample]  # type: ignore[index]

        def noise(act: Tensor, hook: Any) -> Tensor:
            act = act.clone()
            act[0, self.span[0] : self.span[1]] += added[self.span[0] : self.span[1]].to(act)
            return act

        at = "embed.hook_out" if "embed.hook_out" in self.model.hook_dict else "hook_embed"
        return self.ids, [(at, noise)]

    def corrupted(self, sample: int) -> float:
        return self.run(*self.corruption(sample))

    def restored(self, sample: int, cell: Sequence[Site], frozen: Sequence[Site] = ()) -> float:
        ids, hooks = self.corruption(sample)
        names = list(dict.fromkeys(name for name, _, _ in [*cell, *frozen]))
        clean, base = self.activations(self.ids, names, []), self.activations(ids, names, hooks)

        def patch(name: str) -> Any:
            def hook(act: Tensor, hook: Any) -> Tensor:
                act = act.clone()
                for site, position, _ in frozen:
                    if site == name:
                        act[0, position] = base[name][0, position]
                for site, position, unit in cell:
                    if site == name and unit is None:
                        act[0, position] = clean[name][0, position]
                    elif site == name:
                        act[0, position, unit] = clean[name][0, position, unit]
                return act

            return hook

        return self.run(ids, [*hooks, *((name, patch(name)) for name in names)])

    def grid(self, cells: Sequence[Sequence[Site]], frozen: Sequence[Sequence[Site]] | None = None) -> Tensor:
        frozen = frozen or [()] * len(cells)
        rows = [[self.restored(s, c, f) for c, f in zip(cells, frozen, strict=True)] for s in range(self.samples)]
        return torch.tensor(rows, dtype=torch.float64)


def gaussian(samples: int, width: int, d_model: int, scale: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(width, d_model, generator=generator) for _ in range(samples)]) * scale


def window_cells(kinds: Sequence[str], n_tokens: int, n_layers: int, window: int) -> list[list[Site]]:
    """Position by position, layer by layer: the paper's windows, of one layer for states."""
    cells = []
    for position in range(n_tokens):
        for layer in range(n_layers):
            sites: list[Site] = []
            for kind in kinds:
                width = 1 if kind == "resid" else window
                reach = range(max(0, layer - width // 2), min(n_layers, layer - (-width // 2)))
                sites += [(HOOK[kind].format(i), position, None) for i in reach]
            cells.append(sites)
    return cells


def unit_cells(kind: str, positions: Sequence[int], layers: Sequence[int], units: Sequence[int]) -> list[list[Site]]:
    return [[(HOOK[kind].format(layer), p, u)] for p in positions for layer in layers for u in units]


def frozen_sites(cells: Sequence[Sequence[Site]], kinds: Sequence[str], n_layers: int) -> list[list[Site]]:
    """Every layer's outputs of these kinds at the cell's tokens, as the published code freezes them."""
    return [
        [(HOOK[k].format(i), p, None) for p in {p for _, p, _ in cell} for k in kinds for i in range(n_layers)]
        for cell in cells
    ]
