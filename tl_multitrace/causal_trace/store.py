"""A trace on disk: a JSON description and the arrays beside it in safetensors.

The arrays are written first and the description last, each whole or not at all: where the description is, the trace is
complete. The description holds the arrays' SHA-256, so that two files of different traces are not taken for one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from tl_multitrace.causal_trace.cells import SITE, Cells
from tl_multitrace.files import File, GroupsRecord, Provenance, naming, read_json, write_bytes, write_json
from tl_multitrace.untrusted import checked_path, member, short

if TYPE_CHECKING:
    from tl_multitrace.causal_trace.grid import TraceGrid

ARRAYS = ("restored", "corrupted", "clean")


class CellsRecord(BaseModel):
    """:class:`Cells` in a file."""

    kinds: list[str]
    positions: list[int]
    layers: list[int]
    units: list[int]
    window: int
    n_layers: int
    size: int
    own: GroupsRecord | None = None

    @classmethod
    def of(cls, c: Cells) -> CellsRecord:
        """From cells."""
        return cls(
            kinds=list(c.kinds),
            positions=list(c.positions),
            layers=list(c.layers),
            units=list(c.units),
            window=c.window,
            n_layers=c.n_layers,
            size=c.size,
            own=None if c.own is None else GroupsRecord.of(c.own),
        )

    def cells(self) -> Cells:
        """The cells.

        Raises:
            ValueError: an unknown kind, or layers outside the model they say they are of.
        """
        unknown = [k for k in self.kinds if k not in SITE]
        if unknown or not (self.kinds or self.own):
            raise ValueError(f"cells of unknown kind {short(unknown or self.kinds)}.")
        if any(not 0 <= layer < self.n_layers for layer in self.layers):
            raise ValueError(f"layers {self.layers[:4]} lie outside a model of {self.n_layers}.")
        if any(not 0 <= unit < self.size for unit in self.units):
            raise ValueError(f"units {self.units[:4]} lie outside layers of {self.size}.")
        if self.window < 1:
            raise ValueError(f"a window of {self.window} layers.")
        return Cells(
            tuple(self.kinds),
            tuple(self.positions),
            tuple(self.layers),
            tuple(self.units),
            self.window,
            self.n_layers,
            self.size,
            None if self.own is None else self.own.groups(),
        )


class TraceFile(File):
    """A :class:`TraceGrid` on disk, arrays apart."""

    FORMAT: ClassVar[str] = "tl_multitrace.trace"
    format: Literal["tl_multitrace.trace"]
    arrays: str
    sha256: str
    cells: CellsRecord
    tokens: list[str]
    subject: tuple[int, int]
    answer: str
    severed: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    provenance: Provenance = Field(default_factory=dict)


def save_grid(grid: TraceGrid, path: Path, *, overwrite: bool = False) -> Path:
    """Write ``path`` (JSON) and, beside it, a file of the same name ending in ``.safetensors``.

    Raises:
        FileExistsError: one of the two exists and ``overwrite`` is False.
    """
    from safetensors.torch import save

    beside = arrays_path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another name, or pass overwrite=True to replace it.")
    content = save({name: getattr(grid, name).contiguous() for name in ARRAYS})
    record = TraceFile(
        format="tl_multitrace.trace",
        version=TraceFile.VERSION,
        arrays=beside.name,
        sha256=hashlib.sha256(content).hexdigest(),
        cells=CellsRecord.of(grid.cells),
        tokens=list(grid.tokens),
        subject=grid.subject,
        answer=grid.answer,
        severed=list(grid.severed),
        notes=list(grid.notes),
        provenance=dict(grid.provenance),
    )
    # arrays without a description are what a killed run leaves behind: they are replaced
    write_bytes(beside, content, overwrite=True)
    return write_json(path, record.model_dump(mode="json"), overwrite=overwrite)


def arrays_path(path: Path) -> Path:
    """Where the arrays of a description are.

    Raises:
        ValueError: the description itself would be called ``.safetensors``.
    """
    if path.suffix == ".safetensors":
        raise ValueError(f"give the JSON file, such as {path.with_suffix('.json').name}; its arrays go beside it.")
    return path.with_suffix(".safetensors")


def load_grid(path: Path) -> TraceGrid:
    """Read a trace; see :meth:`TraceGrid.load`."""
    from tl_multitrace.causal_trace.grid import TraceGrid

    file = read_json(path, TraceFile)
    arrays = _arrays(path, file)
    with naming(path):
        _check(file, arrays)
        return TraceGrid(
            restored=arrays["restored"],
            corrupted=arrays["corrupted"],
            clean=arrays["clean"],
            cells=file.cells.cells(),
            tokens=tuple(file.tokens),
            subject=file.subject,
            answer=file.answer,
            severed=tuple(file.severed),
            notes=tuple(file.notes),
            provenance=file.provenance,
        )


def _check(file: TraceFile, arrays: dict[str, Tensor]) -> None:
    """Refuse what no trace is; raises ValueError."""
    n, (start, stop) = len(file.tokens), file.subject
    outside = [p for p in file.cells.positions if not 0 <= p < n]
    if outside or not 0 <= start <= stop <= n:
        raise ValueError(f"position {outside[:1] or file.subject} lies outside {n} tokens.")
    absent = "facts" in file.provenance  # an average has no number where no fact has such a token
    for name, values in arrays.items():
        bad = values.isinf() if absent and name == "restored" else ~values.isfinite()
        if not values.is_floating_point() or bool(bad.any()):
            raise ValueError(f"{name} holds numbers that are no probabilities.")


def _arrays(path: Path, file: TraceFile) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    with naming(f"{path} names its arrays"):
        beside = member(path.parent, file.arrays)
    if not beside.is_file():
        raise FileNotFoundError(f"the arrays of {path} are missing: no file {str(beside)!r}.")
    content = checked_path(beside).read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ValueError(f"{beside} is not the array file that {path} describes (cut off, or of another trace).")
    try:
        found = load(content)
    except SafetensorError as error:
        raise ValueError(f"{beside} is not a safetensors file ({str(error)[:160]}).") from None
    if set(found) != set(ARRAYS):
        raise ValueError(f"{beside} holds {short(sorted(found))} instead of {sorted(ARRAYS)}.")
    return found
