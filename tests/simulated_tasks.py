"""Tasks whose truth is known: circuits with a known effect on a large population of prompts, and tasks without any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from oracles import pairs_of, random_examples

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build
from tl_multitrace.evaluation import shuffled_answers

NAME = "bridge-native" if HAS_BRIDGE else "hooked-native"
POPULATION, SAMPLE, SIZE = 3000, 48, 3


@cache
def model() -> Any:
    return build(NAME)


@cache
def population() -> mt.PromptPairs:
    """Random prompts, of which a task is a small sample: the answer is what the model says to the source prompt, the
    wrong answer what it says to the base prompt, so that patching everything has a strong effect."""
    drawn = pairs_of(random_examples(POPULATION, seed=5, longest=5, equal=True))
    answer, wrong = (_says(tokens) for tokens in (drawn.source_tokens, drawn.base_tokens))
    differ = answer != wrong
    return mt.PromptPairs.from_tokens(
        drawn.base_tokens[differ],
        drawn.source_tokens[differ],
        answer[differ],
        wrong[differ],
        lengths=drawn.lengths[differ],
    )


@torch.no_grad()
def _says(tokens: torch.Tensor) -> torch.Tensor:
    return model()(tokens)[:, -1].argmax(-1)


@cache
def groups() -> mt.HookGroups:
    return mt.heads(model())


def circuit_of(tracer: mt.Tracer, members: Sequence[int], direction: str = "maximize") -> mt.Circuit:
    """A circuit that nobody searched for."""
    facts = {"direction": direction, "model": tracer.view.describe()}
    chosen = sorted(int(i) for i in members)
    return mt.Circuit(
        tracer.groups[chosen], tuple(chosen), len(tracer.groups), float("nan"), provenance=facts, tracer=tracer
    )


@dataclass(frozen=True)
class Known:
    """A circuit, a sample of prompts, and what the circuit does to the population that they come from."""

    circuit: mt.Circuit
    sample: mt.PromptPairs
    effect: float
    faithfulness: float


def known_tasks(count: int, seed: int = 0) -> Iterator[Known]:
    """Random circuits on random samples, with the effect and the faithfulness that the whole population has."""
    rng = np.random.default_rng(seed)
    tracer = mt.Tracer(model(), population(), groups())
    sets = [rng.choice(len(groups()), SIZE, replace=False) for _ in range(20)]
    masks = torch.zeros(len(sets), len(groups()))
    for row, members in zip(masks, sets, strict=True):
        row[members.tolist()] = 1.0
    means = tracer.effects(torch.cat([masks, 1 - masks, torch.ones(1, len(groups()))])).double().mean(-1)
    effects, rest, full = means[: len(sets)], means[len(sets) : -1], means[-1]
    for i in range(count):
        k = i % len(sets)
        sample = population()[rng.choice(len(population()), SAMPLE, replace=False).tolist()]
        circuit = circuit_of(tracer, sets[k])
        yield Known(circuit, sample, float(effects[k]), float(1 - rest[k] / full))


def null_tasks(count: int, seed: int = 0) -> Iterator[tuple[mt.SubsetPath, mt.PromptPairs, mt.PromptPairs]]:
    """Searches on prompts whose answers a coin decided, with the prompts of the search and others, tossed anew."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        drawn = rng.choice(len(population()), 2 * SAMPLE, replace=False).tolist()
        train = shuffled_answers(population()[drawn[:SAMPLE]], seed=2 * i)
        held_out = shuffled_answers(population()[drawn[SAMPLE:]], seed=2 * i + 1)
        tracer = mt.Tracer(model(), train, groups())
        yield mt.select(tracer, [SIZE], mt.TopK(), seed=i), train, held_out
