"""What the blocks of a model add to its residual stream, as hook points, and whether that is all there is.

An edge is what a sender does with nothing in between, so every output of a block is kept while its receivers read. A
hybrid adds the outputs of its state space layers, convolutions or linear attentions where others add attention's; a
model may add more than TransformerLens has hook points for. So it is tried out, once per model, on a few tokens: with
every output kept, a token must reach itself alone, and unchanged but for a factor or the norms of post-norm blocks.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tl_multitrace.cost import HookError
from tl_multitrace.groups.component import SITES
from tl_multitrace.groups.points import Points
from tl_multitrace.models.compat import BLOCK_INPUT, ModelView

_TRIED: weakref.WeakKeyDictionary[Any, tuple[Points, Outputs, str | None]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Outputs:
    """Hook points at which blocks add to the residual stream.

    Attributes:
        attention: attention layers' outputs.
        mlp: MLP layers' outputs.
        other: of whatever else blocks have, such as state space layers.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    other: tuple[str, ...]

    @classmethod
    def of(cls, model: Any) -> Outputs:
        """Those of a model; a few tokens are run the first time.

        Raises:
            HookError: something in a block reads the residual stream and cannot be kept.
        """
        seen = Points.of(model)
        kept = _TRIED.get(model)
        if kept is None or kept[0] is not seen:
            kept = _TRIED[model] = seen, *_tried(ModelView(model), seen)
        _, found, leak = kept
        if leak is not None:
            raise HookError(
                f"effects along single paths cannot be measured on {seen.name}: {leak} Effects of whole components "
                "need no such hook points: use select, tracer.effects or causal_trace with the heads, mlps or residual "
                "states that it has."
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter((*self.attention, *self.mlp, *self.other))


def _tried(view: ModelView, seen: Points) -> tuple[Outputs, str | None]:
    """The outputs of a model's blocks, and what still acts on the residual stream with all of them kept."""
    attention, mlp = (
        tuple(SITES[kind, "out"].hook.format(layer=i) for i in seen.layers(kind, "out")) for kind in ("attn", "mlp")
    )
    trial = _Trial.of(view, (*attention, *mlp))
    if trial is None:
        return Outputs(attention, mlp, ()), f"TransformerLens has no hook point {BLOCK_INPUT.format(layer=0)} there."
    alone = trial.moved(())
    if trial.leak(alone) is None:
        return Outputs(attention, mlp, ()), None
    # a part that is inside what is kept already changes nothing, and must not be kept: a receiver may be made of it
    parts = [names for names in _parts(trial) if not torch.equal(trial.moved(names), alone)]
    other = tuple(name for names in parts for name in names)
    return Outputs(attention, mlp, other), trial.leak(trial.moved(other))


def _parts(trial: _Trial) -> list[list[str]]:
    """Outputs of parts of blocks, part by part; no norms, and not attention or MLP where their output is known."""
    found: dict[str, list[str]] = {}
    known = {name.replace("hook_", "").replace("_out", ".hook_out") for name in trial.kept}
    points, kept = trial.view.points(), {id(trial.view.point(name)) for name in trial.kept}
    for name in trial.base:
        match = re.fullmatch(r"blocks\.\d+\.(\w+)\.hook_out", name)
        if match and name not in known and id(points[name]) not in kept and not re.search(r"norm|^(pre_)?ln", match[1]):
            found.setdefault(match[1], []).append(name)
    return list(found.values())


@dataclass(frozen=True)
class _Trial:
    """A run of a few tokens, and the same with another embedding of the first one.

    Attributes:
        view: the model.
        kept: hook points whose activations stay the base run's.
        base: activations of the base run.
        changed: what is put in as the first block's input.
        end: hook point of the last block's output.
    """

    view: ModelView
    kept: tuple[str, ...]
    base: Mapping[str, Tensor]
    changed: Tensor
    end: str

    @classmethod
    def of(cls, view: ModelView, kept: tuple[str, ...]) -> _Trial | None:
        """Run the base prompt; None without a hook point at the first block's input."""
        last = f"blocks.{view.n_layers - 1}"
        wanted = rf"blocks\.\d+\.\w+\.hook_out|{last}\.\w*norm\w*|{last}\.hook_resid_post"
        names = [n for n in view.points() if re.fullmatch(wanted, n)]
        base = _run(view, [BLOCK_INPUT.format(layer=0), view.unembed_input, *kept, *names])
        if BLOCK_INPUT.format(layer=0) not in base:
            return None
        changed = base[BLOCK_INPUT.format(layer=0)].clone()
        changed[:, 0] = torch.randn(changed[:, 0].shape, generator=torch.Generator().manual_seed(0)).to(changed)
        end = f"{last}.hook_resid_post"
        return cls(view, kept, base, changed, end if end in base else view.unembed_input)

    def moved(self, more: Iterable[str]) -> Tensor:
        """Change of the last block's output with the kept activations, and more of them, as they were."""
        put = {BLOCK_INPUT.format(layer=0): self.changed, **{name: self.base[name] for name in (*self.kept, *more)}}
        return (_run(self.view, [self.end], put)[self.end] - self.base[self.end]).double()

    def leak(self, moved: Tensor) -> str | None:
        """What reaches the last block's output that should not, in words."""
        sent = (self.changed - self.base[BLOCK_INPUT.format(layer=0)]).double()
        size = 1e-3 * float(sent.abs().max())
        if float(moved[:, 1:].abs().max()) > size:
            return "with all outputs of its blocks kept, a token still acts on later ones, by a part without a hook."
        factor = (moved * sent).sum() / (sent * sent).sum()
        straight = float((moved - factor * sent).abs().max()) <= size
        if not straight and not self._post_norm():
            return "with every output of its blocks kept, a part without a hook still adds to the residual stream."
        return None

    def _post_norm(self) -> bool:
        """Whether the last block's output is that of a norm, which then stands between any two blocks."""
        end = self.base[self.end]
        names = [n for n in self.base if re.search(r"norm|\.(pre_)?ln", n) and n != self.end]
        return any(self.base[n].shape == end.shape and torch.equal(self.base[n], end) for n in names)


def _run(view: ModelView, names: Iterable[str], put: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Activations of a few tokens, with given values in some places."""
    seen = view.watched(dict.fromkeys(names), 4, put)
    return {name: found[-1] for name, found in seen.items() if found and isinstance(found[-1], Tensor)}
