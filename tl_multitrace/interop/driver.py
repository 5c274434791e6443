"""Reads and writes the files of other tools: what every format repeats, so that a format is a small table.

Reading: within bounds, nothing in a file is run, and an error names the file. Writing: the graph is brought to what the
format can hold, the file is whole or absent, and what was left out is said in one :class:`LeftOut` warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop.circuit_conversion import as_graph
from tl_multitrace.interop.circuit_graph import CircuitGraph, say_left_out, unheld
from tl_multitrace.records.read import load_json, naming
from tl_multitrace.records.tensor_files import load_tensors, save_tensors
from tl_multitrace.records.write import write_json

TENSORS, KINDS = (".pt", ".pth"), ("json", "tensors")
Item = Circuit | CircuitGraph
"""What can be written."""


class Form(NamedTuple):
    """A form that files of a format have.

    ``parse(content, ...)`` makes a file's content a graph, or raises ValueError with the place; ``content(graph, ...)``
    makes a graph a file's content, and says in words what was lost on the way.
    """

    parse: Callable[..., CircuitGraph]
    content: Callable[..., tuple[Any, list[str]]]


@dataclass(frozen=True)
class Format:
    """A format of files, by what it holds.

    Attributes:
        name: of the format.
        forms: ``"json"``, ``"tensors"``, or both; then ``.pt`` and ``.pth`` files are tensors, others JSON.
        prepare: bring a graph, one after another, to what the format can hold.
        holds: of node scores, edge scores, dimensions and groups those that it holds.
        tells_shape: whether a file tells the model's number of layers and heads; else ``read`` takes ``shape=``.

    Examples:
        >>> from tl_multitrace.interop import FORMATS
        >>> file = FORMATS["eap-ig"].write(circuit, "circuit.json")
        >>> FORMATS["eap-ig"].read(file).chosen, FORMATS["eap-ig"].tells_shape
        (('input', 'logits', 'a0.h1', 'a0.h3'), True)
    """

    name: str
    forms: Mapping[str, Form]
    prepare: tuple[Callable[[CircuitGraph], CircuitGraph], ...] = ()
    holds: tuple[str, ...] = ()
    tells_shape: bool = True

    def read(self, path: str | Path, **options: Any) -> CircuitGraph:
        """The graph in a file; ``options`` are the form's.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file; the message names file and place.
        """
        kind = self._kind(path)
        content = load_tensors(path) if kind == "tensors" else load_json(path, nan=True)
        with naming(path):
            return self.forms[kind].parse(content, **options)

    def write(
        self, item: Item, path: str | Path, *, shape: Any = None, overwrite: bool = False, **options: Any
    ) -> Path:
        """Write a circuit or graph, of a model or :class:`Shape` if it does not tell it; ``options`` are the form's.

        Raises:
            FileExistsError: the file exists, and ``overwrite`` is False.
            ValueError: the item lacks what the format needs, or holds a number that is not finite.
        """
        graph = as_graph(item, shape)
        for step in self.prepare:
            graph = step(graph)
        kind = self._kind(path)
        content, lost = self.forms[kind].content(graph, **options)
        if kind == "tensors":
            written = save_tensors(path, content, overwrite=overwrite)
        else:  # compact, as the other tools write it
            written = write_json(Path(path), content, overwrite=overwrite, indent=None, default=None)
        say_left_out([*graph.left_out, *unheld(graph, self.holds), *lost], self.name)
        return written

    def _kind(self, path: str | Path) -> str:
        """The form of a file."""
        return next(iter(self.forms)) if len(self.forms) == 1 else KINDS[Path(path).suffix in TENSORS]
