"""What every result of this room does alike: it saves, loads and shows itself."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field

from tl_multitrace.files import File, naming, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound="Result")


class ResultFile(File):
    """A result on disk; each kind of result narrows ``result`` to its own class."""

    result: Any = Field()


class Result:
    """Base of the frozen dataclasses of this room; a subclass says how it reads and which file it is."""

    FILE: ClassVar[type[ResultFile]]

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

    def __repr__(self) -> str:
        lines = [f"  {name:13s} {value}" for name, value in self.summary()]
        return "\n".join([self.headline(), *lines, *[f"  note: {note}" for note in self.remarks()]])

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self.summary()
        )
        table = self.to_dataframe().head(40).to_html(index=False, float_format=lambda x: f"{x:.3g}")
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.remarks())
        return f"<b>{escape(self.headline())}</b><table>{facts}</table>{notes}{table}"

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write versioned JSON; raises FileExistsError unless ``overwrite``."""
        kind = self.FILE
        file = kind(format=kind.FORMAT, version=kind.VERSION, result=self)
        return write_json(Path(path), file.model_dump(), overwrite=overwrite)

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read a saved result; raises as :meth:`Circuit.load` does."""
        found: R = read_json(Path(path), cls.FILE).result
        with naming(path):
            _check_whole(found)
        return found


def _check_whole(result: Result) -> None:
    """Refuse a result whose parts are each valid and do not fit together; raises ValueError."""
    try:
        result.headline(), result.summary(), result.to_dataframe()
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"parts of the result do not fit together ({type(error).__name__}: {error}).") from None


def intervention_name(record: Mapping[str, Any]) -> str:
    """An intervention as tables show it: its name, and the options that are not at their usual value."""
    options = [f"{k}={v}" for k, v in record.items() if k != "name" and v not in (None, False, 0, 0.0)]
    return str(record.get("name", "unknown")) + (f" ({', '.join(options)})" if options else "")
