"""One number per component and prompt: exact effects of single components, or their first-order estimates.

This is what TransformerLens' activation patching and attribution patching compute too, so both convert to it and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.groups import Component, HookGroups
from tl_multitrace.records.stats import Score

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("effect", "attribution")


@dataclass(frozen=True, eq=False)
class ComponentScores:
    """A score for every hook group.

    Attributes:
        groups: the components, in order.
        values: ``[n, groups]``, one row per prompt pair; a single row of means where the source kept only those.
            Positive: patching the component from the source run raises the metric, in the metric's unit.
        kind: ``"effect"``, the exact effect of the component alone, or ``"attribution"``, its estimate by the
            derivative at the base run.

    Raises:
        ValueError: values of another shape or not finite, or an unknown kind.

    Examples:
        >>> scores = mt.ComponentScores.of(tracer)
        >>> tuple(scores.values.shape)
        (16, 32)
        >>> scores.to_dataframe().nlargest(2, "mean")["component"].tolist()
        ['L0H3', 'L0H6']
    """

    groups: HookGroups
    values: Float[Tensor, "n groups"]
    kind: str = "effect"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.values.ndim != 2 or self.values.shape[1] != len(self.groups) or not len(self.values):
            raise ValueError(f"values must be [n, {len(self.groups)}], got {list(self.values.shape)}.")
        if not bool(self.values.isfinite().all()):
            raise ValueError("a score is not finite.")

    @classmethod
    def of(cls, tracer: Any, kind: str = "effect") -> ComponentScores:
        """Of every hook group of a tracer.

        ``"effect"`` evaluates every component alone (one forward each); ``"attribution"`` takes the derivative at the
        empty mask (one forward and one backward for all).
        """
        count = len(tracer.groups)
        values = tracer.effects(torch.eye(count)).T if kind == "effect" else tracer.gradient(torch.zeros(count))
        return cls(tracer.groups, values.detach().cpu(), kind)

    @property
    def mean(self) -> Float[Tensor, " groups"]:
        """Mean over prompts."""
        return self.values.mean(0)

    def score(self, component: Component | str) -> Score:
        """One component's mean with its bootstrap interval (the mean alone where only means were kept).

        Raises:
            KeyError: it is not among the groups.
        """
        return Score.of(self.values[:, self.groups.index(component)].double().numpy())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component: component, kind, layer, index, position, mean."""
        import pandas as pd

        rows = [
            (c.label, c.kind, c.layer, c.index, c.position, float(m))
            for c, m in zip(self.groups.components, self.mean.tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=["component", "kind", "layer", "index", "position", "mean"])

    def __repr__(self) -> str:
        return f"ComponentScores({self.kind} of {len(self.groups)} components, {len(self.values)} rows)"
