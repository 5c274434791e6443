"""All that the library does, on one model, against plain loops; what comes out is a row of the table."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pytest
import torch
from plain import Loop, Pair, random_pairs
from torch import Tensor

import tl_multitrace as mt
from tl_multitrace.models.embeddings import has_embeddings

KINDS: dict[str, Callable[..., mt.HookGroups]] = {
    "heads": mt.heads,
    "heads:pattern": partial(mt.heads, site="pattern"),
    "neurons": mt.neurons,
    "mlp_dims": mt.mlp_dims,
    "mlps": mt.mlps,
    "attn_layers": mt.attn_layers,
    "residual:pre": mt.residual,
    "residual:mid": partial(mt.residual, site="mid"),
    "residual:post": partial(mt.residual, site="post"),
}

INSTEAD = re.compile(r"\b(heads|neurons|mlps|mlp_dims|attn_layers|residual)\b")
"""What a refusal must name: something to use instead."""


ADDED = (
    r"blocks\.\d+\.(hook_(attn|mlp)_out|(mixer|mamba|conv|linear_attn|shared_mlp|moe|per_layer_projection)\.hook_out)"
)
"""What blocks add to the residual stream, by the names that TransformerLens gives to their parts."""


class Wrong(AssertionError):
    """A number that is not the plain loop's."""


@dataclass
class Sweep:
    """Checks on one model; errors of numbers are collected, as a share of the largest number compared.

    Attributes:
        model: a TransformerLens model.
        tolerance: largest error allowed.
        works: kinds that work, with their components.
        refused: kinds that are refused, with the reason.
        error: largest error so far.
    """

    model: Any
    tolerance: float = 1e-9
    pairs: list[Pair] = field(default_factory=lambda: random_pairs((7, 5)))
    works: dict[str, mt.HookGroups] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    error: float = 0.0
    _plain: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def prompts(self) -> mt.PromptPairs:
        """The prompts, padded with a token that would count if it were attended to."""
        width = max(len(p.base) for p in self.pairs)
        base, source = (
            torch.tensor([[*t, *[7] * (width - len(t))] for t in x])
            for x in ([p.base for p in self.pairs], [p.source for p in self.pairs])
        )
        right, wrong = ([[[p.right]] for p in self.pairs], [[[p.wrong]] for p in self.pairs])
        return mt.PromptPairs.from_tokens(base, source, right, wrong, lengths=[len(p.base) for p in self.pairs])

    def loop(self, groups: mt.HookGroups | None = None) -> Loop:
        """The plain loop over some groups."""
        return Loop(self.model, self.pairs, () if groups is None else groups.components, self._plain)

    def tracer(self, groups: mt.HookGroups) -> mt.Tracer:
        """A tracer of the logit difference."""
        return mt.Tracer(self.model, self.prompts, groups)

    def same(self, what: str, ours: Any, plain: Any, unit: float = 1.0) -> None:
        """Refuse numbers that differ by more than the tolerance, as a share of the largest or of ``unit``."""
        ours, plain = torch.as_tensor(ours).double(), torch.as_tensor(plain).double()
        if ours.shape != plain.shape or not bool(ours.isfinite().all()):
            raise Wrong(f"{what}: {ours} instead of {plain}")
        error = float((ours - plain).abs().max()) / max(unit, float(plain.abs().max()))
        self.error = max(self.error, error)
        if not error <= self.tolerance:
            raise Wrong(f"{what}: off by {error:.2g} (up to {float(plain.abs().max()):.3g})")

    # ---------------------------------------------------------------------------------- every kind by itself
    def kind(self, name: str) -> None:
        """One kind of component under masks: works, or is refused in words."""
        try:
            groups = KINDS[name](self.model)
            tracer = self.tracer(groups)
        except (mt.HookError, ValueError) as error:
            if not INSTEAD.search(str(error)):
                raise
            self.refused[name] = str(error)
            return
        masks = self.masks(groups)
        effects = tracer.effects(masks)
        if bool((effects[0] != 0).any()):
            raise Wrong(f"{name}: mask 0 has the effect {float(effects[0].abs().max()):.2g}")
        plain = self.loop(groups).effects(masks[1:])
        self.same(name, effects[1:], plain)
        if not bool((plain.abs() > 1e-6).any(1).all()):
            raise Wrong(f"{name}: the masks have no effect, so nothing was compared: {plain}")
        self.works[name] = groups

    @staticmethod
    def masks(groups: mt.HookGroups) -> Tensor:
        """None, all, some in part, and the last layer's alone, for which runs may restart."""
        draw = torch.Generator().manual_seed(1)
        some = (2 * torch.rand(len(groups), generator=draw, dtype=torch.float64) - 0.5).clamp(0, 1)
        some[0] = 0.7
        late = torch.from_numpy(groups.first_layers == groups.first_layers.max())
        return torch.stack([torch.zeros_like(some), torch.ones_like(some), some, 0.9 * late])

    # ---------------------------------------------------------------------------------- several kinds together
    @cached_property
    def mixed(self) -> mt.HookGroups:
        """Some components of every kind that works, each once, some at single positions."""
        chosen: list[mt.Component] = []
        taken: set[int] = set()  # hook points, which two kinds may share
        for n, groups in enumerate(self.works.values()):
            part = groups[:: max(1, len(groups) // 6)]
            free = [c for c in (part.at("last") if n % 2 else part) if self._point(c) not in taken]
            chosen += [c for c in free if c not in chosen]
            taken |= {self._point(c) for c in part}
        return mt.HookGroups.of(self.model, chosen)

    def _point(self, c: mt.Component) -> int:
        return id(self.model.hook_dict[c.hook_name])

    def together(self) -> None:
        """Masks over several kinds, asked for in a row, as restarts from each other; gradients."""
        groups, loop = self.mixed, self.loop(self.mixed)
        draw = torch.Generator().manual_seed(2)
        soft = torch.rand(len(groups), generator=draw, dtype=torch.float64) * 0.6
        late = torch.from_numpy(groups.first_layers == groups.first_layers.max())
        near = torch.where(late, 0.9 * soft, soft)
        tracer = self.tracer(groups)
        self.same("restarts", tracer.effects(torch.stack([near, soft]), reference=soft), loop.effects([near, soft]))
        self.same("gradient", tracer.gradient(soft), loop.gradient(soft))
        for i, pair in enumerate(self.pairs):
            with torch.no_grad():
                _, cache = self.model.run_with_cache(torch.tensor([pair.source]), names_filter=groups.names_filter)
                ours = loop.score(i, groups.fwd_hooks(soft, cache))
                self.same("fwd_hooks", ours, loop.score(i, loop.hooks(i, soft)))

    def search(self) -> None:
        """A search, its circuit as hooks, and the circuit judged."""
        groups = self.mixed[:: max(1, len(self.mixed) // 8)]
        loop, tracer = self.loop(groups), self.tracer(groups)
        path = mt.select(tracer, [1, 2], mt.Greedy())
        for budget in (1, 2):
            chosen = path[budget].mask.double()
            self.same("select", path[budget].effect, loop.effects([chosen]).mean())
        report = mt.evaluate(path[2], self.prompts, draws=4, minimality=False)
        self.same("evaluate", report.effect.mean, loop.effects([path[2].mask.double()]).mean())
        self.circuit = path[2]

    # ---------------------------------------------------------------------------------- flow and causal trace
    def outputs(self) -> list[str]:
        """Names of everything that blocks add to the residual stream."""
        names = [n for n in self.model.hook_dict if re.fullmatch(ADDED, n)]
        mlps = {n.split(".")[1] for n in names if n.endswith("hook_mlp_out")}
        return [n for n in names if not (re.search("shared_mlp|moe", n) and n.split(".")[1] in mlps)]  # the same again

    def flow(self) -> None:
        """Edges between components, from a token and to the answer."""
        nodes = [k for k in ("heads", "mlps", "attn_layers") if k in self.works]
        if not nodes:
            return
        groups = self.works[nodes[0]][-1:] if len(nodes) > 1 else self.works[nodes[0]]
        if "mlps" in nodes[1:]:
            groups = groups + self.works["mlps"][:1]
        loop = self.loop()
        tracer = self.tracer(groups)
        try:
            graph = mt.information_flow(groups, tracer, tokens=[1], min_share=0.0)
        except (mt.HookError, ValueError) as error:
            if not INSTEAD.search(str(error)):
                raise
            self.refused["flow"] = str(error)
            return
        by_name = {**dict(zip(groups.labels, groups.components, strict=True)), "answer": None}
        by_name["@1"] = mt.residual(self.model, [0], positions=[1]).components[0]
        for a, b, way, facts in graph.edges(keys=True, data=True):
            plain = loop.edge(by_name[a], by_name[b], way, self.outputs())
            self.same(f"flow {a} to {b} by {way}", facts["effect"], plain.mean())
        if not graph.number_of_edges():
            raise Wrong("flow: no edges")
        self.works["flow"] = groups

    def trace(self) -> None:
        """Cells of a causal trace, under noise of a fixed seed."""
        tokens, answer, span, samples = self.pairs[0].base, self.pairs[0].right, (1, 3), 2
        draw = torch.Generator().manual_seed(3)
        d_model = mt.ModelView(self.model).d_model
        embedding = self.embedding_width() or d_model
        shift = torch.stack([torch.randn(len(tokens), embedding, generator=draw) for _ in range(samples)])
        cells = [
            g for k, g in self.works.items() if k in ("heads", "mlps", "attn_layers", "residual:post", "residual:pre")
        ]
        if not cells:
            return
        groups = mt.HookGroups.of(self.model, dict.fromkeys(part.at(2).components[-1] for part in cells))
        noise = mt.NoiseCorruption(noise=1.0, std=1.0, seed=3)
        if not has_embeddings(mt.ModelView(self.model)):  # then refused, in words
            with pytest.raises(ValueError, match=r"token embeddings of .* cannot be corrupted"):
                mt.causal_trace(self.model, tokens, subject=span, answer=[answer], restore=groups, corruption=noise)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grid = mt.causal_trace(
                self.model, tokens, subject=span, answer=[answer], restore=groups, samples=samples, corruption=noise
            )
        plain = self.loop().traced(tokens, span, shift, answer, groups.components)
        self.same("causal trace", grid.restored.flatten(1), plain, unit=1e-12)  # probabilities may be small
        self.works["trace"] = groups

    def embedding_width(self) -> int | None:
        """Width of the token embeddings, which a projection may follow."""
        seen: list[int] = []
        name = "embed.hook_out" if "embed.hook_out" in self.model.hook_dict else "hook_embed"
        self.model.run_with_hooks(torch.tensor([[3]]), fwd_hooks=[(name, lambda act, hook: seen.append(act.shape[-1]))])
        return seen[0] if seen else None

    # ---------------------------------------------------------------------------------- all of it
    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """What is checked, in order."""
        kinds: list[tuple[str, Callable[[], None]]] = [(name, partial(self.kind, name)) for name in KINDS]
        return [
            *kinds,
            ("together", self.together),
            ("search", self.search),
            ("flow", self.flow),
            ("trace", self.trace),
        ]

    def run(self) -> Row:
        """Everything; at the end the model must be as it was, and what came out is a row of the table."""
        before = state_of(self.model)
        for _, step in self.steps():
            step()
            if not self.works and len(self.refused) == len(KINDS):
                break  # nothing to put together
        changed = [what for what, was in state_of(self.model).items() if was != before[what]]
        if changed:
            raise Wrong(f"the model came back with other {', '.join(changed)}")
        layers = mt.ModelView(self.model).n_layers if self.works else 0
        some = {k for k, g in self.works.items() if k in KINDS and len(set(g.first_layers.tolist())) < layers}
        names = tuple(k + "*" * (k in some) for k in self.works)
        return Row(names, {k: why(text) for k, text in self.refused.items()}, self.error)


@dataclass(frozen=True)
class Row:
    """What came out for one model.

    Attributes:
        works: kinds of components, ``flow`` and ``trace``; with an asterisk where some layers alone have them.
        refused: the others, with the reason in short.
        error: largest error.
    """

    works: tuple[str, ...]
    refused: dict[str, str]
    error: float

    @property
    def bound(self) -> str:
        """The power of ten that the error is below."""
        return f"1e{math.floor(math.log10(max(self.error, 1e-16))) + 1:03d}" if self.works else "–"


REASONS = {
    "no hook point": "no hook point",
    "ignores what": "edits ignored",
    "is the layer's output": "the hook is the layer's output",
    "returns something": "TransformerLens fails under edits",
    "no axis of prompts": "hook without an axis of prompts",
    "no edge can be drawn": "queries, keys or values have no hook point",
    "cut into": "hook is not cut by heads",
    "fired": "hook does not fire once",
    "one stack": "several stacks of blocks",
    "without a hook still": "a part of a block has no hook point",
    "by a part without": "a part of a block has no hook point",
}


def why(text: str) -> str:
    """A refusal in short."""
    return next(short for part, short in REASONS.items() if part in text)


def state_of(model: Any) -> dict[str, Any]:
    """All that a trace may touch."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    return {
        "hooks": {n: len(p.fwd_hooks) + len(p.bwd_hooks) for n, p in model.hook_dict.items()},
        "torch hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()},
        "shadowed": [n for n, m in model.named_modules() if "forward" in m.__dict__],
        "grad": {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "mode": {n: m.training for n, m in model.named_modules()},
        "hf": None if config is None else str(config.to_dict()),
        "cfg": str(vars(model.cfg)),
        "weights": {n: float(p.detach().double().sum()) for n, p in model.named_parameters()},
    }
