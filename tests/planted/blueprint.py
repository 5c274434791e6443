"""Write a transformer down as named residual directions, then turn it into weights.

Without normalisation the residual stream is a plain sum, so each fact gets a direction of its own: a head is "look
where this direction meets that one, carry these directions over to those", a neuron is "read these, write those".
Everything left over is filled with random weights that read all directions and write only to the *idle* ones, which
nothing that decides the answer ever reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .case import Component

IDLE = 8  # idle directions: enough that unused heads and neurons have work of their own
SHARP = 30.0  # a score ahead of the rest by this much leaves 1e-13 of the attention elsewhere

Attend = Sequence[tuple[str, str, float]]
"""``(query direction, key direction, score)`` triples; their scores add up."""


@dataclass(frozen=True)
class Shape:
    """Size of a model. Three *stages* split the layers, so one circuit fits a shallow and a deep model."""

    n_layers: int
    n_heads: int
    d_mlp: int
    act_fn: str = "relu"
    d_head: int = 8
    n_ctx: int = 6

    def layers(self, stage: int) -> range:
        """The layers of a stage."""
        width = self.n_layers // 3
        return range(stage * width, (stage + 1) * width)


@dataclass(frozen=True)
class Weights:
    """A model without biases or normalisation, in float64. Axis order as in TransformerLens."""

    shape: Shape
    W_E: Float[Tensor, "vocab d"]
    W_pos: Float[Tensor, "pos d"]
    W_Q: Float[Tensor, "layer head d d_head"]
    W_K: Float[Tensor, "layer head d d_head"]
    W_V: Float[Tensor, "layer head d d_head"]
    W_O: Float[Tensor, "layer head d_head d"]
    W_in: Float[Tensor, "layer d neuron"]
    W_out: Float[Tensor, "layer neuron d"]
    W_U: Float[Tensor, "d vocab"]

    def rotated(self, generator: torch.Generator) -> Weights:
        """The same function in another basis: of the residual stream, and of each head's values.

        Args:
            generator: where the rotations come from.
        """
        d = self.W_E.shape[1]
        turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        square = (*self.W_V.shape[:2], self.shape.d_head, self.shape.d_head)
        inner = torch.linalg.qr(torch.randn(square, generator=generator, dtype=torch.float64))[0]
        read = turn.T
        return Weights(
            self.shape,
            W_E=self.W_E @ turn,
            W_pos=self.W_pos @ turn,
            W_Q=read @ self.W_Q,
            W_K=read @ self.W_K,
            W_V=read @ self.W_V @ inner,
            W_O=inner.transpose(-1, -2) @ self.W_O @ turn,
            W_in=read @ self.W_in,
            W_out=self.W_out @ turn,
            W_U=read @ self.W_U,
        )


@dataclass
class Blueprint:
    """A transformer being planned. Seeded: the same calls give the same weights.

    Attributes:
        shape: the model's size.
        seed: decides which head or neuron of a stage takes which part, and the idle weights.
    """

    shape: Shape
    seed: int
    directions: dict[str, int] = field(default_factory=dict)
    vocabulary: dict[str, int] = field(default_factory=dict)
    _cells: dict[str, list[tuple[tuple[int, ...], float]]] = field(default_factory=dict)
    _used_dims: dict[tuple[int, int], int] = field(default_factory=dict)
    _used_neurons: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        for position in range(self.shape.n_ctx):
            self._set("W_pos", (position, self._direction(f"pos{position}")), 1.0)
            self._set("W_pos", (position, self._direction("one")), 1.0)

    # ------------------------------------------------------------------ what a circuit calls

    def token(self, name: str, *facts: str) -> int:
        """Add a token whose embedding has 1 in each of the directions ``facts``; returns its id."""
        index = self.vocabulary.setdefault(name, len(self.vocabulary))
        for fact in facts:
            self._set("W_E", (index, self._direction(fact)), 1.0)
        return index

    def output(self, token: str, direction: str) -> None:
        """Let a direction be the logit of a token."""
        self._set("W_U", (self._direction(direction), self.token(token)), 1.0)

    def head(self, stage: int, attend: Attend, carry: Mapping[str, Mapping[str, float]]) -> Component:
        """Give a free head of a stage a part to play.

        Args:
            stage: 0, 1 or 2.
            attend: what its scores are made of; one query/key dimension each.
            carry: for each direction read at the attended position, what to write to where; one value dimension each.

        Returns:
            The head as a component.
        """
        free = [slot for slot in self._slots(stage, self.shape.n_heads) if slot not in self._used_dims]
        return self.place_head(self._pick(free), attend, carry)

    def place_head(self, slot: tuple[int, int], attend: Attend, carry: Mapping[str, Mapping[str, float]]) -> Component:
        """Like ``head``, at a given ``(layer, index)``."""
        for dim, (query, key, score) in enumerate(attend):
            # TransformerLens divides scores by sqrt(d_head)
            self._set("W_Q", (*slot, self._direction(query), dim), score * self.shape.d_head**0.5)
            self._set("W_K", (*slot, self._direction(key), dim), 1.0)
        for dim, (read, writes) in enumerate(carry.items()):
            self._set("W_V", (*slot, self._direction(read), dim), 1.0)
            for write, weight in writes.items():
                self._set("W_O", (*slot, dim, self._direction(write)), weight)
        self._used_dims[slot] = len(carry)
        return ("head", *slot)

    def neuron(self, stage: int, read: Mapping[str, float], write: Mapping[str, float], last: bool = True) -> Component:
        """Give a free neuron a part to play.

        Args:
            stage: 0, 1 or 2.
            read: input weight per direction; ``"one"`` serves as the bias.
            write: output weight per direction.
            last: only the stage's last layer, so that every head of the stage comes before it.

        Returns:
            The neuron as a component.
        """
        slots = self._slots(stage, self.shape.d_mlp)
        free = [
            slot
            for slot in slots
            if slot not in self._used_neurons and (not last or slot[0] == self.shape.layers(stage)[-1])
        ]
        return self.place_neuron(self._pick(free), read, write)

    def place_neuron(self, slot: tuple[int, int], read: Mapping[str, float], write: Mapping[str, float]) -> Component:
        """Like ``neuron``, at a given ``(layer, index)``."""
        layer, index = slot
        for name, weight in read.items():
            self._set("W_in", (layer, self._direction(name), index), weight)
        for name, weight in write.items():
            self._set("W_out", (layer, index, self._direction(name)), weight)
        self._used_neurons.add(slot)
        return ("neuron", *slot)

    def free_heads(self) -> list[tuple[int, int]]:
        """Heads without a part, in order."""
        return [slot for slot in self._grid(self.shape.n_heads) if slot not in self._used_dims]

    def free_neurons(self) -> list[tuple[int, int]]:
        """Neurons without a part, in order."""
        return [slot for slot in self._grid(self.shape.d_mlp) if slot not in self._used_neurons]

    def weights(self) -> Weights:
        """The finished model, unused parts filled with idle weights."""
        idle = [self._direction(f"idle{i}") for i in range(IDLE)]
        tables = {name: torch.zeros(size, dtype=torch.float64) for name, size in self._sizes().items()}
        for name, cells in self._cells.items():
            for index, value in cells:
                tables[name][index] += value
        self._fill_tokens(tables, idle)
        self._fill_heads(tables, idle)
        self._fill_neurons(tables, idle)
        return Weights(self.shape, **tables)

    # ------------------------------------------------------------------ how it is kept

    def _direction(self, name: str) -> int:
        return self.directions.setdefault(name, len(self.directions))

    def _set(self, table: str, index: tuple[int, ...], value: float) -> None:
        self._cells.setdefault(table, []).append((index, value))

    def _grid(self, width: int) -> list[tuple[int, int]]:
        return [(layer, index) for layer in range(self.shape.n_layers) for index in range(width)]

    def _slots(self, stage: int, width: int) -> list[tuple[int, int]]:
        return [(layer, index) for layer in self.shape.layers(stage) for index in range(width)]

    def _pick(self, free: Sequence[tuple[int, int]]) -> tuple[int, int]:
        return free[int(torch.randint(len(free), (), generator=self.generator))]

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        shape, d, vocab = self.shape, len(self.directions), len(self.vocabulary)
        grid = (shape.n_layers, shape.n_heads)
        reads = {name: (*grid, d, shape.d_head) for name in ("W_Q", "W_K", "W_V")}
        mlp = {"W_in": (shape.n_layers, d, shape.d_mlp), "W_out": (shape.n_layers, shape.d_mlp, d)}
        ends = {"W_E": (vocab, d), "W_pos": (shape.n_ctx, d), "W_U": (d, vocab)}
        return {**reads, "W_O": (*grid, shape.d_head, d), **mlp, **ends}

    def _noise(self, *size: int, scale: float) -> Tensor:
        return scale * torch.randn(size, generator=self.generator, dtype=torch.float64)

    def _fill_tokens(self, tables: Mapping[str, Tensor], idle: Sequence[int]) -> None:
        vocab = len(self.vocabulary)
        tables["W_E"][:, idle] = self._noise(vocab, IDLE, scale=0.7)
        tables["W_pos"][:, idle] = self._noise(self.shape.n_ctx, IDLE, scale=0.3)
        silent = tables["W_U"].abs().sum(0) == 0  # tokens that are nobody's answer may have any logit
        tables["W_U"][idle] = self._noise(IDLE, vocab, scale=0.3) * silent

    def _fill_heads(self, tables: Mapping[str, Tensor], idle: Sequence[int]) -> None:
        shape, d = self.shape, len(self.directions)
        out = 0.5 / (shape.n_heads * shape.d_head) ** 0.5
        for slot in self._grid(shape.n_heads):
            used = self._used_dims.get(slot, 0)
            spare = range(used, shape.d_head)
            if slot not in self._used_dims:
                tables["W_Q"][slot] = self._noise(d, shape.d_head, scale=0.4)
                tables["W_K"][slot] = self._noise(d, shape.d_head, scale=0.4)
            tables["W_V"][slot][:, used:] = self._noise(d, len(spare), scale=0.5)
            for dim in spare:
                tables["W_O"][slot][dim, idle] = self._noise(IDLE, scale=out)

    def _fill_neurons(self, tables: Mapping[str, Tensor], idle: Sequence[int]) -> None:
        d, out = len(self.directions), 0.5 / self.shape.d_mlp**0.5
        for layer, neuron in self.free_neurons():
            tables["W_in"][layer, :, neuron] = self._noise(d, scale=0.5)
            tables["W_out"][layer, neuron, idle] = self._noise(IDLE, scale=out)


def at_position(position: int) -> Attend:
    """Look at one position, whatever stands there."""
    return [("one", f"pos{position}", SHARP)]


def per_class(prefix: str, classes: Iterable[int]) -> list[str]:
    """Names of one direction per answer class."""
    return [f"{prefix}{k}" for k in classes]
