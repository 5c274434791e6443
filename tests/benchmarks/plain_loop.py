"""One optimisation step of the published objective, as a plain loop over TransformerLens runs.

Written from the formulas of arXiv:2606.03085 and the way its code runs them, with nothing of ``tl_multitrace``: base
and source are recomputed in every step, each candidate continuation has a forward of its own that returns the logits of
every position, and ``loss.backward()`` leaves a gradient in every weight beside the one in the mask.

Where the published procedure leaves a choice, the faster one is taken: base and source run without a graph, and one
source run over the bare prompts serves all candidates (attention weights are mixed inside the prompt only).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Hooks = list[tuple[str, Callable[..., Tensor]]]


class PlainLoop:
    """One step as the published code runs it.

    Args:
        model: its weights keep ``requires_grad``.
        base: prompts to intervene on, ``[n, pos]``, without padding.
        source: prompts that attention weights come from.
        candidates: the right and the wrong continuation, ``[n, tokens]`` each.
        penalty: weight of the size and of the binary penalty.
    """

    def __init__(
        self, model: Any, base: Tensor, source: Tensor, candidates: tuple[Tensor, Tensor], penalty: float = 0.05
    ) -> None:
        self.model, self.base, self.source, self.candidates, self.penalty = model, base, source, candidates, penalty
        self.names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
        self.z = torch.full((model.cfg.n_layers, model.cfg.n_heads), 0.5, requires_grad=True)

    def step(self) -> Tensor:
        """Gradient of the first epoch's loss with respect to the mask; what Adam then does costs nothing."""
        with torch.no_grad():
            odds_base = self._odds([])
            _, patterns = self.model.run_with_cache(self.source, names_filter=self.names)
        odds = self._odds([(name, self._mixer(layer, patterns[name])) for layer, name in enumerate(self.names)])
        data = (1 / (odds / odds_base)).mean()  # 1 / (1 + effect), effect = odds / odds_base - 1
        size, binary = self.z.abs().sum(), (self.z * (1 - self.z)).sum()
        self.model.zero_grad(set_to_none=True)
        self.z.grad = None
        (data + self.penalty * (size + binary)).backward()
        assert self.z.grad is not None
        return self.z.grad.flatten().clone()

    def _mixer(self, layer: int, source: Tensor) -> Callable[..., Tensor]:
        size = self.base.shape[1]

        def mixer(pattern: Tensor, hook: Any) -> Tensor:
            share = self.z[layer][:, None, None]
            mixed = pattern.clone()
            mixed[:, :, :size, :size] = (1 - share) * pattern[:, :, :size, :size] + share * source
            return mixed

        return mixer

    def _odds(self, hooks: Hooks) -> Tensor:
        right, wrong = (self._probability(candidate, hooks) for candidate in self.candidates)
        return right / wrong

    def _probability(self, candidate: Tensor, hooks: Hooks) -> Tensor:
        """``exp(mean log p)`` of a continuation's tokens."""
        tokens = torch.cat([self.base, candidate], 1)
        logits = self.model.run_with_hooks(tokens, fwd_hooks=hooks)
        logp = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return logp[:, -candidate.shape[1] :].mean(1).exp()
