"""Lists of heads by role, as JSON: ``{"group name": [[layer, head], ...], ...}``.

Source: the head groups that desiderata-based component masking (DCM) found for entity tracking (Prakash et al. 2024,
arXiv:2402.14811). The same layout with ``null`` for the MLP of a layer is read too: ``[3, null]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.interop.circuits import as_graph
from tl_multitrace.interop.graph import CircuitGraph, NodeMark, say_left_out, unheld
from tl_multitrace.interop.names import Shape, head_name, mlp_name, node_of
from tl_multitrace.interop.reading import listing, load_json, mapping, save_json, whole
from tl_multitrace.records.read import naming

FORMAT = "dcm"
GROUP = "circuit"


def from_head_lists(path: str | Path, *, shape: Shape | Any = None) -> CircuitGraph:
    """Read lists of heads.

    Args:
        path: of the file.
        shape: the model or a :class:`Shape`, of which the file says nothing; default: the smallest that has the heads.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or no head tells the shape.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("heads.json").write_text('{"value": [[0, 3], [0, 1]]}')
        >>> graph = mt.from_head_lists("heads.json")
        >>> graph.groups["value"]
        ('a0.h3', 'a0.h1')
    """
    content = mapping(load_json(path), str(path))
    with naming(path):
        groups = {name: tuple(_node(pair, name) for pair in listing(heads, name)) for name, heads in content.items()}
        names = dict.fromkeys(node for nodes in groups.values() for node in nodes)
        nodes = {name: NodeMark(in_graph=True) for name in names}
        return CircuitGraph(Shape.given(shape, names), nodes, groups=groups, format=FORMAT)


def to_head_lists(
    item: Circuit | CircuitGraph, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False
) -> Path:
    """Write the chosen heads, under their groups' names or as one group ``"circuit"``.

    Args:
        item: a circuit, or a graph of any format.
        path: of the file.
        shape: the model or a :class:`Shape`, where the item does not tell it.
        overwrite: replace the file.

    Raises:
        FileExistsError: the file exists.
        ValueError: nothing is chosen.

    Warns:
        LeftOut: what the format cannot hold, such as MLPs. (MLPs that were read as ``[layer, null]`` are written so.)

    Examples:
        >>> file = mt.to_head_lists(circuit, "heads.json")
        >>> mt.from_head_lists(file).chosen
        ('a0.h1', 'a0.h3')
    """
    graph = as_graph(item, shape).flat()
    groups = graph.groups or {GROUP: tuple(n for n in graph.chosen if node_of(n).kind == "head")}
    parts = {
        role: [node for name in names if (node := node_of(name)).layer is not None] for role, names in groups.items()
    }
    pairs = {role: [[node.layer, node.head] for node in nodes] for role, nodes in parts.items()}
    written = save_json(path, pairs, overwrite=overwrite)
    listed = {name for names in groups.values() for name in names}
    missing = [name for name in graph.chosen if node_of(name).layer is not None and name not in listed]
    notes = [f"{len(missing)} MLPs ({', '.join(missing[:6])})"] if missing else []
    notes += [f"{len(graph.edges)} edges"] if graph.edges else []
    say_left_out([*graph.left_out, *unheld(graph, "groups", "edge scores"), *notes], FORMAT)
    return written


def _node(pair: Any, role: str) -> str:
    ends = listing(pair, role)
    if len(ends) != 2:
        raise ValueError(f"{role[:60]}: a head is [layer, head], got {len(ends)} entries.")
    layer = whole(ends[0], f"{role[:60]}: layer")
    return mlp_name(layer) if ends[1] is None else head_name(layer, whole(ends[1], f"{role[:60]}: head"))
