"""Types of fields that stand in a file in another form than in memory.

Each is an annotation: ``groups: StoredGroups``, ``tracer: Unsaved[Tracer | None]``. What pydantic is told of it is the
form in the file, which it validates, and the two functions that lead from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import core_schema
from torch import Tensor

from tl_multitrace.groups import SITES, Component, HookGroups

T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """How a type stands in a file.

    Attributes:
        form: the type in the file.
        read: from that to the value; raises ValueError where there can be none.
        write: from the value to that.
    """

    form: Any
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        form = handler.generate_schema(self.form)
        back = core_schema.plain_serializer_function_ser_schema(self.write, return_schema=form)
        return core_schema.no_info_after_validator_function(self.read, form, serialization=back)


class _Unsaved:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_refuse)


def _refuse(value: Any) -> None:
    raise ValueError("is never in a file")


class _Beside:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(_from_beside)


def _from_beside(name: Any, info: Any) -> Any:
    if info.context is None or name not in info.context:
        raise ValueError("stands in another file")
    return info.context[name]


@dataclass(frozen=True)
class GroupsForm:
    """:class:`HookGroups` in a file: components, and their sites where those are more than the component itself."""

    components: tuple[Component, ...]
    sites: tuple[tuple[Component, ...] | None, ...]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, groups: HookGroups) -> GroupsForm:
        """From hook groups."""
        sites = tuple(
            None if s == (c,) and s[0].site == c.site else s
            for c, s in zip(groups.components, groups.sites, strict=True)
        )
        return cls(groups.components, sites, {f"{kind}.{site}": n for (kind, site), n in groups.sizes.items()})

    def groups(self) -> HookGroups:
        """The hook groups; raises ValueError where the form does not make sense."""
        if len(self.sites) != len(self.components):
            raise ValueError(f"{len(self.sites)} site lists for {len(self.components)} components.")
        sites = tuple((c,) if s is None else s for c, s in zip(self.components, self.sites, strict=True))
        sizes = {}
        for key, n in self.sizes.items():
            kind, _, site = key.partition(".")
            if (kind, site) not in SITES or n < 1:
                raise ValueError(f"unknown site {key!r} of size {n}.")
            sizes[kind, site] = n
        return HookGroups(self.components, sites, sizes)


def groups_content(groups: HookGroups) -> Any:
    """Hook groups as they stand in files, for JSON."""
    return TypeAdapter(GroupsForm).dump_python(GroupsForm.of(groups))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


StoredGroups = Annotated[HookGroups, Stored(GroupsForm, GroupsForm.groups, GroupsForm.of)]
Measured = Annotated[float, Stored(float | None, lambda x: math.nan if x is None else x, _finite)]
"""A number that is NaN where nobody has measured it, and null in the file."""

IfFinite = Annotated[float | None, Stored(float | None, lambda x: x, _finite)]
"""A number that a file has only where it is finite."""

NUMBERS = Stored(list[float], torch.tensor, Tensor.tolist)
"""A tensor ``[n]`` as a list."""

TABLE = Stored(list[list[float]], torch.tensor, Tensor.tolist)
"""A tensor ``[n, m]`` as a list of lists."""

Unsaved = Annotated[T, Field(exclude=True), _Unsaved()]
"""What belongs to this process alone, such as a tracer with its model."""

Beside = Annotated[T, Field(exclude=True), _Beside()]
"""An array that stands in a file of its own beside the record, where the record has its name."""
