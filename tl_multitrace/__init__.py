"""Which components of a language model carry a behaviour, found by intervention."""

from tl_multitrace._version import __version__
from tl_multitrace.answers import Answers
from tl_multitrace.causal_trace import TraceGrid, average_causal_trace, causal_tokens, causal_trace
from tl_multitrace.circuit import Circuit
from tl_multitrace.compat import ModelView
from tl_multitrace.cost import Cost, HookError, NonFiniteError
from tl_multitrace.evaluation import (
    CircuitComparison,
    CircuitReport,
    MibScores,
    Recovery,
    Significance,
    Stability,
    compare,
    cpr_cmd,
    evaluate,
    recovery,
    significance,
    stability,
)
from tl_multitrace.groups import Component, HookGroups, attn_layers, heads, mlp_dims, mlps, neurons, residual
from tl_multitrace.interventions import (
    Interchange,
    Intervention,
    MeanAblation,
    NoiseCorruption,
    ResampleAblation,
    ZeroAblation,
)
from tl_multitrace.loading import load_model
from tl_multitrace.metrics import (
    Accuracy,
    AnswerLogProb,
    AnswerProb,
    KLDivergence,
    LogitDiff,
    Metric,
    OddsRatio,
    WeightedSum,
)
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.scores import Score
from tl_multitrace.solvers import (
    PGBCT,
    AttributionPatching,
    Exhaustive,
    Greedy,
    HardConcrete,
    IntegratedGradients,
    RandomSubset,
    ScreenedSearch,
    SolverComparison,
    SubsetPath,
    TopK,
    compare_solvers,
    select,
)
from tl_multitrace.spec import groups_from_text
from tl_multitrace.tasks import Task, task, task_from_file, tasks
from tl_multitrace.tracer import Tracer

__all__ = [
    "__version__",
    "Accuracy",
    "AnswerLogProb",
    "AnswerProb",
    "Answers",
    "AttributionPatching",
    "Circuit",
    "CircuitComparison",
    "CircuitReport",
    "Component",
    "Cost",
    "Exhaustive",
    "Greedy",
    "HardConcrete",
    "HookError",
    "HookGroups",
    "IntegratedGradients",
    "Interchange",
    "Intervention",
    "KLDivergence",
    "LogitDiff",
    "MeanAblation",
    "Metric",
    "MibScores",
    "ModelView",
    "NoiseCorruption",
    "NonFiniteError",
    "OddsRatio",
    "PGBCT",
    "PromptPairs",
    "RandomSubset",
    "Recovery",
    "ScreenedSearch",
    "ResampleAblation",
    "Score",
    "Significance",
    "SolverComparison",
    "Stability",
    "SubsetPath",
    "TopK",
    "Task",
    "TraceGrid",
    "Tracer",
    "WeightedSum",
    "ZeroAblation",
    "attn_layers",
    "average_causal_trace",
    "causal_tokens",
    "causal_trace",
    "compare",
    "compare_solvers",
    "cpr_cmd",
    "evaluate",
    "groups_from_text",
    "heads",
    "load_model",
    "mlp_dims",
    "mlps",
    "neurons",
    "recovery",
    "residual",
    "select",
    "significance",
    "stability",
    "task",
    "task_from_file",
    "tasks",
]
