"""Path patching by plain loops: one prompt, one edge and one candidate answer at a time, every head frozen by itself.

Nothing here calls the library. Where the library keeps whole attention outputs and sends queries, keys and values of
all heads at once, this keeps each other head's z and changes the queries, keys or values of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from oracles import HOOK, Example, Reading, activations, covered, logit_diff, plain_logits

Hooks = list[tuple[str, Callable[..., Any]]]
Values = dict[str, torch.Tensor]
INPUT = {x: f"blocks.{{}}.attn.hook_{x}" for x in "qkv"}


def site(c: Any) -> str:
    return HOOK[c.kind, c.site].format(c.layer)


def put(name: str, values: torch.Tensor, where: Sequence[Any]) -> tuple[str, Callable[..., Any]]:
    """A hook that takes some places of an activation from ``values``; the places are indices of it."""

    def apply(act: torch.Tensor, hook: Any) -> torch.Tensor:
        act = act.clone()
        for place in where:
            act[place] = values[place]
        return act

    return name, apply


@dataclass
class PlainFlow:
    """Edges of one model on some prompts.

    Attributes:
        model: any TransformerLens model.
        examples: prompts of equal length in base and source.
        parallel: whether the MLP of a block does not see its attention.
        mlps: whether there are any.
        on: components at their source values in the run that edges are measured in.
    """

    model: Any
    examples: Sequence[Example]
    parallel: bool = False
    mlps: bool = True
    on: Sequence[Any] = ()
    _seen: dict[Any, Values] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------- runs
    def names(self) -> list[str]:
        layers = range(self.model.cfg.n_layers)
        parts = ["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_pattern", "attn.hook_z", "hook_attn_out"]
        parts += ["mlp.hook_post", "hook_mlp_out"] if self.mlps else []
        return [f"blocks.{i}.{part}" for i in layers for part in parts] + ["blocks.0.hook_resid_pre"]

    def run(self, tokens: list[int], hooks: Hooks = []) -> Values:  # noqa: B006
        seen: Values = {}
        watch = [(n, lambda act, hook, n=n: seen.__setitem__(n, act.detach().clone())) for n in self.names()]
        plain_logits(self.model, tokens, [*hooks, *watch])
        return seen

    def source(self, e: Example, prefix: list[int]) -> Values:
        key = ("source", id(e), tuple(prefix))
        if key not in self._seen:
            self._seen[key] = activations(self.model, e.source + prefix, self.names())
        return self._seen[key]

    def background(self, e: Example, prefix: list[int]) -> Hooks:
        return [self.patch(c, e, prefix) for c in self.on]

    def base(self, e: Example, prefix: list[int]) -> Values:
        key = ("base", id(e), tuple(prefix))
        if key not in self._seen:
            self._seen[key] = self.run(e.base + prefix, self.background(e, prefix))
        return self._seen[key]

    # ----------------------------------------------------------------------------------------- places
    def places(self, c: Any, e: Example, prefix: list[int]) -> list[Any]:
        here = covered(c.position, len(e.base), len(e.base + prefix), e.span)
        if c.site == "pattern":
            return [(0, c.index, p) for p in here]
        return [(0, p) if c.index is None else (0, p, c.index) for p in here]

    def patch(self, c: Any, e: Example, prefix: list[int]) -> tuple[str, Callable[..., Any]]:
        return put(site(c), self.source(e, prefix)[site(c)], self.places(c, e, prefix))

    def frozen(self, sender: Any, base: Values) -> Hooks:
        """Every head's z and every MLP's output at the base run's value, but for what the sender itself is part of."""
        hooks: Hooks = []
        for layer in range(self.model.cfg.n_layers):
            own = sender.layer == layer and sender.kind != "resid"
            if not (own and sender.kind == "attn"):
                heads = range(self.model.cfg.n_heads)
                kept = [h for h in heads if not (own and sender.kind == "head" and sender.index == h)]
                z = f"blocks.{layer}.attn.hook_z"
                hooks.append(put(z, base[z], [(0, slice(None), h) for h in kept]))
            out = f"blocks.{layer}.hook_mlp_out"
            if self.mlps and not (own and sender.kind in ("neuron", "mlp", "mlp_dim")):
                hooks.append(put(out, base[out], [0]))
        return hooks

    def other(self, sender: Any, e: Example, prefix: list[int]) -> Hooks:
        """The sender at its other value: the source's, or its own where it is patched already."""
        if sender in self.on:
            return [self.patch(c, e, prefix) for c in self.on if c != sender]
        return [*self.background(e, prefix), self.patch(sender, e, prefix)]

    def sent(self, sender: Any, e: Example, prefix: list[int]) -> tuple[Values, Hooks]:
        """What every receiver is given; recorded before it is frozen. And the hooks of that run."""
        base = self.base(e, prefix)
        hooks = [*self.other(sender, e, prefix), *self.frozen(sender, base)]
        key = ("sent", sender, id(e), tuple(prefix))
        if key not in self._seen:
            seen: Values = {}
            names = [n for n in self.names() if n.endswith(("_q", "_k", "_v", "_post", "_mlp_out"))]
            watch = [(n, lambda act, hook, n=n: seen.__setitem__(n, act.detach().clone())) for n in names]
            plain_logits(self.model, e.base + prefix, [*watch, *hooks])
            self._seen[key] = seen
        return self._seen[key], hooks

    # ------------------------------------------------------------------------------------------ edges
    def hooks(self, sender: Any, receiver: Any, way: str, e: Example, prefix: list[int]) -> Hooks:
        """The run whose metric is the edge's."""
        given, frozen = self.sent(sender, e, prefix)
        if receiver is None:
            return frozen
        if way == "in":
            output = given[site(receiver)]
        else:
            name = INPUT[way].format(receiver.layer)
            heads = given[name].shape[2]
            group = self.model.cfg.n_heads // heads
            own = slice(None) if receiver.index is None else receiver.index // group
            change = put(name, given[name], [(0, slice(None), own)])
            output = self.run(e.base + prefix, [*self.background(e, prefix), change])[site(receiver)]
        return [*self.background(e, prefix), put(site(receiver), output, self.places(receiver, e, prefix))]

    def read(self, e: Example, hooks: Callable[[list[int]], Hooks]) -> float:
        logps = []
        for candidate in e.candidates:
            prefix = candidate[:-1]
            logp = plain_logits(self.model, e.base + prefix, hooks(prefix)).log_softmax(-1)
            logps.append([logp[len(e.base) - 1 + t, token] for t, token in enumerate(candidate)])
        reading = Reading(logps, len(e.answers), torch.empty(0))
        return float(logit_diff(reading, reading))

    def edge(self, sender: Any, receiver: Any, way: str) -> torch.Tensor:
        """Effect per example; positive: the metric is higher with the sender's source value on the edge."""
        if receiver in self.on:  # it keeps its source value, whatever it reads
            return torch.zeros(len(self.examples), dtype=torch.float64)
        sign = -1.0 if sender in self.on else 1.0
        found = []
        with torch.no_grad():
            for e in self.examples:
                plain = self.read(e, lambda prefix, e=e: self.background(e, prefix))
                changed = self.read(e, lambda prefix, e=e: self.hooks(sender, receiver, way, e, prefix))
                found.append(sign * (changed - plain))
        return torch.tensor(found, dtype=torch.float64)
