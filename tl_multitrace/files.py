"""The package's own files: versioned JSON, written whole or not at all, read with validation.

Nothing here is ever unpickled. A file that is cut off, of another program, or of a newer version gives an error that
says so.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tl_multitrace.groups import SITES, Component, HookGroups
from tl_multitrace.scores import Score
from tl_multitrace.untrusted import MAX_NUMBER, checked_path, parsed, short

MAX_SAID = 1000
"""Characters of an error about a file's contents."""

MAX_AXIS, MAX_WIDTH, MAX_GROUPS = 1 << 14, 1 << 24, 1 << 26
"""More layers or heads, neurons or words, and entries of a mask, than any search has."""


class File(BaseModel):
    """A versioned file: ``format`` names it, ``version`` is the layout it was written in."""

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=False)
    FORMAT: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1
    format: str
    version: int


F = TypeVar("F", bound=File)


def known_facts(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Provenance whose well-known entries are what tables and figures take them for.

    Raises:
        ValueError: one of them is something else.
    """
    for name, fits in _FACTS.items():
        if facts.get(name) is not None and not fits(facts[name]):
            raise ValueError(f"provenance has no such {name}: {short(facts[name])}")
    return facts


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_number, value.values()))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shape(value: Any) -> bool:
    """A model's facts; its numbers are the sizes of figures."""
    sizes = [value.get(f"n_{x}") for x in ("layers", "heads")] if isinstance(value, Mapping) else [""]
    widths = [value.get(x) for x in ("d_model", "d_mlp", "d_vocab")] if isinstance(value, Mapping) else []
    return all(_whole(n, MAX_AXIS) for n in sizes) and all(_whole(n, MAX_WIDTH) for n in widths)


def _whole(value: Any, most: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most)


def _goals(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_goal(v) for v in value)


def _goal(value: Any) -> bool:
    bounds = [value.get(k, 0.0) for k in ("at_most", "at_least")] if isinstance(value, Mapping) else [""]
    return all(map(_number, bounds)) and isinstance(value.get("name"), str)


_FACTS: dict[str, Callable[[Any], bool]] = {
    "model": _shape,
    "cost": _numbers,
    "goals": _goals,
    "constraints": _goals,
    "solver": lambda value: isinstance(value, Mapping),
    "outcome": lambda value: isinstance(value, Mapping),
    "prompts": lambda value: isinstance(value, Mapping),
    "intervention": lambda value: isinstance(value, Mapping | str),
    "seed": lambda value: _whole(value, MAX_NUMBER),
}
Provenance = Annotated[Mapping[str, Any], AfterValidator(known_facts)]
"""Where a result comes from, as it stands in files."""


class ComponentRecord(BaseModel):
    """A :class:`Component` in a file."""

    kind: str
    layer: int
    index: int | None = None
    position: int | str | tuple[int, int] | None = None
    site: str = ""

    @classmethod
    def of(cls, c: Component) -> ComponentRecord:
        """From a component."""
        return cls(kind=c.kind, layer=c.layer, index=c.index, position=c.position, site=c.site)

    def component(self) -> Component:
        """The component; raises ValueError if there can be no such component."""
        return Component(self.kind, self.layer, self.index, self.position, self.site)


class GroupsRecord(BaseModel):
    """:class:`HookGroups` in a file: components, and their sites where those are more than the component itself."""

    components: list[ComponentRecord]
    sites: list[list[ComponentRecord] | None]
    sizes: dict[str, int]

    @classmethod
    def of(cls, groups: HookGroups) -> GroupsRecord:
        """From hook groups."""
        sites = [
            None if s == (c,) and s[0].site == c.site else [ComponentRecord.of(x) for x in s]
            for c, s in zip(groups.components, groups.sites, strict=True)
        ]
        sizes = {f"{kind}.{site}": n for (kind, site), n in groups.sizes.items()}
        return cls(components=[ComponentRecord.of(c) for c in groups.components], sites=sites, sizes=sizes)

    def groups(self) -> HookGroups:
        """The hook groups; raises ValueError where the record does not make sense."""
        components = tuple(c.component() for c in self.components)
        if len(self.sites) != len(components):
            raise ValueError(f"{len(self.sites)} site lists for {len(components)} components.")
        sites = tuple(
            (c,) if s is None else tuple(x.component() for x in s) for c, s in zip(components, self.sites, strict=True)
        )
        sizes = {}
        for key, n in self.sizes.items():
            kind, _, site = key.partition(".")
            if (kind, site) not in SITES or n < 1:
                raise ValueError(f"unknown site {key!r} of size {n}.")
            sizes[kind, site] = n
        return HookGroups(components, sites, sizes)


class ScoreRecord(BaseModel):
    """A :class:`Score` in a file."""

    mean: float
    low: float | None = None
    high: float | None = None
    median: float
    n: int
    log: float | None = None

    @classmethod
    def of(cls, score: Score | None) -> ScoreRecord | None:
        """From a score."""
        return None if score is None else cls(**score.to_dict())

    def score(self) -> Score:
        """The score."""
        return Score(**self.model_dump())


class CircuitFile(File):
    """A :class:`Circuit` on disk."""

    FORMAT: ClassVar[str] = "tl_multitrace.circuit"
    format: Literal["tl_multitrace.circuit"]
    groups: GroupsRecord
    indices: list[int]
    n_groups: int = Field(ge=0, le=MAX_GROUPS)
    effect: float | None
    score: ScoreRecord | None = None
    held_out: ScoreRecord | None = None
    chance: ScoreRecord | None = None
    full_effect: float | None = None
    full_score: ScoreRecord | None = None
    marginals: list[float] = Field(default_factory=list)
    certificate: str = "not certified"
    provenance: Provenance = Field(default_factory=dict)


def stored_score(record: ScoreRecord | None) -> Score | None:
    """The score in a file, if there is one."""
    return None if record is None else record.score()


# ---------------------------------------------------------------------- reading and writing


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """What is wrong with a file's contents is said with the file's name in front."""
    try:
        yield
    except ValueError as error:
        said = str(error)  # which may name a key of the file, however long
        raise ValueError(f"{path}: {said if len(said) <= MAX_SAID else said[:MAX_SAID] + ' ...'}") from None


def write_json(path: Path, content: Any, *, overwrite: bool = False) -> Path:
    """Write JSON to a temporary file beside ``path`` and rename it: either the whole file is there or the old one.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False.
        ValueError: the content holds NaN or infinity.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ValueError(f"{path} was not written: it would hold a number that is not finite ({error}).") from None
    return write_text(path, text + "\n", overwrite=overwrite)


def write_text(path: Path, text: str, *, overwrite: bool = False) -> Path:
    """Write a text file whole or not at all; raises FileExistsError unless ``overwrite``."""
    return write_bytes(path, text.encode("utf-8"), overwrite=overwrite)


def write_bytes(path: Path, content: bytes, *, overwrite: bool = False) -> Path:
    """Write a file whole or not at all; raises FileExistsError unless ``overwrite``."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another name, or pass overwrite=True to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def read_json(path: Path, kind: type[F]) -> F:
    """Read and validate one of the package's files.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, not JSON (cut off), another format, a newer version, or fields that do not validate.
    """
    text, content = parsed(checked_path(path))
    check_header(path, content, kind)
    try:
        # strict, as text: a list may be a tuple, but "nan" is no number and 1 is not true
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:120]
        raise ValueError(f"{path}: {place}: {first['msg'][:MAX_SAID]} ({error.error_count()} problem(s)).") from None


def check_header(path: Path, content: Any, kind: type[File]) -> None:
    """Refuse a file of another format or a newer version."""
    if not isinstance(content, dict) or content.get("format") != kind.FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is not a {kind.FORMAT} file (format: {short(found)}).")
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version > kind.VERSION:
        raise ValueError(
            f"{path} has version {short(version)} of {kind.FORMAT}; this tl_multitrace reads up to {kind.VERSION}. "
            "Upgrade: pip install -U tl-multitrace."
        )


@contextmanager
def locked(folder: Path, name: str = "lock") -> Iterator[None]:
    """Hold a folder, which is made where it is not there, for this process alone; a killed process holds nothing.

    Raises:
        FileExistsError: another process holds it.
    """
    from filelock import FileLock, Timeout

    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"another process is working in {folder}. Wait for it, stop it, or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()
        if made and folder.is_dir() and [p.name for p in folder.iterdir()] == [name]:  # nothing came of it
            shutil.rmtree(folder, ignore_errors=True)
            for place in made[1:]:
                with suppress(OSError):  # another process has put something there
                    place.rmdir()
