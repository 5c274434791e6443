"""What is doubtful about prompts is said or refused: unknown words, ids, subjects, pairs alike; digits and BOS."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_models import NO_BRIDGE
from oracles import unchecked

import tl_multitrace as mt
from tiny_models import D_VOCAB, HAS_BRIDGE, bridge_from_hf, build, forked_rng, hf_model, word_tokenizer
from tiny_tokenizer import WORDS
from tl_multitrace.causal_trace import TokenReplacement, average_causal_trace, causal_trace, subject_std
from tl_multitrace.tasks.registry import info_of

pytestmark = pytest.mark.filterwarnings("ignore:the model does not predict", "ignore:the (corruption|total effect)")
bridges = pytest.mark.skipif(not HAS_BRIDGE, reason=NO_BRIDGE)
NAME = "bridge-gpt2" if HAS_BRIDGE else "hooked-gpt2"
BASE, SOURCE = "The doctor said that", "The nurse said that"


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@cache
def words_model() -> Any:
    return build(NAME, tokenizer=word_tokenizer(leading_space=True))


# ------------------------------------------------------------------------------------------------ unknown words
UNKNOWN: dict[str, Any] = {
    "base": lambda m: mt.PromptPairs.from_text(m, [BASE, "The wizard said that"], [SOURCE] * 2, [" he"] * 2),
    "source": lambda m: mt.PromptPairs.from_text(m, [BASE] * 2, [SOURCE, "The wizard said that"], [" he"] * 2),
    "trace": lambda m: causal_trace(m, "The wizard said that", subject="wizard", answer=" he", samples=1),
    "tokens": lambda m: mt.causal_tokens(m, "The wizard said that", answer=" he", samples=1),
    "replacement": lambda m: causal_trace(
        m, BASE, subject="doctor", answer=" he", corruption=TokenReplacement("The wizard said that")
    ),
    "among": lambda m: causal_trace(
        m, BASE, subject="doctor", answer=" he", samples=1, corruption=TokenReplacement(among=["nurse", " wizard"])
    ),
    "unit": lambda m: subject_std(m, [" doctor", " wizard"]),
    "average": lambda m: average_causal_trace(
        m, [(BASE, "doctor", " he"), ("The wizard said that", "wizard", " he")], samples=1, known_only=False
    ),
}


@pytest.mark.parametrize("entry", UNKNOWN)
def test_unknown_words_are_counted_and_named(entry: str) -> None:
    with pytest.warns(UserWarning, match=r"unknown to the tokenizer and read as <unk>.*' ?wizard'") as said:
        UNKNOWN[entry](words_model())
    assert sum("unknown to the tokenizer" in str(w.message) for w in said) == 1  # once per set


def test_what_is_known_is_silent() -> None:
    literal, model = ["The <unk> said that"], build(NAME, tokenizer=word_tokenizer())
    with quiet():
        mt.PromptPairs.from_text(model, literal, [SOURCE], [" he"])
    with pytest.raises(ValueError, match="pair 1: the answer ' wizard' holds a word"):
        mt.PromptPairs.from_text(words_model(), [BASE] * 2, [SOURCE] * 2, [" he", " wizard"])


# ---------------------------------------------------------------------------------------------------------- ids
@bridges
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("rows", [200, 60])
def test_answers_are_ids_of_the_head(family: str, rows: int) -> None:
    hf = hf_model(family)
    with forked_rng(1):
        hf.lm_head = torch.nn.Linear(hf.config.hidden_size, rows, bias=False)
    model = bridge_from_hf(hf)
    assert mt.ModelView(model).d_vocab_out == rows
    tokens, other = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 8, 7]])

    def tracer(answer: Any) -> mt.Tracer:
        return mt.Tracer(model, mt.PromptPairs.from_tokens(tokens, other, answer), mt.heads(model), mt.AnswerProb())

    with torch.no_grad():
        wanted = hf(tokens).logits[0, -1].softmax(-1)
    assert float(tracer([rows - 1]).base_metric) == pytest.approx(float(wanted[rows - 1]), abs=1e-6)
    for wrong in ([rows], [[[rows, 3]]], [[[3, rows]]], [[[max(rows, D_VOCAB), 3]]]):
        with pytest.raises(ValueError, match=f"predicts {rows} tokens|has {D_VOCAB} tokens"):
            tracer(wrong)
    if rows > D_VOCAB:  # predicted, but nothing that it could read on from
        with pytest.raises(ValueError, match=f"holds the id 150, but .* has {D_VOCAB}"):
            tracer([[[150, 3]]])
    with pytest.raises(ValueError, match=f"token ids from 0 to {rows - 1}"):
        causal_trace(model, [5, 6, 7], subject=(1, 2), answer=rows)


FRACTIONS: dict[str, Any] = {
    "base": lambda t: mt.PromptPairs.from_tokens(t + 0.4, t, [3]),
    "source": lambda t: mt.PromptPairs.from_tokens(t, t.double(), [3]),
    "answers": lambda t: mt.PromptPairs.from_tokens(t, t, [5.4]),
    "nested": lambda t: mt.PromptPairs.from_tokens(t, t, [[[5, 6.5]]]),
    "wrong": lambda t: mt.PromptPairs.from_tokens(t, t, [3], torch.tensor([4.5])),
    "lengths": lambda t: mt.PromptPairs.from_tokens(t, t, [3], lengths=[2.5]),
    "positions": lambda t: mt.PromptPairs.from_tokens(t, t, [3], answer_positions=[1.5]),
    "truth": lambda t: mt.PromptPairs.from_tokens(t > 0, t, [3]),
    "trace": lambda t: causal_trace(words_model(), [5.4, 6.0], subject=(0, 1)),
    "replacement": lambda t: causal_trace(
        words_model(), [5, 6], subject=(0, 1), answer=3, corruption=TokenReplacement([[5.4, 6.0]])
    ),
}


@pytest.mark.parametrize("entry", FRACTIONS)
def test_fractions_are_no_ids(entry: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=r"must be whole numbers, got (float|bool)"):
        FRACTIONS[entry](torch.tensor([[5, 6, 7]]))


# ---------------------------------------------------------------------------------------- doubtful, and said so
def test_a_subject_that_stands_twice_is_said() -> None:
    tokenizer = word_tokenizer()
    model = build(NAME, tokenizer=tokenizer)
    twice, once = "The doctor and doctor said", "The doctor and nurse said"
    message = r"'doctor' occurs 2 times, at the tokens \[2, 3\), \[4, 5\)"
    with pytest.warns(UserWarning, match=rf"pair 1: .*{message}"):
        pairs = mt.PromptPairs.from_text(model, [once, twice], [twice, once], [" he"] * 2, subject=["doctor"] * 2)
    assert pairs.spans["subject"].tolist() == [[2, 3], [2, 3]]
    with pytest.warns(UserWarning, match=message):
        causal_trace(model, twice, subject="doctor", answer=" he", samples=1, restore="mlp")
    with pytest.warns(UserWarning, match=rf"first: fact 1: .*{message}"):
        facts = [(once, "doctor", " he"), (twice, "doctor", " he")]
        average_causal_trace(model, facts, samples=1, known_only=False, restore="mlp")
    with quiet():  # what is only part of another word is no place
        part = ["The woman and man said"]
        pairs = mt.PromptPairs.from_text(model, part, part, [" he"], subject=["man"])
    assert pairs.spans["subject"].tolist() == [[4, 5]]


def test_pairs_without_a_difference_are_said() -> None:
    model = words_model()
    pairs = mt.PromptPairs.from_text(model, [BASE, BASE, SOURCE], [SOURCE, BASE, SOURCE], [" he"] * 3)
    with pytest.warns(UserWarning, match=r"2 of 3 pairs have the same tokens .*the first is pair 1\)"):
        mt.Tracer(model, pairs, mt.heads(model), mt.AnswerProb())
    with pytest.warns(UserWarning, match=r"2 of 2 pairs .*the first is pair 1\)"):
        mt.Tracer(model, pairs[1:], mt.heads(model), mt.AnswerProb())
    with quiet():
        mt.Tracer(model, pairs, mt.heads(model), mt.AnswerProb(), mt.ZeroAblation())
        mt.Tracer(model, pairs[[0]], mt.heads(model), mt.AnswerProb())


def test_pairs_keep_their_numbers() -> None:
    model = words_model()
    base = [BASE, "The old doctor said that", SOURCE, "The man said that"]
    pairs = mt.PromptPairs.from_text(model, base, [SOURCE] * 2 + [BASE] * 2, [" he"] * 4, align="drop")
    assert [pairs.number(i) for i in range(3)] == [0, 2, 3]
    assert [pairs[[2, 0]].number(i) for i in range(2)] == [3, 0]
    parts = pairs.split(0.5, seed=1)
    assert sorted(part.number(i) for part in parts for i in range(len(part))) == [0, 2, 3]


def test_where_an_answer_is_read_is_part_of_the_digest() -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    made = [mt.PromptPairs.from_tokens(tokens, tokens, [3], answer_positions=[p]).digest() for p in range(4)]
    assert len(set(made)) == 4 and made[3] == mt.PromptPairs.from_tokens(tokens, tokens, [3]).digest()


# ------------------------------------------------------------------------------------------------- digits, and BOS
def digit_tokenizer() -> Any:
    """Every digit a token of its own, as in Llama and SmolLM."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: i for i, piece in enumerate(["<bos>", "<pad>", "<unk>", *WORDS, *"0123456789"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    named = {"bos_token": "<bos>", "pad_token": "<pad>", "unk_token": "<unk>", "name_or_path": "digits"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


def test_a_year_of_two_digits_has_the_product_of_their_probabilities() -> None:
    model = build(NAME, tokenizer=digit_tokenizer())
    frame = ["The {noun} said {start} to {century}"]
    task = mt.task("greater_than", model, n=3, nouns=["doctor", "nurse"], templates=frame)
    digits = model.tokenizer.convert_tokens_to_ids(list("0123456789"))
    tracer = mt.Tracer(model, task.pairs, mt.heads(model), task.metric)
    for i in range(3):
        pairs = task.pairs[[i]]
        year = max(int("".join(w)) for w, right in zip(pairs.answer_words[0], pairs.right[0], strict=True) if not right)
        prompt = pairs.base_tokens[0, : int(pairs.lengths[0])]
        rows = torch.stack([torch.cat([prompt, torch.tensor([d])]) for d in digits])
        with torch.no_grad():
            p = model(rows, attention_mask=torch.ones_like(rows)).softmax(-1)
        after = {int(f"{a}{b}"): float(p[a, -2, digits[a]] * p[a, -1, digits[b]]) for a in range(10) for b in range(10)}
        wanted = sum(q if y > year else -q for y, q in after.items() if y > 0)
        assert float(tracer.base_metric[i]) == pytest.approx(wanted, abs=1e-6)
    assert task.pairs.candidates.shape[1:] == (99, 2)


def published_gpt2() -> Any:
    """A GPT-2 with GPT-2's vocabulary in size, whose published experiments had no BOS."""
    tokenizer = word_tokenizer(leading_space=True)
    hf = hf_model("gpt2", vocab_size=50257)
    if HAS_BRIDGE:
        return bridge_from_hf(hf, tokenizer)
    from tiny_models import hooked_from_hf

    return hooked_from_hf(hf, "gpt2", tokenizer)


def test_the_papers_setting_decides_on_bos() -> None:
    gpt2, other = published_gpt2(), words_model()
    options: dict[str, Any] = {"templates": ["The {noun} said that"], "female": ["nurse"], "male": ["doctor"]}
    for model, setting, asked, bos in (
        (gpt2, None, None, True),
        (gpt2, "paper", None, False),
        (gpt2, "paper", True, True),
        (gpt2, None, False, False),
        (other, "paper", None, True),
        (other, "paper", False, False),
    ):
        pairs = mt.task("professions", model, setting=setting, prepend_bos=asked, **options).pairs
        assert (int(pairs.base_tokens[0, 0]) == model.tokenizer.bos_token_id) is bos
        assert model.cfg.default_prepend_bos  # the model itself is left as it was
    info = [info_of(name) for name in ("winobias", "winogender", "professions", "counterfact")]
    assert all(one.in_setting("paper").published_bos and not one.published_bos for one in info)


def test_bos_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tl_multitrace.cli.app import app

    found = {}
    for flag in ("--bos", "--no-bos"):
        out = tmp_path / flag.strip("-")
        run = ["run", "--task", "professions", "--n", "6", "--budget", "1", "--stability", "0", "--held-out", "0", flag]
        run += ["--components", "attn", "--quiet", "--device", "cpu", "--out", str(out / "run")]
        trace = [
            "trace",
            "--prompt",
            "The Falcon Tower is in the city of",
            "--subject",
            "Falcon Tower",
            "--answer",
            " Rome",
        ]
        trace += ["--answer", " Rome", "--samples", "1", "--restore", "mlp", "--quiet", "--device", "cpu", flag]
        trace += ["--out", str(out / "trace")]
        for arguments in (run, trace):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        record = json.loads((out / "run" / "run.json").read_text())
        grid = mt.TraceGrid.load(out / "trace" / "mlp.json")
        found[flag] = (record["arguments"]["bos"], len(grid.tokens))
    assert found["--bos"][0] is True and found["--no-bos"][0] is False
    assert found["--bos"][1] == found["--no-bos"][1] + 1
