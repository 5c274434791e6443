"""How the components of a circuit connect, and which facts share their mediators."""

from tl_multitrace.flow.export import load_graph, save_graph, to_dot, to_graphml
from tl_multitrace.flow.graph import expected_cost, information_flow
from tl_multitrace.flow.knowledge import knowledge_graph

__all__ = ["expected_cost", "information_flow", "knowledge_graph", "load_graph", "save_graph", "to_dot", "to_graphml"]
