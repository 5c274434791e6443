"""What an objective asks of each of its tracers: derivatives, predictions of single changes, resampled changes."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.copies import copies_of
from tl_multitrace.engine.batches import predicted
from tl_multitrace.objective.goals import Term
from tl_multitrace.objective.reduce import Mean
from tl_multitrace.records.stats import Score, around, middle, redrawn_rows, score_draws
from tl_multitrace.tracer import Tracer

RESAMPLES = 1000
VALUES = 1 << 22
"""Predicted values held at a time."""


def key_of(mask: Float[Tensor, " groups"]) -> bytes:
    """A mask as a key: a bit per entry of a binary one, every number of a soft one."""
    values = mask.double().cpu().numpy()
    on = values > 0.5
    return np.packbits(on).tobytes() if np.array_equal(on, values) else values.tobytes()


def set_of(key: bytes, n: int) -> tuple[int, ...] | None:
    """The entries of the binary mask of a key; None for a soft mask's."""
    if len(key) == 8 * n:  # eight bytes an entry
        return None
    return tuple(int(i) for i in np.flatnonzero(np.unpackbits(np.frombuffer(key, np.uint8))[:n]))


def linear(
    tracer: Tracer, mask: Float[Tensor, " groups"], dtype: torch.dtype | None
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n groups"]]:
    """Per-example effects at a soft mask and their derivatives, in float64 on the CPU."""
    effects, gradient = tracer.effect_and_gradient(mask, dtype=dtype)
    return effects.double().cpu(), gradient.double().cpu()


def switched(
    tracer: Tracer, mask: Float[Tensor, " groups"], dtype: torch.dtype | None
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n groups"]]:
    """Per-example effects at a binary mask, and as predicted after switching each entry."""
    inner, slope = tracer.effect_and_gradient(mask, inner=True, as_reference=True, dtype=dtype)
    here, moved = predicted(tracer.metric.surrogate, inner, slope, mask)
    base = tracer.base_metric.to(inner)
    return (here - base).double().cpu(), (moved - base[:, None]).double().cpu()


def changes_of(term: Term, moved: Float[Tensor, "n groups"]) -> Float[Tensor, " groups"]:
    """The term's change for each column of predicted effects."""
    parts = moved.T.split(max(1, VALUES // max(1, len(moved))))
    return torch.cat([term.changes(part) for part in parts])


def resampled(term: Term, effects: Float[Tensor, " n"], seed: int) -> tuple[Score, Float[np.ndarray, " draws"]]:
    """The term's change with its bootstrap interval over distinct prompts, and the draws behind it."""
    change, values, copies = float(term.changes(effects[None])), effects.numpy(), copies_of(term.tracer)
    key = [seed, zlib.crc32(term.name.encode())]
    if isinstance(term.reduce, Mean):
        score = Score.of(values, copies=copies, weighted=True, seed=key, resamples=RESAMPLES)
        return score, score_draws(values, copies, key, RESAMPLES)
    draws = np.array([_redrawn(term, effects, rows) for rows in redrawn_rows(copies, key, RESAMPLES)])
    n = len(np.unique(copies))
    low, high = around(change, *map(float, middle(draws))) if n > 1 else (None, None)
    return Score(change, low, high, change, n), draws


def _redrawn(term: Term, effects: Float[Tensor, " n"], row: Int[np.ndarray, " n"]) -> float:
    """The change on examples drawn with repetition."""
    base, labels = term.tracer.base_metric.to(effects)[row], term.tracer.pairs.labels
    own = tuple(labels[i] for i in row.tolist()) if labels else ()
    return float(term.reduce((effects[row] + base)[None], base, own))
