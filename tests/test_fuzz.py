"""Every loader under damaged and hostile files: only the errors that it documents, soon, and nothing run.

``TL_MULTITRACE_FUZZ=10000 pytest tests/test_fuzz.py`` tries as many files per loader; the suite tries a few.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import struct
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import LOADERS, Loader
from fuzzing import DAMAGE, RAN, Change, Damage, changed, cut, dumped, profile, saved
from hypothesis import given

SLOWEST = 10.0
"""Seconds of computing that reading a file of a few kilobytes may take."""

ENOUGH = 1000
"""Damaged files among which some must still be readable, or the damage tests nothing but the first check."""

pytestmark = [pytest.mark.filterwarnings("ignore")]


# ---------------------------------------------------------------------- damage by kind of file


def damaged(name: str, content: Any, damage: Damage) -> bytes:
    """The file after what is done to it."""
    if damage.instead is not None:
        return damage.instead
    return cut(restructured(name, content, damage.changes), damage.cuts)


def restructured(name: str, content: Any, changes: list[Change]) -> bytes:
    """The file with changes in its structure."""
    suffix = name.rpartition(".")[2]
    if suffix in ("pt", "pth"):
        return saved(changed(content, changes), changes)
    if suffix == "safetensors":
        return rearranged(content, changes)
    if not isinstance(content, bytes):
        return dumped(changed(content, changes))
    if suffix == "json":
        return dumped(changed(json.loads(content), changes)) if changes else content
    if suffix == "jsonl":
        records = changed([json.loads(line) for line in content.decode().splitlines() if line], changes)
        return b"\n".join(dumped(r) for r in records) if isinstance(records, list) else dumped(records)
    return retabled(content, "\t" if suffix == "tsv" else ",", changes) if changes else content


def retabled(content: bytes, delimiter: str, changes: list[Change]) -> bytes:
    """A table with changes in its rows and cells."""
    rows = changed(list(csv.reader(io.StringIO(content.decode()), delimiter=delimiter)), changes)
    rows = rows if isinstance(rows, list) else [[rows]]
    lines = [map(str, row) if isinstance(row, list) else [str(row)] for row in rows]
    return "\n".join(delimiter.join(line) for line in lines).encode("utf-8", "surrogatepass")


def rearranged(content: bytes, changes: list[Change]) -> bytes:
    """A safetensors file with changes in its header."""
    (length,) = struct.unpack("<Q", content[:8])
    header = dumped(changed(json.loads(content[8 : 8 + length]), changes))
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def written(loader: Loader, damage: Damage, folder: Path) -> None:
    """The loader's files, one of them damaged."""
    files = valid(loader)
    names = [name for name in files if name not in loader.steady]
    chosen = names[damage.file % len(names)]
    for name, content in whole(loader).items():
        if _written.get(folder / name) != content:
            (folder / name).write_bytes(content)
            _written[folder / name] = content
    _written[folder / chosen] = damaged(chosen, files[chosen], damage)
    (folder / chosen).write_bytes(_written[folder / chosen])
    if chosen.endswith(".safetensors") and damage.file % 4:  # arrays that are what their description says they are
        described = folder / chosen.replace(".safetensors", ".json")
        record = json.loads(described.read_text())
        record["sha256"] = hashlib.sha256((folder / chosen).read_bytes()).hexdigest()
        described.write_text(json.dumps(record))
        _written.pop(described)


_valid: dict[int, dict[str, Any]] = {}
_whole: dict[int, dict[str, bytes]] = {}
_written: dict[Path, bytes] = {}


def valid(loader: Loader) -> dict[str, Any]:
    """The loader's files as they should be, made once."""
    return _valid.setdefault(id(loader), loader.files())


def whole(loader: Loader) -> dict[str, bytes]:
    """The same as bytes."""
    if id(loader) not in _whole:
        files = valid(loader).items()
        _whole[id(loader)] = {n: c if isinstance(c, bytes) else restructured(n, c, []) for n, c in files}
    return _whole[id(loader)]


# ---------------------------------------------------------------------- the tests


@pytest.mark.parametrize("name", LOADERS)
def test_the_valid_file_is_read(name: str, tmp_path: Path) -> None:
    for file, content in whole(LOADERS[name]).items():
        (tmp_path / file).write_bytes(content)
    LOADERS[name].read(tmp_path)


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    loader, found, counts = LOADERS[name], {}, {"read": 0, "refused": 0}

    @profile()
    @given(damage=DAMAGE)
    def survives(damage: Damage) -> None:
        written(loader, damage, tmp_path)
        start = time.process_time()
        try:
            loader.read(tmp_path)
            counts["read"] += 1
        except loader.errors as error:
            counts["refused"] += 1
            if str(tmp_path) not in str(error) or len(str(error)) > 3000 or type(error) not in loader.errors:
                found.setdefault(f"message of {type(error).__name__}", str(error)[:300])
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found.setdefault(
                f"{type(error).__name__} at {place.filename}:{place.lineno}", traceback.format_exc()[-1500:]
            )
        if time.process_time() - start > SLOWEST:
            found.setdefault("slow", repr(damage)[:600])

    survives()
    assert not found, "\n\n".join(f"{what}\n{how}" for what, how in found.items())
    assert not RAN, "code from a file was run"
    enough = counts["read"] or counts["refused"] < ENOUGH
    assert counts["refused"] and enough, f"the damage is too light or too heavy: {counts}"
