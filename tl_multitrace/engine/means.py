"""Mean activations over prompts: what mean ablations put in, in a search and in a user's own runs alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.cost import NonFiniteError
from tl_multitrace.engine.forward import Forward, run, session
from tl_multitrace.engine.trials import trials_of
from tl_multitrace.interventions import Run
from tl_multitrace.models.compat import ModelView
from tl_multitrace.rows import Attention

CHUNK = 32
"""Prompts per forward."""


def mean_activations(
    view: ModelView, patterns: Mapping[str, bool], prompts: Run, *, per_position: bool = False, chunk: int = CHUNK
) -> dict[str, Float[Tensor, "..."]]:
    """Mean activation at hook points over the tokens of some right-padded prompts, summed in float64.

    Args:
        view: the model.
        patterns: the hook points, and which of them are attention weights ``[rows, head, dest, src]``.
        prompts: tokens, lengths and, where it is to be added, noise.
        per_position: one mean per position, ``[pos, ...]``, instead of one over all tokens. Attention weights always
            have one per destination and source, ``[head, dest, src]``.
        chunk: prompts per forward.

    Raises:
        HookError: a hook point does not fire.
        NonFiniteError: an activation is not finite.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    width = prompts.tokens.shape[1]
    _ = trials_of(view, prompts.tokens[0, : prompts.lengths[0]].tolist()).padding
    with session(view), torch.no_grad():
        for first in range(0, len(prompts.tokens), chunk):
            part = _plain(view, prompts.picked(torch.arange(first, min(first + chunk, len(prompts.tokens)))))
            assert part.attention.mask is not None
            for name, act in run(view, replace(part, keep=frozenset(patterns))).kept.items():
                refuse_non_finite(act, f"the run that means are taken of is not finite at {name}", first)
                _accumulate(name, act, part.attention.mask.to(act.device), patterns[name], width, sums, counts)
    by_position = {name: patterns[name] or per_position for name in sums}
    return {
        name: total / counts[name].clamp_min(1) if by_position[name] else total.sum(0) / counts[name].sum(0)
        for name, total in sums.items()
    }


def _plain(view: ModelView, prompts: Run) -> Forward:
    """A run of prompts, as wide as the longest, without logits to speak of."""
    width, device = int(prompts.lengths.max()), view.device
    real = (torch.arange(width) < prompts.lengths[:, None]).long().to(device)
    one = torch.zeros(1, dtype=torch.long, device=device)
    return Forward(
        tokens=prompts.tokens[:, :width].to(device),
        attention=Attention(real),
        noise=None if prompts.noise is None else prompts.noise[:, :width].to(device),
        replaced=None if prompts.replaced is None else prompts.replaced[:, :width].to(device),
        reads=(one, one),
    )


def _accumulate(
    name: str,
    value: Tensor,
    real: Tensor,
    pattern: bool,
    full: int,
    sums: dict[str, Tensor],
    counts: dict[str, Tensor],
) -> None:
    value, weight = value.double(), real.double()
    if pattern:
        seen = weight[:, None, :, None] * weight[:, None, None, :]
        missing = full - value.shape[-1]
        pad = [0, missing, 0, missing]
    else:
        seen = weight.reshape(*weight.shape, *[1] * (value.ndim - 2))
        pad = [0, 0] * (value.ndim - 2) + [0, full - value.shape[1]]
    total, count = (torch.nn.functional.pad(x.sum(0), pad) for x in (value * seen, seen))
    sums[name] = sums[name] + total if name in sums else total
    counts[name] = counts[name] + count if name in counts else count


def refuse_non_finite(value: Tensor, what: str, first: int | None = None) -> None:
    """Refuse a tensor that is not finite: a mean of it, or a value for every prompt, would spoil all of them.

    Args:
        value: rows of prompts, or one value for all.
        what: it is, for the message.
        first: number of the first prompt, where its rows are prompts.

    Raises:
        NonFiniteError: it is not.
    """
    if bool(value.isfinite().all()):
        return
    if first is None:
        raise NonFiniteError(f"{what} are not finite in {value.dtype}. Look at what they were computed from.")
    row = first + int((~value.isfinite()).flatten(1).any(1).nonzero()[0])
    raise NonFiniteError(f"{what}, prompt {row}. Check the weights and the reference prompts.")
