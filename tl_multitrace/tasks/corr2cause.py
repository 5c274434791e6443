"""Corr2cause: does a causal statement follow from correlations?

Source: the task is that of Jin et al. 2023 (arXiv:2306.05836); graphs, premises and wording are this package's own.

A premise is everything that a random causal graph implies about its variables: which pairs are correlated and which are
independent, bare and given others, decided by d-separation (networkx). A hypothesis names a relation of two variables.
It follows when it holds in every graph with the same independencies, and the answer is " Yes"; otherwise it is " No".

The source has the same hypothesis and the premise of the same graph with its variables renamed such that the other
answer is right: as many sentences of each kind, other names. (The demo model's premises are all equally long, so there
the source is any graph with the other answer.) Subgroup: the relation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

from tl_multitrace.metrics import LogitDiff
from tl_multitrace.tasks.causal_graphs import RELATIONS, Arrows, follows, random_graph, separating_sets
from tl_multitrace.tasks.corpus import CAUSAL_LETTERS, CAUSAL_TEMPLATE, CAUSAL_WORDS, TIES
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

NAMES = "ABCDEF"
HYPOTHESES: dict[str, str] = {
    "parent": "{a} directly causes {b}",
    "child": "{a} is directly caused by {b}",
    "ancestor": "{a} causes {b}, directly or through others",
    "descendant": "{a} is caused by {b}, directly or through others",
    "common cause": "{a} and {b} have a common cause",
    "common effect": "{a} and {b} have a common direct effect",
}
ANSWERS = {True: " Yes", False: " No"}
TRIES = 200
"""Graphs drawn for one row before the hypothesis is given up: no graph of three variables tells a common cause."""


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    n_variables: int | Sequence[int] = (3, 4),
    relations: Sequence[str] | None = None,
    density: float = 0.5,
) -> Iterator[Row]:
    """Random graphs and hypotheses without end; in the base, "No" and "Yes" are right in turn.

    There are ``n_variables`` variables (or one of several numbers, from 3 to 6), and each arrow by the chance
    ``density``. The demo model's short form knows three variables and what can follow about them. Premises longer than
    the model's context are left out afterwards.

    Raises:
        ValueError: a number of variables outside 3 to 6, an unknown relation, or relations that never follow from
            correlations with so many variables.
    """
    sizes = [3] if demo else _sizes(n_variables)
    asked = _relations(relations, demo)
    while True:
        found = 0
        for relation in asked:
            for truth in (False, True):
                row = _row(rng, relation, truth, sizes, density, demo)
                found += row is not None
                if row is not None:
                    yield row
        if not found:
            raise ValueError(
                f"in {TRIES} random graphs of {sizes} variables none of {asked} follows from correlations: "
                "use more variables (n_variables=4) or other relations."
            )


def _sizes(n_variables: int | Sequence[int]) -> list[int]:
    sizes = [n_variables] if isinstance(n_variables, int) else list(n_variables)
    if not sizes or not all(3 <= n <= len(NAMES) for n in sizes):
        raise ValueError(f"n_variables must be from 3 to {len(NAMES)}, got {n_variables}.")
    return sizes


def _relations(relations: Sequence[str] | None, demo: bool) -> list[str]:
    known = tuple(CAUSAL_WORDS) if demo else RELATIONS
    asked = list(known if relations is None else relations)
    if not asked or not set(asked) <= set(known):
        raise ValueError(f"relations= takes some of {', '.join(known)}; got {asked}.")
    return asked


def _row(rng: random.Random, relation: str, truth: bool, sizes: list[int], density: float, demo: bool) -> Row | None:
    """A row whose base has the answer ``truth``, or None where no graph was found."""
    yes_no = {answer: word.lower() if demo else word for answer, word in ANSWERS.items()}
    for _ in range(TRIES):
        n = rng.choice(sizes)
        graph, (a, b) = random_graph(rng, n, density), rng.sample(range(n), 2)
        if follows(graph, n, relation, a, b) != truth:
            continue
        if demo:  # its premises are all equally long, so any other graph will do
            others = (random_graph(rng, n) for _ in range(TRIES))
            other = next((one for one in others if follows(one, n, relation, a, b) != truth), None)
        else:
            other = _renamed(rng, graph, n, relation, (a, b), not truth)
        if other is not None:
            base, source = (_prompt(one, n, relation, a, b, demo) for one in (graph, other))
            return Row(base, source, (yes_no[not truth],), (yes_no[truth],), relation)
    return None


def _renamed(
    rng: random.Random, graph: Arrows, n: int, relation: str, pair: tuple[int, int], wanted: bool
) -> Arrows | None:
    """The graph with its variables renamed such that the relation of the pair follows, or does not."""
    orders = list(permutations(range(n)))
    rng.shuffle(orders)
    for order in orders:
        # What is called order[i] now was called i: ask the old graph about the old names.
        if follows(graph, n, relation, *(order.index(one) for one in pair)) == wanted:
            return frozenset((order[cause], order[effect]) for cause, effect in graph)
    return None


def _prompt(graph: Arrows, n: int, relation: str, a: int, b: int, demo: bool) -> str:
    sets = separating_sets(graph, n)
    if demo:
        return causal_prompt(ties_of(sets), (relation, a, b))
    hypothesis = HYPOTHESES[relation].format(a=NAMES[a], b=NAMES[b])
    return f"{premise(sets, n)} Does it follow that {hypothesis}? Answer:"


def premise(sets: dict[tuple[int, int], list[tuple[int, ...]]], n: int) -> str:
    """Everything that is said of ``n`` variables, from what separates each pair."""
    said = [f"There are {n} variables, {', '.join(NAMES[: n - 1])} and {NAMES[n - 1]}."]
    for (a, b), given in sets.items():
        word = "independent" if () in given else "correlated"
        said.append(f"{NAMES[a]} and {NAMES[b]} are {word}.")
    for (a, b), given in sets.items():
        known = [" and ".join(NAMES[one] for one in variables) for variables in given if variables]
        said += [f"{NAMES[a]} and {NAMES[b]} are independent given {names}." for names in known]
    return " ".join(said)


def ties_of(separating: Mapping[tuple[int, int], Sequence[tuple[int, ...]]]) -> tuple[str, str, str]:
    """The demo model's word for each of the pairs AB, AC, BC, given what separates it: nothing (), or the third."""
    ab, ac, bc = (TIES[() not in sets, all(given == () for given in sets)] for sets in separating.values())
    return ab, ac, bc


def causal_prompt(ties: tuple[str, str, str], statement: tuple[str, int, int]) -> str:
    """The demo model's question whether a statement follows from ties."""
    relation, a, b = statement
    ab, ac, bc = ties
    names = {"a": CAUSAL_LETTERS[a], "b": CAUSAL_LETTERS[b]}
    return CAUSAL_TEMPLATE.format(ab=ab, ac=ac, bc=bc, relation=CAUSAL_WORDS[relation], **names)


TASK = TaskInfo("corr2cause", "Which components tell causes from correlations?", rows, LogitDiff(), "heads,mlps", n=64)
