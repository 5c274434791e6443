"""Answer logits in float32 from a model of lower precision.

A bfloat16 model rounds its logits to steps of 1/16 to 1/8 nat: effects then come in such steps, and move with the
batch. What goes into the unembedding has no such steps, since thousands of its rounded numbers make up a logit. So the
unembedding alone is done once more in float32, of the few rows that are read, with whatever the model does to its
logits afterwards. It is tried against the model's own logits before it is trusted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.models.compat import ModelView

logger = logging.getLogger(__name__)

KEPT = 1 << 29
"""Bytes of float32 weights that are kept; larger ones are converted part by part at every use."""

PART = 1 << 14
"""Token ids per part."""

ROUNDINGS = 4
"""Roundings by which the model's own logits may differ: of the product, the bias, a scale, a cap."""


@dataclass(eq=False)
class Float32Unembed:
    """The unembedding of a model, in float32.

    Attributes:
        weight: ``[d_model, d_vocab]``, in the model's own dtype.
        bias: ``[d_vocab]``, or None.
        scale: what logits are multiplied by.
        cap: soft cap of logits, ``cap * tanh(logits / cap)``; 0 for none.
        on: whether it was tried and found to be the model's own unembedding.
    """

    weight: Float[Tensor, "d_model d_vocab"]
    bias: Float[Tensor, " d_vocab"] | None = None
    scale: float = 1.0
    cap: float = 0.0
    on: bool = False
    _kept: Tensor | None = field(default=None, repr=False)

    def __call__(self, act: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Logits of what goes into the unembedding, in float32; differentiable.

        Args:
            act: what leaves :attr:`~tl_multitrace.models.compat.ModelView.unembed_input`, in the model's dtype.
        """
        values = act.float()
        logits = torch.cat([values @ part for part in self._parts(act.device)], -1)
        if self.bias is not None:
            logits = logits + self.bias.to(act.device, torch.float32)
        logits = logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits

    def _parts(self, device: torch.device) -> Iterator[Tensor]:
        if 4 * self.weight.numel() > KEPT:
            yield from (part.to(device, torch.float32) for part in self.weight.detach().split(PART, 1))
            return
        if self._kept is None or self._kept.device != device:
            self._kept = self.weight.detach().to(device, torch.float32)
        yield self._kept

    def tried(self, act: Float[Tensor, "... d_model"], logits: Float[Tensor, "... d_vocab"]) -> bool:
        """Compare with the model's own logits, and switch on where they are the same up to its rounding.

        Where they are not, a warning says so, and in what steps effects will come.

        Args:
            act: what went into the model's unembedding.
            logits: what it gave.
        """
        step = rounding_step(logits)
        try:
            error = float((self(act) - logits.float()).detach().abs().max())
        except RuntimeError as failed:  # another shape than an unembedding has
            why = str(failed).splitlines()[0]
        else:
            self.on, why = error <= ROUNDINGS * step, f"logits differ by {error:.3g}"
        if not self.on:
            logger.warning(
                "answer logits stay in %s, since float32 ones from the last residual are not this model's (%s): "
                "metrics in nats come in steps of about %.2g. Load the model with dtype=torch.float32 for finer ones.",
                str(logits.dtype).removeprefix("torch."),
                why,
                step,
            )
        return self.on


def rounding_step(logits: Tensor) -> float:
    """The distance between neighbouring numbers of the logits' dtype at the largest of them, in nats."""
    largest = float(logits.detach().float().nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.finfo(logits.dtype).eps * 2.0 ** math.floor(math.log2(max(largest, 2.0**-14)))


def float32_unembed(view: ModelView) -> Float32Unembed | None:
    """The unembedding of a model in float32, to be :meth:`tried <Float32Unembed.tried>`; None where it is that already.

    Args:
        view: the model.
    """
    if view.dtype not in (torch.bfloat16, torch.float16):
        return None
    weight = getattr(view.model, "W_U", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.is_meta:
        logger.warning("answer logits stay in %s: this model shows no unembedding matrix (W_U).", view.dtype)
        return None
    bias = getattr(view.model, "b_U", None)
    own = bias if isinstance(bias, Tensor) and bias.shape == weight.shape[1:] and bool(bias.any()) else None
    return Float32Unembed(weight, own, *_after_unembedding(view))


def _after_unembedding(view: ModelView) -> tuple[float, float]:
    """What a model multiplies its logits by, and their soft cap, by its configuration."""
    hugging_face = getattr(getattr(view.model, "original_model", None), "config", None)

    def number(*names: str) -> float:
        found: Any = [getattr(config, name, None) for config in (hugging_face, view.model.cfg) for name in names]
        return next((float(x) for x in found if isinstance(x, int | float) and not isinstance(x, bool) and x > 0), 0.0)

    divided = number("logits_scaling")
    scale = 1 / divided if divided else number("logit_scale") or 1.0
    return scale, number("final_logit_softcapping", "output_logits_soft_cap")
