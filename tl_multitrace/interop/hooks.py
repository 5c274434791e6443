"""Nodes and inputs by the names of TransformerLens hook points, as ACDC and auto-circuit write them."""

from __future__ import annotations

import re
from functools import cache

from tl_multitrace.models.compat import GRAPH_HOOKS

_LAYER = "{layer}"


def hook(what: str, layer: int | None = None) -> str:
    """The hook point of ``"head"``, ``"mlp"``, ``"q_input"``, ``"mlp_input"`` ... in a layer."""
    return GRAPH_HOOKS[what].format(layer=layer)


@cache
def what_is(name: str) -> tuple[str, int | None]:
    """What a hook point stands for, and its layer; the reverse of :func:`hook`.

    Raises:
        ValueError: it stands for nothing in a circuit.
    """
    for what, pattern in GRAPH_HOOKS.items():
        found = re.fullmatch(re.escape(pattern).replace(re.escape(_LAYER), r"(\d{1,6})"), name, re.ASCII)
        if found:
            return what, int(found[1]) if found.groups() else None
    raise ValueError(f"unknown hook point {name[:60]!r}: it is no node or input of a circuit.")
