"""From mask values to mixed activations: ``act <- (1 - share) * act + share * source``.

A plan is compiled once per hook point: a table that says which mask entry governs which place of the activation. The
share of the source then follows from the mask by one gather, for any number of masks at once and with gradients. Shapes
used below: ``k`` masks in one batch, ``r`` either 1 (one mask for all rows) or the number of rows, ``p`` positions,
``s`` selectors (the distinct position sets that the groups at this hook name), ``i`` components along the activation's
component axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_multitrace.groups import SITES, Component, HookGroups, Position
from tl_multitrace.models.compat import HookFn


@dataclass(frozen=True)
class Places:
    """Where the prompt, its answer and its named spans are in each row of a batch.

    Attributes:
        width: columns of the batch.
        prompt_lengths: prompt tokens per row.
        lengths: prompt and answer tokens per row.
        partner: columns that have an aligned source position; None when all have.
        spans: named ``[start, stop)`` positions per row.
    """

    width: int
    prompt_lengths: Int[Tensor, " rows"]
    lengths: Int[Tensor, " rows"]
    partner: Bool[Tensor, "rows pos"] | None = None
    spans: Mapping[str, Int[Tensor, "rows 2"]] = field(default_factory=dict)

    def select(self, position: Position) -> Bool[Tensor, "rows pos"]:
        """Columns that a position specification covers, row by row.

        Raises:
            ValueError: an unknown span.
        """
        columns = torch.arange(self.width, device=self.lengths.device)
        start, stop = self._range(position)
        chosen = (columns >= start[:, None]) & (columns < stop[:, None])
        return chosen if self.partner is None else chosen & self.partner

    def _range(self, position: Position) -> tuple[Tensor, Tensor]:
        zero, prompt = torch.zeros_like(self.prompt_lengths), self.prompt_lengths
        if position is None:
            return zero, prompt
        if position == "everywhere":
            return zero, self.lengths
        if position == "last":
            return prompt - 1, prompt
        if isinstance(position, str):
            if position not in self.spans:
                known = ", ".join(self.spans) or "none"
                raise ValueError(
                    f"the prompts have no span {position!r} (named spans: {known}). Pass subject= to from_text."
                )
            span = self.spans[position].to(prompt.device)
            return span[:, 0], span[:, 1]
        start, stop = (position, position + 1) if isinstance(position, int) else position
        first = prompt + start if start < 0 else zero + start
        to_end = stop < 0 or (stop == 0 and start < 0)  # -1 alone is the range (-1, 0)
        return first, prompt + stop if to_end else (zero + stop).minimum(prompt)


@dataclass(frozen=True)
class Plan:
    """How the mask governs one hook point.

    Attributes:
        hook: hook name.
        layer: its block.
        kind: kind of the (first) component there.
        pattern: whether the activation is ``[batch, head, dest, src]``.
        selectors: the distinct position sets.
        table: mask index per (overlap depth, selector, component), ``n_groups`` where none.
        n_groups: length of the mask.
        block: ``(start, stop)`` when the table is that plain range of the mask: a slice instead of a gather.
    """

    hook: str
    layer: int
    kind: str
    pattern: bool
    selectors: tuple[Position, ...]
    table: Int[Tensor, "depth s i"]
    n_groups: int
    block: tuple[int, int] | None

    def entries(self) -> Int[Tensor, " entries"]:
        """Mask indices that this hook depends on."""
        found: Tensor = torch.unique(self.table[self.table < self.n_groups])
        return found

    def to(self, device: torch.device) -> Plan:
        """The plan with its table on a device."""
        return replace(self, table=self.table.to(device))

    def selection(self, places: Places) -> Float[Tensor, "rows pos s"] | None:
        """1 where each selector covers a real token; None when one selector covers them all."""
        chosen = torch.stack([places.select(p) for p in self.selectors], -1)
        real = torch.arange(places.width, device=chosen.device) < places.lengths[:, None]
        return None if chosen.shape[-1] == 1 and bool(chosen[..., 0][real].all()) else chosen.float()

    def share(
        self, mask: Float[Tensor, "k r groups"], selection: Float[Tensor, "rows pos s"] | None, places: Places
    ) -> Float[Tensor, "k ..."]:
        """Share of the source at every place: ``[k, r, pos, i]``, or ``[k, r, i, dest, src]`` for attention weights."""
        by_selector = self._by_selector(mask)
        if selection is None:
            share = by_selector
        elif by_selector.shape[-2] == 1:
            share = by_selector * selection.to(mask.dtype)
        else:
            share = _overlay(by_selector, selection.to(mask.dtype))
        if not self.pattern:
            return share
        share = share.movedim(-1, -2).unsqueeze(-1)  # [k, r, i, dest, 1]
        return share if selection is None else share * _readable_sources(places).to(mask.dtype)[:, None, None, :]

    def _by_selector(self, mask: Float[Tensor, "k r groups"]) -> Float[Tensor, "k r s i"]:
        if self.block:
            return mask[..., None, slice(*self.block)]
        padded = torch.cat([mask, mask.new_zeros(*mask.shape[:-1], 1)], -1)
        values = padded[..., self.table]  # [k, r, depth, s, i]
        return values.squeeze(-3) if values.shape[-3] == 1 else 1 - (1 - values).prod(-3)


def _overlay(values: Float[Tensor, "k r s i"], selection: Float[Tensor, "rows pos s"]) -> Float[Tensor, "k rows pos i"]:
    if bool((selection.sum(-1) <= 1).all()):  # disjoint selectors: a sum, far cheaper than the product below
        return selection @ values
    kept = torch.ones(1, device=values.device, dtype=values.dtype)
    for s in range(values.shape[-2]):
        kept = kept * (1 - values[..., s : s + 1, :] * selection[..., s : s + 1])
    return 1 - kept


def _readable_sources(places: Places) -> Bool[Tensor, "rows src"]:
    """Source columns of an attention pattern that may be mixed: those that have an aligned source token.

    Columns of the answer stand behind every prompt position, where attention weights are 0 in both runs.
    """
    return places.select("everywhere")


def from_column(value: Float[Tensor, "rows pos ..."], column: int) -> Float[Tensor, "rows part ..."]:
    """The positions from ``column`` on; all where one stands for every position."""
    return value if value.shape[1] == 1 else value[:, column:]


def mix(act: Tensor, source: Tensor, share: Tensor) -> Tensor:
    """Mix ``source`` into ``act``; exact at shares 0 and 1, returned in the activation's dtype, contiguous.

    Args:
        act: running activation of ``k * rows`` batch entries.
        source: source activation of ``rows`` (or 1) entries.
        share: as :meth:`Plan.share` gives it.
    """
    running = act.unflatten(0, (share.shape[0], -1))
    share = _narrowed(share, running)
    while share.ndim < running.ndim:
        share = share.unsqueeze(-1)
    work = act.dtype if act.dtype in (torch.float32, torch.float64) else torch.float32
    # lerp, not a + m (b - a): the latter misses b by a rounding error at m = 1
    near = act.device  # of a model on several devices, that of this block
    mixed = torch.lerp(running.to(work), source.to(near, work), share.to(near, work))
    return mixed.to(act.dtype).flatten(0, 1).contiguous()


def _narrowed(share: Tensor, running: Tensor) -> Tensor:
    """The share of a layer that has fewer components than the widest, for which tables are made."""
    axis = 2 if share.ndim == 5 else 3  # [k, r, i, dest, src] of attention weights, else [k, r, pos, i]
    if share.ndim <= axis or running.ndim <= axis:
        return share  # the same for all components
    if share.ndim <= axis:  # one share for every component
        return share
    return share.narrow(axis, 0, min(share.shape[axis], max(1, running.shape[axis])))


# ---------------------------------------------------------------------- compiling


def compile_plans(groups: HookGroups) -> dict[str, Plan]:
    """One plan per hook point that the groups touch, in the order of the blocks."""
    by_hook: dict[str, list[tuple[int, Component]]] = {}
    for g, sites in enumerate(groups.sites):
        for site in sites:
            by_hook.setdefault(site.hook_name, []).append((g, site))
    plans = [_compile(hook, entries, groups) for hook, entries in by_hook.items()]
    return {p.hook: p for p in sorted(plans, key=lambda p: p.layer)}


def _compile(hook: str, entries: Sequence[tuple[int, Component]], groups: HookGroups) -> Plan:
    n = len(groups)
    order = {p: s for s, p in enumerate(dict.fromkeys(site.position for _, site in entries))}
    width = max(groups.sizes.get((s.kind, s.site), 1) if s.index is not None else 1 for _, s in entries)
    cells: dict[tuple[int, int], list[int]] = {}
    for g, site in entries:
        for i in range(width) if site.index is None else [site.index]:
            cells.setdefault((order[site.position], i), []).append(g)
    table = torch.full((max(map(len, cells.values())), len(order), width), n)
    for (s, i), governing in cells.items():
        table[: len(governing), s, i] = torch.tensor(governing)
    first, layer = int(table[0, 0, 0]), entries[0][1].layer
    plain = (
        table.shape[:2] == (1, 1)
        and torch.equal(table[0, 0], torch.arange(first, first + width))
        and first + width <= n
    )
    kind = entries[0][1].kind
    pattern = SITES[kind, entries[0][1].site].pattern
    return Plan(hook, layer, kind, pattern, tuple(order), table, n, (first, first + width) if plain else None)


# ---------------------------------------------------------------------- hooks for a user's own run


def user_hooks(plans: Mapping[str, Plan], mask: Tensor, cache: Any, pairs: Any) -> list[tuple[str, HookFn]]:
    """See :meth:`HookGroups.fwd_hooks`."""
    apart = [] if pairs is None else pairs.shifts.nonzero().flatten().tolist()
    if apart:
        raise ValueError(
            f"pair {apart[0]}: base and source prompt are aligned {abs(int(pairs.shifts[apart[0]]))} token(s) apart, "
            "but hooks mix position by position. Use pairs.filter_aligned(), or a Tracer, which moves activations."
        )
    hooks: list[tuple[str, HookFn]] = []
    for name, plan in plans.items():
        if not bool((mask[plan.entries()] != 0).any()):
            continue
        if name not in cache:
            raise KeyError(
                f"the cache has no {name!r}: run model.run_with_cache(tokens, names_filter=groups.names_filter)."
            )
        hooks.append((name, _user_hook(plan, mask, cache[name].detach().clone(), pairs)))
    return hooks


def _user_hook(plan: Plan, mask: Tensor, source: Tensor, pairs: Any) -> Callable[..., Tensor]:
    def hook_fn(act: Tensor, hook: Any = None) -> Tensor:
        if act.shape != source.shape:
            raise ValueError(
                f"{plan.hook}: the running activation is {tuple(act.shape)}, the cached one {tuple(source.shape)}. "
                "Run base and source with the same number of prompts and tokens."
            )
        places = _user_places(act, plan, pairs)
        here = plan.to(act.device)
        values = mask.to(act.device)[None, None]
        return mix(act, source, here.share(values, here.selection(places), places))

    return hook_fn


def _user_places(act: Tensor, plan: Plan, pairs: Any) -> Places:
    width, n = act.shape[-1] if plan.pattern else act.shape[1], act.shape[0]
    if pairs is None:
        full = torch.full((n,), width, device=act.device)
        return Places(width, full, full)
    if len(pairs) != n:
        raise ValueError(f"{len(pairs)} prompt pairs were given, but {n} prompts are running.")
    lengths = pairs.lengths.to(act.device)
    partner = torch.arange(width, device=act.device) < pairs.source_lengths.to(act.device)[:, None]
    return Places(width, lengths, lengths, partner, {k: v.to(act.device) for k, v in pairs.spans.items()})
