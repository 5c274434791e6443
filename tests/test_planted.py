"""The planted circuits are what they say: every stated set and effect against all subsets, by plain hooks."""

from __future__ import annotations

import doctest
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from itertools import combinations
from typing import Any

import pytest
import torch
from jaxtyping import Bool
from planted_brute_force import AXIS, effects, gradient_at_empty, hook_name, logit_diff, masks_of
from planted_searches import HARD, nightly_but
from torch import Tensor

import planted as planted_room
from planted import DIRECTIONS, REACH, UNIT, Component, Direction, PlantedCircuit, Subset, cases
from planted import build as build_anew

SMALL = [*cases("small"), *cases("small", leaks=True), *cases("small", rotated=True, leaks=True)]
LARGE = [*cases("large"), *cases("large", rotated=True, leaks=True)]
KEPT = [*cases("small", rotated=True, leaks=True), *(f"{name}-large-rotated-leaks" for name in HARD)]
HARMFUL = {"decoys", "inhibitor", "mini_ioi"}
SIGN = {"noising": -1.0, "restoring": 1.0}  # times an effect: how far it went the wanted way
CLOSE = 1e-4 * UNIT


build = cache(build_anew)  # no test changes a model


@cache
def single_effects(name: str, direction: Direction) -> dict[Component, float]:
    """Effect of each component alone; kept, because several tests ask and thousands of neurons take seconds."""
    circuit = build(name)
    alone = effects(circuit, direction, torch.eye(len(circuit.components), dtype=torch.bool))
    return dict(zip(circuit.components, alone.tolist(), strict=True))


def masks_to_codes(masks: Bool[Tensor, "k c"]) -> Tensor:
    return (masks.long() << torch.arange(masks.shape[1])).sum(1)


def sets_to_codes(circuit: PlantedCircuit, sets: Sequence[Subset]) -> set[int]:
    return set(masks_to_codes(masks_of(circuit, sets)).tolist())


def smallest(codes: list[int]) -> set[int]:
    """Those sets, as bit codes, that contain no other."""
    kept: list[int] = []
    for code in sorted(codes, key=int.bit_count):
        if all(code & other != other for other in kept):
            kept.append(code)
    return set(kept)


@pytest.mark.parametrize("name", nightly_but(KEPT, SMALL))
def test_all_subsets_agree(name: str) -> None:
    """Minimal sets and the best effect per size, found again among every subset of the candidates."""
    circuit = build(name)
    count = len(circuit.components)
    codes = torch.arange(2**count)
    masks = (codes[:, None] >> torch.arange(count) & 1).bool()
    for direction in DIRECTIONS:
        moved = SIGN[direction] * effects(circuit, direction, masks)
        for size, stated in circuit.best[direction].items():
            assert moved[masks.sum(1) <= size].max() == pytest.approx(SIGN[direction] * stated, abs=CLOSE)
        reached = moved[masks_to_codes(masks_of(circuit, list(circuit.optimal[direction].values())))]
        assert reached.tolist() == pytest.approx([abs(e) for e in circuit.best[direction].values()], abs=CLOSE)
        enough = REACH * SIGN[direction] * circuit.target[direction]
        assert smallest(codes[moved >= enough].tolist()) == sets_to_codes(circuit, circuit.minimal[direction])


@pytest.mark.parametrize("name", nightly_but(KEPT, LARGE))
def test_large_models_hold_the_stated_sets(name: str) -> None:
    circuit = build(name)
    assert len(circuit.components) >= (2000 if circuit.kind == "neuron" else 96)
    for direction in DIRECTIONS:
        sign, best = SIGN[direction], circuit.best[direction]
        stated = effects(circuit, direction, masks_of(circuit, list(circuit.optimal[direction].values())))
        assert stated.tolist() == pytest.approx(list(best.values()), abs=CLOSE)
        assert all(len(members) <= size for size, members in circuit.optimal[direction].items())
        strongest = max(sign * effect for effect in single_effects(name, direction).values())
        assert strongest == pytest.approx(sign * best[1], abs=CLOSE)
        check_minimal(circuit, direction)


def check_minimal(circuit: PlantedCircuit, direction: Direction) -> None:
    """Up to twenty of the minimal sets work, and stop working without any one member."""
    enough = REACH * abs(circuit.target[direction])
    sets = circuit.minimal[direction][:20]
    smaller = [members - {member} for members in sets for member in members]
    assert (SIGN[direction] * effects(circuit, direction, masks_of(circuit, sets)) >= enough).all()
    assert (SIGN[direction] * effects(circuit, direction, masks_of(circuit, smaller)) < enough).all()


@pytest.mark.parametrize("name", nightly_but(KEPT, LARGE))
def test_no_random_set_beats_the_stated_best(name: str) -> None:
    """Sets drawn around the planted components, where a better one would hide."""
    circuit = build(name)
    generator = torch.Generator().manual_seed(5)
    planted = sorted(planted_components(circuit), key=str)
    for direction in DIRECTIONS:
        sizes = [size for size in circuit.best[direction] for _ in range(20)]
        sets = [draw(circuit, planted, size, generator) for size in sizes]
        moved = SIGN[direction] * effects(circuit, direction, masks_of(circuit, sets))
        assert (moved <= torch.tensor([abs(circuit.best[direction][size]) for size in sizes]) + CLOSE).all()


def planted_components(circuit: PlantedCircuit) -> Subset:
    """Members of any minimal set."""
    return frozenset().union(*[members for way in DIRECTIONS for members in circuit.minimal[way]])


def draw(circuit: PlantedCircuit, planted: Sequence[Component], size: int, generator: torch.Generator) -> Subset:
    """A random set of ``size``: each place taken by a planted component or by any, with equal chances."""
    chosen = set()
    for _ in range(size):
        pool = planted if torch.rand((), generator=generator) < 0.5 else circuit.components
        chosen.add(pool[int(torch.randint(len(pool), (), generator=generator))])
    return frozenset(chosen)


@pytest.mark.parametrize("name", nightly_but(KEPT, [*cases("small"), *LARGE]))
def test_silent_components_do_nothing_alone(name: str) -> None:
    """So a ranking by single effects puts leaks first, and no minimal set of silent members among its top."""
    circuit = build(name)
    for direction in DIRECTIONS:
        alone = single_effects(name, direction)
        silent = circuit.silent[direction]
        assert all(abs(alone[component]) < CLOSE for component in silent)
        ranking = sorted(alone, key=lambda component: -abs(alone[component]))
        for members in circuit.minimal[direction]:
            if circuit.leaks and members <= silent:
                assert not set(ranking[: 10 * len(members)]) & members


def test_both_directions_of_an_and_of_ors_are_silent() -> None:
    circuit = build("and_of_ors-small")
    for direction in DIRECTIONS:
        assert len(circuit.silent[direction]) == 4
        assert set(single_effects(circuit.name, direction).values()) == {0.0}


FLAT = [
    ("and2_hard", "restoring"),
    ("and3_hard", "restoring"),
    ("and2_soft", "restoring"),
    ("or2", "noising"),
    ("or3", "noising"),
    ("and_of_ors", "noising"),
    ("and_of_ors", "restoring"),
    ("decoys", "restoring"),
    ("key_query_and", "noising"),
    ("key_query_and", "restoring"),
]


@pytest.mark.parametrize(("name", "direction"), FLAT)
@pytest.mark.parametrize("size", ["small", "large-leaks"])
def test_gradient_is_exactly_zero(name: str, direction: Direction, size: str) -> None:
    circuit = build(f"{name}-{size}")
    gradient = gradient_at_empty(circuit, direction)
    assert circuit.silent[direction]
    for component in circuit.silent[direction]:
        # a score's gradient passes through the 1e-13 of attention that a softmax leaves elsewhere
        assert (gradient[component].abs() <= (1e-20 if name == "key_query_and" else 0.0)).all()


def test_gradient_sees_what_single_effects_do_not_and_the_reverse() -> None:
    backup = build("backup-small")
    main = next(iter(backup.minimal["restoring"][0]))
    gradient = gradient_at_empty(backup, "noising")
    assert gradient[main].tolist() == pytest.approx([-UNIT] * 6) and main in backup.silent["noising"]
    xor = build("harmful_xor-small")
    (harmful,) = xor.optimal["noising"][1]
    assert (gradient_at_empty(xor, "noising")[harmful] == 0).all()
    assert xor.best["noising"][1] == -3 * UNIT


def test_smooth_and_is_entered_through_a_loss() -> None:
    circuit = build("and3_soft-small")
    (members,) = circuit.minimal["restoring"]
    alone = effects(circuit, "restoring", masks_of(circuit, [frozenset([member]) for member in members]))
    assert ((alone < -0.02 * UNIT) & (alone > -0.03 * UNIT)).all()


IDLE = [*cases("small"), *cases("small", leaks=True), *LARGE]


@pytest.mark.parametrize("name", nightly_but([*cases("small", leaks=True), *KEPT], IDLE))
def test_idle_components_work_without_effect(name: str) -> None:
    """Idle heads and neurons differ between the runs and write something, yet move the answer only by their leak."""
    circuit = build(name)
    planted = planted_components(circuit)
    for direction in DIRECTIONS:
        alone = single_effects(name, direction)
        for component, leak in circuit.leaks.items():
            assert alone[component] == pytest.approx(SIGN[direction] * leak, abs=CLOSE)
            assert 0.01 <= abs(leak) / UNIT <= 0.02
        loud = {c for c, effect in alone.items() if abs(effect) > CLOSE}
        # beside those of some minimal set: the harmful member of decoys, inhibitor, mini_ioi
        assert len(loud - planted - set(circuit.leaks)) <= (1 if HARMFUL & {name.split("-")[0]} else 0)
    signs = {leak > 0 for leak in circuit.leaks.values()}
    assert signs == ({True, False} if circuit.leaks else set())


@pytest.mark.parametrize("name", ["and2_hard-small", "and2_hard-large", "majority-large"])
def test_idle_components_are_busy(name: str) -> None:
    """Nothing gives the planted components away by being the only ones that change or that write."""
    circuit = build(name)
    names = sorted({hook_name(component) for component in circuit.components})
    runs = [circuit.model.run_with_cache(tokens, names_filter=names)[1] for tokens in circuit.tokens("noising")]
    sample = circuit.components[:: max(1, len(circuit.components) // 40)]
    changed = [(runs[0][hook_name(c)] - runs[1][hook_name(c)]).select(2, c[2]).abs().max() for c in sample]
    written = [stream_without(circuit, [c]).sub(stream_without(circuit, [])).abs().max() for c in sample]
    assert sum(size > 1e-3 for size in changed) >= 0.75 * len(sample)
    assert sum(size > 1e-4 for size in written) >= 0.75 * len(sample)


def stream_without(circuit: PlantedCircuit, silenced: Sequence[Component]) -> Tensor:
    """The last layer's residual stream on clean prompts with some components set to zero."""
    kept = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept["stream"] = activation.detach()

    last = f"blocks.{circuit.model.cfg.n_layers - 1}.hook_resid_post"
    zeros = [(hook_name(c), overwriting_hook(0.0, AXIS[c[0]], [c[2]])) for c in silenced if c[2] is not None]
    circuit.model.run_with_hooks(circuit.base_tokens, fwd_hooks=[*zeros, (last, keep)])
    return kept["stream"]


def overwriting_hook(values: Tensor | float, axis: int, indices: Sequence[int]) -> Callable[..., Tensor]:
    """Put other values in the place of some components'."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        out = activation.clone()
        for index in indices:
            out.select(axis, index).copy_(torch.as_tensor(values).expand_as(activation).select(axis, index))
        return out

    return hook


@pytest.mark.parametrize("name", ["mini_ioi", "decoys", "inhibitor"])
def test_the_best_set_beats_the_full_one(name: str) -> None:
    circuit = build(f"{name}-small")
    full = effects(circuit, "restoring", torch.ones(1, len(circuit.components), dtype=torch.bool)).item()
    assert max(circuit.best["restoring"].values()) >= 1.49 * full > 0


def test_greedy_takes_the_wrong_road() -> None:
    """Exact greedy ends at two thirds of the best pair where a pair has to be found before its members."""
    circuit = build("key_query_and-large")
    chosen: Subset = frozenset()
    for _ in range(2):
        options = [chosen | {component} for component in circuit.components if component not in chosen]
        chosen = options[int(effects(circuit, "restoring", masks_of(circuit, options)).argmax())]
    reached = effects(circuit, "restoring", masks_of(circuit, [chosen])).item()
    assert reached == pytest.approx(2 / 3 * circuit.best["restoring"][2], abs=CLOSE)


def test_output_masks_are_blind_to_a_key_query_and() -> None:
    circuit = build("key_query_and-small")
    base, source = circuit.tokens("restoring")
    names = sorted({hook_name(("head", layer, None)) for _, layer, _ in circuit.components})
    stored = circuit.model.run_with_cache(source, names_filter=names)[1]
    single = [(name, index) for name in names for index in range(3)]
    for count in (1, 2, len(single)):
        for group in combinations(single, count):
            taken = {name: [i for n, i in group if n == name] for name in names}
            hooks = [(name, overwriting_hook(stored[name], 2, indices)) for name, indices in taken.items()]
            patched = logit_diff(circuit, circuit.model.run_with_hooks(base, fwd_hooks=hooks))
            torch.testing.assert_close(patched, logit_diff(circuit, circuit.model(base)), atol=CLOSE, rtol=0)
    assert circuit.best["restoring"][2] == UNIT


@pytest.mark.parametrize("name", cases("small", leaks=True))
def test_rotation_hides_the_basis_and_keeps_the_function(name: str) -> None:
    plain, turned = build(name), build(name.replace("-leaks", "-rotated-leaks"))
    assert torch.equal(plain.base_tokens, turned.base_tokens) and plain.minimal == turned.minimal
    for tokens in plain.tokens("noising"):
        torch.testing.assert_close(plain.model(tokens), turned.model(tokens), atol=1e-4, rtol=1e-4)
    zeros = []
    for circuit in (plain, turned):
        _, stored = circuit.model.run_with_cache(circuit.base_tokens, names_filter=["hook_embed"])
        zeros.append(float((stored["hook_embed"] == 0).float().mean()))
    assert zeros[0] > 0.4 and zeros[1] < 0.01


def test_same_id_same_weights() -> None:
    first, second = (build_anew("and3_hard-large-rotated-leaks") for _ in range(2))
    assert torch.equal(first.model(first.base_tokens), second.model(second.base_tokens))
    assert first.leaks == second.leaks


@pytest.mark.parametrize("name", cases("small", rotated=True, leaks=True))
def test_both_model_classes_agree(name: str) -> None:
    if not version("transformer_lens").startswith("3."):
        pytest.skip("only TransformerLens 3.x has both model classes")
    one, other = build(name, backend="hooked"), build(name, backend="bridge")
    for tokens in one.tokens("noising"):
        torch.testing.assert_close(one.model(tokens), other.model(tokens), atol=1e-5, rtol=1e-5)


def test_the_examples_in_the_documentation() -> None:
    assert (result := doctest.testmod(planted_room)).failed == 0 < result.attempted


@pytest.mark.parametrize("name", cases("small"))
def test_a_tracer_measures_what_plain_hooks_do(name: str) -> None:
    circuit = build(name)
    masks = masks_of(circuit, [*circuit.optimal["noising"].values(), frozenset(circuit.components)])
    for direction in DIRECTIONS:
        traced = circuit.tracer(direction).effects(masks.float()).mean(1)
        assert traced.tolist() == pytest.approx(effects(circuit, direction, masks).tolist(), abs=CLOSE)


def test_labels_are_those_of_the_tracer() -> None:
    for name in ("two_site-small", "key_query_and-small", "majority-small"):
        circuit = build(name)
        assert circuit.labels(circuit.components) == circuit.tracer("noising").groups.labels


def test_ids() -> None:
    assert len(cases()) == 16 and len({*SMALL, *LARGE}) == 80
    for wrong in ("and2", "and2_hard", "and2_hard-small-tilted", "and4-small"):
        with pytest.raises(ValueError, match="take an id from cases"):
            build(wrong)
