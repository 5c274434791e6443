"""What a subset search aims at: one number per set, higher is better or lower is, and the derivatives that lead there.

A search needs little of a tracer: mean effects of sets, a derivative to the mask, a prediction of what single changes
do, and the bounded loss of gradient solvers. An :class:`Aim` is just that. A tracer with its metric is one
(:class:`TracerAim`); several tracers with weights and bounds are another (:class:`~tl_multitrace.Objective`).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace._version import __version__
from tl_multitrace.copies import copies_of, distinct
from tl_multitrace.metrics import Metric
from tl_multitrace.records.stats import Score
from tl_multitrace.tracer import Tracer


@runtime_checkable
class Aim(Protocol):
    """What a search asks for: numbers of masks over the hook groups of a tracer or an objective.

    Everywhere, a ``sign`` of 1 means that the number is to rise and -1 that it is to fall; ``dtype`` is a lower
    precision to run the model in, for ranking only; and ``pressure`` is the share of the penalty for broken bounds that
    is charged.

    Examples:
        >>> from tl_multitrace.objective import Aim, aim_of
        >>> isinstance(aim_of(tracer), Aim)
        True
    """

    @property
    def tracers(self) -> tuple[Tracer, ...]:
        """What is run; circuits are shown, and judged, with the first one's metric."""
        ...

    @property
    def loss_name(self) -> str:
        """Formula of :meth:`loss`."""
        ...

    @property
    def has_bounds(self) -> bool:
        """Whether :meth:`holds` has to be asked."""
        ...

    def means(
        self,
        masks: Float[Tensor, "k groups"],
        reference: Float[Tensor, " groups"] | None = None,
        pressure: float = 1.0,
    ) -> Float[np.ndarray, " k"]:
        """The number per binary mask, exact; without ``pressure`` the effect that results report.

        Masks that differ little from the reference restart from the first block where they do.
        """
        ...

    def holds(self, mask: Float[Tensor, " groups"]) -> bool:
        """Whether a binary mask that :meth:`means` has seen is within every bound."""
        ...

    def slope(self, mask: Float[Tensor, " groups"], dtype: torch.dtype | None = None) -> Float[np.ndarray, " groups"]:
        """Derivative of the number to every entry of a soft mask."""
        ...

    def gains(
        self, mask: Float[Tensor, " groups"], sign: int, dtype: torch.dtype | None = None, pressure: float = 1.0
    ) -> Float[np.ndarray, " groups"]:
        """Predicted gain, times ``sign``, of switching each entry of a binary mask."""
        ...

    def loss(self, mask: Any, sign: int) -> float:
        """The bounded loss that gradient solvers minimise, of a soft mask."""
        ...

    def loss_gradient(self, mask: Float[Tensor, " groups"], sign: int, examples: Tensor) -> Float[Tensor, " groups"]:
        """Its derivative at a soft mask, on the examples of these numbers."""
        ...

    def measure(self, mask: Float[Tensor, " groups"], sign: int, seed: int = 0) -> Score:
        """The number of one mask with its interval, a bootstrap from the seed."""
        ...

    def goal_scores(self, mask: Float[Tensor, " groups"], seed: int = 0) -> dict[str, Score]:
        """What it is made of, by name; empty where it is one metric's mean."""
        ...

    def on(self, held_out: Any) -> Aim:
        """The same aim on other prompts; of an objective, a mapping from names of goals and constraints to prompts."""
        ...

    def provenance(self) -> dict[str, Any]:
        """What a result must say about where it comes from."""
        ...


def aim_of(target: Any) -> Aim:
    """The aim of a :class:`~tl_multitrace.Tracer`, or an :class:`~tl_multitrace.Objective` itself.

    Raises:
        TypeError: neither.

    Examples:
        >>> from tl_multitrace.objective import aim_of
        >>> aim_of(tracer).has_bounds
        False
    """
    if hasattr(target, "goal_scores"):
        aim: Aim = target
        return aim
    if not hasattr(target, "effects"):
        raise TypeError(f"expected a Tracer or an Objective to search on, got {type(target).__name__}.")
    return TracerAim(target)


class EffectMemo:
    """The latest effect of each tracer, so that score, interval and loss of one mask cost one run."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, Tensor]] = {}

    def effect(self, tracer: Tracer, mask: Any) -> Float[Tensor, " n"]:
        """Per-example effects of a mask."""
        values = tracer.groups.as_mask(mask)
        key = values.cpu().numpy().tobytes()
        if self._known.get(id(tracer), (b"",))[0] != key:
            self._known[id(tracer)] = key, tracer.effects([values])[0]
        return self._known[id(tracer)][1]

    def forget(self) -> None:
        """Drop them."""
        self._known.clear()


class TracerAim:
    """The mean effect of one tracer.

    Examples:
        >>> from tl_multitrace.objective import TracerAim
        >>> aim = TracerAim(tracer)
        >>> aim.means(tracer.groups.as_masks([["L0H3"], ["L0H1", "L0H3"]])).round().tolist()
        [340.0, 416.0]
    """

    has_bounds = False

    def __init__(self, tracer: Tracer) -> None:
        self.tracer, self.tracers = tracer, (tracer,)
        self._memo = EffectMemo()

    @property
    def metric(self) -> Metric:
        """The metric that gradients are taken of."""
        return self.tracer.metric.surrogate

    @property
    def loss_name(self) -> str:
        """The metric's."""
        return self.metric.loss_name

    def means(
        self,
        masks: Float[Tensor, "k groups"],
        reference: Float[Tensor, " groups"] | None = None,
        pressure: float = 1.0,
    ) -> Float[np.ndarray, " k"]:
        """Mean effects."""
        return np.asarray(self.tracer.effects(masks, reference=reference).double().mean(-1).cpu().numpy())

    def holds(self, mask: Float[Tensor, " groups"]) -> bool:
        """There are no bounds."""
        return True

    def slope(self, mask: Float[Tensor, " groups"], dtype: torch.dtype | None = None) -> Float[np.ndarray, " groups"]:
        """Mean derivative of the effect."""
        return np.asarray(self.tracer.mean_gradient(mask, dtype=dtype).cpu().numpy())

    def gains(
        self, mask: Float[Tensor, " groups"], sign: int, dtype: torch.dtype | None = None, pressure: float = 1.0
    ) -> Float[np.ndarray, " groups"]:
        """Through the metric's own non-linearity, example by example; see ``solvers/sweep.py``."""
        return np.asarray(sign * self.tracer.predicted_changes(mask, dtype=dtype).cpu().numpy())

    def loss(self, mask: Any, sign: int) -> float:
        """Mean bounded loss of the effects."""
        return float(self.metric.loss(self._memo.effect(self.tracer, mask), sign).double().mean())

    def loss_gradient(self, mask: Float[Tensor, " groups"], sign: int, examples: Tensor) -> Float[Tensor, " groups"]:
        """Of the mean bounded loss over some pairs."""
        return self.tracer.loss_gradient(mask, lambda effect: self.metric.loss(effect, sign).mean(), examples)[1]

    def measure(self, mask: Float[Tensor, " groups"], sign: int, seed: int = 0) -> Score:
        """Score of the per-example effects, with the log scale of ratio metrics."""
        effect = self._memo.effect(self.tracer, mask)
        ratio = self.tracer.metric.relative and self.tracer.metric.needs_wrong
        log = self.tracer.log_effect(mask).cpu().numpy() if ratio else None
        return Score.of(effect.cpu().numpy(), log=log, copies=copies_of(self.tracer), weighted=True, seed=seed)

    def goal_scores(self, mask: Float[Tensor, " groups"], seed: int = 0) -> dict[str, Score]:
        """One metric is no sum."""
        return {}

    def on(self, held_out: Any) -> TracerAim:
        """The tracer on other prompts, each of which counts once."""
        return TracerAim(self.tracer.on(held_out[sorted(set(distinct(held_out).tolist()))]))

    def provenance(self) -> dict[str, Any]:
        """Model, prompts, metric and intervention."""
        tracer = self.tracer
        return {
            "tl_multitrace": __version__,
            "model": tracer.view.describe(),
            "prompts": {"n": tracer.n, "digest": tracer.pairs.digest()},
            "metric": tracer.metric.name or "custom",
            "metric_unit": tracer.metric.unit,
            "intervention": tracer.intervention.describe(),
            **({"off": list(tracer.cost.off)} if tracer.cost.off else {}),
            **({"out_of_memory": {"halved": tracer.halved, "batch_size": tracer.batch_size}} if tracer.halved else {}),
        }
