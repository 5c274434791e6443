"""Variable binding: which components carry a variable's value, and leave the operation alone?

Source: arXiv:2606.03085, binding/variable_binding.py of its repository.

Two wishes at once: with the components patched at the last token, the answer follows the other prompt's *value*
(value dependence), and does not follow the other prompt's *operation* (operation invariance). As published, Adam
alternates between them on one mask z, starting from nothing patched, for 100 steps i from 0:

    5 * value loss + (l1 sum |z| + l2 sum z (1 - z)) (i // 20 + 1) / 5      then      invariance loss

Every run of the grid gives one set, z >= 0.5, which is scored by both accuracies on prompts that the runs never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.groups import HookGroups
from tl_multitrace.metrics import Accuracy
from tl_multitrace.records.stats import Score
from tl_multitrace.reproduce.experiment import Request, Work, scored
from tl_multitrace.reproduce.multi_component import PAPER
from tl_multitrace.reproduce.result import Curve, Reproduction
from tl_multitrace.spec import describe_components, groups_from_text
from tl_multitrace.tasks import Task, task
from tl_multitrace.tasks.registry import info_of
from tl_multitrace.tracer import Tracer

GRID = (0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.12)
"""Weights of the size penalty: every third of the published ones."""

BINARY, RATE, STEPS, VALUE_WEIGHT, RAMP = 0.01, 0.01, 100, 5.0, 20


@dataclass(frozen=True)
class Wish:
    """One desideratum: what the sets are trained on, and the accuracies that judge them.

    Attributes:
        name: of it.
        sign: 1 where its metric is to rise under the patch, -1 where it is to fall.
        train: on the prompts of the runs.
        accuracy: on these.
        held: on held-out prompts; None without any.
    """

    name: str
    sign: int
    train: Tracer
    accuracy: Tracer
    held: Tracer | None

    def met(self, on: Tracer, mask: Float[Tensor, " groups"]) -> Float[np.ndarray, " n"]:
        """Per prompt, whether the right one of the two answers wins: the source's, or the base's where it must stay."""
        follows: Float[np.ndarray, " n"] = (on.base_metric + on.effect(mask)).double().cpu().numpy()
        return follows if self.sign > 0 else 1 - follows


@dataclass(frozen=True)
class VariableBinding:
    """Both desiderata of variable binding, traded off."""

    name: str = "variable_binding"
    title: str = "Variable binding: value dependence with operation invariance"
    source: str = PAPER
    model: str = "huggyllama/llama-13b"
    task: str = "variable_binding"
    n: int = 100

    def check(self, request: Request) -> None:
        """A known task; nothing to choose among solvers and budgets."""
        info_of(self.task)
        if request.solvers or request.budget:
            raise ValueError(f"{self.name} runs the published grid of penalties: leave --solver and --budget out.")

    def run(self, work: Work) -> Reproduction:
        """One run per penalty, each judged by both accuracies."""
        made = task(self.task, work.model, work.prompts(self.n), work.request.seed)
        groups = groups_from_text(work.model, "heads,mlps").at("last")
        wishes = self._wishes(work, made, groups)
        work.settings |= {"components": "heads,mlps", "positions": "last", "steps": STEPS, "lr": RATE, "l2": BINARY}
        work.tell(f"Choosing from {describe_components(work.model, groups)}")
        self._judge(work, wishes, torch.zeros(len(groups)), "nothing patched")
        grid, steps = (GRID[::3], STEPS // 10) if work.request.quick else (GRID, STEPS)
        found: dict[int, list[tuple[float, float | None]]] = {}
        for l1 in grid:
            mask = (self.optimise(wishes, len(groups), l1, steps) >= 0.5).float()
            size = int(mask.sum())
            work.tell(f"  l1 {l1:g}: {size} components")
            found[size] = self._judge(work, wishes, mask, f"l1 {l1:g}, {size} components")
        work.equivalents += sum(wish.train.cost.equivalents for wish in wishes)
        self._draw(work, wishes, found)
        work.notes.append(f"{len(grid)} size penalties and one binary penalty instead of the published 20 by 4 grid")
        work.notes.append("an answer counts where it beats the other prompt's; published: the first digit generated")
        return work.finish(self, ("number of components patched", "accuracy"))

    def _wishes(self, work: Work, made: Task, groups: HookGroups) -> list[Wish]:
        parts: Mapping[str, Task] = {"value_dependence": made, **made.desiderata}
        if len(parts) < 2:
            raise ValueError(f"the task {made.name} has no second desideratum: nothing is to be traded off.")
        return [self._wish(work, name, one, groups) for name, one in parts.items()]

    def _wish(self, work: Work, name: str, one: Task, groups: HookGroups) -> Wish:
        share = 1 - work.request.held_out
        pairs, held = one.pairs.split(share) if work.request.held_out else (one.pairs, None)
        train = Tracer(work.model, pairs, groups, one.metric, one.intervention, progress=work.progress)
        accuracy = train.on(metric=Accuracy())
        sign = 1 if one.direction == "maximize" else -1
        return Wish(name, sign, train, accuracy, None if held is None else accuracy.on(held))

    def optimise(self, wishes: Sequence[Wish], n: int, l1: float, steps: int) -> Float[Tensor, " groups"]:
        """The soft mask, in [0, 1], after so many steps under a size penalty."""
        z = torch.zeros(n, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([z], lr=RATE * STEPS / steps)
        for i in range(steps):
            ramp = (i * STEPS // steps // RAMP + 1) / 5
            for k, wish in enumerate(wishes):
                gradient = _gradient(wish, z.detach())
                if k == 0:
                    gradient = VALUE_WEIGHT * gradient + ramp * (l1 + BINARY * (1 - 2 * z.detach()))
                z.grad = gradient
                optimiser.step()
                with torch.no_grad():
                    z.clamp_(0, 1)
        return z.detach()

    def _judge(
        self, work: Work, wishes: Sequence[Wish], mask: Float[Tensor, " groups"], what: str
    ) -> list[tuple[float, float | None]]:
        judged = []
        for wish in wishes:
            held = None if wish.held is None else float(wish.met(wish.held, mask).mean())
            score = Score.of(wish.met(wish.accuracy, mask), seed=work.request.seed)
            work.rows.append(scored(f"{wish.name}, {what}", "accuracy", score, held_out=held))
            judged.append((score.mean, held))
        return judged

    def _draw(
        self, work: Work, wishes: Sequence[Wish], found: Mapping[int, Sequence[tuple[float, float | None]]]
    ) -> None:
        sizes = sorted(found)
        x = tuple(float(size) for size in sizes)
        for k, wish in enumerate(wishes):
            work.curves.append(Curve(wish.name, x, tuple(found[size][k][0] for size in sizes)))
            held = [found[size][k][1] for size in sizes]
            known = tuple(value for value in held if value is not None)
            if len(known) == len(held):
                work.curves.append(Curve(wish.name, x, known, "dashed"))


def _gradient(wish: Wish, z: Float[Tensor, " groups"]) -> Float[Tensor, " groups"]:
    """Of the wish's bounded loss, over all its prompts."""
    metric = wish.train.metric.surrogate
    return wish.train.loss_gradient(z, lambda effect: metric.loss(effect, wish.sign).mean())[1].to(z)


EXPERIMENTS = (VariableBinding(),)
