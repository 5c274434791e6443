"""Lists of heads by role, as JSON: ``{"group name": [[layer, head], ...], ...}``.

Source: the head groups that desiderata-based component masking (DCM) found for entity tracking (Prakash et al. 2024,
arXiv:2402.14811). The same layout with ``null`` for the MLP of a layer is read too: ``[3, null]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl_multitrace.interop.circuit_graph import CircuitGraph, NodeMark, counted
from tl_multitrace.interop.driver import Form, Format, Item
from tl_multitrace.interop.fields import listing, mapping, whole
from tl_multitrace.interop.node_names import head_name, mlp_name, node_of
from tl_multitrace.interop.shape import Shape

GROUP = "circuit"


def from_head_lists(path: str | Path, *, shape: Shape | Any = None) -> CircuitGraph:
    """Read lists of heads, of a model or :class:`Shape`; the file says nothing of it: default the smallest possible.

    Raises FileNotFoundError, and ValueError where it is no such file, or no head tells the shape.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("heads.json").write_text('{"value": [[0, 3], [0, 1]]}')
        >>> graph = mt.from_head_lists("heads.json")
        >>> graph.groups["value"]
        ('a0.h3', 'a0.h1')
    """
    return FORMAT.read(path, shape=shape)


def to_head_lists(item: Item, path: str | Path, *, shape: Shape | Any = None, overwrite: bool = False) -> Path:
    """Write the chosen heads, under their groups' names or as one group ``"circuit"``.

    MLPs are left out with a :class:`LeftOut` warning, except those that were read as ``[layer, null]``. Raises
    FileExistsError unless ``overwrite``.

    Examples:
        >>> file = mt.to_head_lists(circuit, "heads.json")
        >>> mt.from_head_lists(file).chosen
        ('a0.h1', 'a0.h3')
    """
    return FORMAT.write(item, path, shape=shape, overwrite=overwrite)


def _parse(content: Any, shape: Any = None) -> CircuitGraph:
    lists = mapping(content, "the file")
    groups = {name: tuple(_node(pair, name) for pair in listing(heads, name)) for name, heads in lists.items()}
    nodes = {node: NodeMark(in_graph=True) for nodes in groups.values() for node in nodes}
    return CircuitGraph(Shape.given(shape, nodes), nodes, groups=groups, format=FORMAT.name)


def _node(pair: Any, role: str) -> str:
    ends = listing(pair, role)
    if len(ends) != 2:
        raise ValueError(f"{role[:60]}: a head is [layer, head], got {len(ends)} entries.")
    layer = whole(ends[0], f"{role[:60]}: layer")
    return mlp_name(layer) if ends[1] is None else head_name(layer, whole(ends[1], f"{role[:60]}: head"))


def _content(graph: CircuitGraph) -> tuple[Any, list[str]]:
    groups = graph.groups or {GROUP: tuple(n for n in graph.chosen if node_of(n).kind == "head")}
    parts = {role: [node for n in names if (node := node_of(n)).layer is not None] for role, names in groups.items()}
    pairs = {role: [[node.layer, node.head] for node in nodes] for role, nodes in parts.items()}
    listed = {name for names in groups.values() for name in names}
    missing = [name for name in graph.chosen if node_of(name).layer is not None and name not in listed]
    return pairs, counted({f"{{}} MLPs ({', '.join(missing[:6])})": len(missing), "{} edges": len(graph.edges)})


HOLDS = ("groups", "edge scores")
FORMAT = Format("dcm", {"json": Form(_parse, _content)}, prepare=(CircuitGraph.flat,), holds=HOLDS, tells_shape=False)
