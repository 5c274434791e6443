"""What a model has at its hook points, seen in one small forward.

A configuration is no witness: an MLP may be wider than ``cfg.d_mlp``, a mixture of experts calls its output
``hook_post``, a hybrid has heads in some layers alone, and a latent attention's ``hook_z`` may be cut at another width
than a head's. So a prompt of three tokens is run once per model, and names, widths and firings are read from it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tl_multitrace.cost import HookError
from tl_multitrace.groups.component import SITES
from tl_multitrace.models.compat import ModelView
from tl_multitrace.models.stacks import architecture_of

CALLS: dict[tuple[str, str], str] = {
    ("head", "z"): "heads(model)",
    ("head", "pattern"): "heads(model, site='pattern')",
    ("neuron", "post"): "neurons(model)",
    ("mlp", "out"): "mlps(model)",
    ("mlp_dim", "out"): "mlp_dims(model)",
    ("attn", "out"): "attn_layers(model)",
    ("resid", "pre"): "residual(model)",
    ("resid", "mid"): "residual(model, site='mid')",
    ("resid", "post"): "residual(model, site='post')",
}
"""What to type for a kind of component."""

NOUN = {
    "head": "attention heads",
    "neuron": "neurons",
    "mlp": "MLP layers",
    "mlp_dim": "MLP output dimensions",
    "attn": "attention layers",
    "resid": "residual states",
}


TOKENS = 3
"""Length of the prompt that is run."""


class MissingError(HookError, ValueError):
    """A model has no such components, or no hook point that holds them and nothing else."""


_SEEN: weakref.WeakKeyDictionary[Any, tuple[Any, Points]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Points:
    """What was seen at the hook points of every kind of component.

    Attributes:
        name: the model's.
        n_layers: number of blocks.
        shapes: of the activations, by hook name, where a point fired once.
        fired: how often each point fired that exists.
        outputs: hook points of neurons that are their layer's output, and that output's name.
        broken: hook points at which TransformerLens fails when a hook returns something, and its error.
    """

    name: str
    n_layers: int
    shapes: Mapping[str, tuple[int, ...]]
    fired: Mapping[str, int]
    outputs: Mapping[str, str]
    broken: Mapping[str, str]

    @classmethod
    def of(cls, model: Any) -> Points:
        """What was seen in a model; one forward the first time, and again where its hook points have changed."""
        view = ModelView(model)
        names = [site.hook.format(layer=i) for site in SITES.values() for i in range(view.n_layers)]
        points = {name: view.point(name) for name in dict.fromkeys(names) if view.has_point(name)}
        state = ({name: id(p) for name, p in points.items()}, sum(p.numel() for p in model.parameters()))
        kept = _SEEN.get(model)
        if kept is None or kept[0] != state:
            kept = _SEEN[model] = (state, cls._seen(view, points))
        return kept[1]

    @classmethod
    def _seen(cls, view: ModelView, points: Mapping[str, Any]) -> Points:
        try:
            acts, broken = view.watched(points, TOKENS, back=points), {}
        except (ValueError, RuntimeError, TypeError, IndexError):  # of a hook whose value cannot be put back
            acts, broken = view.watched(points, TOKENS), dict(_broken(view, points))
        once = {name: found[0] for name, found in acts.items() if len(found) == 1}
        outputs = dict(_outputs(view.n_layers, points, once))
        fired = {name: len(found) for name, found in acts.items()}
        name = architecture_of(view.model) if view.name == "external" else view.name
        return cls(name, view.n_layers, {n: tuple(a.shape) for n, a in once.items()}, fired, outputs, broken)

    # ------------------------------------------------------------------ what there is

    def layers(self, kind: str, site: str) -> list[int]:
        """Blocks that have a kind of component."""
        return [layer for layer in range(self.n_layers) if self.missing(kind, site, layer) is None]

    def width(self, kind: str, site: str, layer: int) -> int:
        """How many components of a kind a block has; 1 where one is the whole vector.

        Raises:
            MissingError: none.
        """
        self.check(kind, site, layer)
        at = SITES[kind, site]
        return 1 if at.axis is None else self.shapes[at.hook.format(layer=layer)][at.axis]

    def size(self, kind: str, site: str) -> int:
        """The largest width in any block, 0 where none has such components."""
        return max((self.width(kind, site, layer) for layer in self.layers(kind, site)), default=0)

    # ------------------------------------------------------------------ what there is not

    def check(self, kind: str, site: str, layer: int | None = None) -> None:
        """Refuse components that a block, or every block, does not have.

        Raises:
            MissingError: with the reason, and what there is instead.
        """
        tried = [layer] if layer is not None else list(range(self.n_layers))
        reasons = [self.missing(kind, site, i) for i in tried]
        if not reasons or None in reasons:
            return
        what = NOUN[kind] + {"pattern": " at site 'pattern'", "mid": " at site 'mid'", "post": ""}.get(site, "")
        where = "" if layer is None else f" in layer {layer}"
        raise MissingError(f"{self.name} has no {what} to hook{where}: {reasons[0]} {self._instead(kind, site, tried)}")

    def missing(self, kind: str, site: str, layer: int) -> str | None:
        """Why a block has no such components, in words; None where it has."""
        at = SITES[kind, site]
        name = at.hook.format(layer=layer)
        if name not in self.fired:
            return f"TransformerLens has no hook point {name} there."
        if self.fired[name] != 1:
            return f"the hook {name} fired {self.fired[name]} times in a forward instead of once."
        if name in self.broken:
            return f"TransformerLens fails where a hook at {name} returns something ({self.broken[name]})."
        if name in self.outputs:
            return (
                f"{name} is the layer's output ({self.outputs[name]}), as it is in a mixture of experts, so that a "
                "neuron's number would name an output dimension."
            )
        return self._misshapen(kind, site, layer, name)

    def _misshapen(self, kind: str, site: str, layer: int, name: str) -> str | None:
        shape, at = self.shapes[name], SITES[kind, site]
        if not at.pattern and shape[:2] != (1, TOKENS):
            return f"{name} is of shape {list(shape)} for one prompt of {TOKENS} tokens: it has no axis of prompts."
        if at.axis is not None and len(shape) != (4 if kind == "head" else 3):
            return f"{name} is of shape {list(shape)}, which has no axis of {NOUN[kind]}."
        pattern = self.shapes.get(SITES["head", "pattern"].hook.format(layer=layer))
        if (kind, site) == ("head", "z") and pattern is not None and len(pattern) == 4 and pattern[1] != shape[2]:
            return (
                f"{name} is cut into {shape[2]} parts of {shape[3]} numbers, but the layer has {pattern[1]} heads (the "
                "width of a head is another than TransformerLens takes it to be), so that a part is not a head."
            )
        return None

    def _instead(self, kind: str, site: str, layers: list[int]) -> str:
        """What to use: the same in other layers, and what these layers have, the most alike first."""
        own = {"neuron": ("mlp_dim", "mlp"), "head": ("head", "attn")}.get(kind, ())
        there = [key for key in SITES if any(self.missing(*key, i) is None for i in layers)]
        there.sort(key=lambda key: key[0] not in own)
        calls = list(dict.fromkeys(CALLS[k, "out" if s == "inner" else s] for k, s in there))
        elsewhere = [f"layers={self.layers(kind, site)}"] if self.layers(kind, site) else []
        return f"Use {' or '.join([*elsewhere, *([', '.join(calls)] if calls else [])]) or 'another model'}."


def _broken(view: ModelView, points: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Hook points of the kinds at which a hook cannot return anything."""
    for site in SITES.values():
        names = [name for i in range(view.n_layers) if (name := site.hook.format(layer=i)) in points]
        try:
            view.watched(names, TOKENS, back=names)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            yield from ((name, f"{type(error).__name__}: {error}") for name in names)


def _outputs(n_layers: int, points: Mapping[str, Any], acts: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Hook points of neurons that hold what their layer gives out: the same point, or the same numbers."""
    for layer in range(n_layers):
        own, *others = (
            SITES[key].hook.format(layer=layer) for key in (("neuron", "post"), ("mlp", "out"), ("mlp", "inner"))
        )
        for other in others:
            if own in points and other in points and (points[own] is points[other] or _equal(acts, own, other)):
                yield own, other
                break


def _equal(acts: Mapping[str, Tensor], one: str, other: str) -> bool:
    if one not in acts or other not in acts or acts[one].shape != acts[other].shape:
        return False
    return bool((acts[one] != 0).any()) and torch.equal(acts[one], acts[other])
