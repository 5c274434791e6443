"""Figures, circuitsvis views and the one-file HTML report.

What is imported here registers itself as what draws a kind of result (``@draws(CircuitReport)``).
"""

from importlib import import_module
from typing import Any

from tl_multitrace.render import trace as trace
from tl_multitrace.render.curves import plot_path, plot_subgroups
from tl_multitrace.render.evaluation_page import write_evaluation
from tl_multitrace.render.flow import plot_flow
from tl_multitrace.render.front import plot_front
from tl_multitrace.render.judged import (
    plot_comparison,
    plot_mib,
    plot_recovery,
    plot_report,
    plot_side_effects,
    plot_significance,
    plot_stability,
)
from tl_multitrace.render.maps import plot_circuit
from tl_multitrace.render.notebook import Shown, show
from tl_multitrace.render.report import write_report
from tl_multitrace.render.views import Views, load_views, save_views

__all__ = [
    "Run",
    "Shown",
    "Views",
    "load_views",
    "plot_circuit",
    "plot_flow",
    "plot_front",
    "plot_comparison",
    "plot_mib",
    "plot_path",
    "plot_recovery",
    "plot_report",
    "plot_side_effects",
    "plot_significance",
    "plot_stability",
    "plot_subgroups",
    "save_views",
    "show",
    "write_evaluation",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "Run":  # which lives with the runs now, a room below this one
        return import_module("tl_multitrace.runs.run").Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
