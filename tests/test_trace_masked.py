"""Causal tracing of masked language models: bidirectional, framed by separators, answered at the mask."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from masked_models import MASKED, NO_BRIDGE, masked_model, masked_tokenizer

import tl_multitrace as mt
from tiny_models import N_LAYERS
from tl_multitrace.causal_trace import TokenReplacement, TraceGrid, average_causal_trace, causal_trace
from tl_multitrace.causal_trace.classes import CLASSES
from trace_oracle import PlainTrace, frozen_sites, gaussian, unit_cells, window_cells

pytestmark = [
    pytest.mark.lens,
    pytest.mark.skipif(not MASKED, reason=NO_BRIDGE),
    pytest.mark.filterwarnings(
        "ignore:the model does not predict", "ignore:window", "ignore:the (corruption|total effect)"
    ),
]

PROMPT, SPAN, MASK = "The old doctor said that <mask> was tired .", (2, 4), 6
SAMPLES, NOISE, STD, SEED = 2, 3.0, 0.5, 5
KINDS = MASKED or ["bert"]


@cache
def model_of(kind: str) -> Any:
    return masked_model(kind, masked_tokenizer())


def ids_of(kind: str, text: str = PROMPT) -> list[int]:
    return list(model_of(kind).tokenizer(text)["input_ids"])


def answer_of(kind: str, word: str = "he") -> int:
    return int(model_of(kind).tokenizer.convert_tokens_to_ids(word))


def plain(kind: str, span: tuple[int, int] = SPAN) -> PlainTrace:
    ids = ids_of(kind)
    shift = gaussian(SAMPLES, len(ids), mt.ModelView(model_of(kind)).d_model, NOISE * STD, SEED)
    shift[:, MASK] = 0.0  # the mask is the question
    return PlainTrace(model_of(kind), ids, span, [answer_of(kind)], shift, position=MASK)


def trace(kind: str, prompt: Any = PROMPT, **options: Any) -> TraceGrid:
    noise = mt.NoiseCorruption(noise=NOISE, std=STD, seed=SEED)
    given = {"subject": "old doctor", "answer": "he", "samples": SAMPLES, "corruption": noise, **options}
    return causal_trace(model_of(kind), prompt, **given)


def assert_same(grid: TraceGrid, expected: torch.Tensor) -> None:
    found = grid.restored.double().flatten(1)
    assert torch.allclose(found, expected, atol=1e-5, rtol=0), float((found - expected).abs().max())
    assert expected.std() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("restore", "window", "severed"),
    [("resid", 1, ()), ("mlp", 2, ()), ("attn", 1, ()), (("mlp", "attn"), 3, ()), ("resid", 1, ("mlp", "attn"))],
    ids=str,
)
def test_windows_equal_the_plain_loop(kind: str, restore: Any, window: int, severed: tuple[str, ...]) -> None:
    kinds = [restore] if isinstance(restore, str) else restore
    cells = window_cells(kinds, len(ids_of(kind)), N_LAYERS, window)
    grid = trace(kind, restore=restore, window=window, severed=severed)
    assert grid.subject == SPAN and grid.provenance["answer_position"] == MASK
    assert_same(grid, plain(kind).grid(cells, frozen_sites(cells, severed, N_LAYERS)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["head", "neuron"])
def test_heads_and_neurons_equal_the_plain_loop(kind: str, part: str) -> None:
    grid = trace(kind, restore=part, positions=[2, MASK, 9], units=[0, 3])
    assert_same(grid, plain(kind).grid(unit_cells(part, [2, MASK, 9], range(N_LAYERS), [0, 3])))


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_prompt_is_corrupted_but_for_mask_and_separators(kind: str) -> None:
    grid = trace(kind, subject="all")
    assert grid.subject == (1, len(ids_of(kind)) - 1)
    assert_same(grid, plain(kind, grid.subject).grid(window_cells(["resid"], len(ids_of(kind)), N_LAYERS, 1)))
    spanned = trace(kind, ids_of(kind), subject="all", answer=answer_of(kind))
    assert spanned.subject == grid.subject and torch.equal(spanned.restored, grid.restored)


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_token_restored_earlier_matters_in_a_bidirectional_model(kind: str) -> None:
    grid = trace(kind, subject="tired")
    assert float(grid.indirect_effect[:, :8].abs().max()) > 1e-4  # tokens before the corrupted one
    assert torch.allclose(grid.restored[:, MASK, -1], grid.clean, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_alone_equal_the_plain_loop(kind: str) -> None:
    found = mt.causal_tokens(
        model_of(kind), PROMPT, answer="he", samples=SAMPLES, corruption=mt.NoiseCorruption(std=STD, seed=SEED)
    )
    assert found.positions == (1, 2, 3, 4, 5, 7, 8, 9)
    whole, shift = plain(kind, (1, 10)), plain(kind).shift
    assert shift is not None
    clean = whole.run(whole.ids, [])
    for i, p in enumerate(found.positions):
        alone = PlainTrace(whole.model, whole.ids, (p, p + 1), whole.answer, shift, position=MASK)
        kept = shift.clone()
        kept[:, p] = 0.0
        others = PlainTrace(whole.model, whole.ids, (1, 10), whole.answer, kept, position=MASK)
        for s in range(SAMPLES):
            assert float(found.corrupt[s, i]) == pytest.approx(alone.corrupted(s) - clean, abs=1e-5)
            assert float(found.restore[s, i]) == pytest.approx(others.corrupted(s) - whole.corrupted(s), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_replaced_keep_the_mask(kind: str) -> None:
    given = "The young nurse said that <mask> was tired ."
    grid = trace(kind, restore="mlp", window=1, corruption=TokenReplacement(given))
    case = PlainTrace(
        model_of(kind),
        ids_of(kind),
        SPAN,
        [answer_of(kind)],
        replaced=torch.tensor([ids_of(kind, given)]),
        position=MASK,
    )
    assert_same(grid, case.grid(window_cells(["mlp"], len(ids_of(kind)), N_LAYERS, 1)))
    drawn = mt.causal_tokens(model_of(kind), PROMPT, samples=3, corruption="replace")
    assert MASK not in drawn.positions and len(drawn.corrupted) == 3
    with pytest.raises(ValueError, match="no mask at position 6"):
        trace(kind, corruption=TokenReplacement("The young nurse said that he was tired ."))


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_takes_the_mask_as_last_token(kind: str) -> None:
    facts = [(PROMPT, "old doctor", "he"), ("The nurse said <mask> was busy .", "nurse", "she")]
    options: dict[str, Any] = {"corruption": "fixed", "restore": "resid", "known_only": False}
    average = average_causal_trace(model_of(kind), facts, **options)
    for row, (prompt, subject, answer) in enumerate(facts):
        one = causal_trace(model_of(kind), prompt, subject=subject, answer=answer, corruption="fixed")
        at = one.provenance["answer_position"]
        members = {"last token": [at], "last subject token": [one.subject[1] - 1]}
        members["further tokens"] = [p for p in range(one.subject[1] + 1, len(one.tokens)) if p != at]
        for name, positions in members.items():
            expected = one.restored[0, positions].mean(0)
            assert torch.allclose(average.restored[row, CLASSES.index(name)], expected, atol=1e-6)


def refuse(kind: str, message: str, prompt: Any = PROMPT, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        trace(kind, prompt, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_questions_are_refused(kind: str) -> None:
    refuse(kind, "fills in masks, and the prompt has none: put <mask>", "The old doctor said that he was tired .")
    refuse(kind, r"masks at \[2, 5\]: say which one", "The <mask> doctor said <mask>", subject="doctor")
    refuse(kind, "'he she' has 2 tokens, but a mask stands for one", answer="he she")
    refuse(kind, "a word this tokenizer does not know", answer="xyzzy")
    refuse(kind, "nothing but the mask", subject="<mask>")
    refuse(kind, "not in the prompt", subject="young")
    chosen = trace(kind, "The <mask> doctor said <mask>", subject="doctor", answer_position=2)
    assert chosen.provenance["answer_position"] == 2
