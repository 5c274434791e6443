"""Circuits in the formats of other tools, and TransformerLens' own results.

``from_*`` reads a file as a :class:`CircuitGraph`, which holds what such files hold: nodes and edges with scores and
flags. ``graph.to_circuit(model)`` makes a :class:`~tl_multitrace.Circuit` of its nodes, and every ``to_*`` writes
either. What a format cannot hold is named in a :class:`LeftOut` warning.
"""

from tl_multitrace.interop.acdc import from_acdc, to_acdc
from tl_multitrace.interop.auto_circuit import from_auto_circuit, to_auto_circuit
from tl_multitrace.interop.circuit_graph import CircuitGraph, LeftOut, Mark, NodeMark
from tl_multitrace.interop.component_scores import ComponentScores
from tl_multitrace.interop.driver import Format
from tl_multitrace.interop.eap_ig import from_eap_ig, to_eap_ig
from tl_multitrace.interop.edge_pruning import from_edge_pruning, to_edge_pruning
from tl_multitrace.interop.formats import FORMATS, OURS, convert, format_by_name, read_circuit, write_circuit
from tl_multitrace.interop.head_lists import from_head_lists, to_head_lists
from tl_multitrace.interop.lens_results import (
    from_attribution_result,
    from_patching_result,
    scores_of_graph,
    to_attribution_result,
    to_patching_result,
)
from tl_multitrace.interop.neuronpedia import from_neuronpedia, to_neuronpedia
from tl_multitrace.interop.node_names import Edge
from tl_multitrace.interop.shape import Shape

__all__ = [
    "FORMATS",
    "OURS",
    "CircuitGraph",
    "ComponentScores",
    "Edge",
    "Format",
    "LeftOut",
    "Mark",
    "NodeMark",
    "Shape",
    "convert",
    "format_by_name",
    "from_acdc",
    "from_attribution_result",
    "from_auto_circuit",
    "from_eap_ig",
    "from_edge_pruning",
    "from_head_lists",
    "from_neuronpedia",
    "from_patching_result",
    "read_circuit",
    "scores_of_graph",
    "to_acdc",
    "to_attribution_result",
    "to_auto_circuit",
    "to_eap_ig",
    "to_edge_pruning",
    "to_head_lists",
    "to_neuronpedia",
    "to_patching_result",
    "write_circuit",
]
