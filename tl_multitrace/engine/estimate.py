"""What a trace will keep and where, before it runs: the plan that a tracer follows, as a table of bytes.

The model's weights are there already. One batch must fit, so its forward and backward come first. What is left of the
limit goes to what saves most: source activations (without them a batch's every visit takes a second forward), then the
block inputs of the base run and of one more that evaluations restart from, then keys and values. Each goes to the
model's device, else, beside a GPU, to host memory. Source activations that fit into neither are recomputed per batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from tl_multitrace.engine.budget import BATCH_TOKENS, Limits, Room, batch_size_for, step_budget
from tl_multitrace.engine.mask_runs import MaskRuns
from tl_multitrace.engine.restart import TILE_TOKENS, Restarts, keys_values_bytes
from tl_multitrace.engine.sources import Place
from tl_multitrace.engine.step_bytes import StepBytes, count_step, rough_step
from tl_multitrace.groups import HookGroups
from tl_multitrace.models.compat import ModelView
from tl_multitrace.rows import Rows

MARGIN = 4
"""The rough guess of a step is never less than a quarter of what it takes."""

PLACES: dict[Place, str] = {
    "device": "on the model's device",
    "host": "in host memory, moved per batch",
    "recomputed": "recomputed per batch",
    "none": "not kept",
}


@dataclass(frozen=True, repr=False)
class MemoryEstimate:
    """Bytes that a trace takes, by item.

    Attributes:
        device: the model's.
        limits: what stored activations and one batch may take together.
        batch_size: prompt pairs per forward.
        weights: parameters and buffers.
        source_activations: of all prompts at all hook points of the groups, frozen sites of a severed trace included.
        block_inputs: of the base run and of one stored run, a search's current set; of the base run alone where there
            is no room for both.
        keys_values: of the base run; stored when enough runs are asked for that share tokens with it.
        forward: the largest forward without gradients: one batch, several masks over a few prompts, or the source run.
        backward: one batch's forward and backward to the mask.
        masks: derivatives of every prompt to every mask entry, twice, as ``gradient`` puts them into their order;
            searches need those of one batch at a time, which ``backward`` counts.
        needed: smallest ``memory_limit`` that keeps everything on the device, with batches of this size.
        places: where source activations, block inputs, and keys and values are kept.
        stored_runs: runs whose block inputs are kept, the base run counted.
        left: bytes of the limit that nothing has been given, where block inputs are kept.
        tile_tokens: tokens per forward up to which several masks share a batch.

    Examples:
        >>> pairs = mt.task("professions", model, n=16).pairs
        >>> estimate = mt.memory_estimate(model, pairs, mt.heads(model) + mt.neurons(model))
        >>> per_token = model.cfg.n_layers * (model.cfg.d_model + model.cfg.d_mlp) * 4  # bytes of float32
        >>> estimate.source_activations == pairs.base_tokens.numel() * per_token
        True
    """

    device: str
    limits: Limits
    batch_size: int
    weights: int
    source_activations: int
    block_inputs: int
    keys_values: int
    forward: int
    backward: int
    masks: int
    needed: int
    places: Mapping[str, Place] = field(default_factory=dict)
    stored_runs: int = 0
    left: int = 0
    tile_tokens: int = 0

    @property
    def peak(self) -> int:
        """Most bytes at once on the model's device: weights, what is kept there, and the larger step."""
        return self.weights + self._at("device") + max(self.forward, self.backward)

    @property
    def bytes_per_run(self) -> int:
        """Bytes of one run's block inputs."""
        return self.block_inputs // max(1, self.stored_runs)

    @property
    def host(self) -> int:
        """Bytes in host memory, beside a model on a GPU."""
        return self._at("host")

    def follow(self, runs: MaskRuns, restarts: Restarts) -> None:
        """Tell those that keep something where to keep it.

        Args:
            runs: their source activations and block inputs are placed.
            restarts: their keys and values are placed, and the runs they keep are limited.
        """
        host = torch.device("cpu")
        for sources in runs.stored:
            sources.place = self.places["source_activations"]
        runs.inputs_on = host if self.places["block_inputs"] == "host" else None
        restarts.limit = self.keys_values if self.places["keys_values"] != "none" else 0
        restarts.device = host if self.places["keys_values"] == "host" else None
        restarts.several = self.stored_runs > 1
        restarts.tile = min(restarts.tile, self.tile_tokens)

    def _at(self, place: Place) -> int:
        return sum(int(getattr(self, item)) for item, where in self.places.items() if where == place)

    def __repr__(self) -> str:
        lines = [self._line(name) for name in _ITEMS]
        limit = f"limit {_text(self.limits.device)}, {_text(self.needed)} to keep everything there"
        title = f"MemoryEstimate({self.device}, {self.batch_size} pairs per batch, {limit})"
        said = "weights, what is kept, and the larger of the two steps; masks only where they are asked for"
        peak = f"  {'peak':<20}{_text(self.peak):>11}  {said}"
        return "\n".join([title, *lines, peak])

    def _line(self, item: str) -> str:
        size = int(getattr(self, item))
        where = PLACES[self.places[item]] if item in self.places and size else ""
        return f"  {item.replace('_', ' '):<20}{_text(size):>11}  {where}".rstrip()


_ITEMS = ("weights", "source_activations", "block_inputs", "keys_values", "forward", "backward", "masks")


def _text(size: int) -> str:
    """Bytes in the unit that people read."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def plan_memory(runs: MaskRuns, batch_size: int, step: StepBytes, limits: Limits) -> MemoryEstimate:
    """Decide where everything goes.

    Args:
        runs: of the trace; nothing has run yet.
        batch_size: prompt pairs per forward.
        step: what one prompt pair takes.
        limits: what may be taken.
    """
    view, rows, room = runs.view, runs.rows, Room(limits)
    kind, per_row = view.device.type, max(1, sum(runs.sources.row_bytes(runs).values()))
    tile = _tile_tokens(step, rows.base.shape[1], limits.device, kind)
    in_tile = max(1, tile // (rows.base.shape[1] * step.rows))
    one_batch = per_row * step.rows * batch_size
    backward, forward = step.backward * batch_size, step.forward * max(batch_size, in_tile)
    sources = _source_bytes(runs)
    room.device = max(0, room.device - backward)
    where: Place = room.take(sources)
    if where == "none":
        where = "recomputed"
    if where != "device":
        room.device = max(0, room.device - one_batch)
        forward, backward = forward + one_batch, backward + one_batch
    if sources:
        forward = max(forward, 2 * (step.forward * batch_size + one_batch))  # the source run takes two batches at once
    per_run = block_input_bytes(runs)
    stored = next((n for n in (2, 1) if n * per_run <= max(room.device, room.host)), 2)
    at_inputs = room.take(stored * per_run) if per_run else "none"
    keys_values = keys_values_bytes(runs)
    restarts = keys_values > 0 and where != "recomputed"
    return MemoryEstimate(
        device=str(view.device),
        limits=limits,
        batch_size=batch_size,
        weights=weight_bytes(view),
        source_activations=sources,
        block_inputs=stored * per_run,
        stored_runs=stored if at_inputs != "none" else 0,
        keys_values=keys_values,
        forward=forward,
        backward=backward,
        masks=2 * rows.n_examples * len(runs.groups) * runs.dtype.itemsize,
        needed=sources + 2 * per_run + keys_values + step.backward * batch_size,
        places={
            "source_activations": where,
            "block_inputs": at_inputs,
            "keys_values": room.take(keys_values) if restarts else "none",
        },
        left=room.host if at_inputs == "host" else room.device,
        tile_tokens=tile,
    )


def _source_bytes(runs: MaskRuns) -> int:
    """Bytes of source activations, and of the base run's at frozen sites."""
    own = runs.sources.needed or runs.sources.measure(runs)
    if runs.frozen is None:
        return own
    return own + (runs.frozen.needed or runs.frozen.measure(runs, runs.base))


def block_input_bytes(runs: MaskRuns) -> int:
    """Bytes of the block inputs that evaluations restart from, one per first block of a group."""
    return int(len(runs.start_layers) * runs.rows.base.numel() * runs.view.d_model * runs.view.dtype.itemsize)


def batch_and_step(
    view: ModelView, rows: Rows, groups: HookGroups, dtype: torch.dtype, limits: Limits, given: int | None
) -> tuple[int, StepBytes]:
    """Prompt pairs per forward, and what one takes: counted where that could make a difference.

    Args:
        view: the model.
        rows: all rows.
        groups: the mask's entries.
        dtype: of masks.
        limits: what may be taken.
        given: prompt pairs per forward, where the caller has chosen.
    """
    kind, step = view.device.type, rough_step(view, rows)
    tokens = min(rows.base.numel(), BATCH_TOKENS) if given is None else given * step.rows * rows.base.shape[1]
    if MARGIN * step.backward * max(1, tokens // (step.rows * rows.base.shape[1])) > step_budget(limits.device, kind):
        step = count_step(view, rows, groups, dtype)
    return given or batch_size_for(rows, step, limits.device, kind), step


def _tile_tokens(step: StepBytes, width: int, limit: int, kind: str) -> int:
    """Tokens up to which masks share a forward, as far as their activations fit."""
    per_token = max(1, step.forward // (step.rows * width))
    return max(1, min(TILE_TOKENS.get(kind, TILE_TOKENS["cpu"]), step_budget(limit, kind) // per_token))


def weight_bytes(view: ModelView) -> int:
    """Bytes of parameters and buffers; shared ones once."""
    tensors = [*view.model.parameters(), *view.model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
