"""Which components of a language model carry a behaviour, found by intervention.

The examples in the docstrings use these names:

    >>> import tl_multitrace as mt
    >>> model = mt.load_model("demo")
    >>> task = mt.task("professions", model, n=16)
    >>> pairs = task.pairs
    >>> groups = mt.heads(model)
    >>> tracer = mt.Tracer(model, pairs, groups, task.metric)
    >>> path = mt.select(tracer, [1, 2], mt.Greedy())
    >>> circuit = path[2]
"""

from tl_multitrace import interop
from tl_multitrace._version import __version__
from tl_multitrace.answers import Answers
from tl_multitrace.causal_trace import TraceGrid, average_causal_trace, causal_tokens, causal_trace
from tl_multitrace.circuit import Circuit
from tl_multitrace.cost import Cost, HookError, NonFiniteError
from tl_multitrace.doctor import Diagnosis, doctor
from tl_multitrace.engine.estimate import MemoryEstimate
from tl_multitrace.engine.prepare import memory_estimate
from tl_multitrace.evaluation import (
    CircuitComparison,
    CircuitReport,
    Front,
    MibScores,
    Recovery,
    SideEffects,
    Significance,
    Stability,
    compare,
    cpr_cmd,
    evaluate,
    pareto,
    recovery,
    side_effects,
    significance,
    stability,
)
from tl_multitrace.flow import information_flow, knowledge_graph, load_graph, save_graph
from tl_multitrace.groups import (
    Component,
    HookGroups,
    attn_layers,
    heads,
    mib_groups,
    mlp_dims,
    mlps,
    neurons,
    residual,
)
from tl_multitrace.interop import (
    CircuitGraph,
    ComponentScores,
    LeftOut,
    from_acdc,
    from_attribution_result,
    from_auto_circuit,
    from_eap_ig,
    from_edge_pruning,
    from_head_lists,
    from_neuronpedia,
    from_patching_result,
    to_acdc,
    to_attribution_result,
    to_auto_circuit,
    to_eap_ig,
    to_edge_pruning,
    to_head_lists,
    to_neuronpedia,
    to_patching_result,
)
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
    ChoiceProb,
    KLDivergence,
    LogitDiff,
    LogOddsRatio,
    Metric,
    OddsRatio,
    Perplexity,
    ProbDiff,
    WeightedSum,
)
from tl_multitrace.models.compat import ModelView
from tl_multitrace.objective import Constraint, DemographicParityGap, EqualizedOddsGap, Goal, Mean, Objective
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.stats import Score
from tl_multitrace.reproduce import Reproduction, reproduce
from tl_multitrace.runs.folder import load
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
from tl_multitrace.switching import Switch
from tl_multitrace.tasks import Task, task, task_from_file, tasks
from tl_multitrace.tracer import Tracer

__all__ = [
    "__version__",
    "Accuracy",
    "AnswerLogProb",
    "AnswerProb",
    "Answers",
    "AttributionPatching",
    "ChoiceProb",
    "Circuit",
    "CircuitGraph",
    "CircuitComparison",
    "CircuitReport",
    "Component",
    "ComponentScores",
    "Constraint",
    "Cost",
    "DemographicParityGap",
    "Diagnosis",
    "EqualizedOddsGap",
    "Exhaustive",
    "Front",
    "Goal",
    "Greedy",
    "HardConcrete",
    "HookError",
    "HookGroups",
    "IntegratedGradients",
    "Interchange",
    "Intervention",
    "KLDivergence",
    "LeftOut",
    "LogOddsRatio",
    "LogitDiff",
    "Mean",
    "MeanAblation",
    "Metric",
    "MibScores",
    "ModelView",
    "NoiseCorruption",
    "NonFiniteError",
    "Objective",
    "OddsRatio",
    "PGBCT",
    "Perplexity",
    "ProbDiff",
    "PromptPairs",
    "RandomSubset",
    "Recovery",
    "Reproduction",
    "ScreenedSearch",
    "ResampleAblation",
    "Score",
    "SideEffects",
    "Significance",
    "SolverComparison",
    "Stability",
    "SubsetPath",
    "Switch",
    "TopK",
    "Task",
    "TraceGrid",
    "Tracer",
    "MemoryEstimate",
    "memory_estimate",
    "WeightedSum",
    "ZeroAblation",
    "attn_layers",
    "average_causal_trace",
    "causal_tokens",
    "causal_trace",
    "compare",
    "compare_solvers",
    "from_acdc",
    "from_attribution_result",
    "from_auto_circuit",
    "from_eap_ig",
    "from_edge_pruning",
    "from_head_lists",
    "from_neuronpedia",
    "from_patching_result",
    "cpr_cmd",
    "doctor",
    "evaluate",
    "groups_from_text",
    "heads",
    "information_flow",
    "interop",
    "knowledge_graph",
    "load",
    "load_graph",
    "load_model",
    "mib_groups",
    "mlp_dims",
    "mlps",
    "neurons",
    "pareto",
    "recovery",
    "reproduce",
    "residual",
    "save_graph",
    "select",
    "side_effects",
    "significance",
    "stability",
    "task",
    "task_from_file",
    "tasks",
    "to_acdc",
    "to_attribution_result",
    "to_auto_circuit",
    "to_eap_ig",
    "to_edge_pruning",
    "to_head_lists",
    "to_neuronpedia",
    "to_patching_result",
]
