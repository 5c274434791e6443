"""Hard concrete: stochastic gates under an expected-L0 penalty.

Sources: Louizos, Welling and Kingma 2018, arXiv:1712.01312; as a search for subnetworks: Cao, Sanh and Rush 2021,
arXiv:2104.03514. Every component has a gate with a learned location a. A gate is drawn anew in every step,

    s = sigmoid((log u - log(1 - u) + a) / BETA)        z = clamp(s (ZETA - GAMMA) + GAMMA, 0, 1)        u uniform

so that it is exactly 0 or 1 with some probability and has a gradient in between, and

    loss = mean bounded loss(effect(z)) + weight * sum_i P(z_i > 0)
    P(z_i > 0) = sigmoid(a_i - BETA log(-GAMMA / ZETA))

A gate is more than half open with probability ``sigmoid(a)``: that is the component's score, and a run's set holds the
components with at least one half. One weight gives one size; several, each started from the one before, give a path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.solvers.search import Search, subset
from tl_multitrace.solvers.soft import Descent, Run, bracket, fill, minibatches, pinned, sweep, tell

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch, as published."""


@dataclass(frozen=True)
class HardConcrete:
    """L0 relaxation with hard-concrete gates, swept over the penalty's weight.

    Every run's set is evaluated exactly, and so are the top-S sets of its gate probabilities at the budgets next to it;
    the path's notes say which were best where.

    Args:
        weights: penalty per expected open gate, one run each, lightest first with warm starts. Default: chosen so that
            the sets bracket the budgets, from (drop of the bounded loss over the whole mask) / (largest budget) on.
        runs: runs at most where the weights are chosen.
        steps: gradient steps of a run; each is a forward and a backward over ``batch_size`` pairs.
        lr: Adam step on the gates' locations.
        batch_size: pairs per step.
        start: gate probability at the start.

    Examples:
        >>> path = mt.select(tracer, 1, mt.HardConcrete(runs=1, steps=10))
        >>> path[1].labels
        ['L0H3']
    """

    weights: tuple[float, ...] | None = None
    runs: int = 6
    steps: int = 60
    lr: float = 0.2
    batch_size: int = 32
    start: float = 0.5
    name = "hard concrete"
    objective = "mean bounded loss + expected size"

    def __post_init__(self) -> None:
        if min(self.runs, self.steps, self.batch_size) < 1 or self.lr <= 0:
            raise ValueError(f"HardConcrete needs runs, steps and batch_size of at least 1 and lr above 0, got {self}.")
        if not 0 < self.start < 1:
            raise ValueError(f"start is a gate probability between 0 and 1, got {self.start}: pass 0.5, say.")
        if self.weights is not None and (not self.weights or min(self.weights) <= 0):
            raise ValueError(f"weights must be positive penalties such as (0.001, 0.01), got {self.weights}.")

    def search(self, search: Search) -> None:
        """Sweep the weights, then evaluate sets."""
        generator = torch.Generator().manual_seed(search.seed)
        total = (len(self.weights) if self.weights else self.runs) * self.steps
        with search.progress(total, self.name) as bar:

            def run(weight: float, earlier: Run | None) -> Run:
                return self._run(search, weight, earlier, generator, bar)

            chosen = self.weights
            runs = sweep(search, run, chosen) if chosen else bracket(search, run, self._first(search), self.runs)
        tell(search, fill(search, runs), "gate probabilities")

    def _first(self, search: Search) -> float:
        """The bounded loss's drop over the whole mask, per component of the largest budget."""
        none, full = (search.loss(torch.full((search.n,), at)) for at in (0.0, 1.0))
        return max(abs(none - full), 0.01) / search.largest

    def _run(self, search: Search, weight: float, earlier: Run | None, generator: torch.Generator, bar: Any) -> Run:
        start = torch.full((search.n,), math.log(self.start / (1 - self.start)), dtype=torch.float64)
        start = start if earlier is None else earlier.end
        loop = search.loop(self, weight, start, generator.get_state())
        made = Descent(
            start, loop, self.lr, partial(minibatches, search.tracer.n, self.batch_size, generator), generator
        )

        def gradient(location: Tensor, examples: Tensor, step: int) -> Tensor:
            return self.step_gradient(search, location.clone().requires_grad_(), examples, weight, generator)

        made.run(self.steps, gradient, bar)
        probability = pinned(search, torch.sigmoid(made.at)).numpy()
        return Run(weight, made.at, probability, subset((probability >= 0.5).nonzero()[0]))

    def step_gradient(
        self,
        search: Search,
        location: Float[Tensor, " groups"],
        examples: Tensor,
        weight: float,
        generator: torch.Generator,
    ) -> Float[Tensor, " groups"]:
        """Gradient of the penalised loss on one minibatch under one draw of the gates."""
        gates = pinned(search, draw(location, generator))
        slope = search.loss_gradient(gates.detach(), examples, len(search.budgets) + 1)
        total = (slope.to(gates) * gates).sum() + weight * open_probability(location).sum()
        (gradient,) = torch.autograd.grad(total, location)
        return gradient


def draw(location: Float[Tensor, " groups"], generator: torch.Generator) -> Float[Tensor, " groups"]:
    """Gates drawn at random; differentiable in their locations."""
    u = torch.rand(location.shape, dtype=location.dtype, generator=generator).clamp(1e-6, 1 - 1e-6)
    s = torch.sigmoid((torch.logit(u) + location) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def open_probability(location: Float[Tensor, " groups"]) -> Float[Tensor, " groups"]:
    """Probability that a gate is not exactly 0, whose sum is the expected size."""
    return torch.sigmoid(location - BETA * math.log(-GAMMA / ZETA))
