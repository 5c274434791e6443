"""Hook groups of one kind of component: heads, neurons, layers, residual states."""

from __future__ import annotations

import logging
from typing import Any

from tl_multitrace.groups.component import SITES, Component, Position, Positions
from tl_multitrace.groups.hook_groups import HookGroups
from tl_multitrace.groups.points import NOUN, Points

logger = logging.getLogger(__name__)


def heads(model: Any, layers: Any = None, *, site: str = "z", positions: Positions = "all") -> HookGroups:
    """Attention heads (query heads, also under grouped queries), layer by layer.

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all that have such components.
        site: ``"z"`` mixes the head's output before ``W_O``; ``"pattern"`` mixes its attention weights, those that the
            covered positions give to earlier ones, and leaves the values running.
        positions: see :func:`neurons`.

    Examples:
        >>> mt.heads(model, [0]).labels
        ['L0H0', 'L0H1', 'L0H2', 'L0H3', 'L0H4', 'L0H5', 'L0H6', 'L0H7']
        >>> mt.heads(model, [0], site="pattern").names_filter
        ['blocks.0.attn.hook_pattern']
    """
    return _indexed(model, "head", layers, positions, site)


def neurons(model: Any, layers: Any = None, *, positions: Positions = "all") -> HookGroups:
    """MLP neurons after the non-linearity, layer by layer.

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all that have such components.
        positions: ``"all"`` prompt positions (default), ``"last"``, ``"everywhere"`` (also the answer's tokens), a
            span's name such as ``"subject"``, one position, a ``slice``, or a list of positions for one group each.

    Raises:
        ValueError: a layer is outside the model.
        HookError: the model has no neurons to hook, such as a mixture of experts.

    Examples:
        >>> len(mt.neurons(model)), len(mt.neurons(model, [2], positions="last"))
        (2048, 512)
    """
    return _indexed(model, "neuron", layers, positions, "post")


def mlp_dims(model: Any, layers: Any = None, *, positions: Positions = "all") -> HookGroups:
    """Single dimensions of the MLP layers' outputs (what the PGB-CT paper's code calls MLP neurons).

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all that have such components.
        positions: see :func:`neurons`.

    Examples:
        >>> mt.mlp_dims(mt.load_model("demo"), [2]).labels[:3]
        ['L2D0', 'L2D1', 'L2D2']
    """
    return _indexed(model, "mlp_dim", layers, positions, "out", "inner")


def mlps(model: Any, layers: Any = None, *, positions: Positions = "all") -> HookGroups:
    """Whole MLP layers (their output).

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all that have such components.
        positions: see :func:`neurons`.

    Raises:
        ValueError: a layer is outside the model.
        HookError: the model has no MLP layers to hook.

    Examples:
        >>> mt.mlps(mt.load_model("demo"), positions=["last"]).labels
        ['L0MLP@last', 'L1MLP@last', 'L2MLP@last', 'L3MLP@last']
    """
    return _indexed(model, "mlp", layers, positions, "out", "inner")


def attn_layers(model: Any, layers: Any = None, *, positions: Positions = "all") -> HookGroups:
    """Whole attention layers (their output).

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all that have such components.
        positions: see :func:`neurons`.

    Examples:
        >>> mt.attn_layers(mt.load_model("demo")).labels
        ['L0ATTN', 'L1ATTN', 'L2ATTN', 'L3ATTN']
    """
    return _indexed(model, "attn", layers, positions, "out", "inner")


def residual(model: Any, layers: Any = None, *, site: str = "pre", positions: Positions = "all") -> HookGroups:
    """Residual stream states before (``"pre"``), inside (``"mid"``) or after (``"post"``) a block.

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all that have such components.
        site: ``"pre"``, ``"mid"`` or ``"post"``.
        positions: see :func:`neurons`.

    Examples:
        >>> mt.residual(mt.load_model("demo"), [1], site="post", positions=[0, 3]).labels
        ['L1@0', 'L1@3']
    """
    return _indexed(model, "resid", layers, positions, site)


def mib_groups(model: Any) -> HookGroups:
    """The nodes that MIB's circuit-localisation track counts: the model's input, then every layer's heads and MLP.

    The input is the residual state before the first block. Source: ``Graph.from_model`` of EAP-IG, whose order this is.

    Args:
        model: a TransformerLens model.

    Examples:
        >>> groups = mt.mib_groups(mt.load_model("demo"))
        >>> len(groups), groups.labels[:3], groups.labels[-1]
        (37, ['L0RESID', 'L0H0', 'L0H1'], 'L3MLP')
    """
    seen = Points.of(model)
    nodes = [Component("resid", 0, None, None, "pre")]
    for layer in range(seen.n_layers):
        if seen.missing("head", "z", layer) is None:
            nodes += [Component("head", layer, head) for head in range(seen.width("head", "z", layer))]
        nodes += [Component("mlp", layer)] if seen.missing("mlp", "out", layer) is None else []
    return HookGroups.of(model, nodes)


def _indexed(model: Any, kind: str, layers: Any, positions: Positions, *sites: str) -> HookGroups:
    """Components at the first of some sites that the model has."""
    if (kind, sites[0]) not in SITES:
        Component(kind, 0, site=sites[0])  # says which sites there are
    seen = Points.of(model)
    site = next((s for s in sites if seen.layers(kind, s)), sites[0])
    chosen = _every_layer(seen, kind, site) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    outside = [layer for layer in chosen if not 0 <= layer < seen.n_layers]
    if outside:
        raise ValueError(f"layer {outside[0]} is outside {seen.name}, which has layers 0 to {seen.n_layers - 1}.")
    indexed, at = SITES[kind, site].axis is not None, _each(positions)
    numbers = {i: range(seen.width(kind, site, i)) if indexed else [None] for i in chosen}
    return HookGroups.of(model, [Component(kind, i, n, p, site) for i in chosen for n in numbers[i] for p in at])


def _every_layer(seen: Points, kind: str, site: str) -> list[int]:
    """All layers that have such components; told where it is not all layers."""
    seen.check(kind, site)
    found = seen.layers(kind, site)
    if len(found) < seen.n_layers:
        first = next(i for i in range(seen.n_layers) if i not in found)
        reason = seen.missing(kind, site, first)
        logger.warning("%s: %s of layers %s alone. Layer %d: %s", seen.name, NOUN[kind], found, first, reason)
    return found


def _each(positions: Positions) -> list[Position]:
    if positions is None or (isinstance(positions, str) and positions == "all"):
        return [None]
    if isinstance(positions, slice):
        if positions.step not in (None, 1) or positions.start is None or positions.stop is None:
            raise ValueError(f"positions must be a slice with start and stop, got {positions!r}.")
        return [(positions.start, positions.stop)]
    if isinstance(positions, str | int):
        return [positions]
    return list(positions)
