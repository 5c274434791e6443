"""Effects of subsets by plain TransformerLens hooks: slow, obvious, and independent of any library under test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from planted import Component, Direction, PlantedCircuit, Subset

SITE = {"head": "attn.hook_z", "pattern": "attn.hook_pattern", "neuron": "mlp.hook_post", "mlp": "hook_mlp_out"}
AXIS = {"head": 2, "pattern": 1, "neuron": 2}  # which axis of the activation a component's index counts


def hook_name(component: Component) -> str:
    return f"blocks.{component[1]}.{SITE[component[0]]}"


def logit_diff(circuit: PlantedCircuit, logits: Tensor, copies: int = 1) -> Float[Tensor, "copies n"]:
    final = logits[:, -1]
    rows = torch.arange(len(final))
    answer, wrong = circuit.answers.repeat(copies), circuit.wrong_answers.repeat(copies)
    return (final[rows, answer] - final[rows, wrong]).view(copies, -1)


def mixing_hook(members: Sequence[tuple[int, Component]], source: Tensor, share: Tensor) -> Callable[..., Tensor]:
    """Replace the members' part of an activation by the source's; ``share`` is ``[row, component]`` in [0, 1]."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        mixed = torch.zeros_like(activation)
        for column, (kind, _, index) in members:
            part = mixed if index is None else mixed.select(AXIS[kind], index)
            part += share[:, column].view(-1, *[1] * (part.ndim - 1))
        return activation + mixed * (source - activation)

    return hook


def patched(circuit: PlantedCircuit, direction: Direction, masks: Float[Tensor, "k c"]) -> Float[Tensor, "k n"]:
    """Metric per mask and prompt, all masks in one batch."""
    base, source = circuit.tokens(direction)
    groups = defaultdict(list)
    for column, component in enumerate(circuit.components):
        if masks[:, column].requires_grad or masks[:, column].any():
            groups[hook_name(component)].append((column, component))
    _, stored = circuit.model.run_with_cache(source, names_filter=list(groups))
    copies = len(masks)
    share = masks.repeat_interleave(len(base), 0)
    hooks = []
    for name, members in groups.items():
        taken = stored[name].detach()
        hooks.append((name, mixing_hook(members, taken.repeat(copies, *[1] * (taken.ndim - 1)), share)))
    logits = circuit.model.run_with_hooks(base.repeat(copies, 1), fwd_hooks=hooks)
    return logit_diff(circuit, logits, copies)


@torch.no_grad()
def effects(circuit: PlantedCircuit, direction: Direction, masks: Bool[Tensor, "k c"]) -> Float[Tensor, " k"]:
    """Mean effect per mask."""
    start = logit_diff(circuit, circuit.model(circuit.tokens(direction)[0]))[0]
    scores = [patched(circuit, direction, chunk.float()) for chunk in torch.split(masks, 512)]
    return (torch.cat(scores) - start).mean(1)


def masks_of(circuit: PlantedCircuit, sets: Sequence[Subset]) -> Bool[Tensor, "k c"]:
    return torch.tensor([[component in members for component in circuit.components] for members in sets])


def gradient_at_empty(circuit: PlantedCircuit, direction: Direction) -> dict[Component, Float[Tensor, " n"]]:
    """Derivative of each prompt's metric to each mask entry, nothing patched."""
    n = len(circuit.answers)
    per_prompt = []
    for prompt in range(n):
        mask = torch.zeros(1, len(circuit.components), requires_grad=True)
        per_prompt.append(torch.autograd.grad(patched(circuit, direction, mask)[0, prompt], mask)[0][0])
    table = torch.stack(per_prompt, 1)
    return dict(zip(circuit.components, table, strict=True))
