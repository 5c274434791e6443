"""Steps of a trace on models of real sizes with random weights, against the least time that a device needs for them.

    floor = max(operations / measured matrix throughput, bytes / measured copy bandwidth)

Operations are those of the matrix products of the forwards and backwards that ran: 2 per weight and token for a
forward, as many again for a backward to the mask (the weights are frozen), plus attention scores. Bytes are the
weights, read once per launched forward and once per backward. Activations, norms, hooks and the mixing itself are not
in the floor: they are what the ratio shows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import tl_multitrace as mt
from tiny_models import bridge_from_hf, forked_rng
from tl_multitrace.models.memory import available

ROUNDS = 5
TOKENS = 32
MASKS = 8


@dataclass(frozen=True)
class Shape:
    """A Hugging Face architecture at one size.

    Attributes:
        name: how tables call it.
        config: class name of its configuration; the model class follows from it.
        sizes: its fields.
        pairs: prompt pairs of a step.
        dtype: of the weights.
    """

    name: str
    config: str
    sizes: dict[str, int]
    pairs: int = 64
    dtype: torch.dtype = torch.bfloat16

    @property
    def model_class(self) -> str:
        """The class with a language model's head."""
        stem = self.config.removesuffix("Config")
        return f"{stem}LMHeadModel" if stem == "GPT2" else f"{stem}ForCausalLM"


GPT2_XL = Shape(
    "GPT-2 XL", "GPT2Config", {"n_layer": 48, "n_head": 25, "n_embd": 1600, "vocab_size": 50257, "n_positions": 1024}
)
LLAMA_7B = Shape(
    "7B, grouped queries",
    "LlamaConfig",
    {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
)
SMALL = (
    Shape(
        "tiny GPT-2",
        "GPT2Config",
        {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 64, "n_positions": 64},
        pairs=4,
    ),
    Shape(
        "tiny Llama",
        "LlamaConfig",
        {
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "vocab_size": 64,
            "max_position_embeddings": 64,
        },
        pairs=4,
    ),
)


def make(shape: Shape, device: str) -> Any:
    """The model, its weights drawn on the device in their own dtype."""
    import transformers

    config = getattr(transformers, shape.config)(**shape.sizes, attn_implementation="eager")
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(shape.dtype)
        with forked_rng(0), torch.device(device):
            model = getattr(transformers, shape.model_class)(config)
    finally:
        torch.set_default_dtype(before)
    return bridge_from_hf(model.eval()).to(device)


def weight_bytes(shape: Shape) -> int:
    """Bytes of the weights, without making them."""
    import transformers

    config = getattr(transformers, shape.config)(**shape.sizes)
    with torch.device("meta"):
        model = getattr(transformers, shape.model_class)(config)
    return sum(p.numel() for p in model.parameters()) * shape.dtype.itemsize


def fits(shape: Shape, device: str) -> bool:
    """Whether weights, a copy of them while the model is made, and a step fit into what is free."""
    return 2.2 * weight_bytes(shape) < available(device)


# ---------------------------------------------------------------------- the device


def seconds(call: Callable[[], Any], device: str, rounds: int = ROUNDS) -> float:
    """Median wall time of a call after one that is not counted, the device's work included."""
    found = []
    for _ in range(rounds + 1):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def synchronise(device: str) -> None:
    """Wait for the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def throughput(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations per second of a square matrix product."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: a @ a, device)


def bandwidth(device: str, size: int) -> float:
    """Bytes read and written per second by a copy."""
    a = torch.ones(size, device=device, dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * size / seconds(lambda: b.copy_(a), device)


# ---------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Step:
    """One kind of step, measured.

    Attributes:
        name: what it is.
        seconds: median wall time.
        equivalents: forwards and backwards over all pairs, as the tracer counts them.
        launches: times the model was started.
        floor: least seconds for them on this device.
    """

    name: str
    seconds: float
    equivalents: float
    launches: int
    floor: float

    @property
    def ratio(self) -> float:
        """Measured time in units of the floor."""
        return self.seconds / self.floor


def pairs_of(shape: Shape) -> mt.PromptPairs:
    """Prompts that differ in three tokens from the second on."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = shape.sizes["vocab_size"]
    base = torch.randint(1, vocabulary, (shape.pairs, TOKENS), generator=draw)
    source = base.clone()
    source[:, 1:4] = torch.randint(1, vocabulary, (shape.pairs, 3), generator=draw)
    answers = torch.randint(1, vocabulary - 1, (shape.pairs, 1), generator=draw)
    return mt.PromptPairs.from_tokens(base, source, answers.tolist(), (answers + 1).tolist())


def steps(shape: Shape, device: str, matrix: int = 8192, copy: int = 1 << 30) -> list[Step]:
    """Effects of single heads, and a derivative to every head and neuron, timed on a device."""
    model = make(shape, device)
    groups = mt.heads(model) + mt.neurons(model)
    tracer = mt.Tracer(model, pairs_of(shape), groups)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    masks = torch.zeros(MASKS, len(groups))
    masks[torch.arange(MASKS), torch.arange(MASKS) * n_layers // MASKS * n_heads] = 1.0  # one head each, evenly deep
    soft = torch.full((len(groups),), 0.5)
    rates = throughput(device, shape.dtype, matrix), bandwidth(device, copy)
    calls = {f"effects of {MASKS} heads": lambda: tracer.effects(masks), "derivative": lambda: tracer.gradient(soft)}
    with tracer.session():
        return [_measured(name, call, tracer, device, rates) for name, call in calls.items()]


def _measured(name: str, call: Callable[[], Any], tracer: mt.Tracer, device: str, rates: tuple[float, float]) -> Step:
    found = call()
    found = found if isinstance(found, torch.Tensor) else found[0]
    assert bool(found.isfinite().all()), name
    before = tracer.cost.copy()
    with counted(tracer.model) as launches:
        call()
    spent = tracer.cost - before
    operations = spent.equivalents * forward_operations(tracer)
    passes = launches[0] * (1 + spent.backwards / max(spent.forwards, 1e-9))
    share = spent.forwards * len(tracer.batches.parts) / max(1, launches[0])  # of the weights that a launch reads
    moved = passes * min(1.0, share) * block_bytes(tracer.model)
    floor = max(operations / rates[0], moved / rates[1])
    return Step(name, seconds(call, device), spent.equivalents, launches[0], floor)


def forward_operations(tracer: mt.Tracer) -> float:
    """Operations of a forward over all pairs: matrix products of the blocks and the unembedding at the reads."""
    rows, width = tracer.rows.base.shape
    cfg = tracer.model.cfg
    weights = sum(p.numel() for p in tracer.model.blocks.parameters() if p.ndim > 1)
    attention = 2 * cfg.n_layers * width * cfg.n_heads * cfg.d_head
    return 2.0 * rows * (width * (weights + attention) + cfg.d_vocab * cfg.d_model)


def block_bytes(model: Any) -> int:
    """Bytes of the blocks' weights."""
    return sum(p.numel() * p.element_size() for p in model.blocks.parameters())


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """How often the last block runs inside."""
    found = [0]

    def count(*args: Any) -> None:
        found[0] += 1

    handle = model.blocks[-1].register_forward_hook(count)
    try:
        yield found
    finally:
        handle.remove()
