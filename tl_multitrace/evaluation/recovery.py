"""``recovery``: how well a circuit or a ranking finds the components that are known to matter.

The area under the ROC curve is the chance that a component of the truth is ranked above one that is not (ties count
half); the area under the precision-recall curve is the average precision. A circuit ranks its members above the rest
and says no more. The sets of a path need not grow out of each other (at budget 1 an AND of three has no member at all),
so a path is read from the truth's own size: first its set of that size, within it those that smaller budgets hold too,
then what larger budgets bring in, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from tl_multitrace.circuit import Circuit
from tl_multitrace.evaluation.target import importances
from tl_multitrace.groups import Component, HookGroups
from tl_multitrace.models.ambient import neutral
from tl_multitrace.records.read import load_json, short
from tl_multitrace.records.record import Result, result
from tl_multitrace.solvers import SubsetPath

if TYPE_CHECKING:
    import pandas as pd

Truth = Any
"""Components or labels; ``(layer, head)`` pairs, with None for the head where the MLP is meant; a mapping from names to
lists of these (the classes of a published circuit); or a circuit."""


@result("tl_multitrace.recovery", key="result")
@dataclass(frozen=True, repr=False)
class Recovery(Result):
    """How well a truth was found.

    Attributes:
        roc: area under the ROC curve; 0.5 is chance.
        pr: area under the precision-recall curve (average precision); chance is the truth's share of the components.
        exact: whether exactly the truth was found: by a circuit as its members, by a ranking as its top.
        found: labels of the truth that are in the set.
        missed: labels of the truth that are not.
        extra: labels in the set that are not of the truth.
        outside: components of the truth that are not among the hook groups, so that nothing could find them.
        n_groups: number of components.
        ranking: what was scored: ``"circuit"``, ``"path"``, ``"signed"`` or ``"absolute"`` scores.
        roc_curve: points (false positive rate, true positive rate).
        pr_curve: points (recall, precision).

    Examples:
        >>> found = mt.recovery(circuit, truth=["L0H3", "L2H5"])
        >>> found.found, found.missed, found.extra
        (('L0H3',), ('L2H5',), ('L0H1',))
        >>> found.precision, found.recall
        (0.5, 0.5)
    """

    roc: float
    pr: float
    exact: bool
    found: tuple[str, ...]
    missed: tuple[str, ...]
    extra: tuple[str, ...]
    outside: tuple[str, ...]
    n_groups: int
    ranking: str
    roc_curve: tuple[tuple[float, float], ...]
    pr_curve: tuple[tuple[float, float], ...]

    @property
    def precision(self) -> float:
        """Share of the set that is of the truth; 0 for an empty set."""
        return len(self.found) / max(1, len(self.found) + len(self.extra))

    @property
    def recall(self) -> float:
        """Share of the truth that is in the set."""
        return len(self.found) / (len(self.found) + len(self.missed))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component of the set or the truth, and what became of it."""
        import pandas as pd

        rows = [(c, what) for what in ("found", "missed", "extra", "outside") for c in getattr(self, what)]
        return pd.DataFrame(rows, columns=["component", "outcome"]).assign(ranking=self.ranking)

    def headline(self) -> str:
        """What was scored."""
        total = len(self.found) + len(self.missed)
        return f"Recovery of {total} components among {self.n_groups}, by {self.ranking}"

    def summary(self) -> list[tuple[str, str]]:
        """Areas, exact match, precision and recall."""
        missed = f": {', '.join(self.missed[:12])}" if self.missed else ""
        return [
            ("ROC area", f"{self.roc:.3f}"),
            ("PR area", f"{self.pr:.3f}"),
            ("exact", "yes" if self.exact else "no"),
            ("precision", f"{self.precision:.2f} ({len(self.extra)} extra)"),
            ("recall", f"{self.recall:.2f} ({len(self.missed)} missed{missed})"),
        ]

    def remarks(self) -> tuple[str, ...]:
        """Which part of the truth is out of reach."""
        if not self.outside:
            return ()
        return (f"not among the hook groups, and not counted: {', '.join(self.outside)}",)


@neutral()
def recovery(
    found: Circuit | SubsetPath | Any,
    truth: Truth,
    *,
    alternatives: Sequence[Truth] = (),
    groups: HookGroups | None = None,
    absolute: bool = False,
) -> Recovery:
    """Compare a circuit, a path or scores with components that are known to matter.

    Args:
        found: a circuit, a path, or one score per hook group (higher: more important), also by label, as in
            ``{"L9H6": 0.4}``.
        truth: see :data:`Truth`. A component without a position stands for all positions.
        alternatives: other sets that would be as right, where components can stand in for each other; the one that is
            met best counts.
        groups: all hook groups: needed with scores, and for a circuit that was loaded from a file.
        absolute: rank scores by their size, whatever their sign.

    Raises:
        ValueError: an empty truth or one of which no component is among the groups, every component in it, scores of
            the wrong length, or no hook groups to compare in.

    Examples:
        >>> alone = mt.ComponentScores.of(tracer).mean
        >>> found = mt.recovery(alone, truth=["L0H3"], groups=tracer.groups)
        >>> found.roc, found.exact
        (1.0, True)
    """
    every = _universe(found, groups)
    compared = [_against(found, components_of(t), every, absolute) for t in (truth, *alternatives)]
    return max(compared, key=lambda r: (r.exact, r.roc, r.pr))


def _against(found: Any, known: tuple[Component, ...], every: HookGroups, absolute: bool) -> Recovery:
    positive = np.array([any(_is(c, t) for t in known) for c in every.components])
    outside = tuple(t.label for t in known if not any(_is(c, t) for c in every.components))
    if not positive.any() or positive.all():
        what = "none" if not positive.any() else "all"
        raise ValueError(
            f"{what} of the {len(every)} hook groups are of the truth ({', '.join(t.label for t in known[:5])} ...): "
            "there is nothing to tell apart."
        )
    scores, members, ranking = _scores(found, every, int(positive.sum()), absolute)
    roc, pr = _curves(scores, positive)
    labels = np.array(every.labels)
    return Recovery(
        roc=roc_area(scores, positive),
        pr=average_precision(scores, positive),
        exact=bool((members == positive).all()),
        found=tuple(labels[members & positive].tolist()),
        missed=tuple(labels[~members & positive].tolist()),
        extra=tuple(labels[members & ~positive].tolist()),
        outside=outside,
        n_groups=len(every),
        ranking=ranking,
        roc_curve=roc,
        pr_curve=pr,
    )


# ---------------------------------------------------------------------- what is true


def components_of(truth: Truth) -> tuple[Component, ...]:
    """The components that a truth names.

    Raises:
        ValueError: none, or something that names no component.
    """
    if isinstance(truth, Circuit):
        return truth.components
    parts: Iterable[Any] = truth.values() if isinstance(truth, Mapping) else [truth]
    found = tuple(dict.fromkeys(_component(c) for part in parts for c in part))
    if not found:
        raise ValueError("the truth names no component: pass some, such as ['L9H6', 'L10H0'] or [(9, 6), (10, 0)].")
    return found


def _component(name: Any) -> Component:
    if isinstance(name, Component):
        return name
    if isinstance(name, str):
        return _from_label(name)
    if isinstance(name, Sequence) and len(name) == 2 and all(x is None or isinstance(x, int) for x in name):
        layer, head = name
        return Component("mlp", layer) if head is None else Component("head", layer, head)
    raise ValueError(f"{short(name)} names no component: use a Component, 'L9H6', or (layer, head).")


def _from_label(label: str) -> Component:
    found = re.fullmatch(r"L(\d+)(?:([HND])(\d+)|(MLP|ATTN|RESID))", label)
    if found is None:
        raise ValueError(f"{short(label)} is no label: use one such as 'L9H6', 'L3N120', 'L2D7', 'L5MLP' or 'L5ATTN'.")
    kind = {"H": "head", "N": "neuron", "D": "mlp_dim", "MLP": "mlp", "ATTN": "attn", "RESID": "resid"}
    return Component(kind[found[2] or found[4]], int(found[1]), int(found[3]) if found[3] else None)


def _is(component: Component, truth: Component) -> bool:
    same = (component.kind, component.layer, component.index) == (truth.kind, truth.layer, truth.index)
    return same and truth.position in (None, component.position)


def read_truth(path: str | Path, name: str) -> dict[str, list[tuple[int, int | None]]]:
    """One published circuit from a JSON file ``{name: {class: [[layer, head or null], ...]}}``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or no circuit of that name.

    Examples:
        >>> from pathlib import Path
        >>> from tl_multitrace.evaluation import read_truth
        >>> _ = Path("truth.json").write_text('{"ioi": {"name movers": [[9, 6], [9, 9]], "MLPs": [[0, null]]}}')
        >>> read_truth("truth.json", "ioi")
        {'name movers': [(9, 6), (9, 9)], 'MLPs': [(0, None)]}
    """
    content = load_json(path)
    try:
        if name not in content:
            raise ValueError(f"no circuit {name!r}: the file has {short(list(content), 300)}.")
        lists = {k: [(_number(layer), _head(head)) for layer, head in v] for k, v in content[name].items()}
        components_of(lists)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return lists


def _head(head: Any) -> int | None:
    return None if head is None else _number(head)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected [layer, head] in whole numbers, got {short(value)}.")
    return value


# ---------------------------------------------------------------------- what was found


def _universe(found: Any, groups: HookGroups | None) -> HookGroups:
    if groups is not None:
        return groups
    if isinstance(found, SubsetPath):
        return found.groups
    if isinstance(found, Circuit) and found.tracer is not None:
        every: HookGroups = found.tracer.groups
        return every
    raise ValueError("there are no hook groups to compare in: pass groups=, those of the search, such as heads(model).")


def _scores(
    found: Any, every: HookGroups, size: int, absolute: bool
) -> tuple[Float[np.ndarray, " groups"], Bool[np.ndarray, " groups"], str]:
    """Scores, the set that is held against the truth, and how the ranking is called."""
    members = np.zeros(len(every), dtype=bool)
    if isinstance(found, Circuit):
        members[[every.index(c) for c in found.components]] = True
        return members.astype(float), members, "circuit"
    if isinstance(found, SubsetPath):
        fitting = [c for c in found.choices if c.size <= size] or [found.choices[0]]
        members[list(fitting[-1].members)] = True
        return path_scores(found, size), members, "path"
    values = importances(found, every, "scores")
    if np.isnan(values).any():
        scored = int((~np.isnan(values)).sum())
        raise ValueError(f"the graph scores {scored} of the {len(every)} hook groups: pass groups= of those.")
    values = np.abs(values) if absolute else values
    ranked = np.sort(values)[::-1]
    # a tie across the border leaves the top open: then all that tie are in it
    return values, values >= ranked[size - 1], "absolute scores" if absolute else "signed scores"


def path_scores(path: SubsetPath, size: int) -> Float[np.ndarray, " groups"]:
    """One score per hook group, read from budget ``size`` outwards; see the module."""
    held = np.zeros((len(path), len(path.groups)), dtype=bool)
    for row, choice in zip(held, path.choices, strict=True):
        row[list(choice.members)] = True
    start = max(0, sum(budget <= size for budget in path.sizes) - 1)
    entered = np.maximum.accumulate(held[start:], axis=0).sum(0)
    return np.asarray(entered + held[:start].sum(0) / (start + 1) * held[start], dtype=float)


def roc_area(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Chance that a positive is scored above a negative, ties counted half (``scipy.stats.mannwhitneyu``)."""
    found = stats.mannwhitneyu(scores[positive], scores[~positive], method="asymptotic")
    return float(found.statistic / (positive.sum() * (~positive).sum()))


def average_precision(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Precision at each threshold, weighted by the recall it adds."""
    curve = np.array(_curves(scores, positive)[1])
    return float(np.sum(np.diff(curve[:, 0], prepend=0.0) * curve[:, 1]))


def _curves(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]
) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are taken together
    right, taken = np.cumsum(positive[order])[last], np.flatnonzero(last) + 1
    tpr, fpr = right / positive.sum(), (taken - right) / (~positive).sum()
    roc = [(0.0, 0.0), *zip(fpr.tolist(), tpr.tolist(), strict=True)]
    return tuple(roc), tuple(zip(tpr.tolist(), (right / taken).tolist(), strict=True))
