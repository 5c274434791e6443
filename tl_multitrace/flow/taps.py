"""Hooks that look at, exchange and hold back activations, after the tracer's own have mixed them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tl_multitrace.compat import HookFn
from tl_multitrace.cost import HookError
from tl_multitrace.groups.mixing import mix


@dataclass
class Taps:
    """Hooks that run after the tracer's own: put a value in, record, then keep the rest of the model from seeing it.

    Attributes:
        swaps: per hook name a value ``[k, rows, ...]`` to put in and where, ``[k, ...]`` in [0, 1].
        record: hook names to record, swaps included.
        kept: per hook name the base run's value ``[rows, ...]``, which goes on in place of what was recorded.
        seen: what was recorded.
    """

    swaps: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    record: set[str] = field(default_factory=set)
    kept: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def hook(self, name: str) -> HookFn:
        """The hook function for one hook point."""

        def tap(act: Tensor, hook: Any) -> Tensor | None:
            swap, kept = self.swaps.get(name), self.kept.get(name)
            act = act if swap is None else mix(act, *swap)
            if name in self.record:
                self.seen[name] = act.detach().clone()
            if kept is not None:
                return kept.repeat(len(act) // len(kept), *[1] * (kept.ndim - 1))
            return None if swap is None else act

        return tap

    @contextmanager
    def doing(
        self,
        *,
        record: Iterable[str] = (),
        kept: Mapping[str, Tensor] | None = None,
        swaps: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """One forward's work; what it recorded is in the dictionary given."""
        self.record, self.kept, self.swaps, self.seen = set(record), dict(kept or {}), dict(swaps or {}), {}
        seen = self.seen
        try:
            yield seen
            missing = sorted(self.record - set(seen))
            if missing:
                raise HookError(f"the hook {missing[0]} did not fire, so nothing can be traced through it.")
        finally:
            self.record, self.kept, self.swaps, self.seen = set(), {}, {}, {}
