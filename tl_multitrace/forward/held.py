"""Sites kept at the base run's own values while others are restored: what severs a path.

Causal tracing with a severed path restores a state and freezes, say, the MLP outputs of the same token at what they
were in the corrupted run, so that the restored state can act through the other paths only (Meng et al. 2022). Each mask
names its own frozen sites. Where a site is both frozen and restored, it is restored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.forward.sources import Sources
from tl_multitrace.groups import HookGroups
from tl_multitrace.groups.mixing import Plan, compile_plans, from_column, mix
from tl_multitrace.interventions import Run
from tl_multitrace.rows import Batch

if TYPE_CHECKING:
    from tl_multitrace.forward.engine import Engine


@dataclass
class Held:
    """Groups of sites that a mask may freeze, and the base run's activations there.

    Attributes:
        groups: the entries of a held mask.
        values: the base run's activations.
        plans: how a held mask governs each hook point.
    """

    groups: HookGroups
    values: Sources
    plans: dict[str, Plan] = field(default_factory=dict)
    _chosen: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def prepare(self, engine: Engine, run: Run) -> None:
        """Keep the base run's activations, within the byte budget of ``values``."""
        self.values.prepare(engine, run)

    def choose(self, engine: Engine, batch: Batch, mask: Float[Tensor, "k 1 groups"], start: int) -> None:
        """Set what the next forward freezes."""
        chosen = {}
        for name, plan in self.plans.items():
            if plan.layer >= start and bool((mask[..., plan.entries()] != 0).any()):
                value = self.values.get(engine, name, batch)
                chosen[name] = (value, plan.share(mask, plan.selection(batch.places), batch.places))
        self._chosen = chosen

    def frozen(self, name: str, act: Tensor) -> Tensor | None:
        """The activation with its frozen places put back, or None where nothing is frozen."""
        found = self._chosen.get(name)
        return None if found is None else mix(act, *found)

    def narrow(self, column: int) -> None:
        """Drop the columns before ``column``."""
        self._chosen = {n: (from_column(v, column), share[:, :, column:]) for n, (v, share) in self._chosen.items()}

    def clear(self) -> None:
        """Freeze nothing."""
        self._chosen = {}


def held_sites(groups: HookGroups, device: torch.device, sources: Sources) -> Held:
    """A :class:`Held` over hook groups, as careful with memory as ``sources``; :meth:`Held.prepare` fills it."""
    plans = {name: plan.to(device) for name, plan in compile_plans(groups).items()}
    return Held(groups, Sources(chunk=sources.chunk, ends=sources.ends, plans=plans), plans)
