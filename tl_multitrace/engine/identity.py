"""One identity of a computation, for the cache, for runs that go on, for ranks, and for tracers that live on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_multitrace.answers import Answers
from tl_multitrace.distributed import Ranks
from tl_multitrace.identity import Telling, digest_of
from tl_multitrace.models.digest import ModelState, Watched, watched

NAMED = 3
"""Changes that an error names."""


class ModelChangedError(RuntimeError):
    """A model or a metric is not what it was when a tracer was made."""


@dataclass(eq=False)
class Unchanged:
    """Holds a tracer to the model and the metric that it was made with.

    Stored activations and the base run are of the model as it was: an answer from a changed one would be of neither.

    Args:
        model: the model.
        metric: per-example numbers; its own attributes are compared, not the code.
        keeps: whether results are kept on disk, under a name that holds for the metric as it is now: then its code, and
            what that reads, are compared as well.
    """

    model: nn.Module
    metric: Any
    keeps: bool = False
    _watched: Watched = field(init=False)
    _state: ModelState = field(init=False)
    _metric: Any = field(init=False)

    def __post_init__(self) -> None:
        self._watched = watched(self.model)
        self._state = self._watched.state()
        self.leave()

    @property
    def state(self) -> ModelState:
        """The model's, when the tracer was made."""
        return self._state

    def check(self) -> None:
        """At the start of every call; a few milliseconds, nothing within an open session.

        Raises:
            ModelChangedError: model or metric have changed.
        """
        now = self._watched.state()
        if now is not self._state and not now.same(self._state):
            raise ModelChangedError(_said("model", self._state.changes(now)))
        if self._metric_now() != self._metric:
            raise ModelChangedError(_said("metric", [f"{type(self.metric).__name__} or what it reads"]))

    def settle(self) -> None:
        """After the first runs: what the model and the metric note about themselves while they run is no change."""
        self._state = self._watched.settled()
        self.leave()

    def leave(self) -> None:
        """At the end of every call: what a metric notes while it is called is no change."""
        self._metric = self._metric_now()

    def _metric_now(self) -> Any:
        if self.keeps:
            return Telling(refuse=False).of(self.metric, "the metric")
        return {k: v for k, v in vars(self.metric).items() if isinstance(v, bool | int | float | str | None)}


def _said(what: str, changes: Sequence[str]) -> str:
    named = ", ".join(changes[:NAMED]) + (f" and {len(changes) - NAMED} more" if len(changes) > NAMED else "")
    return (
        f"the {what} has changed since this tracer was made ({named}). What it has stored belongs to the {what} as it "
        "was, so an answer now would be of neither. Make a new Tracer, or undo the change."
    )


# ---------------------------------------------------------------------- ranks


def agree(ranks: Ranks, model: nn.Module, given: Mapping[str, Any]) -> None:
    """Check that every rank has the same model and arguments, before anything is shared.

    Args:
        ranks: the processes.
        model: the model.
        given: everything else that results depend on, by the name that a message calls it by.

    Raises:
        RankError: they differ; on every rank, and the message says in what.
    """
    if ranks.size == 1:
        return
    own = {"model": watched(model).state().digest}
    own |= {name: Telling(refuse=False).of(thing, name).hex() for name, thing in given.items()}
    ranks.check_same(own)


# ---------------------------------------------------------------------- the cache


def cache_name(state: ModelState, *given: Any) -> str:
    """The name of the folder of a computation's results: another one wherever they may differ.

    Args:
        state: the model's.
        given: everything else that results depend on.

    Raises:
        TypeError: something cannot be told from another in another process: a metric, an intervention, or a hook.
    """
    return digest_of(state.identity, *given)


def base_numbers(answers: Sequence[Answers]) -> Float[Tensor, "3 n"]:
    """What the base run says of each example: log scores of right and wrong answers, and the best token's log p.

    They are computed anyway, and tell apart what no digest can see, such as a patched library. Part of a cache's
    content (see :meth:`tl_multitrace.engine.cache.Cache.of_base`), compared within rounding.

    Args:
        answers: of every batch.
    """
    rows = []
    for found in answers:
        right, wrong = found.grouped("mean")
        total = torch.where(found.present, found.token_logp, 0.0).flatten(1).sum(1)
        rows.append(torch.stack([right, wrong, total]))
    return torch.cat(rows, 1).nan_to_num(neginf=0.0)
