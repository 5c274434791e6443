"""Which input tokens carry the prediction: against a plain loop, one token and one set of tokens at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tl_multitrace as mt
from tiny_models import build, few, word_tokenizer
from tl_multitrace.causal_trace import CausalTokens, TokenReplacement, causal_tokens
from trace_oracle import PlainTrace, gaussian

pytestmark = [
    pytest.mark.lens,
    pytest.mark.filterwarnings("ignore:the model does not predict", "ignore:the corruption"),
]

IDS, SPAN, ANSWER = [5, 17, 42, 8, 30, 11], (1, 5), 9
SAMPLES, NOISE, STD, SEED = 2, 3.0, 0.4, 7
GIVEN = [5, 3, 4, 21, 33, 11]
SHAPES = [n for n in few() if "gemma2" not in n]


@cache
def model_of(name: str = SHAPES[0]) -> Any:
    return build(name)


def tokens_of(name: str = SHAPES[0], **options: Any) -> CausalTokens:
    noise = mt.NoiseCorruption(noise=NOISE, std=STD, seed=SEED)
    given = {"tokens": SPAN, "answer": ANSWER, "samples": SAMPLES, "corruption": noise, **options}
    return causal_tokens(model_of(name), IDS, **given)


def probability(name: str, corrupted: set[int], sample: int) -> float:
    """p(answer) with noise on exactly these tokens, by one hooked forward."""
    shift = gaussian(SAMPLES, len(IDS), mt.ModelView(model_of(name)).d_model, NOISE * STD, SEED)
    shift[:, [p for p in range(len(IDS)) if p not in corrupted]] = 0.0
    return PlainTrace(model_of(name), IDS, SPAN, [ANSWER], shift).corrupted(sample)


def replaced(name: str, there: set[int]) -> float:
    """p(answer) with exactly these tokens replaced, by one forward without hooks."""
    ids = [GIVEN[p] if p in there else IDS[p] for p in range(len(IDS))]
    with torch.no_grad():
        logits = model_of(name)(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    return float(logits[0, -1].double().softmax(-1)[ANSWER])


# ------------------------------------------------------------------------------------------------------- each alone
@pytest.mark.parametrize("name", SHAPES)
def test_each_token_corrupted_or_restored_alone_equals_the_plain_loop(name: str) -> None:
    found, tested = tokens_of(name), set(range(*SPAN))
    assert found.positions == tuple(range(*SPAN))
    for s in range(SAMPLES):
        clean, corrupted = probability(name, set(), s), probability(name, tested, s)
        assert found.clean == pytest.approx(clean, abs=1e-6)
        assert float(found.corrupted[s]) == pytest.approx(corrupted, abs=1e-6)
        for i, p in enumerate(found.positions):
            assert float(found.corrupt[s, i]) == pytest.approx(probability(name, {p}, s) - clean, abs=1e-5)
            assert float(found.restore[s, i]) == pytest.approx(probability(name, tested - {p}, s) - corrupted, abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_each_token_replaced_alone_equals_plain_forwards(name: str) -> None:
    found, tested = tokens_of(name, corruption=TokenReplacement(GIVEN)), set(range(*SPAN))
    assert len(found.corrupted) == 1
    for i, p in enumerate(found.positions):
        assert float(found.corrupt[0, i]) == pytest.approx(replaced(name, {p}) - replaced(name, set()), abs=1e-5)
        assert float(found.restore[0, i]) == pytest.approx(
            replaced(name, tested - {p}) - replaced(name, tested), abs=1e-5
        )
    assert float(found.corrupt.abs().max()) > 1e-4


def test_answers_of_several_tokens() -> None:
    answer = [9, 21, 14]
    found = tokens_of(answer=answer, corruption=TokenReplacement(GIVEN))
    case = PlainTrace(model_of(), IDS, SPAN, answer, replaced=torch.tensor([GIVEN]))
    assert found.clean == pytest.approx(case.run(IDS, []), rel=1e-4)
    assert float(found.corrupted[0]) == pytest.approx(case.run(GIVEN, []), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------- jointly
@pytest.mark.parametrize("sets", ["corrupt", "restore"])
def test_sets_of_tokens_are_the_best_there_are(sets: Any) -> None:
    name, tested = SHAPES[0], set(range(*SPAN))
    found = tokens_of(name, corruption=TokenReplacement(GIVEN), budgets=range(1, 4), sets=sets, solver=mt.Exhaustive())
    assert found.path is not None
    for size in found.path.sizes:
        options = [set(c) for k in range(1, size + 1) for c in combinations(sorted(tested), k)]
        if sets == "corrupt":
            values = {tuple(o): replaced(name, o) - replaced(name, set()) for o in options}
            best = min(values, key=values.__getitem__)
        else:
            values = {tuple(o): replaced(name, tested - o) - replaced(name, tested) for o in options}
            best = max(values, key=values.__getitem__)
        chosen = {found.positions[i] for i in found.path[size].indices}
        assert values[tuple(chosen)] == pytest.approx(values[best], abs=1e-6)
        assert found.path[size].effect == pytest.approx(values[best], abs=1e-5)


def test_the_default_search_finds_what_the_demo_model_reads() -> None:
    model = mt.load_model("demo", device="cpu")
    found = causal_tokens(model, "The Falcon Tower is in the city of", samples=6, budgets=[2], sets="restore")
    assert found.answer.strip() == "Rome" and found.path is not None
    frame = found.to_dataframe().set_index("token")
    assert all(frame.loc[word, "corrupt_high"] < 0 for word in (" Falcon", " Tower"))
    assert frame.loc[" in", "corrupt"] > -0.05
    circuit = found.path[2]
    assert {found.tokens[found.positions[i]] for i in circuit.indices} <= {" The", " Falcon", " Tower", " of", " city"}
    assert circuit.effect > float(found.restore.mean(0).max())
    assert "2 tokens: " in repr(found)


# ------------------------------------------------------------------------------------------------ prompts and tables
def test_a_part_of_a_prompt_is_tested_and_bos_never() -> None:
    model = build(SHAPES[0], tokenizer=word_tokenizer())
    text = "The old doctor said that"
    assert causal_tokens(model, text, samples=1).positions == (1, 2, 3, 4, 5)
    part = causal_tokens(model, text, tokens="old doctor", samples=1)
    assert [part.tokens[p].strip() for p in part.positions] == ["old", "doctor"]
    frame = part.to_dataframe()
    assert list(frame["position"]) == [2, 3]
    assert np.allclose(frame["corrupt"], part.corrupt.mean(0))
    assert "CausalTokens of" in repr(part) and "doctor" in part._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number from 1"),
        ({"sets": "both"}, "sets must be 'corrupt' or 'restore'"),
        ({"tokens": (4, 2)}, "must lie in the prompt's 6 tokens"),
        ({"tokens": "word"}, "has no tokenizer"),
        ({"answer": 10**6}, "token ids from 0"),
        ({"corruption": "zeros"}, "unknown corruption 'zeros'"),
        ({"corruption": TokenReplacement([1, 2])}, "a replacement prompt has 2 tokens"),
        ({"budgets": 9}, "budget 9 is outside 1 to 4"),
    ],
    ids=str,
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokens_of(**options)


def test_what_a_reader_must_know_is_said() -> None:
    with pytest.warns(UserWarning, match=r"does not clearly lower the answer's probability \(total effect"):
        tokens_of(corruption=TokenReplacement(IDS))
    with pytest.warns(UserWarning, match=r"does not predict the answer '\[9\]': its rank is \d+"):
        tokens_of()


# ------------------------------------------------------------------------------------------------- files and views
def test_saved_tokens_come_back(tmp_path: Path) -> None:
    found = tokens_of()
    path = found.save(tmp_path / "deep" / "tokens.json")
    again = CausalTokens.load(path)
    assert (again.tokens, again.positions, again.answer) == (found.tokens, found.positions, found.answer)
    assert all(torch.equal(getattr(again, n), getattr(found, n)) for n in ("corrupted", "corrupt", "restore"))
    assert again.provenance == json.loads(json.dumps(found.provenance))
    with pytest.raises(FileExistsError):
        found.save(path)


BREAK: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "ragged": (lambda r: r["corrupt"][0].pop(), "tokens.json"),
    "short": (lambda r: r["positions"].pop(), "effects of shape"),
    "outside": (lambda r: r.update(positions=[99, 1, 2, 3]), "lie outside 6 tokens"),
    "nan": (lambda r: r["restore"][0].__setitem__(0, float("nan")), "not a finite number"),
    "foreign": (lambda r: r.update(format="other"), "not a tl_multitrace.causal_tokens file"),
    "newer": (lambda r: r.update(version=99), "Upgrade"),
    "text": (lambda r: r.update(clean="much"), "clean"),
}


@pytest.mark.parametrize("how", BREAK)
def test_broken_files(how: str, tmp_path: Path) -> None:
    path = tokens_of().save(tmp_path / "tokens.json")
    record = json.loads(path.read_text())
    BREAK[how][0](record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=BREAK[how][1]):
        CausalTokens.load(path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match="not complete JSON"):
        CausalTokens.load(path)


def test_the_figure_and_the_view_show_both_effects() -> None:
    import matplotlib.pyplot as plt

    found = tokens_of()
    axes = found.plot().axes[0]
    heights = np.array([bar.get_height() for bar in axes.patches]).reshape(2, -1)
    assert np.allclose(heights[0], found.corrupt.mean(0)) and np.allclose(heights[1], found.restore.mean(0))
    assert len(axes.get_xticklabels()) == 4
    plt.close("all")
    page = found.show().html
    assert "ColoredTokensMulti" in page and "corrupted alone" in page and "https://unpkg" not in page
