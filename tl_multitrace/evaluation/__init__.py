"""How good a circuit is, and how sure that is."""

from tl_multitrace.evaluation.circuit_report import AblationScores, CircuitReport
from tl_multitrace.evaluation.compare import CircuitComparison, compare
from tl_multitrace.evaluation.evaluate import evaluate
from tl_multitrace.evaluation.mib import FRACTIONS, MibScores, cpr_cmd, kept_counts
from tl_multitrace.evaluation.pareto import Axis, Front, FrontPoint, pareto
from tl_multitrace.evaluation.recovery import Recovery, read_truth, recovery
from tl_multitrace.evaluation.side_effects import SideEffect, SideEffects, side_effects
from tl_multitrace.evaluation.significance import Significance, shuffled_answers, significance
from tl_multitrace.evaluation.stability import Stability, stability
from tl_multitrace.records.chance import Verdict, beyond_chance
from tl_multitrace.records.stats import Estimate, random_sets

__all__ = [
    "FRACTIONS",
    "AblationScores",
    "Axis",
    "CircuitComparison",
    "CircuitReport",
    "Estimate",
    "Front",
    "FrontPoint",
    "MibScores",
    "Recovery",
    "SideEffect",
    "SideEffects",
    "Significance",
    "Stability",
    "Verdict",
    "beyond_chance",
    "compare",
    "cpr_cmd",
    "evaluate",
    "kept_counts",
    "pareto",
    "random_sets",
    "read_truth",
    "recovery",
    "shuffled_answers",
    "side_effects",
    "significance",
    "stability",
]
