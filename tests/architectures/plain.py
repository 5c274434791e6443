"""What the sweep compares with: one unpadded prompt at a time, TransformerLens' ``run_with_hooks``, whole logits.

Nothing here runs the library; of it there are only the names of hook points. A mask is a leaf of the computation, so
that PyTorch differentiates the plain loop too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from oracles import covered
from torch import Tensor

from tl_multitrace.groups import SITES

Hooks = list[tuple[str, Callable[..., Any]]]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """Base and source prompt of equal length, and the tokens whose logits are compared after them."""

    base: list[int]
    source: list[int]
    right: int
    wrong: int


def random_pairs(lengths: Sequence[int] = (7, 5, 6), vocabulary: int = 60, seed: int = 0) -> list[Pair]:
    """Random prompts of these lengths."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        base, source = torch.randint(2, vocabulary, (2, length), generator=draw).tolist()
        right, wrong = (2 + torch.randperm(vocabulary - 2, generator=draw)[:2]).tolist()
        made.append(Pair(base, source, right, wrong))
    return made


def site(c: Any) -> str:
    """Name of the hook point that holds a component."""
    return SITES[c.kind, c.site].hook.format(layer=c.layer)


def put(values: Tensor, places: Any = slice(None)) -> Callable[..., Tensor]:
    """A hook that puts ``values`` in some places of an activation."""

    def apply(act: Tensor, hook: Any) -> Tensor:
        act = act.clone()
        act[places] = values[places].to(act)
        return act

    return apply


@dataclass
class Loop:
    """Prompts under masks, one by one.

    Attributes:
        model: a TransformerLens model.
        pairs: the prompts.
        groups: per mask entry, the one component it switches.
    """

    model: Any
    pairs: Sequence[Pair]
    groups: Sequence[Any] = ()
    cache: dict[Any, Any] = field(default_factory=dict)

    def logits(self, tokens: Sequence[int], hooks: Hooks = ()) -> Tensor:  # type: ignore[assignment]
        """``[pos, vocab]``."""
        found: Tensor = self.model.run_with_hooks(torch.tensor([list(tokens)]), fwd_hooks=list(hooks))[0]
        return found

    def seen(self, tokens: Sequence[int], names: Iterable[str], hooks: Hooks = ()) -> Values:  # type: ignore[assignment]
        """Activations of one prompt as they come to some hook points, before anything is put there."""
        found: Values = {}
        watch = [(n, lambda act, hook, n=n: found.__setitem__(n, act.detach().clone())) for n in names]
        with torch.no_grad():
            self.logits(tokens, [*watch, *hooks])
        return found

    def score(self, i: int, hooks: Hooks = ()) -> Tensor:  # type: ignore[assignment]
        """Logit difference of one prompt."""
        last = self.logits(self.pairs[i].base, hooks)[-1]
        return last[self.pairs[i].right] - last[self.pairs[i].wrong]

    def source(self, i: int) -> Values:
        """The source prompt's activations wherever a component may be; one run for all groups."""
        if ("source", i) not in self.cache:
            layers = range(self.model.cfg.n_layers)
            names = dict.fromkeys(at.hook.format(layer=layer) for at in SITES.values() for layer in layers)
            self.cache["source", i] = self.seen(self.pairs[i].source, [n for n in names if n in self.model.hook_dict])
        found: Values = self.cache["source", i]
        return found

    # ------------------------------------------------------------------------------------------- masks
    def hooks(self, i: int, mask: Tensor) -> Hooks:
        """The mask's hooks for one prompt."""
        return [(name, self._mixer(i, name, mask)) for name in dict.fromkeys(site(c) for c in self.groups)]

    def _mixer(self, i: int, name: str, mask: Tensor) -> Callable[..., Tensor]:
        source, here = self.source(i)[name], [(g, c) for g, c in enumerate(self.groups) if site(c) == name]

        def mixed(act: Tensor, hook: Any) -> Tensor:
            share = torch.zeros(act.shape, dtype=act.dtype)
            for g, c in here:
                share = share + mask[g].to(act.dtype) * self._where(c, act, len(self.pairs[i].base))
            return act + share * (source - act)

        return mixed

    @staticmethod
    def _where(c: Any, act: Tensor, length: int) -> Tensor:
        """1 at the places of an activation that are the component's."""
        where, at = torch.zeros_like(act), covered(c.position, length, length, None)
        if c.site == "pattern":
            where[0, c.index, at] = 1.0
        elif c.index is None:
            where[0, at] = 1.0
        else:
            where[0, at, c.index] = 1.0
        return where

    def effects(self, masks: Sequence[Tensor]) -> Tensor:
        """``[mask, prompt]``: the logit difference under each mask, less that of the base run."""
        with torch.no_grad():
            rows = [[self.score(i, self.hooks(i, m)) - self.base(i) for i in range(len(self.pairs))] for m in masks]
        return torch.tensor(rows, dtype=torch.float64)

    def base(self, i: int) -> Tensor:
        """Logit difference of one base prompt."""
        if ("base", i) not in self.cache:
            self.cache["base", i] = self.score(i).detach()
        found: Tensor = self.cache["base", i]
        return found

    def gradient(self, mask: Tensor) -> Tensor:
        """``[prompt, group]``: derivative of the logit difference to the mask, by PyTorch."""
        rows = []
        for i in range(len(self.pairs)):
            leaf = mask.clone().requires_grad_(True)
            rows.append(torch.autograd.grad(self.score(i, self.hooks(i, leaf)), leaf)[0].double())
        return torch.stack(rows)

    # ------------------------------------------------------------------------------------------- edges
    def edge(self, sender: Any, receiver: Any, way: str, outputs: Sequence[str]) -> Tensor:
        """Direct effect per prompt of one component, or token, on another's input, or on the answer.

        Args:
            sender: a component; a residual state of block 0 at a position for a token.
            receiver: a component, or None for the answer.
            way: what the receiver reads by: ``q``, ``k``, ``v``, ``in``, ``out``.
            outputs: names of everything that is added to the residual stream, which is kept as it was.
        """
        with torch.no_grad():
            return torch.stack([self._edge(i, sender, receiver, way, outputs) for i in range(len(self.pairs))]).double()

    def _edge(self, i: int, sender: Any, receiver: Any, way: str, outputs: Sequence[str]) -> Tensor:
        length = len(self.pairs[i].base)
        seen, hooks = self._sent(i, sender, outputs)
        if receiver is None:
            return self.score(i, hooks) - self.base(i)
        output = seen.get(there := site(receiver))
        if way != "in":
            name = f"blocks.{receiver.layer}.attn.hook_{way}"
            output = self.seen(self.pairs[i].base, [there], [(name, put(seen[name]))])[there]
        assert output is not None
        return self.score(i, [(there, put(output, self._places(receiver, length)))]) - self.base(i)

    def _sent(self, i: int, sender: Any, outputs: Sequence[str]) -> tuple[Values, Hooks]:
        """A run with the sender at its source value and all else that is added kept: what is seen in it, its hooks."""
        if (i, sender) not in self.cache:
            pair, own, writes = self.pairs[i], site(sender), self._writes(sender)
            base = self.seen(pair.base, outputs)
            hooks = [(own, put(self.source(i)[own], self._places(sender, len(pair.base))))]
            hooks += [(name, put(base[name])) for name in outputs if name in base and name != writes]
            read = [
                n for n in self.model.hook_dict if n.endswith(("attn.hook_q", "attn.hook_k", "attn.hook_v", "_mlp_out"))
            ]
            self.cache[i, sender] = self.seen(pair.base, read, hooks), hooks
        found: tuple[Values, Hooks] = self.cache[i, sender]
        return found

    @staticmethod
    def _writes(c: Any) -> str | None:
        """The layer output that a component is part of; a token is part of none."""
        kind = {"head": "attn", "attn": "attn", "neuron": "mlp", "mlp": "mlp", "mlp_dim": "mlp"}.get(c.kind)
        return None if kind is None else f"blocks.{c.layer}.hook_{kind}_out"

    @staticmethod
    def _places(c: Any, length: int) -> Any:
        at = covered(c.position, length, length, None)
        if c.site == "pattern":
            return (0, c.index, at)
        return (0, at) if c.index is None else (0, at, c.index)

    # ------------------------------------------------------------------------------------------- noise
    def traced(
        self, tokens: Sequence[int], span: tuple[int, int], shift: Tensor, answer: int, cells: Sequence[Any]
    ) -> Tensor:
        """Probability of the answer for every sample of noise and restored component: ``[sample, cell]``."""
        names = dict.fromkeys(site(c) for c in cells)
        with torch.no_grad():
            clean = self.seen(tokens, names)
            rows = [[self._restored(tokens, span, s, answer, clean, c) for c in cells] for s in shift]
        return torch.tensor(rows, dtype=torch.float64)

    def _restored(
        self, tokens: Any, span: Any, shift: Tensor, answer: int, clean: Mapping[str, Tensor], c: Any
    ) -> float:
        name = "embed.hook_out" if "embed.hook_out" in self.model.hook_dict else "hook_embed"

        def noise(act: Tensor, hook: Any) -> Tensor:
            act = act.clone()
            act[0, span[0] : span[1]] += shift[span[0] : span[1]].to(act)
            return act

        restore = put(clean[site(c)], self._places(c, len(tokens)))
        return float(self.logits(tokens, [(name, noise), (site(c), restore)])[-1].double().softmax(-1)[answer])
