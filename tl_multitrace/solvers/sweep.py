"""The two-way sweep: a path of sets grown and pruned by screened, exactly verified steps.

Every best set is expanded once: one gradient predicts all adds and drops, the most promising are verified exactly,
best first, until the next prediction could not win even if it were off by as much as recent ones were. Whatever is
verified may become the best set of its size, and is then expanded in turn; the sweep runs up and down until nothing
new appears.

One forward and one backward at a set give, per example, the metric's inner quantity ``d`` (log-odds, say) and its
derivative ``g_i`` to every mask entry. Pushed through the metric's own non-linearity ``phi`` example by example,

    gain_i = mean phi(d + s_i g_i) - mean phi(d)          s_i = +1 to add i, -1 to drop it

so that a ratio metric's few large examples weigh as they do in the exact effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from tl_multitrace.solvers.search import Search, Subset, subset


@dataclass
class Screen:
    """Predicted gains, corrected by what exact evaluations taught.

    Attributes:
        search: where gradients come from.
        memory: share of a component's last prediction error that is added to its next prediction.
        errors: last ``exact - predicted`` per component, for adding and for dropping.
        recent: the latest prediction errors, for the width of the uncertainty band.
    """

    search: Search
    memory: float = 0.5
    errors: dict[bool, Float[np.ndarray, " groups"]] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.errors = {add: np.zeros(self.search.n) for add in (True, False)}

    def gains(self, members: Subset) -> Float[np.ndarray, " groups"]:
        """Predicted gain in score of adding each outsider and of dropping each member; higher is better."""
        predicted = self.search.gains(members)
        outside = np.ones(self.search.n, dtype=bool)
        outside[list(members)] = False
        corrections = np.where(outside, self.errors[True], self.errors[False])
        return np.asarray(predicted + self.memory * corrections)

    def learn(self, index: int, adding: bool, exact: float, predicted: float) -> None:
        """Remember how far a prediction was off."""
        self.errors[adding][index] += exact - predicted
        self.recent = [*self.recent[-31:], exact - predicted]

    def spread(self) -> float:
        """Standard deviation of the recent prediction errors."""
        return float(np.std(self.recent)) if len(self.recent) > 1 else 0.0


@dataclass(frozen=True)
class SweepSettings:
    """How much is verified.

    Attributes:
        k_min: adds verified at least, per set.
        k_max: adds verified at most.
        k_late: the same where the sweep has spent more than its share of the cap for the way that it has come.
        first_min: the same at the empty set, where a wrong choice costs most.
        first_max: the same.
        drops: drops verified per set; one where the sweep has spent more than its share.
        beta: width of the uncertainty band, in standard deviations of recent errors.
        beyond: sizes past the largest budget that the sweep visits, to come back by dropping.
        passes: times up and down at most.
        tile: adds verified at a time.
        floor: forward equivalents below which the sweep always goes on.
        per_step: forward equivalents it may cost beyond, per component and unit of the largest budget (exact greedy
            with restarts costs about 0.5).
    """

    k_min: int = 2
    k_max: int = 6
    k_late: int = 4
    first_min: int = 16
    first_max: int = 24
    drops: int = 2
    beta: float = 0.3
    beyond: int = 2
    passes: int = 3
    tile: int = 2
    floor: float = 100.0
    per_step: float = 0.03

    def cap(self, search: Search) -> float:
        """Forward equivalents after which nothing but the first way up is done."""
        return max(self.floor, self.per_step * search.largest * len(search.candidates))


class Sweep:
    """Two-way sweep over the sizes up to the largest budget."""

    def __init__(self, search: Search, settings: SweepSettings) -> None:
        self.search, self.settings = search, settings
        self.screen = Screen(search)
        self.expanded: set[Subset] = set()
        self.late = False

    def run(self) -> None:
        """Sweep until no best set is left unexpanded."""
        top = min(self.search.largest + self.settings.beyond, self.search.n)
        cap, began = self.settings.cap(self.search), self.search.spent
        end = began + cap
        path = [*range(top + 1), *range(top - 1, 0, -1)]
        with self.search.progress(len(path), "sweep") as bar:
            for turn in range(self.settings.passes):
                before = len(self.expanded)
                bar.total = (turn + 1) * len(path)  # whether there is another turn shows at the end of this one
                for step, size in enumerate(path):
                    if (turn or step > top) and self.search.spent > end:
                        return
                    # the first set's many adds count as four steps
                    self.late = self.search.spent - began > cap * (size + 4) / (top + 4)
                    if size in self.search.lead and self.search.lead[size][1] not in self.expanded:
                        self.expand(self.search.lead[size][1])
                    bar.update()
                if len(self.expanded) == before:
                    return

    def expand(self, members: Subset) -> None:
        """Verify the adds and drops of one set that could make a new best set."""
        self.expanded.add(members)
        s, gains, here = self.settings, self.screen.gains(members), self.search.score(members)
        least, most = s.k_min, s.k_late if self.late else s.k_max
        if members == self.search.forced:
            least, most = s.first_min, s.first_max
        self._moves(members, self.search.addable(members), True, gains, here, least, most)
        own = np.array([i for i in members if i not in self.search.forced], dtype=np.int64)
        self._moves(members, own, False, gains, here, 0, 1 if self.late else s.drops)

    def _moves(
        self,
        members: Subset,
        which: Int[np.ndarray, " candidates"],
        adding: bool,
        gains: Float[np.ndarray, " groups"],
        here: float,
        least: int,
        most: int,
    ) -> None:
        """Verify moves, best prediction first, while the next one could still beat the best set of its size."""
        ranked = which[np.argsort(-gains[which], kind="stable")].tolist()
        done, size = 0, len(members) + (1 if adding else -1)
        while done < min(most, len(ranked)):
            rival = self.search.lead[size][0] - here if size in self.search.lead else -np.inf
            hopeless = gains[ranked[done]] + self.settings.beta * self.screen.spread() <= rival
            if hopeless and done >= least:
                return
            batch = ranked[done : min(done + self.settings.tile, most)]
            sets = [subset({*members, i} if adding else set(members) - {i}) for i in batch]
            exact = (self.search.scores(sets, reference=members) - here).tolist()
            for i, value in zip(batch, exact, strict=True):
                self.screen.learn(i, adding, value, float(gains[i]))
            done += len(batch)
