"""The formats by name: read any, write any, convert one into another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop.acdc import from_acdc, to_acdc
from tl_multitrace.interop.auto_circuit import from_auto_circuit, to_auto_circuit
from tl_multitrace.interop.circuits import as_graph
from tl_multitrace.interop.eap_ig import from_eap_ig, to_eap_ig
from tl_multitrace.interop.edge_pruning import from_edge_pruning, to_edge_pruning
from tl_multitrace.interop.graph import CircuitGraph
from tl_multitrace.interop.head_lists import from_head_lists, to_head_lists
from tl_multitrace.interop.names import Shape
from tl_multitrace.interop.neuronpedia import from_neuronpedia, to_neuronpedia
from tl_multitrace.records.read import naming

OURS = "circuit"
"""Name of this package's own format, which keeps everything.

Examples:
    >>> from tl_multitrace.interop import OURS
    >>> OURS
    'circuit'
"""


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        read: ``read(path)``; with ``shape=`` where the file does not tell the model's shape.
        write: ``write(item, path, shape=, overwrite=)``.
        tells_shape: whether a file tells the model's number of layers and heads.

    Examples:
        >>> from tl_multitrace.interop import FORMATS
        >>> FORMATS["eap-ig"].read.__name__, FORMATS["eap-ig"].tells_shape
        ('from_eap_ig', True)
    """

    read: Callable[..., CircuitGraph]
    write: Callable[..., Path]
    tells_shape: bool = True


FORMATS: dict[str, Format] = {
    "eap-ig": Format(from_eap_ig, to_eap_ig),
    "auto-circuit": Format(from_auto_circuit, to_auto_circuit),
    "acdc": Format(from_acdc, to_acdc),
    "edge-pruning": Format(from_edge_pruning, to_edge_pruning, tells_shape=False),
    "dcm": Format(from_head_lists, to_head_lists, tells_shape=False),
    "neuronpedia": Format(from_neuronpedia, to_neuronpedia, tells_shape=False),
}
"""Every foreign format by its name on the command line; ``"circuit"`` is our own.

Examples:
    >>> from tl_multitrace.interop import FORMATS
    >>> sorted(FORMATS)
    ['acdc', 'auto-circuit', 'dcm', 'eap-ig', 'edge-pruning', 'neuronpedia']
"""


def format_by_name(name: str) -> Format | None:
    """The format, or None for our own.

    Args:
        name: a key of ``FORMATS``, or ``"circuit"``.

    Raises:
        ValueError: no such format.

    Examples:
        >>> from tl_multitrace.interop import format_by_name
        >>> format_by_name("acdc").write.__name__
        'to_acdc'
    """
    if name != OURS and name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: use {', '.join([OURS, *FORMATS])}.")
    return FORMATS.get(name)


def read_circuit(path: str | Path, format: str, *, shape: Shape | Any = None) -> Circuit | CircuitGraph:
    """Read a file of any format: our own as a :class:`Circuit`, others as a :class:`CircuitGraph`.

    Args:
        path: of the file.
        format: its name.
        shape: the model or a :class:`Shape`; only for formats that do not tell it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown format, or not a file of it.

    Examples:
        >>> from tl_multitrace.interop import read_circuit
        >>> file = circuit.save("professions.circuit.json")
        >>> read_circuit(file, "circuit").labels
        ['L0H1', 'L0H3']
    """
    found = format_by_name(format)
    if found is None:
        return Circuit.load(path)
    return found.read(path) if found.tells_shape else found.read(path, shape=shape)


def write_circuit(
    item: Circuit | CircuitGraph, path: str | Path, format: str, *, shape: Shape | Any = None, overwrite: bool = False
) -> Path:
    """Write a circuit or graph in any format, whole or not at all.

    Args:
        item: what to write.
        path: of the file.
        format: its name.
        shape: the model or a :class:`Shape`, where the item does not tell it.
        overwrite: replace the file.

    Raises:
        FileExistsError: the file exists.
        ValueError: unknown format, or something that it needs is not known.

    Warns:
        LeftOut: what the format cannot hold.

    Examples:
        >>> from tl_multitrace.interop import write_circuit
        >>> write_circuit(circuit, "edges.json", "edge-pruning").name
        'edges.json'
    """
    found = format_by_name(format)
    if found is not None:
        return found.write(item, path, shape=shape, overwrite=overwrite)
    circuit = item if isinstance(item, Circuit) else as_graph(item, shape).to_circuit()
    return circuit.save(path, overwrite=overwrite)


def convert(
    source: str | Path,
    target: str | Path,
    source_format: str,
    target_format: str,
    *,
    shape: Shape | Any = None,
    edges: int | None = None,
    nodes: int | None = None,
    overwrite: bool = False,
) -> Circuit | CircuitGraph:
    """Read a file of one format and write it in another.

    Args:
        source: file to read.
        target: file to write.
        source_format: name of its format.
        target_format: name of the other.
        shape: the model or a :class:`Shape`, where the file does not tell it.
        edges: choose so many edges by the absolute value of their score first.
        nodes: or so many heads and MLPs.
        overwrite: replace the target.

    Returns:
        What was read (and chosen).

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the target exists.
        ValueError: unknown format, a broken file, or something that the target needs is not known.

    Warns:
        LeftOut: what the target format cannot hold.

    Examples:
        >>> from tl_multitrace.interop import convert
        >>> _ = circuit.save("professions.circuit.json")
        >>> graph = convert("professions.circuit.json", "professions.eap-ig.json", "circuit", "eap-ig")
        >>> mt.from_eap_ig("professions.eap-ig.json").to_circuit(model).labels
        ['L0H1', 'L0H3']
    """
    format_by_name(target_format)
    if Path(target).exists() and not overwrite:
        raise FileExistsError(f"{target} exists. Choose another name, or pass overwrite=True to replace it.")
    item = read_circuit(source, source_format, shape=shape)
    with naming(f"{source} cannot be written as {target_format}"):
        if edges is not None or nodes is not None:
            item = as_graph(item, shape).keep(edges=edges, nodes=nodes)
        write_circuit(item, target, target_format, shape=shape, overwrite=overwrite)
    return item
