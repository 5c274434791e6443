"""One record: a frozen dataclass that is also a file, and a result that shows itself.

``@result("tl_multitrace.circuit")`` over a dataclass that derives from :class:`Record` gives it a file of that format:
versioned JSON, written whole or not at all, read within bounds and validated field by field against the dataclass's own
annotations (:mod:`tl_multitrace.records.stored` has those that are kept in another form). Nothing is ever unpickled. A
file that is cut off, of another program, or of a newer version gives an error that says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from tl_multitrace.records.read import MAX_SAID, load_arrays, load_json, member, naming, short
from tl_multitrace.records.write import as_written, check_free, write_bytes, write_json

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound="Record")
Content = dict[str, Any]
KINDS: dict[str, type[Record]] = {}
"""Every kind of file by the name of its format."""

DRAWINGS: dict[tuple[type, str], Callable[..., Any]] = {}
"""How a kind of result is drawn, by the method that draws it; :mod:`tl_multitrace.render` registers itself here."""

SHOWN = 40
"""Rows of a result's table in a notebook."""


def _as_it_is(content: Content) -> Content:
    return content


@dataclass(frozen=True)
class Layout:
    """How a kind of record stands in its file.

    Attributes:
        kind: the dataclass.
        format: name of the format; stands in every file.
        version: of the layout that is written.
        key: under which the fields stand; empty: beside format and version.
        pack: last change of a content before it is written, such as what several parts share and stands once.
        upgrade: the same backwards, and from older versions to this one.
        arrays: fields that stand in a safetensors file beside this one, of the same name but for its ending.
    """

    kind: type
    format: str
    version: int
    key: str
    pack: Callable[[Content], Content]
    upgrade: Callable[[Content], Content]
    arrays: tuple[str, ...] = ()

    @cached_property
    def adapter(self) -> Any:
        """Reads and writes the fields; made when it is first needed, for it looks at the types of all of them."""
        return TypeAdapter(self.kind)

    def content(self, record: Any) -> Content:
        """What stands in the file of a record."""
        for field in dataclasses.fields(record):
            getattr(record, field.name)  # what is measured when it is read is read now
        fields = self.adapter.dump_python(record, warnings=False)
        head = {"format": self.format, "version": self.version}
        return self.pack({**head, **({self.key: fields} if self.key else fields)})

    def save(self, record: Any, path: Path, *, overwrite: bool) -> Path:
        """Write a record; see :meth:`Record.save`."""
        content = self.content(record)
        if not self.arrays:
            return write_json(path, content, overwrite=overwrite)
        from safetensors.torch import save

        if path.suffix == ".safetensors":
            raise ValueError(f"give the JSON file, such as {path.with_suffix('.json').name}; its arrays go beside it.")
        check_free(path, overwrite=overwrite)
        beside = path.with_suffix(".safetensors")
        arrays = save({name: getattr(record, name).contiguous() for name in self.arrays})
        # before the description, which says that the record is complete; what a killed run left is replaced
        write_bytes(beside, arrays, overwrite=True)
        content |= {"arrays": beside.name, "sha256": hashlib.sha256(arrays).hexdigest()}
        return write_json(path, content, overwrite=overwrite)

    def read(self, path: Path, content: Any) -> Any:
        """The record of a file's content; ``path`` is for errors, and to find arrays beside it."""
        self._check_header(path, content)
        beside = self._beside(path, content) if self.arrays else {}
        with naming(path):
            content = self.upgrade(content)
            fields = content.get(self.key) if self.key else {**content, **{name: name for name in beside}}
        try:
            # strict, as text: a list may be a tuple, but "nan" is no number and 1 is not true
            return self.adapter.validate_json(json.dumps(fields), strict=True, context=beside)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, ([self.key] if self.key else []) + list(first["loc"])))[:120]
            said = first["msg"].removeprefix("Value error, ")[:MAX_SAID]
            where = f"{place}: " if place else ""
            raise ValueError(f"{path}: {where}{said} ({error.error_count()} problem(s)).") from None

    def _beside(self, path: Path, content: Content) -> dict[str, Any]:
        """The arrays that a description names."""
        with naming(f"{path} names its arrays"):
            place = member(path.parent, str(content.get("arrays", "")))
        if not place.is_file():
            raise FileNotFoundError(f"the arrays of {path} are missing: no file {str(place)!r}.")
        return load_arrays(place, self.arrays, str(content.get("sha256")))

    def _check_header(self, path: Path, content: Any) -> None:
        if format_of(content) != self.format:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path} is not a {self.format} file (format: {short(found)}).")
        version = content.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or version > self.version:
            raise ValueError(
                f"{path} has version {short(version)} of {self.format}; this tl_multitrace reads up to {self.version}. "
                "Upgrade: pip install -U tl-multitrace."
            )


def result(
    format: str,
    *,
    version: int = 1,
    key: str = "",
    pack: Callable[[Content], Content] = _as_it_is,
    upgrade: Callable[[Content], Content] = _as_it_is,
    arrays: tuple[str, ...] = (),
) -> Callable[[type[R]], type[R]]:
    """Makes a frozen dataclass a kind of file; the arguments are those of :class:`Layout`."""

    def made(kind: type[R]) -> type[R]:
        kind.FILE = Layout(kind, format, version, key, pack, upgrade, arrays)
        KINDS[format] = kind
        return kind

    return made


def draws(kind: type, how: str = "plot") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as what draws a kind of result, when its method ``how`` is called."""

    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        DRAWINGS[kind, how] = function
        return function

    return registered


def format_of(content: Any) -> str:
    """The format that a file's content says it is of; empty where it says none."""
    found = content.get("format") if isinstance(content, dict) else None
    return found if isinstance(found, str) else ""


def load_record(path: str | Path) -> Any:
    """Whatever one of this package's files holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one of this package's files, cut off, of a newer version, or with fields that do not validate.
    """
    kind = KINDS.get(format_of(content := load_json(path)))
    if kind is None:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        known = ", ".join(name.partition(".")[2] for name in sorted(KINDS))
        raise ValueError(f"{path} is not a file of tl_multitrace (format: {short(found)}); it reads {known}.")
    return kind.of_content(path, content).opened()


class Record:
    """Base of the frozen dataclasses that are files."""

    FILE: ClassVar[Layout]

    def content(self) -> Content:
        """What stands in its file, as it comes back from there."""
        found: Content = as_written(self.FILE.content(self))
        return found

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write versioned JSON to ``path``, whole or not at all; an existing file is kept unless ``overwrite``.

        Raises:
            FileExistsError: the file exists.
            ValueError: a number is not finite.
        """
        return self.FILE.save(self, Path(path), overwrite=overwrite)

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read the file at ``path``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: truncated, of another format, or of a newer version; the message says which.
        """
        return cls.of_content(path, load_json(path))

    @classmethod
    def of_content(cls: type[R], path: str | Path, content: Any) -> R:
        """The record of what the file at ``path`` holds; raises ValueError as :meth:`load`."""
        found: R = cls.FILE.read(Path(path), content)
        with naming(path):
            found.check_whole()
        return found

    def check_whole(self) -> None:
        """Refuse what is valid part by part, and does not fit together; raises ValueError."""

    def drawn(self, how: str, *arguments: Any, **options: Any) -> Any:
        """What was registered for this kind of result by :func:`draws`, made for this one."""
        if (type(self), how) not in DRAWINGS:
            raise NotImplementedError(f"a {type(self).__name__} has no figure: look at its to_dataframe().")
        return DRAWINGS[type(self), how](self, *arguments, **options)

    def opened(self) -> Any:
        """What :func:`tl_multitrace.load` gives: the record itself, unless it stands for something else."""
        return self


class Result(Record):
    """A record that shows itself: a subclass says what it is of, what was found, and how that is a table."""

    WIDTH: ClassVar[int] = 13
    """Of the names in its text."""

    def headline(self) -> str:
        """What the result is of, in one line."""
        raise NotImplementedError

    def summary(self) -> list[tuple[str, str]]:
        """What was found, line by line: name and value."""
        raise NotImplementedError

    def to_dataframe(self) -> pd.DataFrame:
        """The numbers as a table."""
        raise NotImplementedError

    def remarks(self) -> tuple[str, ...]:
        """What a reader must know before using the numbers."""
        return tuple(getattr(self, "notes", ()))

    def table_lines(self) -> list[str]:
        """Lines that follow the summary, such as the start of the table."""
        return []

    def shown(self) -> pd.DataFrame:
        """The part of the table that a notebook shows."""
        return self.to_dataframe().head(SHOWN)

    def __repr__(self) -> str:
        lines = [f"  {name:{self.WIDTH}s} {value}" for name, value in self.summary()]
        return "\n".join(
            [self.headline(), *lines, *self.table_lines(), *[f"  note: {note}" for note in self.remarks()]]
        )

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self.summary()
        )
        table = self.shown().to_html(index=False, float_format=lambda x: f"{x:.3g}")
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.remarks())
        return f"<b>{escape(self.headline())}</b><table>{facts}</table>{notes}{table}"

    def plot(self, *others: Any, **options: Any) -> Any:
        """The figure of this kind of result, with the options of its function in :mod:`tl_multitrace.render`."""
        return self.drawn("plot", *others, **options)

    def check_whole(self) -> None:
        """Look at everything once, so that parts that do not fit together are said of the file; raises ValueError."""
        try:
            self.headline(), self.summary(), self.to_dataframe()
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"parts of the result do not fit together ({type(error).__name__}: {error}).") from None


def intervention_name(record: Mapping[str, Any]) -> str:
    """An intervention as tables show it: its name, and the options that are not at their usual value."""
    options = [f"{k}={v}" for k, v in record.items() if k != "name" and v not in (None, False, 0, 0.0)]
    return str(record.get("name", "unknown")) + (f" ({', '.join(options)})" if options else "")
