"""Components of a model, and the activation that stands for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Position = int | str | tuple[int, int] | None
"""Token positions of a site: None (the whole prompt), ``"last"``, ``"everywhere"`` (prompt and answer), a span's name,
one position (negative: from the prompt's end) or a ``(start, stop)`` range."""

Positions = str | int | slice | Sequence[int | str | tuple[int, int]] | None


@dataclass(frozen=True)
class SiteKind:
    """Where a kind of component has its activation.

    Attributes:
        hook: hook name with ``{layer}``.
        axis: axis of the component index in the activation, or None where a site is the whole vector.
        pattern: whether the activation is ``[batch, head, dest, src]`` instead of ``[batch, pos, ...]``.
    """

    hook: str
    axis: int | None = None
    pattern: bool = False


SITES: dict[tuple[str, str], SiteKind] = {
    ("head", "z"): SiteKind("blocks.{layer}.attn.hook_z", axis=2),
    ("head", "pattern"): SiteKind("blocks.{layer}.attn.hook_pattern", axis=1, pattern=True),
    ("neuron", "post"): SiteKind("blocks.{layer}.mlp.hook_post", axis=2),
    ("mlp_dim", "out"): SiteKind("blocks.{layer}.hook_mlp_out", axis=2),
    ("mlp", "out"): SiteKind("blocks.{layer}.hook_mlp_out"),
    ("attn", "out"): SiteKind("blocks.{layer}.hook_attn_out"),
    ("mlp_dim", "inner"): SiteKind("blocks.{layer}.mlp.hook_out", axis=2),
    ("mlp", "inner"): SiteKind("blocks.{layer}.mlp.hook_out"),
    ("attn", "inner"): SiteKind("blocks.{layer}.attn.hook_out"),
    ("resid", "pre"): SiteKind("blocks.{layer}.hook_resid_pre"),
    ("resid", "mid"): SiteKind("blocks.{layer}.hook_resid_mid"),
    ("resid", "post"): SiteKind("blocks.{layer}.hook_resid_post"),
}
"""Every kind of component and the activation that stands for it; ``inner`` where a block has no point for its layers'
outputs, but the layer has."""

ATTENTION_INPUTS = {
    "q": "blocks.{layer}.attn.hook_q",
    "k": "blocks.{layer}.attn.hook_k",
    "v": "blocks.{layer}.attn.hook_v",
}
"""What an attention layer reads, ``[batch, pos, head, d_head]``; under grouped queries keys and values have fewer
heads than queries."""

_DEFAULT_SITE = {"head": "z", "neuron": "post", "mlp_dim": "out", "mlp": "out", "attn": "out", "resid": "pre"}
_LABEL = {
    "head": "H{index}",
    "neuron": "N{index}",
    "mlp_dim": "D{index}",
    "mlp": "MLP",
    "attn": "ATTN",
    "resid": "RESID",
}


@dataclass(frozen=True, order=True)
class Component:
    """A part of the model with an activation of its own.

    Attributes:
        kind: ``"head"``, ``"neuron"``, ``"mlp"``, ``"attn"``, ``"mlp_dim"`` or ``"resid"``.
        layer: block number.
        index: head, neuron or dimension; None for whole layers and residual states.
        position: token position(s) it is restricted to; None for the whole prompt.
        site: which of its activations (heads: ``"z"`` or ``"pattern"``; residual: ``"pre"``, ``"mid"``, ``"post"``);
            default per kind. Not part of the identity: the same head at ``z`` and at ``pattern`` is one component.

    Raises:
        ValueError: unknown kind or site, a negative number, an index where there is none or none where one is needed.

    Examples:
        >>> mt.Component("head", 9, 6).label, mt.Component("neuron", 3, 120).label
        ('L9H6', 'L3N120')
        >>> mt.Component("resid", 4, position=3).label
        'L4@3'
    """

    kind: str
    layer: int
    index: int | None = None
    position: Position = None
    site: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in _DEFAULT_SITE:
            raise ValueError(f"unknown kind {self.kind!r}: use one of {', '.join(_DEFAULT_SITE)}.")
        if not self.site:
            object.__setattr__(self, "site", _DEFAULT_SITE[self.kind])
        if (self.kind, self.site) not in SITES:
            sites = [s for k, s in SITES if k == self.kind]
            raise ValueError(f"a {self.kind} has no site {self.site!r}: use one of {', '.join(sites)}.")
        needs_index = SITES[self.kind, self.site].axis is not None
        if needs_index != (self.index is not None):
            raise ValueError(f"a {self.kind} {'needs' if needs_index else 'has no'} index, got {self.index!r}.")
        if self.layer < 0 or (self.index or 0) < 0:
            raise ValueError(f"layer and index count from 0, got layer {self.layer}, index {self.index}.")

    @property
    def label(self) -> str:
        """``L9H6``, ``L3N120``, ``L5MLP``, ``L5ATTN``, ``L2D7``, ``L4@3``; ``@`` and a position where it has one."""
        if self.kind == "resid" and self.position is not None:
            return f"L{self.layer}{_at(self.position)}"
        name = f"L{self.layer}" + _LABEL[self.kind].format(index=self.index)
        return name + ("" if self.position is None else _at(self.position))

    @property
    def hook_name(self) -> str:
        """Name of the TransformerLens hook point that holds its activation."""
        return SITES[self.kind, self.site].hook.format(layer=self.layer)


def _at(position: Position) -> str:
    return f"@{position[0]}:{position[1]}" if isinstance(position, tuple) else f"@{position}"
