"""What stands at a place in a foreign file: given back if it is as it should be, else an error names the place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
SHOWN = 60


def _field(what: str, fits: Callable[[Any], bool], of: Callable[[Any], T]) -> Callable[[Any, str], T]:
    def checked(value: Any, place: str) -> T:
        if not fits(value):
            raise ValueError(f"{place} must be {what}, got {_shown(value)}.")
        return of(value)

    return checked


mapping: Callable[[Any, str], dict[str, Any]] = _field(
    "a dictionary of names", lambda v: isinstance(v, Mapping) and all(isinstance(k, str) for k in v), dict
)
listing: Callable[[Any, str], list[Any]] = _field("a list", lambda v: isinstance(v, list | tuple), list)
text = _field("text", lambda v: isinstance(v, str), str)
flag = _field("true or false", lambda v: isinstance(v, bool), bool)
whole = _field("a whole number from 0", lambda v: type(v) is int and v >= 0, int)


def keys(content: Any, needed: Sequence[str], what: str) -> dict[str, Any]:
    """A dictionary that has these keys; raises ValueError for one that lacks some, which is then not ``what``."""
    found = mapping(content, what)
    missing = [key for key in needed if key not in found]
    if missing:
        raise ValueError(f"{what} has no {', '.join(missing)}.")
    return found


def score(value: Any, place: str) -> float | None:
    """A finite number, or None for NaN and null, which stand for "not scored"; raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (math.inf, -math.inf):
        raise ValueError(f"{place} must be a finite number or NaN, got {_shown(value)}.")
    try:
        return None if value != value else float(value)
    except OverflowError:
        raise ValueError(f"{place} must be a finite number or NaN, got a whole number too large for one.") from None


def tensor(value: Any, place: str, shape: tuple[int, ...], *, boolean: bool = False) -> Tensor:
    """A plain tensor of this shape with finite numbers or NaN (float64), or booleans; raises ValueError for others.

    The shape is checked before anything is copied: a file of a few bytes can hold a view of any size.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise ValueError(f"{place} must be a dense tensor, got {_shown(value)}.")
    if tuple(value.shape) != shape:
        raise ValueError(f"{place} must have the shape {list(shape)}, got {list(value.shape)[:6]}.")
    if value.is_quantized or value.is_complex() or (boolean and value.dtype != torch.bool):
        raise ValueError(f"{place} must be {'boolean' if boolean else 'numbers'}, got {value.dtype}.")
    found = value.detach()
    if not boolean and bool(found.double().isinf().any()):
        raise ValueError(f"{place} holds an infinite number.")
    return found if boolean else found.double()


def numbers(values: Tensor) -> list[Any]:
    """Nested lists with None for NaN."""
    if values.ndim > 1:
        return [numbers(row) for row in values]
    return [None if v != v else v for v in values.tolist()]


def scores_tensor(values: Any, *, missing: float = math.nan) -> Tensor:
    """A tensor, or nested lists as one with ``missing`` for None; float32, as others use, if nothing changes."""
    exact = values if isinstance(values, Tensor) else torch.tensor(_filled(values, missing), dtype=torch.float64)
    single = exact.float()
    return single if bool(((single.double() == exact) | exact.isnan()).all()) else exact


def _filled(values: Any, missing: float) -> Any:
    if isinstance(values, list | tuple):
        return [_filled(v, missing) for v in values]
    return missing if values is None else values


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)[:6]} of {value.dtype}"
    plain = isinstance(value, str | float | bool | type(None)) or (isinstance(value, int) and abs(value) < 10**SHOWN)
    shown = repr(value) if plain else type(value).__name__
    return shown if len(shown) <= SHOWN else shown[:SHOWN] + " ..."
