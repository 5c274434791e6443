"""What one prompt pair's forward and backward take, counted and not timed.

Every tensor that the model allocates is counted while it lives, so the number depends on the model, the prompt and the
hook groups alone: not on the machine, on what else runs there, or on how an allocator rounds. A formula over the widths
is wrong by a factor of three either way: layers keep more or less for their backward from one architecture to the next.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tl_multitrace.engine.forward import session
from tl_multitrace.engine.mask_runs import MaskRuns
from tl_multitrace.engine.trials import trials_of
from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import Interchange
from tl_multitrace.models.compat import ModelView
from tl_multitrace.rows import Rows


@dataclass(frozen=True)
class StepBytes:
    """What one prompt pair takes at most, beside weights and stored activations.

    Attributes:
        forward: bytes of a forward without gradients.
        backward: bytes of a forward and a backward to the mask.
        rows: rows that this pair runs in.
        counted: whether this was counted, or is a rough guess.
    """

    forward: int
    backward: int
    rows: int
    counted: bool


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside, while they live.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs or {})):
            self._note(value, new=False)  # what comes in from outside, weights among it, was there before
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            self._note(value, new=True)
        return found

    def _note(self, value: Any, *, new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        size = storage.nbytes() if new else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


_counted: weakref.WeakKeyDictionary[Any, dict[Hashable, StepBytes]] = weakref.WeakKeyDictionary()


def count_step(view: ModelView, rows: Rows, groups: HookGroups, dtype: torch.dtype) -> StepBytes:
    """Run the largest prompt pair once without and once with gradients, and count; once per model and shape.

    Args:
        view: the model.
        rows: the prompts.
        groups: the mask's entries.
        dtype: of masks.

    Raises:
        HookError: a hook point that does not fire.
    """
    rows = _only(rows, _largest(rows))
    trials = trials_of(view, rows.base[0, : rows.lengths[0]].tolist())
    runs = MaskRuns(view, rows, groups, Interchange(), dtype, trials, whole=rows)
    known = _counted.setdefault(view.model, {})
    asked = (view.device, view.dtype, dtype, rows.base.shape, rows.source.shape, len(groups), tuple(runs.plans))
    if asked not in known:
        known[asked] = _count(runs)
    return known[asked]


def _count(runs: MaskRuns) -> StepBytes:
    batch = runs.rows.batch(torch.tensor([0]), runs.view.device)
    ones = torch.ones(1, batch.n_rows, len(runs.groups), dtype=runs.dtype, device=runs.view.device)
    with session(runs.view):
        with torch.no_grad():
            runs.sources.prepare(runs)  # kept, and so not counted: the plan says where they are
            runs.answers(batch, ones)  # the first forward notes things about the model
            with LiveBytes() as forward:
                runs.answers(batch, ones)
        with torch.enable_grad(), LiveBytes() as backward:
            leaf = ones.clone().requires_grad_()
            torch.autograd.grad(runs.answers(batch, leaf).token_logp.sum(), leaf)
    return StepBytes(forward.peak, backward.peak, batch.n_rows, counted=True)


def rough_step(view: ModelView, rows: Rows) -> StepBytes:
    """A guess from the widths."""
    width = rows.base.shape[1]
    size = max(4, view.dtype.itemsize)
    per_token = view.n_layers * (14 * view.d_model + 3 * view.d_mlp + 2 * view.n_heads * width) * size
    example = _largest(rows)
    n_rows = int(rows.starts[example + 1] - rows.starts[example])
    return StepBytes(per_token * width * n_rows // 2, per_token * width * n_rows, n_rows, counted=False)


def _only(rows: Rows, example: int) -> Rows:
    """The rows of one example."""
    return Rows.of(rows.pairs[torch.tensor([example])], packed=rows.packing is not None)


def _largest(rows: Rows) -> int:
    """The example with the most tokens in its rows."""
    tokens = torch.zeros(rows.n_examples, dtype=torch.long).index_add_(0, rows.example, rows.lengths)
    return int(tokens.argmax())
