"""Token ids, answers and numbers as users give them: checked, counted, and made into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

Texts = Sequence[str]
Answers = Sequence[str] | Sequence[Sequence[str]]

NO_TOKEN = -1
"""Fills unused places of candidate tensors."""


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> Int[Tensor, "n pos"]:
    """Right-pad rows of ids to one length."""
    width = max(len(r) for r in rows)
    return torch.tensor([[*r, *[pad_id] * (width - len(r))] for r in rows], dtype=torch.long)


def whole_numbers(values: Any, what: str) -> Int[Tensor, "..."]:
    """Token ids or positions as a tensor; raises ValueError for fractions, which torch would cut off."""
    found = torch.as_tensor(values)
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        first = found.flatten()[0].item()
        raise ValueError(
            f"{what} must be whole numbers, got {str(found.dtype).removeprefix('torch.')} values such as {first}. "
            "Convert them with .long() if they are ids."
        )
    return found.long()


def picks(index: slice | int | Sequence[int] | Tensor, n: int) -> list[int]:
    """Which of ``n`` things an index names, in its order; a boolean index names those that are True.

    Raises:
        IndexError: a number outside, or a boolean index of another length.
    """
    if isinstance(index, slice):
        return list(range(n))[index]
    given = torch.as_tensor(index).reshape(-1)
    if given.dtype == torch.bool:
        if len(given) != n:
            raise IndexError(f"a boolean index of {len(given)} for {n}.")
        return given.nonzero().flatten().tolist()
    outside = [i for i in given.tolist() if not -n <= i < n]
    if outside:
        raise IndexError(f"index {outside[0]} is outside the {n} that there are.")
    return [int(i) % n for i in given]


def as_lists(answers: Answers | None, what: str) -> list[list[str]]:
    """One list of candidates per pair."""
    if answers is None:
        return []
    if isinstance(answers, str):
        raise ValueError(f"{what} must hold one entry per pair, got the single string {answers!r}: pass a list.")
    return [[a] if isinstance(a, str) else list(a) for a in answers]


def check_counts(base: Texts, **others: Sequence[Any] | None) -> None:
    """Refuse an empty set and lists of different length; raises ValueError."""
    if isinstance(base, str) or not len(base):
        raise ValueError("base must be a non-empty list of prompts.")
    for name, values in others.items():
        if isinstance(values, str):
            raise ValueError(f"{name} must hold one entry per pair, got the single string {values!r}: pass a list.")
        if values is not None and len(values) != len(base) and not (name == "wrong_answers" and not values):
            raise ValueError(f"{len(base)} base prompts but {len(values)} {name}: give one of each per pair.")


def id_lists(answers: Any, n: int, what: str) -> list[list[list[int]]]:
    """Token ids of the candidates, ``[n][k][tokens]``, from any of the accepted shapes; raises ValueError."""
    if answers is None:
        return [[] for _ in range(n)]
    rows = answers.tolist() if isinstance(answers, Tensor) else list(answers)
    if len(rows) != n:
        raise ValueError(f"{len(rows)} {what} for {n} pairs: give one entry per pair.")
    found = []
    for row in rows:
        row = row.tolist() if isinstance(row, Tensor) else row
        several = row if isinstance(row, list | tuple) else [row]
        found.append([whole_numbers(c, what).reshape(-1).tolist() for c in several])
    return found


def check_candidates(rights: list[list[list[int]]], wrongs: list[list[list[int]]]) -> None:
    """Refuse candidates that no metric could use; raises ValueError naming the pair."""
    for i, (right, wrong) in enumerate(zip(rights, wrongs, strict=True)):
        if not right:
            raise ValueError(f"pair {i}: no answer.")
        for candidate in right + wrong:
            if not candidate:
                raise ValueError(f"pair {i}: an answer without tokens.")
            if min(candidate) < 0:
                raise ValueError(f"pair {i}: the token id {min(candidate)} in an answer is negative.")
        shared = [c for c in right if c in wrong]
        if shared:
            raise ValueError(
                f"pair {i}: an answer and a wrong answer are the same tokens {shared[0]}, so the metric would be "
                "constant."
            )


def candidate_tensor(candidates: list[list[list[int]]]) -> Int[Tensor, "n k t"]:
    """Candidates as one tensor, ``NO_TOKEN`` where shorter or absent."""
    k, t = max(map(len, candidates)), max(len(a) for c in candidates for a in c)
    ids = torch.full((len(candidates), k, t), NO_TOKEN)
    for i, row in enumerate(candidates):
        for j, answer in enumerate(row):
            ids[i, j, : len(answer)] = torch.tensor(answer)
    return ids
