"""A run in progress: its place, its lock, what it was asked for, and what it has found so far.

======================  ==============================================================
``checkpoint/run.json``   arguments, versions and the model's digest: what a run that goes on must share
``checkpoint/lock``       held by the process that works here
``checkpoint/found/``     results of the calls made so far (``cache.py``)
``checkpoint/result/``    the finished files, before they are moved to their place
======================  ==============================================================
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_multitrace.distributed import ALONE, Ranks
from tl_multitrace.machine import versions
from tl_multitrace.records.read import member
from tl_multitrace.records.record import Record, result

NAME = "checkpoint"
MUST_AGREE = ("tl_multitrace", "transformer_lens", "torch")
"""Versions that decide about rounding: results of two of them are not mixed."""


@result("tl_multitrace.checkpoint")
@dataclass(frozen=True)
class CheckpointFile(Record):
    """What a run was asked for."""

    arguments: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The unfinished run of a folder.

    Attributes:
        folder: the run folder.
        arguments: what the run is asked for.
        ranks: processes that share the work; the first one writes.
    """

    folder: Path
    arguments: Mapping[str, Any]
    ranks: Ranks = ALONE

    @property
    def place(self) -> Path:
        """Where everything of it is."""
        return self.folder / NAME

    @property
    def found(self) -> Path:
        """The ``cache_dir`` of its tracers."""
        return self.place / "found"

    @property
    def result(self) -> Path:
        """Where finished files are written, before they are moved to their place."""
        return self.place / "result"

    @property
    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return (self.place / "run.json").is_file()

    @property
    def has_found(self) -> bool:
        """Whether any result of a call is kept."""
        return any(self.found.glob("*/*.s*"))

    def start(self) -> None:
        """Begin, or go on, with the finished files of the last attempt dropped.

        Raises:
            ValueError: the unfinished run was asked for something else, or is of other versions.
        """
        if self.exists:
            self._check(CheckpointFile.load(member(self.place, "run.json")))
        else:
            self._write(None)
        shutil.rmtree(self.result, ignore_errors=True)
        self.result.mkdir()

    def _check(self, there: CheckpointFile) -> None:
        mine = CheckpointFile(arguments=dict(self.arguments), versions=versions()).content()
        for name, value in mine["arguments"].items():
            if there.arguments.get(name) != value:
                raise ValueError(
                    f"the unfinished run in {self.folder} was started with {name} {there.arguments.get(name)!r}, not "
                    f"{value!r}. Repeat its arguments to go on, choose another --out, or add --overwrite to start anew."
                )
        for name in MUST_AGREE:
            if there.versions.get(name) != mine["versions"][name]:
                raise ValueError(
                    f"the unfinished run in {self.folder} was started with {name} {there.versions.get(name)}, and this "
                    f"is {mine['versions'][name]}: results of the two would be mixed. Install that version to go on, "
                    "or add --overwrite to start anew."
                )

    def claim(self, model: Mapping[str, Any]) -> None:
        """Say which model the run is of, as soon as it is loaded.

        Raises:
            ValueError: the unfinished run is of another one.
        """
        if not self.ranks.first:
            return
        there = CheckpointFile.load(member(self.place, "run.json"))
        if there.model is None:
            self._write(model)
        elif there.model.get("digest") != model.get("digest"):
            raise ValueError(
                f"the unfinished run in {self.folder} is of a model with digest {there.model.get('digest')}, and "
                f"{model.get('name')} has {model.get('digest')}: its weights or its configuration have changed. Choose "
                "another --out, or add --overwrite to start anew."
            )

    def _write(self, model: Mapping[str, Any] | None) -> None:
        record = CheckpointFile(dict(self.arguments), versions(), None if model is None else dict(model))
        record.save(self.place / "run.json", overwrite=True)

    def drop(self) -> None:
        """Remove it."""
        shutil.rmtree(self.place, ignore_errors=True)
