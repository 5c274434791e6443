"""How the components of a circuit connect, and which facts share their mediators."""

from tl_multitrace.flow.graph import information_flow

__all__ = ["information_flow"]
