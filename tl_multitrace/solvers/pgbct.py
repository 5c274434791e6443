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

from tl_multitrace.solvers.search import Search, subset
from tl_multitrace.solvers.soft import Descent, Run, bracket, fill, minibatches, pinned, sweep, tell

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
        z, began = pinned(search, z), search.spent
        rates = [self.lr if self.lr is not None else PAPER_LR.get(kind, 0.5) for kind in search.kinds]
        generator = torch.Generator().manual_seed(search.seed) if self.shuffle else None
        n, loop = search.tracer.n, search.loop(self, factor, epochs, z)

        def batches() -> list[Tensor]:
            return minibatches(n, self.batch_size, generator)[::-1]

        made = Descent(z, loop, torch.tensor(rates, dtype=torch.float64), batches, generator)
        per_epoch = -(-n // self.batch_size)

        def gradient(z: Tensor, examples: Tensor, step: int) -> Tensor:
            return self.step_gradient(search, z, examples, step // per_epoch, factor)

        made.run(epochs * per_epoch, gradient, bar, lambda z: pinned(search, z.clamp(0.0, 1.0)))
        members = subset(i for i in (made.at >= 0.5).nonzero().flatten().tolist() if search.allowed[i])
        search.log_stage(f"run with l1 x {factor:g}, {len(members)} components", began)
        return Run(factor, made.at, (made.total / max(1, made.steps)).numpy(), members)

    def step_gradient(
        self, search: Search, z: Float[Tensor, " groups"], examples: Tensor, epoch: int, factor: float = 1.0
    ) -> Float[Tensor, " groups"]:
        """Derivative of the penalised loss on one minibatch."""
        data = search.loss_gradient(z, examples, len(search.budgets) + 1)
        weight = epoch + 1
        penalty = self.l1 * factor * weight * torch.sign(z) + self.l2 * weight * (1 - 2 * z)
        return data.to(z) + penalty
