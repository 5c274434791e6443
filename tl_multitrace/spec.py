"""Hook groups and budgets as short text: ``heads:pattern,neurons@0-3,mlps/last`` and ``1-25``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tl_multitrace.groups import HookGroups, attn_layers, heads, mlp_dims, mlps, neurons, residual
from tl_multitrace.models.compat import ModelView

KINDS: dict[str, Callable[..., HookGroups]] = {
    "heads": heads,
    "neurons": neurons,
    "mlps": mlps,
    "attn": attn_layers,
    "mlp_dims": mlp_dims,
    "resid": residual,
}
NAMES = {"heads": "head", "neurons": "neuron", "mlps": "mlp", "attn": "attn", "mlp_dims": "mlp_dim", "resid": "resid"}
"""What a component's kind is called here, and in :class:`~tl_multitrace.groups.Component`."""

SITES = {"heads": ("z", "pattern"), "resid": ("pre", "mid", "post")}
POSITIONS = ("all", "last", "subject", "everywhere")


@dataclass(frozen=True)
class Spec:
    """One kind of component: ``kind[:site][@layers][/positions]``."""

    kind: str
    site: str | None
    layers: str | None
    positions: str = "all"

    @classmethod
    def of(cls, text: str) -> Spec:
        """Read one part of a component list; raises ValueError with what is allowed."""
        components, slash, positions = text.strip().partition("/")
        name, _, layers = components.partition("@")
        kind, _, site = name.strip().partition(":")
        if kind not in KINDS:
            raise ValueError(f"unknown components {kind!r} in {text!r}: use {', '.join(KINDS)}.")
        if site and site not in SITES.get(kind, ()):
            allowed = " or ".join(f"{kind}:{s}" for s in SITES.get(kind, ())) or f"{kind} alone"
            raise ValueError(f"{kind} have no site {site!r}: use {allowed}.")
        if slash and positions.strip() not in POSITIONS:
            raise ValueError(f"unknown positions {positions!r} in {text!r}: use /{', /'.join(POSITIONS)}.")
        return cls(kind, site or None, layers.strip() or None, positions.strip() or "all")

    def groups(self, model: Any) -> HookGroups:
        """The hook groups it names in a model."""
        layers = None if self.layers is None else list(numbers_from_text(self.layers, "layers"))
        options = {} if self.site is None else {"site": self.site}
        return KINDS[self.kind](model, layers, positions=self.positions, **options)


def groups_from_text(model: Any, text: str) -> HookGroups:
    """Hook groups from a list such as ``"heads:pattern,neurons@0-3"``.

    Args:
        model: a TransformerLens model.
        text: comma-separated kinds (``heads``, ``neurons``, ``mlps``, ``attn``, ``mlp_dims``, ``resid``), each with an
            optional site (``heads:z``, ``heads:pattern``), optional layers (``@5``, ``@0-3``) and optional token
            positions (``/last``, ``/subject``, ``/everywhere``; default ``/all`` of the prompt).

    Raises:
        ValueError: an unknown kind, site or position, a layer outside the model, a component twice.

    Examples:
        >>> mt.groups_from_text(model, "heads:pattern,neurons@0-1/last")
        HookGroups(1056: 32 head, 1024 neuron)
    """
    parts = [Spec.of(part).groups(model) for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"no components in {text!r}: name some, such as 'heads' or 'heads,neurons@0-3'.")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def numbers_from_text(text: str, what: str) -> tuple[int, ...]:
    """Numbers from ``"5"``, ``"0-3"`` or ``"1-4+8"``, ascending.

    Raises:
        ValueError: anything else.
    """
    found: set[int] = set()
    for part in text.replace(",", "+").split("+"):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"{what} must be numbers such as 5, 0-3 or 1-4+8, got {text!r}.")
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def budgets_from_text(text: str, n_groups: int) -> tuple[int, ...] | dict[str, int]:
    """Budgets for :func:`~tl_multitrace.select`.

    Args:
        text: ``"10"`` is every budget from 1 to 10, ``"1-25"`` and ``"5,10,20"`` are just those, and
            ``"heads=5,neurons=20"`` is so many of each kind.
        n_groups: number of hook groups; ``"10"`` stops there.

    Raises:
        ValueError: not such text, or a budget of 0.
    """
    if "=" in text:
        return _limits(text)
    numbers = numbers_from_text(text, "budgets")
    if numbers[0] < 1:
        raise ValueError(f"a budget counts components and is at least 1, got {text!r}.")
    return tuple(range(1, min(numbers[0], n_groups) + 1)) if text.strip().isdigit() else numbers


def _limits(text: str) -> dict[str, int]:
    limits: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in NAMES or not number.isdigit():
            raise ValueError(f"budgets per kind read like 'heads=5,neurons=20' ({', '.join(NAMES)}), got {text!r}.")
        limits[NAMES[name]] = int(number)
    return limits


def describe_components(model: Any, groups: HookGroups) -> str:
    """``"32 heads and 2048 neurons of demo"``: what a search chooses from."""
    names = {"head": "heads", "neuron": "neurons", "mlp": "MLP layers", "attn": "attention layers"}
    names |= {"mlp_dim": "MLP output dimensions", "resid": "residual states"}
    counts = [f"{groups.kinds.count(k)} {names[k]}" for k in dict.fromkeys(groups.kinds)]
    return " and ".join(counts) + f" of {ModelView(model).name}"
