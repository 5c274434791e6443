"""One run of the model: a value that says everything about it, and the one function that makes it.

Whatever the package asks of a model is a :class:`Forward`: base and source runs, masks, derivatives, path patching,
means, the views of a report, trials and the self-test. Nothing else attaches hooks or runs a model, so that two answers
to one question cannot come from two ways of asking.

At one hook point, in this order: the activation is kept as it comes (``keep``), values are mixed in one after the other
(``put``), it is kept as it leaves (``keep_after``), and something else goes on in its place (``hide``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_multitrace.cost import HookError
from tl_multitrace.groups.mixing import mix
from tl_multitrace.models.ambient import alone, lock_of
from tl_multitrace.models.compat import HookFn, ModelView
from tl_multitrace.rows import Attention

Reads = tuple[Int[Tensor, " q"], Int[Tensor, " q"]]
"""Rows and columns of a batch, paired."""

Mixed = tuple[Float[Tensor, "..."], Float[Tensor, "k ..."]]
"""A value, and the share of it that takes the running activation's place."""


@dataclass(frozen=True)
class Start:
    """Where a run starts, other than at the first token of the first block.

    Attributes:
        layer: first block that runs.
        residual: its input, ``[b, pos, d_model]``.
        column: first token that runs; the forward's tensors begin there.
        past: the model's own cache with the keys and values of the tokens before; an empty one is filled.
    """

    layer: int = 0
    residual: Float[Tensor, "b pos d_model"] | None = None
    column: int = 0
    past: Any = None


@dataclass(frozen=True, eq=False, repr=False)
class Forward:
    """Everything about one run.

    Attributes:
        tokens: right-padded ids, ``k * b`` rows where ``k`` masks share a batch.
        attention: what they attend to.
        noise: added to the token embeddings.
        replaced: where the token embedding is dropped first, so that ``noise`` stands in its place.
        put: per hook name what is mixed in, one after the other.
        keep: hook names whose activations are kept as they come.
        keep_after: hook names whose activations are kept after ``put``.
        hide: per hook name what goes on in the activation's place; ``b`` rows serve every ``k``.
        reads: places whose logits are wanted; None for all.
        start: where it starts.
        autocast: lower precision to run in.
    """

    tokens: Int[Tensor, "rows pos"]
    attention: Attention
    noise: Float[Tensor, "rows pos d_model"] | None = None
    replaced: Bool[Tensor, "rows pos"] | None = None
    put: Mapping[str, Sequence[Mixed]] = field(default_factory=dict)
    keep: frozenset[str] = frozenset()
    keep_after: frozenset[str] = frozenset()
    hide: Mapping[str, Tensor] = field(default_factory=dict)
    reads: Reads | None = None
    start: Start = Start()
    autocast: torch.dtype | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Ran:
    """What a run gave.

    Attributes:
        logits: ``[rows, pos, vocab]``, or ``[1, q, vocab]`` at the reads.
        kept: activations as they came, by hook name, in the order in which the hooks fired.
        kept_after: activations as they left.
        read: what was unembedded, ``[1, q, d_model]``, where there were reads.
        seconds: that it took.
    """

    logits: Float[Tensor, "..."]
    kept: dict[str, Tensor]
    kept_after: dict[str, Tensor]
    read: Float[Tensor, "1 q d_model"] | None
    seconds: float


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Forward:
    """A plain run of some prompts of any lengths, given as token ids."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return Forward(tokens, Attention((torch.arange(width, device=device) < lengths[:, None]).long()))


def run(view: ModelView, forward: Forward) -> Ran:
    """Run the model once.

    Args:
        view: the model; it comes back as it was, also after an exception.
        forward: what to run.

    Raises:
        HookError: a hook point did not fire exactly once, so that what was to happen there would be lost.
    """
    fired: Counter[str] = Counter()
    kept: dict[str, Tensor] = {}
    kept_after: dict[str, Tensor] = {}
    read: list[Tensor] = []
    names = list(dict.fromkeys([*sorted(forward.keep), *forward.put, *sorted(forward.keep_after), *forward.hide]))
    # order matters where two names meet at one hook point: noise, then the names as they stand here, then reading
    hooks = [] if forward.noise is None else [(view.embedding_point, _corrupter(forward.noise, forward.replaced))]
    hooks += [(name, _hook(name, forward, fired, kept, kept_after)) for name in names]
    if forward.reads is not None:
        hooks.append((view.unembed_input, _reader(*forward.reads, read)))
    start = forward.start
    lower = nullcontext() if forward.autocast is None else torch.autocast(view.device.type, forward.autocast)
    with session(view), view.attached(hooks), lower:
        began = time.perf_counter()
        logits = view.run(
            forward.tokens,
            None if view.model in _untold else forward.attention.mask,
            position_ids=forward.attention.position_ids,
            start_layer=start.layer,
            residual=start.residual,
            past=start.past,
        )
        seconds = time.perf_counter() - began
    wrong = [name for name in names if fired[name] != 1]
    if wrong:
        raise HookError(
            f"the hook {wrong[0]} fired {fired[wrong[0]]} times in a forward instead of once, so an intervention there "
            f"would be lost. On {type(view.model).__name__} this point is not computed in the usual way; choose other "
            "groups."
        )
    return Ran(logits, kept, kept_after, read[0] if read else None, seconds)


# ---------------------------------------------------------------------- what the hooks do


def _hook(
    name: str, forward: Forward, fired: Counter[str], kept: dict[str, Tensor], kept_after: dict[str, Tensor]
) -> HookFn:
    put, hide = forward.put.get(name, ()), forward.hide.get(name)
    before, after = name in forward.keep, name in forward.keep_after

    def at_point(act: Tensor, hook: Any) -> Tensor | None:
        fired[name] += 1
        if before:
            kept[name] = act.detach().clone()
        for value, share in put:
            act = mix(act, value, share)
        if after:
            kept_after[name] = act.detach().clone()
        if hide is not None:
            return hide.to(act).repeat(len(act) // len(hide), *[1] * (hide.ndim - 1))
        return act if put else None

    return at_point


def _corrupter(noise: Tensor, replaced: Tensor | None) -> HookFn:
    def corrupt(act: Tensor, hook: Any) -> Tensor:
        known = act if replaced is None else act.masked_fill(replaced[..., None].to(act.device), 0)
        return (known + noise.to(act)).contiguous()

    return corrupt


def _reader(rows: Tensor, columns: Tensor, kept: list[Tensor]) -> HookFn:
    # nothing but what leaves the last hook point is unembedded: logits are computed where they are read
    def read(act: Tensor, hook: Any) -> Tensor:
        kept.append(act[rows.to(act.device), columns.to(act.device)][None].contiguous())
        return kept[0]

    return read


# ---------------------------------------------------------------------- padding

_untold: WeakSet[Any] = WeakSet()


def leave_untold(view: ModelView) -> None:
    """Never tell a model which tokens are padding: what it computes when it is told was found to be something else."""
    _untold.add(view.model)


# ---------------------------------------------------------------------- sessions

_open: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


@contextmanager
def session(view: ModelView) -> Iterator[None]:
    """Weights frozen and the model in evaluation mode, for this thread alone; sessions on one model nest."""
    with lock_of(view.model):  # another thread waits here, whatever the depth
        depth = _open.get(view.model, 0)
        with nullcontext() if depth else alone(view.model), nullcontext() if depth else view.frozen():
            _open[view.model] = depth + 1
            try:
                yield
            finally:
                _open[view.model] = depth
