"""The cells of a trace: which activations each of them restores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from operator import index
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.groups import Component, HookGroups, Points, Position
from tl_multitrace.models.compat import ModelView
from tl_multitrace.records.read import short
from tl_multitrace.records.stored import StoredGroups

SITE = {"resid": "post", "mlp": "out", "attn": "out", "head": "z", "neuron": "post"}
"""What is restored of each kind; a residual state is the output of its block, as in Meng et al. 2022."""

WINDOWED = ("mlp", "attn")
INDEXED = ("head", "neuron")


@dataclass(frozen=True)
class Cells:
    """A grid of cells: position x layer (x unit), or a list of a user's own hook groups.

    Attributes:
        kinds: what a cell restores; several kinds are restored together.
        positions: token positions, the grid's rows.
        layers: block numbers, the grid's columns; for windows their centres.
        units: head or neuron numbers; empty where a cell is a whole layer.
        window: layers restored around the centre, for MLP and attention outputs.
        n_layers: blocks of the model.
        size: heads or neurons per layer of the model; 1 for whole layers.
        own: the user's own hook groups, one cell each; the grid then has no positions and layers.
        lacking: kinds and layers that a window leaves out, as a hybrid has attention in some layers alone.
    """

    kinds: tuple[str, ...]
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    units: tuple[int, ...] = ()
    window: int = 1
    n_layers: int = 0
    size: int = 1
    own: StoredGroups | None = None
    lacking: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        unknown = [k for k in self.kinds if k not in SITE]
        if unknown or not (self.kinds or self.own):
            raise ValueError(f"cells of unknown kind {short(unknown or self.kinds)}.")
        if any(not 0 <= layer < self.n_layers for layer in self.layers):
            raise ValueError(f"layers {self.layers[:4]} lie outside a model of {self.n_layers}.")
        if any(not 0 <= unit < self.size for unit in self.units):
            raise ValueError(f"units {self.units[:4]} lie outside layers of {self.size}.")
        if self.window < 1:
            raise ValueError(f"a window of {self.window} layers.")

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the grid's axes, samples left out."""
        return ("group",) if self.own is not None else ("position", "layer", *(("unit",) if self.units else ()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        if self.own is not None:
            return (len(self.own),)
        return (len(self.positions), len(self.layers), *((len(self.units),) if self.units else ()))

    def __len__(self) -> int:
        total = 1
        for n in self.shape:
            total *= n
        return total

    def reach(self, layer: int, kind: str) -> range:
        """Layers that the cell of a centre restores: ``[l - window // 2, l + ceil(window / 2))``, cut at the ends."""
        if kind not in WINDOWED:
            return range(layer, layer + 1)
        return range(max(0, layer - self.window // 2), min(self.n_layers, layer - (-self.window // 2)))

    def groups(self) -> HookGroups:
        """One hook group per cell, in the order of the grid (positions slowest)."""
        if self.own is not None:
            return self.own
        cells = list(product(self.positions, self.layers, self.units or (None,)))
        named, lacking = self._names(cells), set(self.lacking)
        sites = tuple(
            tuple(self._site(k, i, unit, p) for k in self.kinds for i in self.reach(layer, k) if (k, i) not in lacking)
            for p, layer, unit in cells
        )
        sizes = {(s.kind, s.site): self.size for group in sites for s in group}
        return HookGroups(named, sites, sizes)

    def _names(self, cells: Iterable[tuple[int, int, int | None]]) -> tuple[Component, ...]:
        return tuple(Component(self.kinds[0], layer, unit, p, SITE[self.kinds[0]]) for p, layer, unit in cells)

    def atoms(self) -> tuple[HookGroups, Float[Tensor, "cells atoms"] | None]:
        """What cells are made of, and which cell restores which; None where cells are what they are made of.

        Windows overlap, and written as masks over single layers two of them differ only in the layers that one has and
        the other has not: a run of one restarts from a run of the other there.
        """
        groups = self.groups()
        if all(len(sites) == 1 for sites in groups.sites) or self.own is not None:
            return groups, None
        single = list(dict.fromkeys(s for sites in groups.sites for s in sites))
        number = {s: i for i, s in enumerate(single)}
        table = torch.zeros(len(groups), len(single))
        for cell, sites in enumerate(groups.sites):
            table[cell, [number[s] for s in sites]] = 1.0
        return HookGroups(tuple(single), tuple((s,) for s in single), groups.sizes), table

    def chains(self) -> list[list[int]]:
        """Cells whose windows begin at the first layer, token by token, the longest window last."""
        if self.own is not None or not set(self.kinds) & set(WINDOWED) or "resid" in self.kinds:
            return []
        kind, n = self.kinds[0], len(self.layers)
        first = [
            i for i, layer in sorted(enumerate(self.layers), key=lambda x: x[1]) if self.reach(layer, kind)[0] == 0
        ]
        return [[p * n + i for i in first] for p in range(len(self.positions))] if len(first) > 2 else []

    def _site(self, kind: str, layer: int, unit: int | None, position: int) -> Component:
        # a block's output is the next one's input, and a run that restarts there skips the block
        if kind == "resid" and layer + 1 < self.n_layers:
            return Component(kind, layer + 1, unit, position, "pre")
        return Component(kind, layer, unit, position, SITE[kind])


def make_cells(
    model: Any,
    n_tokens: int,
    subject: tuple[int, int],
    restore: str | Sequence[str] | HookGroups,
    window: int,
    *,
    positions: Any = None,
    layers: Iterable[int] | None = None,
    units: Iterable[int] | None = None,
) -> Cells:
    """The cells of a trace, checked against the model.

    Raises:
        ValueError: unknown kind, kinds that cannot be restored together, or something outside prompt or model.
        HookError: the model has no such components to hook.
    """
    view = ModelView(model)
    if isinstance(restore, HookGroups):
        if not len(restore):
            raise ValueError("restore= has no hook groups: there is nothing to restore.")
        return Cells((), (), (), n_layers=view.n_layers, own=restore)
    kinds = check_kinds(restore)
    seen = Points.of(model)
    for kind in kinds:
        seen.check(kind, SITE[kind])
    size = seen.size(kinds[0], SITE[kinds[0]])
    if units is not None and kinds[0] not in INDEXED:
        raise ValueError(f"units={units!r} are heads or neurons, and restore={restore!r} has none. Leave units= out.")
    chosen = () if kinds[0] not in INDEXED else _inside(units, size, kinds[0])
    cells = Cells(
        kinds,
        _positions(positions, n_tokens, subject),
        _inside(seen.layers(kinds[0], SITE[kinds[0]]) if layers is None else layers, view.n_layers, "layer"),
        chosen,
        _window(window) if set(kinds) & set(WINDOWED) else 1,
        view.n_layers,
        size,
        lacking=tuple(
            (k, i) for k in kinds for i in range(view.n_layers) if k in WINDOWED and seen.missing(k, SITE[k], i)
        ),
    )
    HookGroups.of(model, [s for sites in cells.groups().sites[: len(chosen or (0,))] for s in sites])
    return cells


def check_kinds(restore: str | Sequence[str]) -> tuple[str, ...]:
    """``restore`` as a tuple of kinds.

    Raises:
        ValueError: an unknown kind, or kinds that cannot be restored together.
    """
    kinds = (restore,) if isinstance(restore, str) else tuple(restore)
    unknown = [k for k in kinds if k not in SITE]
    if unknown or not kinds:
        raise ValueError(f"cannot restore {restore!r}: use one of {', '.join(SITE)}, several of them, or HookGroups.")
    if len(kinds) > 1 and set(kinds) & set(INDEXED):
        raise ValueError(f"{' and '.join(kinds)} cannot share a grid: heads and neurons have an axis of their own.")
    return kinds


def _window(window: int) -> int:
    if window != int(window) or window < 1:
        raise ValueError(f"window must be a whole number of layers from 1, got {window!r}.")
    return int(window)


def _inside(given: Iterable[int] | int | None, n: int, what: str) -> tuple[int, ...]:
    chosen = tuple(range(n)) if given is None else _whole(given, what)
    outside = [i for i in chosen if not 0 <= i < n]
    if outside:
        raise ValueError(f"{what} {outside[0]} is outside the model, which has {n} (0 to {n - 1}).")
    return chosen


def _whole(given: Any, what: str) -> tuple[int, ...]:
    """One number or several as a tuple of whole numbers, each once."""
    try:
        numbers = tuple(index(i) for i in (given if isinstance(given, Iterable) else [given]))
    except TypeError:
        raise ValueError(f"{what} {given!r} must be whole numbers.") from None
    twice = next((i for k, i in enumerate(numbers) if i in numbers[:k]), None)
    if twice is not None or not numbers:
        raise ValueError(f"{what} {twice} is given twice." if numbers else f"no {what} is given: the list is empty.")
    return numbers


def _positions(given: Any, n: int, subject: tuple[int, int]) -> tuple[int, ...]:
    if given is None or (isinstance(given, str) and given == "all"):
        return tuple(range(n))
    if isinstance(given, str):
        named = {"subject": range(*subject), "last": range(n - 1, n)}
        if given not in named:
            raise ValueError(
                f"unknown positions {given!r}: use 'all', 'subject', 'last', a slice or a list of numbers."
            )
        return tuple(named[given])
    chosen = _whole(range(n)[given] if isinstance(given, slice) else given, "position")
    outside = [p for p in chosen if not -n <= p < n]
    if outside:
        raise ValueError(f"position {outside[0]} is outside the prompt, which has {n} tokens.")
    return _whole([p % n for p in chosen], "position")


# ---------------------------------------------------------------------- severed paths


def held_sites(
    model: Any, groups: HookGroups, severed: Sequence[str]
) -> tuple[HookGroups, Float[Tensor, "cells held"]]:
    """Groups to freeze, and which of them each cell freezes: all layers' outputs at the tokens that it restores.

    Layers before the restored state hold their corrupted values anyway, so freezing all is freezing the later ones.

    Args:
        model: a TransformerLens model.
        groups: the cells.
        severed: ``"mlp"``, ``"attn"`` or both.
    """
    seen = Points.of(model)
    for kind in severed:
        seen.check(kind, SITE[kind])
    places: list[Position] = list(dict.fromkeys(s.position for sites in groups.sites for s in sites))
    table = torch.zeros(len(groups), len(places))
    for cell, sites in enumerate(groups.sites):
        for site in sites:
            table[cell, places.index(site.position)] = 1.0
    names = tuple(Component(severed[0], 0, None, p, SITE[severed[0]]) for p in places)
    sites_of = tuple(
        tuple(Component(k, layer, None, p, SITE[k]) for k in severed for layer in seen.layers(k, SITE[k]))
        for p in places
    )
    HookGroups.of(model, sites_of[0])
    return HookGroups(names, sites_of, {(k, SITE[k]): 1 for k in severed}), table


def check_severed(severed: str | Sequence[str] | None) -> tuple[str, ...]:
    """``severed`` as a tuple of kinds.

    Raises:
        ValueError: not ``"mlp"`` or ``"attn"``.
    """
    kinds = () if severed is None else (severed,) if isinstance(severed, str) else tuple(severed)
    unknown = [k for k in kinds if k not in WINDOWED]
    if unknown:
        raise ValueError(f"severed={severed!r}: paths can be severed at {' and '.join(map(repr, WINDOWED))}.")
    return tuple(dict.fromkeys(kinds))
