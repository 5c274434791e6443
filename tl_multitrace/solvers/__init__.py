"""Choose subsets: ``select`` and the solvers it takes."""

from tl_multitrace.solvers.compare_solvers import SolverComparison, compare_solvers
from tl_multitrace.solvers.exact import Exhaustive, Greedy, RandomSubset
from tl_multitrace.solvers.hard_concrete import HardConcrete
from tl_multitrace.solvers.names import SOLVERS, solver_by_name
from tl_multitrace.solvers.path import Choice, SubsetPath
from tl_multitrace.solvers.pgbct import PGBCT
from tl_multitrace.solvers.ranking import AttributionPatching, IntegratedGradients, TopK
from tl_multitrace.solvers.screened import ScreenedSearch
from tl_multitrace.solvers.search import Search
from tl_multitrace.solvers.select import Solver, select

__all__ = [
    "PGBCT",
    "SOLVERS",
    "AttributionPatching",
    "Choice",
    "Exhaustive",
    "Greedy",
    "HardConcrete",
    "IntegratedGradients",
    "RandomSubset",
    "ScreenedSearch",
    "Search",
    "Solver",
    "SolverComparison",
    "SubsetPath",
    "TopK",
    "compare_solvers",
    "select",
    "solver_by_name",
]
