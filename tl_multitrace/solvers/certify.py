"""What is proved about a choice: from exact evaluations alone, never from a model of them."""

from __future__ import annotations

from collections.abc import Iterator

from tl_multitrace.solvers.search import Search, Subset, subset

MOST_NEIGHBOURS = 50_000
"""Neighbourhoods larger than this are not counted."""


def neighbours(search: Search, members: Subset, size: int) -> Iterator[tuple[str, Subset]]:
    """Every feasible set one add, drop or swap away that fits the budget, with the kind of move."""
    own = [i for i in members if i not in search.forced]
    outside = [int(i) for i in search.candidates if i not in members]
    moves = [("drop", subset(set(members) - {old})) for old in own]
    if len(members) < size:
        moves += [("add", subset({*members, new})) for new in outside]
    yield from ((kind, s) for kind, s in moves if search.feasible(s))
    for new in outside:
        for old in own:
            swapped = subset({*members, new} - {old})
            if search.feasible(swapped):
                yield "swap", swapped


def certificate(search: Search, members: Subset, size: int) -> str:
    """What the search's own exact evaluations prove about the set chosen for a budget.

    Returns:
        ``"optimal (exhaustive ...)"`` where every subset was evaluated; ``"locally optimal under add/drop/swap (exact,
        n checked)"`` where every neighbour was, and none is better; else ``"screened (n of m neighbours checked
        exactly)"``.
    """
    if size in search.certificates:
        return search.certificates[size]
    count = len(members) * (len(search.candidates) + 1)
    if count > MOST_NEIGHBOURS:
        return "screened (neighbours not counted)"
    known = [search.known(s) for _, s in neighbours(search, members, size)]
    checked = sum(k is not None for k in known)
    here = search.known(members)
    better = here is not None and any(k is not None and k > here for k in known)
    if known and checked == len(known) and not better:
        return f"locally optimal under add/drop/swap (exact, {checked} checked)"
    return f"screened ({checked} of {len(known)} neighbours checked exactly)"
