"""A found set put to use: its components switched off, or pushed, in any run of the model, generation included.

    ablate    act <- mean over reference prompts, or 0
    steer     act <- act + strength * (mean over source prompts - mean over base prompts)

Both hold at every position and in every forward, so that they need neither lengths nor padding, and mean the same with
and without a cache of keys and values. The second is activation addition (Turner et al. 2023, arXiv:2308.10248) with
the difference in means as its vector, at the chosen components alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_multitrace.engine.means import mean_activations
from tl_multitrace.groups import SITES, Component, HookGroups
from tl_multitrace.interventions import Run
from tl_multitrace.metrics import AnswerLogProb
from tl_multitrace.models.compat import HookFn, ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.validate import check_inputs

How = Literal["mean", "zero"]
Values = Mapping[str, Float[Tensor, "..."]]
"""Per hook name a vector that stands for every position: ``[head, d_head]``, ``[d_mlp]`` or ``[d_model]``."""


@dataclass(frozen=True, repr=False, eq=False)  # two switches are the same only if they are one
class Switch:
    """Components of one model, held at something else for as long as wanted.

    As a context manager it gives the model with its hooks attached; other hooks on the model stay, and these come off
    at the end of the block, also after an exception. It can be used again, and inside other switches. Whatever runs the
    model meanwhile, in other threads too, runs it switched; a tracer made before refuses.

    Attributes:
        model: whose components they are.
        groups: the components, at every position.
        hooks: what happens at each hook point, by hook name.
        what: in words, such as ``"mean ablation"``.

    Examples:
        >>> tokens = model.to_tokens("The nurse said that")
        >>> with circuit.ablate(model) as switched:
        ...     off = switched(tokens)
        >>> by_hooks = model.run_with_hooks(tokens, fwd_hooks=circuit.ablate(model).fwd_hooks)
        >>> bool((off == by_hooks).all()), bool((off == model(tokens)).all())
        (True, False)
    """

    model: Any
    groups: HookGroups
    hooks: Mapping[str, HookFn]
    what: str
    _open: list[AbstractContextManager[None]] = field(default_factory=list)

    @property
    def fwd_hooks(self) -> list[tuple[str, HookFn]]:
        """The hooks as ``model.run_with_hooks(tokens, fwd_hooks=...)`` and ``model.hooks(fwd_hooks=...)`` take them."""
        return list(self.hooks.items())

    @property
    def components(self) -> tuple[Component, ...]:
        """What is switched."""
        return self.groups.components

    def __enter__(self) -> Any:
        attached = ModelView(self.model).attached(self.fwd_hooks)
        attached.__enter__()
        self._open.append(attached)
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.pop().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        names = [replace(c, position=None).label for c in self.components]
        listed = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        return f"Switch({self.what} of {len(names)} components of {ModelView(self.model).name}: {listed})"


def ablation(model: Any, groups: HookGroups, how: How, reference: PromptPairs | None) -> Switch:
    """See :meth:`tl_multitrace.Circuit.ablate`; ``groups`` as :func:`switched_groups` makes them."""
    if how not in ("mean", "zero"):
        raise ValueError(f"unknown ablation {how!r}: use 'mean' or 'zero'.")
    if how == "mean" and reference is None:
        raise ValueError(missing_reference("a mean ablation"))
    view = ModelView(model)
    values: Values = dict.fromkeys(groups.names_filter, torch.zeros((), device=view.device))
    if reference is not None and how == "mean":
        _check(view, groups, reference)
        values = means(view, groups.names_filter, reference.source_tokens, reference.source_lengths)
    hooks = {name: _setter(values[name], chosen) for name, chosen in _places(groups, view.device).items()}
    return Switch(model, groups, hooks, f"{how} ablation")


def steering(model: Any, groups: HookGroups, strength: float, reference: PromptPairs | None) -> Switch:
    """See :meth:`tl_multitrace.Circuit.steer`; ``groups`` as :func:`switched_groups` makes them."""
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength!r}.")
    if reference is None:
        raise ValueError(missing_reference("steering"))
    _check_differ(reference)
    view, names = ModelView(model), groups.names_filter
    _check(view, groups, reference)
    source = means(view, names, reference.source_tokens, reference.source_lengths)
    base = means(view, names, reference.base_tokens, reference.lengths)
    moves = {
        name: strength * (source[name] - base[name]) * chosen[: source[name].shape[0]]
        for name, chosen in _places(groups, view.device).items()
    }
    return Switch(model, groups, {name: _adder(move) for name, move in moves.items()}, f"steering by {strength:g}")


def switched_groups(model: Any, components: Iterable[Component], *, everywhere: bool = False) -> HookGroups:
    """The activations that stand for some components when they are switched, at every position.

    An attention pattern is no vector that a mean could stand for in a run of any length: a head found at its pattern is
    switched at its output ``z``.

    Raises:
        ValueError: a component is restricted to some positions, and ``everywhere`` is False; or there is none.
    """
    listed = list(dict.fromkeys(components))
    if not listed:
        raise ValueError("the circuit has no components: there is nothing to switch.")
    bound = [c for c in listed if c.position not in (None, "everywhere")]
    if bound and not everywhere:
        raise ValueError(
            f"{bound[0].label} is restricted to position {bound[0].position!r}, which other prompts and generated text "
            "do not have. Pass everywhere=True to switch it at every position."
        )
    parts = [Component(c.kind, c.layer, c.index, "everywhere", "z" if c.kind == "head" else c.site) for c in listed]
    return HookGroups.of(model, dict.fromkeys(parts))


def missing_reference(what: str) -> str:
    """What to do where a circuit carries no prompts."""
    return (
        f"{what} needs prompts to take means over, and this circuit carries none (a circuit from a file does not): "
        "pass reference=pairs, such as the PromptPairs it was found on."
    )


def means(
    view: ModelView, names: Iterable[str], tokens: Int[Tensor, "n pos"], lengths: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "..."]]:
    """Mean activation at hook points over all tokens of some right-padded prompts, in float32 or the model's float64.

    Raises:
        HookError: a hook point does not fire.
        NonFiniteError: a mean is not finite.
    """
    dtype = torch.float64 if view.dtype == torch.float64 else torch.float32
    found = mean_activations(view, dict.fromkeys(names, False), Run(tokens, lengths))
    return {name: mean.to(dtype) for name, mean in found.items()}


# ---------------------------------------------------------------------- what the hooks do


def _places(groups: HookGroups, device: torch.device) -> dict[str, Bool[Tensor, "..."]]:
    """Per hook name, which places of an activation's vector are switched; broadcasts over batch and positions."""
    made: dict[str, Tensor] = {}
    for c in groups.components:
        size = groups.sizes[c.kind, c.site] if SITES[c.kind, c.site].axis is not None else 1
        chosen = torch.zeros(size, dtype=torch.bool, device=device)
        chosen[c.index or 0] = True
        chosen = chosen[:, None] if c.kind == "head" else chosen
        # a whole layer and one of its dimensions may meet at one hook point: each place is then switched once
        made[c.hook_name] = made[c.hook_name] | chosen if c.hook_name in made else chosen
    return made


def _setter(value: Tensor, chosen: Tensor) -> HookFn:
    def set_value(act: Tensor, hook: Any = None) -> Tensor:
        return torch.where(_fitting(chosen, act).to(act.device), value.to(act), act).contiguous()

    return set_value


def _fitting(chosen: Tensor, act: Tensor) -> Tensor:
    """As many places as an activation has, of a table that is made for the widest layer."""
    return chosen[: act.shape[2]] if len(chosen) > 1 else chosen


def _adder(move: Tensor) -> HookFn:
    def add(act: Tensor, hook: Any = None) -> Tensor:
        return (act + move.to(act)).contiguous()

    return add


def _check(view: ModelView, groups: HookGroups, reference: PromptPairs) -> None:
    check_inputs(view, reference, groups, AnswerLogProb())


def _check_differ(reference: PromptPairs) -> None:
    same = torch.equal(reference.lengths, reference.source_lengths)
    if same and torch.equal(reference.base_tokens, reference.source_tokens):
        raise ValueError(
            "base and source prompts are the same texts, so there is no direction to steer in (the circuit was found "
            "with noise or averages). Pass reference=pairs whose base and source differ."
        )
