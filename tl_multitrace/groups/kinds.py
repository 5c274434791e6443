"""Hook groups of one kind of component: heads, neurons, layers, residual states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_multitrace.compat import ModelView
from tl_multitrace.groups.component import Component, Position, Positions
from tl_multitrace.groups.hook_groups import HookGroups


def heads(model: Any, layers: Any = None, *, site: str = "z", positions: Positions = "all") -> HookGroups:
    """Attention heads (query heads, also under grouped queries), layer by layer.

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all.
        site: ``"z"`` mixes the head's output before ``W_O``; ``"pattern"`` mixes its attention weights, those that the
            covered positions give to earlier ones, and leaves the values running.
        positions: see :func:`neurons`.

    Examples:
        >>> import tl_multitrace as mt
        >>> model = mt.load_model("demo")
        >>> mt.heads(model, [0]).labels
        ['L0H0', 'L0H1', 'L0H2', 'L0H3', 'L0H4', 'L0H5', 'L0H6', 'L0H7']
        >>> mt.heads(model, [0], site="pattern").names_filter
        ['blocks.0.attn.hook_pattern']
    """
    return _indexed(model, "head", layers, positions, ModelView(model).n_heads, site)


def neurons(model: Any, layers: Any = None, *, positions: Positions = "all") -> HookGroups:
    """MLP neurons after the non-linearity, layer by layer.

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all.
        positions: ``"all"`` prompt positions (default), ``"last"``, ``"everywhere"`` (also the answer's tokens), a
            span's name such as ``"subject"``, one position, a ``slice``, or a list of positions for one group each.

    Raises:
        ValueError: the model has no MLPs, or a layer is outside the model.

    Examples:
        >>> import tl_multitrace as mt
        >>> model = mt.load_model("demo")
        >>> len(mt.neurons(model)), len(mt.neurons(model, [2], positions="last"))
        (2048, 512)
    """
    return _indexed(model, "neuron", layers, positions, ModelView(model).d_mlp)


def mlp_dims(model: Any, layers: Any = None, *, positions: Positions = "all") -> HookGroups:
    """Single dimensions of the MLP layers' outputs (what the PGB-CT paper's code calls MLP neurons).

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all.
        positions: see :func:`neurons`.

    Examples:
        >>> import tl_multitrace as mt
        >>> mt.mlp_dims(mt.load_model("demo"), [2]).labels[:3]
        ['L2D0', 'L2D1', 'L2D2']
    """
    view = ModelView(model)
    return _indexed(model, "mlp_dim", layers, positions, view.d_model if view.d_mlp else 0)


def mlps(model: Any, layers: Any = None, *, positions: Positions = "all") -> HookGroups:
    """Whole MLP layers (their output).

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all.
        positions: see :func:`neurons`.

    Raises:
        ValueError: the model has no MLPs, or a layer is outside it.

    Examples:
        >>> import tl_multitrace as mt
        >>> mt.mlps(mt.load_model("demo"), positions=["last"]).labels
        ['L0MLP@last', 'L1MLP@last', 'L2MLP@last', 'L3MLP@last']
    """
    if not ModelView(model).d_mlp:
        raise ValueError(f"{ModelView(model).name} has no MLP layers.")
    return _indexed(model, "mlp", layers, positions, None)


def attn_layers(model: Any, layers: Any = None, *, positions: Positions = "all") -> HookGroups:
    """Whole attention layers (their output).

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all.
        positions: see :func:`neurons`.

    Examples:
        >>> import tl_multitrace as mt
        >>> mt.attn_layers(mt.load_model("demo")).labels
        ['L0ATTN', 'L1ATTN', 'L2ATTN', 'L3ATTN']
    """
    return _indexed(model, "attn", layers, positions, None)


def residual(model: Any, layers: Any = None, *, site: str = "pre", positions: Positions = "all") -> HookGroups:
    """Residual stream states before (``"pre"``), inside (``"mid"``) or after (``"post"``) a block.

    Args:
        model: a TransformerLens model.
        layers: block numbers; default all.
        site: ``"pre"``, ``"mid"`` or ``"post"``.
        positions: see :func:`neurons`.

    Examples:
        >>> import tl_multitrace as mt
        >>> mt.residual(mt.load_model("demo"), [1], site="post", positions=[0, 3]).labels
        ['L1@0', 'L1@3']
    """
    return _indexed(model, "resid", layers, positions, None, site)


def mib_groups(model: Any) -> HookGroups:
    """The nodes that MIB's circuit-localisation track counts: the model's input, then every layer's heads and MLP.

    The input is the residual state before the first block. Source: ``Graph.from_model`` of EAP-IG, whose order this is.

    Args:
        model: a TransformerLens model.

    Examples:
        >>> import tl_multitrace as mt
        >>> groups = mt.mib_groups(mt.load_model("demo"))
        >>> len(groups), groups.labels[:3], groups.labels[-1]
        (37, ['L0RESID', 'L0H0', 'L0H1'], 'L3MLP')
    """
    view = ModelView(model)
    nodes = [Component("resid", 0, None, None, "pre")]
    for layer in range(view.n_layers):
        nodes += [Component("head", layer, head) for head in range(view.n_heads)]
        nodes += [Component("mlp", layer)] if view.d_mlp else []
    return HookGroups.of(model, nodes)


def _indexed(model: Any, kind: str, layers: Any, positions: Positions, count: int | None, site: str = "") -> HookGroups:
    view = ModelView(model)
    if count == 0:
        raise ValueError(f"{view.name} has no {kind}s.")
    chosen = range(view.n_layers) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    outside = [layer for layer in chosen if not 0 <= layer < view.n_layers]
    if outside:
        raise ValueError(f"layer {outside[0]} is outside {view.name}, which has layers 0 to {view.n_layers - 1}.")
    indices: Sequence[int | None] = [None] if count is None else range(count)
    return HookGroups.of(
        model, [Component(kind, layer, i, p, site) for layer in chosen for i in indices for p in _each(positions)]
    )


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
