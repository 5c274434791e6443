"""How text comes in: BOS, separators and masks are what the tokenizer was trained with, or the text is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_models import MASKED, NO_BRIDGE, SPECIAL, masked_model, masked_tokenizer

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, bridge_from_hf, build, forked_rng, hf_model, word_tokenizer
from tiny_tokenizer import WORDS
from tl_multitrace.causal_trace import causal_trace
from tl_multitrace.tasks.sieve import Row, pairs_of, sieve_of
from tl_multitrace.tokens import MASK, Encoder

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


# ---------------------------------------------------------------------------------------------------------- BOS
def bare_tokenizer(kind: str) -> Any:
    """Tokenizers without BOS; TransformerLens fills in ``<|endoftext|>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "[EOS]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]" if kind != "no-unk" else None))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if kind == "split" else pre_tokenizers.Whitespace()
    named = {"pad_token": "[PAD]", "name_or_path": "bare", **({} if kind == "no-unk" else {"unk_token": "[UNK]"})}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.init_kwargs["add_bos_token"] = True  # or TransformerLens 2 asks the hub for it
    return tokenizer


@pytest.mark.parametrize("kind", ["words", "split", "no-unk"])
def test_a_filler_is_no_bos(kind: str) -> None:
    tokenizer = bare_tokenizer(kind)
    own = tokenizer(BASE)["input_ids"]
    hf = hf_model("gpt2", vocab_size=len(tokenizer))
    if HAS_BRIDGE:
        model = bridge_from_hf(hf, tokenizer)
    else:
        from tiny_models import hooked_from_hf

        model = hooked_from_hf(hf, "gpt2", tokenizer)
    assert model.tokenizer.bos_token == "<|endoftext|>"  # what TransformerLens made of it
    assert Encoder.of(mt.ModelView(model)).prompt(BASE) == own
    pairs = mt.PromptPairs.from_text(model, [BASE], [SOURCE], [" he"])
    assert pairs.base_tokens[0].tolist() == own
    grid = causal_trace(model, BASE, subject="doctor", answer=" he", samples=1, restore="mlp")
    assert len(grid.tokens) == len(own) and grid.subject == (1, 2)
    with pytest.raises(ValueError, match="prepend_bos=True, but the tokenizer has no BOS token"):
        mt.PromptPairs.from_text(model, [BASE], [SOURCE], [" he"], prepend_bos=True)


def test_a_bos_of_its_own_stays() -> None:
    for tokenizer in (word_tokenizer(), word_tokenizer(add_bos=True), word_tokenizer(leading_space=True)):
        model = build(NAME, tokenizer=tokenizer)
        assert Encoder.of(mt.ModelView(model)).prompt(BASE)[0] == tokenizer.bos_token_id == 0


# ----------------------------------------------------------------------------------------------- masked models
@cache
def masked(kind: str = "bert") -> Any:
    return masked_model(kind, masked_tokenizer())


def framed_folder(where: Path) -> tuple[Any, Any]:
    """A BERT in a folder with a plain fast tokenizer: the tokenizer's own encoding, and the model as loaded."""
    tokenizer = masked_tokenizer()
    tokenizer.init_kwargs.pop("add_bos_token")
    masked("bert").original_model.config.save_pretrained(where)
    import transformers

    with forked_rng(0):
        transformers.BertForMaskedLM(masked("bert").original_model.config).save_pretrained(where)
    tokenizer.save_pretrained(where)
    with forked_rng(0):
        return transformers.AutoTokenizer.from_pretrained(where), mt.load_model(str(where), "cpu")


@bridges
def test_separators_are_those_of_the_original_tokenizer(tmp_path: Path) -> None:
    original, model = framed_folder(tmp_path)
    prompts = ["The old doctor said that <mask> was tired .", "The nurse said <mask>", "<mask> was busy ."]
    pairs = mt.PromptPairs.from_text(model, prompts, prompts, ["he"] * 3, ["she"] * 3)
    for i, prompt in enumerate(prompts):
        own = original(prompt)["input_ids"]
        assert own[0] == original.cls_token_id and own[-1] == original.sep_token_id
        assert pairs.base_tokens[i, : pairs.lengths[i]].tolist() == own
        assert int(pairs.answer_positions[i]) == own.index(original.mask_token_id)
        with torch.no_grad():
            wanted = model.original_model(torch.tensor([own])).logits[0, own.index(original.mask_token_id)]
        tracer = mt.Tracer(model, pairs[[i]], mt.heads(model), mt.AnswerProb(), mt.ZeroAblation())
        assert float(tracer.base_metric) == pytest.approx(
            float(wanted.softmax(-1)[original.convert_tokens_to_ids("he")]), abs=1e-6
        )
    grid = causal_trace(model, prompts[0], subject="old doctor", answer="he", samples=1, restore="mlp")
    assert len(grid.tokens) == len(original(prompts[0])["input_ids"])


@pytest.mark.skipif(not MASKED, reason=NO_BRIDGE)
@pytest.mark.parametrize("kind", MASKED or ["bert"])
def test_text_of_a_masked_model_equals_transformers(kind: str, tmp_path: Path) -> None:
    model = masked(kind)
    base, source = "The old doctor said <mask> was tired .", "The old nurse said <mask> was tired ."
    he, she = model.tokenizer.convert_tokens_to_ids(["he", "she"])
    logits = {}
    for name, prompt in (("base", base), ("source", source)):
        ids = model.tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits[name] = model.original_model(torch.tensor([ids])).logits[0, ids.index(SPECIAL.index("<mask>"))]
    file = tmp_path / "mine.csv"
    file.write_text(f"base,source,answer,wrong_answer\n{base},{source},he,she\n")
    lines = tmp_path / "mine.jsonl"
    lines.write_text(f'{{"base": "{base}", "source": "{source}", "answer": "he", "wrong_answer": "she"}}\n')
    for pairs in (
        mt.PromptPairs.from_text(model, [base], [source], ["he"], ["she"]),
        mt.PromptPairs.from_text(model, [base], [source], [" he"], [" she"]),  # here a space carries nothing
        mt.task_from_file(file, model).pairs,
        mt.task_from_file(lines, model).pairs,
    ):
        tracer = mt.Tracer(model, pairs, mt.residual(model, [0], positions="everywhere"), mt.LogitDiff())
        apart = {name: float(row[he] - row[she]) for name, row in logits.items()}
        assert float(tracer.base_metric) == pytest.approx(apart["base"], abs=1e-5)
        whole = float(tracer.effect(torch.ones(1)))
        assert whole == pytest.approx(apart["source"] - apart["base"], abs=1e-5) and abs(whole) > 1e-3
        swapped = mt.Tracer(model, pairs.swap(), mt.heads(model), mt.LogitDiff())
        assert float(swapped.base_metric) == pytest.approx(apart["source"], abs=1e-5)


REFUSED = {
    "no mask": (
        ("The doctor said he", "The nurse said he", "was"),
        {},
        "fills in masks, and the prompt has none: put <mask>",
    ),
    "two masks": (("The <mask> said <mask>", "The <mask> said <mask>", "he"), {}, r"masks at \[2, 4\]: say which"),
    "elsewhere": (("The old <mask> said", "The <mask> old said", "he"), {}, r"mask is token 3 of the base.*\[2\]"),
    "several": (
        ("The doctor said <mask>", "The nurse said <mask>", "he was"),
        {},
        "2 tokens, but a mask stands for one",
    ),
    "unknown": (("The doctor said <mask>", "The nurse said <mask>", "xyzzy"), {}, "does not know"),
    "bos": (("The doctor said <mask>", "The nurse said <mask>", "he"), {"prepend_bos": True}, "masked language model"),
}


@bridges
@pytest.mark.parametrize("case", REFUSED)
def test_what_a_mask_cannot_be_asked_is_refused(case: str) -> None:
    (base, source, answer), options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        mt.PromptPairs.from_text(masked(), [base], [source], [answer], **options)


@bridges
def test_masks_that_are_named_or_lined_up() -> None:
    two = ["The <mask> said <mask>"]
    for place in (2, 4, -2):
        pairs = mt.PromptPairs.from_text(masked(), two, two, ["he"], answer_positions=[place])
        assert int(pairs.answer_positions) == place % 6
    longer = mt.PromptPairs.from_text(
        masked(), ["The doctor said <mask> was"], ["The old doctor said <mask> was"], ["he"], align="right"
    )
    assert (longer.answer_positions.tolist(), longer.swap().answer_positions.tolist()) == ([4], [5])
    with pytest.raises(ValueError, match=r"align='left'|align='right'"):
        mt.PromptPairs.from_text(masked(), ["The doctor <mask>"], ["The old doctor <mask>"], ["he"], align="left")
    rows = [Row(BASE, SOURCE, ("was",)), Row(f"{BASE} <mask>", f"{SOURCE} <mask>", ("he",))]

    kept = pairs_of(masked(), rows, sieve_of(masked()))
    assert (len(kept), kept.dropped) == (1, {MASK: 1})


@bridges
def test_white_space_that_carries_something_is_asked_for() -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [*SPECIAL, *WORDS[:20], *(f"\u0120{word}" for word in WORDS[:20])]
    core = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", special_tokens=[("<cls>", 2), ("<sep>", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, name_or_path="byte-level", unk_token="<unk>", pad_token="<pad>", cls_token="<cls>",
        sep_token="<sep>", mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )  # fmt: skip
    tokenizer.init_kwargs["add_bos_token"] = True
    model = masked_model("bert", tokenizer)
    with pytest.raises(ValueError, match="no leading space"):
        mt.PromptPairs.from_text(model, ["The doctor <mask>"], ["The nurse <mask>"], ["said"])
    pairs = mt.PromptPairs.from_text(model, ["The doctor <mask>"], ["The nurse <mask>"], [" said"])
    assert pairs.candidates.flatten().tolist() == [pieces.index("\u0120said")]


def test_residues_need_no_space() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<bos>", "<pad>", *"ACDEFGHIKLMNPQRSTVWY"]
    core = Tokenizer(models.WordLevel({p: i for i, p in enumerate(letters)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", behavior="isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", name_or_path="residues")
    tokenizer.init_kwargs["add_bos_token"] = True
    encoder = Encoder.of(mt.ModelView(build(NAME, tokenizer=tokenizer)))
    assert encoder.answer("EVQL", "V") == encoder.answer("EVQL", " V") == [letters.index("V")]
