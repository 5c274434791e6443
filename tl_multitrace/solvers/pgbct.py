"""PGB-CT: the published gradient solver of multi-component causal tracing.

Source: Yan et al., ACL 2026, arXiv:2606.03085. One soft mask entry z per component, all at 0.5; per minibatch of pairs

    loss = mean(1 / (1 + effect)) + l1 (e + 1) sum |z| + l2 (e + 1) sum z (1 - z)        e: epoch, from 0

Adam on z, clamped to [0, 1] after each step; chosen are the components with z >= 0.5. Both penalties grow with the
epoch: the first makes the set small, the second makes the mask binary. Metrics other than the odds ratio use their own
bounded loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.solvers.search import CostReached, Search, subset
from tl_multitrace.solvers.soft import Run, bracket, fill, minibatches, pinned, sweep, tell

PAPER_LR = {"head": 0.1, "attn": 0.1}
PAPER_EPOCHS = {"head": 15, "attn": 15}


@dataclass(frozen=True)
class PGBCT:
    """Penalised gradient-based causal tracing.

    Args:
        lr: Adam step; default: the paper's 0.1 for heads and attention layers, 0.5 for everything else.
        epochs: default: the paper's 15 for heads, 30 where anything else is among the groups.
        l1: weight of the size penalty.
        l2: weight of the binary penalty.
        batch_size: pairs per step.
        shuffle: new order of the pairs in each epoch (from the search's seed) instead of the given one.
        sweep: factors on ``l1``; each is a run of its own, started from the one before, and adds the sizes it finds.
            One run gives one size, which cannot be asked for.
        path: choose the factors instead, so that the sets bracket the budgets (at most ``runs`` runs, see ``soft.py``),
            and fill the sizes between: the top-S of the mask's average over a run's steps. The mask itself ends at 0
            or 1 and ranks nothing; its average says how long a component stayed in.
        runs: runs at most with ``path``.
        start: initial value of every mask entry.

    Examples:
        >>> path = mt.select(tracer, [1, 2], mt.PGBCT(path=True, runs=2))
        >>> path[1].labels
        ['L0H3']
    """

    lr: float | None = None
    epochs: int | None = None
    l1: float = 0.05
    l2: float = 0.05
    batch_size: int = 32
    shuffle: bool = False
    sweep: tuple[float, ...] = (1.0,)
    start: float = 0.5
    path: bool = False
    runs: int = 8
    name = "PGB-CT"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.epochs is not None and self.epochs < 1) or not self.sweep:
            raise ValueError(f"PGBCT needs batch_size and epochs of at least 1 and a non-empty sweep, got {self}.")
        if self.runs < 1:
            raise ValueError(f"PGBCT(path=True) needs runs of at least 1, got {self.runs}.")

    @property
    def objective(self) -> str:
        """What it optimises."""
        return "mean bounded loss + penalties"

    def search(self, search: Search) -> None:
        """One run per sweep factor; each run's set is evaluated exactly."""
        epochs = self.epochs or max(PAPER_EPOCHS.get(kind, 30) for kind in search.kinds)
        runs = self.runs if self.path else len(self.sweep)
        with search.progress(runs * epochs * -(-search.tracer.n // self.batch_size), "PGB-CT") as bar:

            def run(factor: float, earlier: Run | None) -> Run:
                return self._run(search, factor, earlier, epochs, bar)

            found = bracket(search, run, 1.0, self.runs) if self.path else sweep(search, run, self.sweep)
        if self.path or search.stopped:  # a run that was stopped half way through has a ranking rather than a set
            tell(search, fill(search, found), "the mask's average over a run's steps")
            return
        for one in found:
            search.score(one.members)
            if len(one.members) > search.largest:
                search.notes.append(
                    f"PGB-CT with l1 x {one.weight:g} chose {len(one.members)} components, over the largest budget"
                )

    def _run(self, search: Search, factor: float, earlier: Run | None, epochs: int, bar: Any) -> Run:
        # float64: the first step at rate 0.5 lands within 1e-7 of a corner, and the size penalty asks on which side
        z = torch.full((search.n,), self.start, dtype=torch.float64) if earlier is None else earlier.end
        began = search.spent
        z, average = self._optimise(search, z, factor, epochs, bar)
        members = subset(i for i in (z >= 0.5).nonzero().flatten().tolist() if search.allowed[i])
        search.log_stage(f"run with l1 x {factor:g}, {len(members)} components", began)
        return Run(factor, z, average.numpy(), members)

    def _optimise(
        self, search: Search, z: Tensor, factor: float, epochs: int, bar: Any
    ) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
        """The mask at the end, and its average over the steps."""
        rates, optimiser, total = self._rates(search), _Adam(len(z)), torch.zeros_like(z)
        generator = torch.Generator().manual_seed(search.seed) if self.shuffle else None
        z, done = pinned(search, z), 0
        loop = search.loop(self, factor, epochs, z)
        if (state := loop.read()) is not None:
            z, total, done = state["z"], state["total"], int(state["epochs"])
            optimiser = _Adam(len(z), state["first"], state["second"], int(state["steps"]))
        for epoch in range(epochs):
            batches = minibatches(search.tracer.n, self.batch_size, generator)
            for examples in batches if epoch >= done else ():
                try:
                    gradient = self.step_gradient(search, z.detach(), examples, epoch, factor).detach()
                except CostReached:  # the mask as it is now names a set, too
                    return z, total / optimiser.steps if optimiser.steps else z
                z = pinned(search, (z - rates * optimiser.direction(gradient)).clamp(0.0, 1.0))
                total = total + z
            bar.update(len(batches))
            if epoch >= done:
                found = {"z": z, "total": total, "epochs": torch.tensor(epoch + 1), **optimiser.state}
                loop.write(found.copy, now=epoch + 1 == epochs)
        return z, total / optimiser.steps

    def _rates(self, search: Search) -> Float[Tensor, " groups"]:
        kinds = search.kinds
        rates = [self.lr if self.lr is not None else PAPER_LR.get(kind, 0.5) for kind in kinds]
        return torch.tensor(rates, dtype=torch.float64)

    def step_gradient(
        self, search: Search, z: Float[Tensor, " groups"], examples: Tensor, epoch: int, factor: float = 1.0
    ) -> Float[Tensor, " groups"]:
        """Gradient of the penalised objective on one minibatch."""
        data = search.loss_gradient(z, examples, len(search.budgets) + 1)
        weight = epoch + 1
        penalty = self.l1 * factor * weight * torch.sign(z) + self.l2 * weight * (1 - 2 * z)
        return data.to(z) + penalty


class _Adam:
    """Adam's update direction (Kingma and Ba 2015, arXiv:1412.6980) with the usual constants.

    ``torch.optim.Adam`` would do, but needs a learning rate per tensor, not per entry.
    """

    BETAS, EPS = (0.9, 0.999), 1e-8

    def __init__(self, size: int, first: Tensor | None = None, second: Tensor | None = None, steps: int = 0) -> None:
        self.first: Tensor = torch.zeros(size, dtype=torch.float64) if first is None else first
        self.second: Tensor = torch.zeros(size, dtype=torch.float64) if second is None else second
        self.steps = steps

    @property
    def state(self) -> dict[str, Tensor]:
        """What the next step depends on."""
        return {"first": self.first, "second": self.second, "steps": torch.tensor(self.steps)}

    def direction(self, gradient: Float[Tensor, " groups"]) -> Float[Tensor, " groups"]:
        self.steps += 1
        b1, b2 = self.BETAS
        self.first = b1 * self.first + (1 - b1) * gradient
        self.second = b2 * self.second + (1 - b2) * gradient**2
        step: Tensor = (self.first / (1 - b1**self.steps)) / ((self.second / (1 - b2**self.steps)).sqrt() + self.EPS)
        return step
