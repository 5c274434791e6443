"""Causal tracing against a plain loop, and the identities it must satisfy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, N_LAYERS, build, few, word_tokenizer
from tl_multitrace.causal_trace import TokenReplacement, TraceGrid, causal_trace
from trace_oracle import PlainTrace, frozen_sites, gaussian, unit_cells, window_cells

pytestmark = [
    pytest.mark.lens,
    pytest.mark.filterwarnings("ignore:the model does not predict", "ignore:window", "ignore:the corruption"),
]

IDS, SPAN, ANSWER = [5, 17, 42, 8, 30, 11], (1, 3), 9
SAMPLES, NOISE, STD, SEED = 2, 3.0, 0.4, 7
SHAPES = [n for n in few() if "gemma2" not in n]

_models: dict[str, Any] = {}


def model_of(name: str) -> Any:
    if name not in _models:
        _models[name] = build(name)
    return _models[name]


def noise_corruption(kind: str = "gaussian") -> mt.NoiseCorruption:
    return mt.NoiseCorruption(noise=NOISE, std=STD, seed=SEED, kind=kind)  # type: ignore[arg-type]


def plain(model: Any, answer: int | list[int] = ANSWER) -> PlainTrace:
    shift = gaussian(SAMPLES, len(IDS), mt.ModelView(model).d_model, NOISE * STD, SEED)
    return PlainTrace(model, IDS, SPAN, [answer] if isinstance(answer, int) else answer, shift)


def trace(model: Any, answer: Any = ANSWER, **options: Any) -> TraceGrid:
    given = {"samples": SAMPLES, "corruption": noise_corruption(), **options}
    return causal_trace(model, IDS, subject=SPAN, answer=answer, **given)


def assert_same(grid: TraceGrid, expected: torch.Tensor) -> None:
    found = grid.restored.double().flatten(1)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5, rtol=0), float((found - expected).abs().max())


# ---------------------------------------------------------------------------------------------- against a plain loop
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("restore", "window", "severed"),
    [
        ("resid", 10, ()),
        ("mlp", 1, ()),
        ("mlp", 2, ()),
        ("attn", 3, ()),
        ("attn", 10, ()),
        (("mlp", "attn"), 2, ()),
        ("resid", 1, ("mlp",)),
        ("resid", 1, ("attn",)),
        ("resid", 1, ("mlp", "attn")),
        ("mlp", 2, ("mlp",)),
        ("attn", 1, ("mlp",)),
    ],
    ids=str,
)
def test_windows_equal_the_plain_loop(name: str, restore: Any, window: int, severed: tuple[str, ...]) -> None:
    model = model_of(name)
    cells = window_cells([restore] if isinstance(restore, str) else restore, len(IDS), N_LAYERS, window)
    expected = plain(model).grid(cells, frozen_sites(cells, severed, N_LAYERS))
    grid = trace(model, restore=restore, window=window, severed=severed)
    assert grid.restored.shape == (SAMPLES, len(IDS), N_LAYERS)
    assert grid.dims == ("sample", "position", "layer")
    assert_same(grid, expected)
    assert expected.std() > 1e-4  # a grid of equal numbers would show nothing


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("kind", "units"), [("head", [0, 1, 2, 3]), ("neuron", [0, 5, 63])])
def test_heads_and_neurons_equal_the_plain_loop(name: str, kind: str, units: list[int]) -> None:
    model = model_of(name)
    cells = unit_cells(kind, [2, 5], [0, 2], units)
    grid = trace(model, restore=kind, positions=[2, 5], layers=[0, 2], units=units)
    assert grid.dims == ("sample", "position", "layer", "unit")
    assert_same(grid, plain(model).grid(cells))
    severed = trace(model, restore=kind, positions=[2, 5], layers=[0, 2], units=units, severed=("mlp", "attn"))
    assert_same(severed, plain(model).grid(cells, frozen_sites(cells, ["mlp", "attn"], N_LAYERS)))


@pytest.mark.parametrize("name", [n for n in few("native", "attn-only") if n not in SHAPES])
def test_the_other_architectures_equal_the_plain_loop_too(name: str) -> None:
    model = build(name)
    for kind in ("resid", "attn"):
        cells = [c for i, c in enumerate(window_cells([kind], len(IDS), N_LAYERS, 2)) if i // N_LAYERS in (2, 5)]
        assert_same(trace(model, restore=kind, window=2, positions=[2, 5]), plain(model).grid(cells))


@pytest.mark.parametrize("name", SHAPES)
def test_several_groups_at_once_equal_the_plain_loop(name: str) -> None:
    model = model_of(name)
    both = mt.mlps(model, [1], positions=[2]) + mt.attn_layers(model, [2], positions=[4])
    groups = both.joined([[0, 1], [1]], names=both.components)
    cells = [
        [("blocks.1.hook_mlp_out", 2, None), ("blocks.2.hook_attn_out", 4, None)],
        [("blocks.2.hook_attn_out", 4, None)],
    ]
    assert_same(trace(model, restore=groups), plain(model).grid(cells))
    assert_same(
        trace(model, restore=groups, severed="mlp"), plain(model).grid(cells, frozen_sites(cells, ["mlp"], N_LAYERS))
    )


@pytest.mark.parametrize("name", SHAPES)
def test_answers_of_several_tokens(name: str) -> None:
    model, answer = model_of(name), [9, 21, 14]
    expected = plain(model, answer).grid(window_cells(["resid"], len(IDS), N_LAYERS, 1))
    assert_same(trace(model, answer), expected)


@pytest.mark.parametrize("kind", ["uniform", "fixed"])
def test_other_noise(kind: str) -> None:
    model = model_of(SHAPES[0])
    d_model = mt.ModelView(model).d_model
    if kind == "uniform":
        generator = torch.Generator().manual_seed(SEED)
        draws = [2 * torch.rand(len(IDS), d_model, generator=generator) - 1 for _ in range(SAMPLES)]
        shift = torch.stack(draws) * NOISE * STD
    else:  # nothing is drawn: one sample, embeddings of zero
        shift = -model.embed(torch.tensor([IDS])).detach()
    case = PlainTrace(model, IDS, SPAN, [ANSWER], shift)
    grid = trace(model, corruption=noise_corruption(kind))
    assert_same(grid, case.grid(window_cells(["resid"], len(IDS), N_LAYERS, 1)))
    assert len(grid.corrupted) == (1 if kind == "fixed" else SAMPLES)


def test_symmetric_token_replacement() -> None:
    model = model_of(SHAPES[0])
    given = [[5, 3, 4, 8, 30, 11], [5, 20, 21, 8, 30, 11]]
    case = PlainTrace(model, IDS, SPAN, [ANSWER], replaced=torch.tensor(given))
    grid = trace(model, restore="mlp", window=1, corruption=TokenReplacement(given))
    assert_same(grid, case.grid(window_cells(["mlp"], len(IDS), N_LAYERS, 1)))
    drawn = trace(model, corruption="replace", samples=5)
    assert len(drawn.corrupted) == 5
    assert torch.equal(drawn.restored, trace(model, corruption="replace", samples=5).restored)


# ---------------------------------------------------------------------------------------------------------- identities
@pytest.mark.parametrize("name", SHAPES)
def test_everything_restored_is_clean_and_nothing_corrupted(name: str) -> None:
    model = model_of(name)
    states = mt.residual(model, [0], site="pre", positions=list(range(len(IDS))))
    grid = trace(model, restore=states.joined([range(len(IDS))]))
    case = plain(model)
    clean = case.run(IDS, [])
    assert torch.allclose(grid.restored.double(), torch.tensor(clean, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(grid.clean.double(), torch.tensor(clean, dtype=torch.float64), atol=1e-6)
    corrupted = torch.tensor([case.corrupted(s) for s in range(SAMPLES)], dtype=torch.float64)
    assert torch.allclose(grid.corrupted.double(), corrupted, atol=1e-6)
    assert torch.allclose(grid.total_effect, grid.clean - grid.corrupted)
    assert torch.allclose(grid.indirect_effect, grid.restored - grid.corrupted[:, None])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("severed", [(), ("mlp", "attn")])
def test_the_last_state_at_the_last_token_is_clean(name: str, severed: tuple[str, ...]) -> None:
    grid = trace(model_of(name), severed=severed)
    assert torch.allclose(grid.restored[:, -1, -1], grid.clean, atol=1e-6)
    # tokens before the subject are not corrupted, so restoring them does nothing
    assert torch.allclose(grid.indirect_effect[:, : SPAN[0]], torch.zeros(()), atol=1e-6)


def test_a_subset_of_cells_equals_the_whole_grid() -> None:
    model = model_of(SHAPES[0])
    whole = trace(model, restore="mlp", window=2)
    part = trace(model, restore="mlp", window=2, positions=[4, 1], layers=[2, 0])
    assert torch.allclose(part.restored, whole.restored[:, [4, 1]][:, :, [2, 0]], atol=1e-6)
    assert trace(model, positions="subject").restored.shape == (SAMPLES, 2, N_LAYERS)
    assert trace(model, positions="last").cells.positions == (len(IDS) - 1,)


def test_memory_limits_change_nothing() -> None:
    model = model_of(SHAPES[0])
    for severed in ((), ("mlp",)):
        roomy, tight = (trace(model, severed=severed, memory_limit=m) for m in (None, 0))
        assert torch.allclose(roomy.restored, tight.restored, atol=1e-6)
        assert roomy.provenance["cost"]["forwards"] < tight.provenance["cost"]["forwards"]


def test_the_draws_come_from_the_seed_and_the_model_is_left_alone() -> None:
    model = model_of(SHAPES[0])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = [causal_trace(model, IDS, subject=SPAN, answer=ANSWER, samples=3, seed=s).restored for s in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.allclose(again[0], again[2])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


# --------------------------------------------------------------------------------------------------- text and subjects
def test_text_equals_tokens() -> None:
    model = build(SHAPES[0], tokenizer=word_tokenizer())
    grid = causal_trace(model, "The old doctor said that", subject="old doctor", answer=" he", samples=2)
    assert grid.subject == (2, 4) and [t.strip() for t in grid.tokens[2:4]] == ["old", "doctor"]
    encode = model.tokenizer
    ids = [encode.bos_token_id, *encode("The old doctor said that", add_special_tokens=False)["input_ids"]]
    same = causal_trace(model, ids, subject=(2, 4), answer=encode("he")["input_ids"], samples=2)
    assert torch.equal(grid.restored, same.restored)
    named = causal_trace(model, ids, subject="old doctor", answer=encode("he")["input_ids"], samples=2)
    assert named.subject == (2, 4)
    assert causal_trace(model, "The old doctor said that", subject="all", samples=1).subject == (1, 6)


def test_the_answer_defaults_to_the_prediction() -> None:
    model = model_of(SHAPES[0])
    with torch.no_grad():
        top = int(model(torch.tensor([IDS]))[0, -1].argmax())
    grid = causal_trace(model, IDS, subject=SPAN, samples=1)
    assert grid.provenance["answer_ids"] == [top] and grid.provenance["answer_rank"] == 0


def test_the_unit_of_the_noise_is_said() -> None:
    model = build(SHAPES[0], tokenizer=word_tokenizer())
    whole = causal_trace(model, "The old doctor said that", subject="doctor", samples=1).provenance["intervention"]
    assert whole["unit_of"] == "the whole embedding matrix"
    assert whole["std"] == pytest.approx(model.W_E.std().item(), rel=1e-5)
    over = causal_trace(
        model, "The old doctor said that", subject="doctor", subjects=["old doctor", "nurse"], samples=1
    )
    ids = model.tokenizer("old doctor nurse")["input_ids"]
    assert over.provenance["intervention"]["std"] == pytest.approx(model.W_E[ids].std().item(), rel=1e-5)
    assert "2 subjects" in over.provenance["corruption_text"]


@pytest.mark.skipif(not HAS_BRIDGE, reason="the scaled look-up is Hugging Face's")
def test_the_unit_is_that_of_the_embedding_hook_on_gemma() -> None:
    model = build("bridge-gemma2", tokenizer=word_tokenizer())
    found = mt.causal_trace(model, IDS, subject=SPAN, samples=1).provenance["intervention"]["std"]
    with torch.no_grad():
        seen = model.embed(torch.arange(model.cfg.d_vocab)[None])
    assert found == pytest.approx(float(seen.std()), rel=1e-5)
