"""From per-example values to the one number that a goal is about: a mean, or a gap between subgroups.

Each takes the values of ``k`` masks and those of the base run, and returns how far the number moved. All are
differentiable, so that gradient solvers and screens can follow them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Labels = tuple[str, ...]


@runtime_checkable
class Reduce(Protocol):
    """``reduce(values, base, labels)``: change of the number against the base run, per mask."""

    name: str

    def __call__(self, values: Float[Tensor, "k n"], base: Float[Tensor, " n"], labels: Labels) -> Float[Tensor, " k"]:
        """The change."""
        ...

    def check(self, labels: Labels) -> None:
        """Refuse labels that the number cannot be taken over; raises ValueError."""
        ...


@dataclass(frozen=True)
class Mean:
    """Mean change over examples.

    Examples:
        >>> import torch
        >>> under_a_mask, base = torch.tensor([[1.0, 3.0]]), torch.tensor([1.0, 1.0])
        >>> mt.Mean()(under_a_mask, base, labels=())
        tensor([1.])
    """

    name = "mean"

    def __call__(self, values: Float[Tensor, "k n"], base: Float[Tensor, " n"], labels: Labels) -> Float[Tensor, " k"]:
        """``mean(values - base)``."""
        return (values - base).mean(-1)

    def check(self, labels: Labels) -> None:
        """Needs none."""


@dataclass(frozen=True)
class Bound:
    """One-sided confidence bound of the mean change: ``mean + z * standard deviation / sqrt(n)``.

    Args:
        z: quantile of the normal distribution; above 0 an upper bound, below 0 a lower one.
    """

    z: float
    name = "confidence bound of the mean"

    def __call__(self, values: Float[Tensor, "k n"], base: Float[Tensor, " n"], labels: Labels) -> Float[Tensor, " k"]:
        """See the class; with fewer than two examples, the mean."""
        change = values - base
        if change.shape[-1] < 2:
            return change.mean(-1)
        variance = change.var(-1).clamp_min(1e-24)  # the root has no derivative at 0
        return change.mean(-1) + self.z * (variance / change.shape[-1]).sqrt()

    def check(self, labels: Labels) -> None:
        """Needs none."""


@dataclass(frozen=True)
class DemographicParityGap:
    """Demographic-parity gap: the largest difference between subgroups' means, ``max_a E[v | a] - min_a E[v | a]``.

    Subgroups are the pairs' labels. With ``ChoiceProb`` or ``Accuracy`` as the metric this is the demographic-parity
    difference of the choice; at least 0, and a negative change means that the subgroups came closer.

    Examples:
        >>> import torch
        >>> p, base = torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0.9, 0.9, 0.4, 0.4])
        >>> mt.DemographicParityGap()(p, base, ("female", "female", "male", "male"))
        tensor([-0.4000])
    """

    name = "demographic-parity gap"

    def __call__(self, values: Float[Tensor, "k n"], base: Float[Tensor, " n"], labels: Labels) -> Float[Tensor, " k"]:
        """Gap under the mask minus gap of the base run."""
        return _gap(values, labels) - _gap(base[None], labels)

    def check(self, labels: Labels) -> None:
        """Needs two subgroups, else ValueError."""
        if len(set(labels)) < 2:
            raise ValueError(
                f"a {self.name} compares subgroups, but the prompts have {sorted(set(labels)) or 'no labels'}: pass "
                "labels= to PromptPairs."
            )


@dataclass(frozen=True)
class EqualizedOddsGap:
    """Equalized-odds gap: the largest demographic-parity gap among examples of one true outcome.

    Labels say both, as ``"female/positive"``. With ``Accuracy`` or ``ChoiceProb`` this is the larger of the differences
    in true- and false-positive rate (Hardt et al. 2016, arXiv:1610.02413).

    Args:
        separator: between subgroup and outcome.

    Examples:
        >>> import torch
        >>> p, base = torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0.9, 0.4, 0.4, 0.4])
        >>> labels = ("female/positive", "female/negative", "male/positive", "male/negative")
        >>> mt.EqualizedOddsGap()(p, base, labels)
        tensor([-0.4000])
    """

    separator: str = "/"
    name = "equalized-odds gap"

    def __call__(self, values: Float[Tensor, "k n"], base: Float[Tensor, " n"], labels: Labels) -> Float[Tensor, " k"]:
        """Gap under the mask minus gap of the base run."""
        return self._largest(values, labels) - self._largest(base[None], labels)

    def _largest(self, values: Float[Tensor, "k n"], labels: Labels) -> Float[Tensor, " k"]:
        groups, outcomes = zip(*(label.split(self.separator, 1) for label in labels), strict=True)
        gaps = []
        for outcome in sorted(set(outcomes)):
            members = [i for i, o in enumerate(outcomes) if o == outcome]
            gaps.append(_gap(values[:, members], tuple(groups[i] for i in members)))
        return torch.stack(gaps).amax(0)

    def check(self, labels: Labels) -> None:
        """Needs labels of two parts, and two subgroups for some outcome, else ValueError."""
        odd = next((label for label in labels if label.count(self.separator) != 1), None)
        if not labels or odd is not None:
            raise ValueError(
                f"an {self.name} needs labels such as 'female{self.separator}positive' (subgroup, true outcome), got "
                f"{odd or 'none'!r}."
            )
        subgroups: dict[str, set[str]] = {}
        for label in labels:
            group, outcome = label.split(self.separator)
            subgroups.setdefault(outcome, set()).add(group)
        if max(map(len, subgroups.values())) < 2:
            raise ValueError(f"an {self.name} compares subgroups, but no outcome has two: {sorted(set(labels))}.")


def _gap(values: Float[Tensor, "k n"], labels: Labels) -> Float[Tensor, " k"]:
    names: Sequence[str] = sorted(set(labels))
    means = [values[:, [i for i, label in enumerate(labels) if label == name]].mean(-1) for name in names]
    stacked = torch.stack(means)
    return stacked.amax(0) - stacked.amin(0)
