"""A double of a tracer for solvers: its effects are any function of the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from oracles import pairs_of, random_examples
from torch import Tensor

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build
from tl_multitrace.cost import Cost, new_cost
from tl_multitrace.distributed import ALONE
from tl_multitrace.engine.shared import SharedCalls

model_of = cache(lambda: build(MODEL_NAMES[0], torch.float64))


@dataclass
class Calls:
    """What a solver's loop asks of a tracer's calls: that nothing is kept on a disk, and the cost."""

    cost: Cost
    cache: None = None
    __class__ = property(lambda self: SharedCalls)  # type: ignore[assignment]


class Toy:
    """A double of a tracer, whose effects are a given function of the mask, spread around it over four examples.

    It has what a search asks for and nothing else.
    """

    SPREAD = torch.tensor([-0.5, -0.1, 0.1, 0.5], dtype=torch.float64)
    n, progress, halved, batch_size = 4, False, 0, 4
    dtype = torch.float64
    # argument types are checked in tests, where these stand for the real classes, as a mock with a spec does
    __class__ = property(lambda self: mt.Tracer)  # type: ignore[assignment]

    def __init__(self, problem: Callable[[Tensor], Tensor], size: int = 8) -> None:
        self.problem = problem
        self.asked: list[tuple[int, ...]] = []
        self.view, self.pairs = mt.ModelView(model_of()), pairs_of(random_examples(4, equal=True, longest=5))
        self.groups, self.metric, self.intervention = mt.heads(model_of())[:size], mt.LogitDiff(), mt.Interchange()
        self.cost, self.ranks = new_cost(self.n), ALONE
        self.calls = Calls(self.cost)
        self.base_metric = torch.zeros(self.n, dtype=torch.float64)

    def _values(self, mask: Tensor) -> Tensor:
        return self.problem(mask.double()) * (1 + self.SPREAD)

    @contextmanager
    def session(self) -> Iterator[Toy]:
        yield self

    def forget(self) -> None:
        """Nothing is stored."""

    def flush(self) -> None:
        """Nothing is kept."""

    def effects(self, masks: Any, reference: Any = None) -> Tensor:
        stacked = self.groups.as_masks(masks)
        self.asked += [tuple(m.nonzero().flatten().tolist()) for m in stacked]
        self.cost.forwards += len(stacked)
        return torch.stack([self._values(m) for m in stacked])

    def effect(self, mask: Any) -> Tensor:
        return self.effects([mask])[0]

    def log_effect(self, mask: Any) -> Tensor:
        return self.effect(mask)

    def effect_and_gradient(self, mask: Any, **options: Any) -> tuple[Tensor, Tensor]:
        values = self.groups.as_mask(mask).double()
        self.cost.forwards, self.cost.backwards = self.cost.forwards + 1, self.cost.backwards + 1
        return self._values(values), torch.autograd.functional.jacobian(self._values, values)

    def mean_gradient(self, mask: Any, *, dtype: Any = None) -> Tensor:
        return self.effect_and_gradient(mask)[1].mean(0)

    def predicted_changes(self, mask: Any, *, dtype: Any = None) -> Tensor:
        values = self.groups.as_mask(mask).double()
        return (1 - 2 * values) * self.mean_gradient(values)

    def loss_gradient(self, mask: Any, loss: Any, examples: Any = None) -> tuple[Tensor, Tensor]:
        leaf = self.groups.as_mask(mask).double().requires_grad_()
        chosen = torch.arange(self.n) if examples is None else torch.as_tensor(examples)
        effects, share = self._values(leaf)[chosen], len(chosen) / self.n
        self.cost.forwards, self.cost.backwards = self.cost.forwards + share, self.cost.backwards + share
        return effects.detach(), torch.autograd.grad(loss(effects), leaf)[0]
