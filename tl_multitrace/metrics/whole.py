"""Metrics of the whole distribution or a whole text, against the base run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.metric_base import Metric


@dataclass(frozen=True)
class Perplexity(Metric):
    """Relative change of the perplexity of a text: ``perplexity(mask) / perplexity(base) - 1``.

    The text is each pair's answer, scored token by token behind its prompt: ``perplexity = exp(-mean log p)``. Above 0:
    the mask makes the model worse at the text; 0.02 is a rise of 2 %. Components have to cover the answer's tokens
    too (``groups.at("everywhere")``). The mean over texts is at least the change of the perplexity of all texts
    together, ``exp(mean change in nats) - 1``.

    Examples:
        >>> text = mt.task("neutral_text", model, n=8)
        >>> heads = mt.heads(model).at("everywhere")
        >>> tracer = mt.Tracer(model, text.pairs, heads, mt.Perplexity(), mt.ZeroAblation())
        >>> round(tracer.effect(["L0H3@everywhere"]).mean().item(), 2)
        -0.0
    """

    name: ClassVar[str] = "perplexity"
    unit: ClassVar[str] = "relative change of perplexity"
    relative: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """Rise of ``-mean log p``, in nats per token."""
        return base.grouped("mean")[0] - out.grouped("mean")[0]

    def outer(self, inner: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``exp(rise) - 1``."""
        return torch.expm1(inner)

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """``1 / (1 + effect)``; minimised: ``1 + effect``."""
        return 1 / (1 + effect) if sign > 0 else 1 + effect

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean 1/(1+effect)"


@dataclass(frozen=True)
class KLDivergence(Metric):
    """``KL(base || run)`` of the next token at the answer position. Unit: nats; 0 where nothing changed.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.KLDivergence())
        >>> nothing, one = tracer.effects([0 * tracer.groups.as_mask(["L0H3"]), ["L0H3"]]).mean(1)
        >>> round(nothing.item(), 1), round(one.item(), 1)
        (0.0, 2.7)
    """

    name: ClassVar[str] = "kl_divergence"
    unit: ClassVar[str] = "nats"
    needs_last: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    def inner(self, out: Answers, base: Answers) -> Float[Tensor, " n"]:
        """See the class."""
        assert out.last is not None and base.last is not None
        # a token that the base run gives no probability at all (some models mask parts of their vocabulary) adds 0
        change = (base.last - out.last).masked_fill(base.last == -torch.inf, 0.0)
        return (base.last.exp() * change).sum(-1)

    def loss(self, effect: Float[Tensor, " n"], sign: int = 1) -> Float[Tensor, " n"]:
        """``1 / (1 + KL)``; minimised: ``KL / (1 + KL)``."""
        return 1 / (1 + effect) if sign > 0 else effect / (1 + effect)

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        return "mean 1/(1+KL)"
