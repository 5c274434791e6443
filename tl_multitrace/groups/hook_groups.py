"""The entries of a mask, over one model, and how they become TransformerLens hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.groups.component import Component, Position
from tl_multitrace.groups.points import Points
from tl_multitrace.models.compat import HookFn, ModelView
from tl_multitrace.tokens import picks


@dataclass(frozen=True)
class HookGroups:
    """Hook groups over one model, in mask order.

    Attributes:
        components: one component per group (for a group of several sites: the one it is named after).
        sites: per group, the components it switches together.
        sizes: component counts per (kind, site): the length of that activation's component axis.

    Examples:
        >>> groups = mt.heads(model, [0]) + mt.mlps(model)
        >>> len(groups), groups.labels[-1], groups.index("L0H3")
        (12, 'L3MLP', 3)
        >>> groups.as_mask(["L0H3", "L1MLP"]).nonzero().flatten().tolist()
        [3, 9]
    """

    components: tuple[Component, ...]
    sites: tuple[tuple[Component, ...], ...]
    sizes: Mapping[tuple[str, str], int]

    def __post_init__(self) -> None:
        if len(self.components) != len(self.sites):
            raise ValueError(f"{len(self.components)} components for {len(self.sites)} groups.")
        if len(set(self.components)) != len(self.components):
            seen: set[Component] = set()
            twice = next(c for c in self.components if c in seen or seen.add(c))  # type: ignore[func-returns-value]
            raise ValueError(f"{twice.label} stands twice in the hook groups: one mask entry would be redundant.")

    @classmethod
    def of(cls, model: Any, components: Iterable[Component]) -> HookGroups:
        """One group per component, checked against the model.

        Args:
            model: a TransformerLens model.
            components: in mask order.

        Raises:
            ValueError: a component is outside the model.
            HookError: the model has no hook point for it, or one that holds something else.
        """
        seen, made = Points.of(model), tuple(components)
        _check_inside(seen, made)
        sizes = {key: seen.size(*key) for key in {(c.kind, c.site) for c in made}}
        return cls(made, tuple((c,) for c in made), sizes)

    # ------------------------------------------------------------------ set operations

    def __len__(self) -> int:
        return len(self.components)

    def __iter__(self) -> Iterator[Component]:
        return iter(self.components)

    def __getitem__(self, index: slice | int | Sequence[int] | Tensor) -> HookGroups:
        """Some of the groups, in the order asked for (by number, slice, or booleans)."""
        chosen = picks(index, len(self))
        return HookGroups(tuple(self.components[i] for i in chosen), tuple(self.sites[i] for i in chosen), self.sizes)

    def __add__(self, other: HookGroups) -> HookGroups:
        """These groups, then the others.

        Raises:
            ValueError: a component is in both.
        """
        return HookGroups(self.components + other.components, self.sites + other.sites, {**self.sizes, **other.sizes})

    def joined(self, members: Sequence[Sequence[int]], names: Sequence[Component] | None = None) -> HookGroups:
        """Groups that switch several of these together, such as windows of layers.

        Args:
            members: per new group, indices into these groups.
            names: the component each new group is named after; default: the middle member's.
        """
        lists = [list(m) for m in members]
        chosen = names or [self.components[m[len(m) // 2]] for m in lists]
        return HookGroups(tuple(chosen), tuple(tuple(s for i in m for s in self.sites[i]) for m in lists), self.sizes)

    def at(self, positions: Position) -> HookGroups:
        """The same components at other token positions, such as ``"everywhere"`` or ``"last"``, in the same order.

        Args:
            positions: as :func:`neurons` takes them, but for lists.
        """
        moved = tuple(tuple(replace(s, position=positions) for s in group) for group in self.sites)
        return HookGroups(tuple(replace(c, position=positions) for c in self.components), moved, self.sizes)

    # ------------------------------------------------------------------ facts

    @property
    def labels(self) -> list[str]:
        """Label of every group, in mask order."""
        return [c.label for c in self.components]

    @property
    def kinds(self) -> list[str]:
        """Kind of every group, in mask order."""
        return [c.kind for c in self.components]

    @property
    def names_filter(self) -> list[str]:
        """Hook names to cache from the source run, for ``model.run_with_cache(tokens, names_filter=...)``."""
        return list(dict.fromkeys(s.hook_name for group in self.sites for s in group))

    @property
    def first_layers(self) -> Int[np.ndarray, " groups"]:
        """Per group, the first block whose run depends on it."""
        return np.array([min(s.layer for s in group) for group in self.sites], dtype=np.int64)

    def index(self, component: Component | str) -> int:
        """Mask index of a component or label.

        Args:
            component: or its label.

        Raises:
            KeyError: it is not among the groups.
        """
        label = component if isinstance(component, str) else component.label
        try:
            return self.labels.index(label)
        except ValueError:
            raise KeyError(
                f"{label} is not among these {len(self)} groups (first: {', '.join(self.labels[:3])} ...)."
            ) from None

    def __repr__(self) -> str:
        counts = {k: self.kinds.count(k) for k in dict.fromkeys(self.kinds)}
        return f"HookGroups({len(self)}: " + ", ".join(f"{v} {k}" for k, v in counts.items()) + ")"

    # ------------------------------------------------------------------ as hooks in a user's own run

    def fwd_hooks(self, mask: Any, cache: Any, pairs: Any = None) -> list[tuple[str, HookFn]]:
        """Hooks that mix ``cache`` into a run, for ``model.run_with_hooks(base_tokens, fwd_hooks=...)``.

        Args:
            mask: ``[len(groups)]`` numbers from 0 to 1.
            cache: the source run's ``ActivationCache`` (or dict), at least of ``names_filter``; same batch and
                positions.
            pairs: the ``PromptPairs`` run, needed where prompts are padded or a group names a span.

        Returns:
            One ``(hook name, function)`` per hook point whose mask entries are not all 0.

        Raises:
            ValueError: mask of the wrong length or outside [0, 1]; an activation of another shape than the cached one.
            KeyError: the cache lacks a hook.
        """
        from tl_multitrace.groups.mixing import compile_plans, user_hooks

        return user_hooks(compile_plans(self), self.as_mask(mask), cache, pairs)

    @contextmanager
    def hooks(self, model: Any, mask: Any, cache: Any, pairs: Any = None) -> Iterator[Any]:
        """The model with :meth:`fwd_hooks` attached for the duration; other hooks on it stay.

        Args:
            model: whose run is changed.
            mask: see :meth:`fwd_hooks`.
            cache: see :meth:`fwd_hooks`.
            pairs: see :meth:`fwd_hooks`.
        """
        with ModelView(model).attached(self.fwd_hooks(mask, cache, pairs)):
            yield model

    def as_mask(self, mask: Any) -> Float[Tensor, " groups"]:
        """``mask`` as a float tensor of numbers from 0 to 1, checked.

        Args:
            mask: numbers per group, or a list of labels or components that are on, which may be empty.

        Raises:
            ValueError: wrong length, or values outside [0, 1] or not finite.
        """
        if isinstance(mask, list | tuple) and (not mask or isinstance(mask[0], str | Component)):
            on = torch.zeros(len(self))
            on[[self.index(c) for c in mask]] = 1.0
            return on
        values = torch.as_tensor(mask)
        values = values.float() if not values.is_floating_point() else values
        if values.shape != (len(self),):
            raise ValueError(f"the mask has shape {tuple(values.shape)}, but there are {len(self)} hook groups.")
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"mask values must lie in [0, 1], got {float(values.min()):.3g} to {float(values.max()):.3g}."
            )
        return values

    def as_masks(self, masks: Any) -> Float[Tensor, "k groups"]:
        """Several masks, each as :meth:`as_mask` takes it, as one tensor of numbers from 0 to 1.

        Args:
            masks: ``[k, groups]``, or a list of what :meth:`as_mask` takes.
        """
        rows = [self.as_mask(m) for m in masks]
        return torch.stack(rows) if rows else torch.empty(0, len(self))


def mask_of(n: int, members: Iterable[SupportsIndex]) -> Float[Tensor, " groups"]:
    """A mask of ``n`` entries, 1 at the members' and 0 elsewhere."""
    mask = torch.zeros(n)
    mask[list(members)] = 1.0
    return mask


def axis_length(view: ModelView, key: tuple[str, str]) -> int:
    """How many components a (kind, site) has per layer, at most; 1 where a site is a whole vector."""
    return Points.of(view.model).size(*key)


def _check_inside(seen: Points, components: Sequence[Component]) -> None:
    places = dict.fromkeys((c.kind, c.site, c.layer) for c in components if c.layer < seen.n_layers)
    widths = {place: seen.width(*place) for place in places}
    for c in components:
        width = widths.get((c.kind, c.site, c.layer), 0)
        if not width or (c.index is not None and c.index >= width):
            raise ValueError(
                f"{c.label} is outside {seen.name}, which has {seen.n_layers} layers"
                + (f" of {width or seen.size(c.kind, c.site)} {c.kind}s." if c.index is not None else ".")
            )
