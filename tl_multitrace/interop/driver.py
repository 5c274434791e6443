"""Reads and writes the files of other tools: what every format repeats, so that a format is a small table.

Reading: within bounds, nothing in a file is run, and an error names the file. Writing: the graph is brought to what the
format can hold, the file is whole or absent, and what was left out is said in one :class:`LeftOut` warning.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.files import naming, write_text
from tl_multitrace.interop.circuits import as_graph
from tl_multitrace.interop.graph import CircuitGraph, say_left_out, unheld
from tl_multitrace.records.tensors import load_tensors, save_tensors
from tl_multitrace.untrusted import load_json

TENSORS = (".pt", ".pth")


@dataclass(frozen=True)
class Holding:
    """What a format of files holds.

    Attributes:
        name: of the format.
        parse: ``parse(content, ...)`` makes the graph of a file's content, or raises ValueError with the place.
        content: ``content(graph, ...)`` makes the file's content, and says in words what was lost on the way.
        prepare: bring a graph, one after another, to what the format can hold.
        holds: of node scores, edge scores, dimensions and groups those that it holds.
        tensors: the file is one of tensors, else it is JSON.
    """

    name: str
    parse: Callable[..., CircuitGraph]
    content: Callable[..., tuple[Any, list[str]]]
    prepare: tuple[Callable[[CircuitGraph], CircuitGraph], ...] = ()
    holds: tuple[str, ...] = ()
    tensors: bool = False


def read(held: Holding, path: str | Path, **options: Any) -> CircuitGraph:
    """The graph in a file; ``options`` are those of ``held.parse``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; the message names file and place.
    """
    content = load_tensors(path) if held.tensors else load_json(path, nan=True)
    with naming(path):
        return held.parse(content, **options)


def write(
    held: Holding, item: Circuit | CircuitGraph, path: str | Path, *, shape: Any, overwrite: bool, **options: Any
) -> Path:
    """Write a circuit or graph; ``options`` are those of ``held.content``.

    Raises:
        FileExistsError: the file exists, and ``overwrite`` is False.
        ValueError: the item lacks what the format needs, or holds a number that is not finite.
    """
    graph = as_graph(item, shape)
    for step in held.prepare:
        graph = step(graph)
    content, lost = held.content(graph, **options)
    save = save_tensors if held.tensors else _save_json
    written = save(path, content, overwrite=overwrite)
    say_left_out([*graph.left_out, *unheld(graph, held.holds), *lost], held.name)
    return written


def _save_json(path: str | Path, content: Any, *, overwrite: bool) -> Path:
    """Compact JSON, as the other tools write it."""
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} was not written: it would hold a number that is not finite ({error}).") from None
    return write_text(Path(path), text + "\n", overwrite=overwrite)
