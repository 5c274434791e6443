"""The formats by name: read any, write any, convert one into another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop import acdc, auto_circuit, eap_ig, edge_pruning, head_lists, neuronpedia
from tl_multitrace.interop.circuit_conversion import as_graph
from tl_multitrace.interop.circuit_graph import CircuitGraph
from tl_multitrace.interop.driver import Format
from tl_multitrace.interop.shape import Shape
from tl_multitrace.records.read import naming

OURS = "circuit"
"""Name of this package's own format, which keeps everything.

Examples:
    >>> from tl_multitrace.interop import OURS
    >>> OURS
    'circuit'
"""


FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (eap_ig, auto_circuit, acdc, edge_pruning, head_lists, neuronpedia)
}
"""Every foreign format by its name on the command line; ``"circuit"`` is our own.

Examples:
    >>> from tl_multitrace.interop import FORMATS
    >>> sorted(FORMATS)
    ['acdc', 'auto-circuit', 'dcm', 'eap-ig', 'edge-pruning', 'neuronpedia']
"""


def format_by_name(name: str) -> Format | None:
    """The format of a key of ``FORMATS``, or None for our own, ``"circuit"``.

    Raises:
        ValueError: no such format.

    Examples:
        >>> from tl_multitrace.interop import format_by_name
        >>> format_by_name("acdc").name
        'acdc'
    """
    if name != OURS and name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: use {', '.join([OURS, *FORMATS])}.")
    return FORMATS.get(name)


def read_circuit(path: str | Path, format: str, *, shape: Shape | Any = None) -> Circuit | CircuitGraph:
    """Read a file of any format: our own as a :class:`Circuit`, others as a :class:`CircuitGraph`.

    The model or a :class:`Shape` is needed only for formats that do not tell it. Raises FileNotFoundError, and
    ValueError for an unknown format or where it is no file of it.

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
    """Write a circuit or graph in any format, whole or not at all; give a model or :class:`Shape` it does not tell.

    What the format cannot hold is a :class:`LeftOut` warning. Raises FileExistsError unless ``overwrite``, and
    ValueError for an unknown format, or where something that it needs is not known.

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
    """Read a file of one format and write it in another; returns what was read.

    So many ``edges``, or ``nodes`` (heads and MLPs), are chosen first, by the absolute value of their score. What the
    target cannot hold is a :class:`LeftOut` warning.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the target exists, and ``overwrite`` is False.
        ValueError: unknown format, a broken file, or something that the target needs is not known, such as the shape.

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
