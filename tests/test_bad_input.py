"""What is refused, with the message that says what to type instead, and nothing left behind."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from oracles import Example, pairs_of, random_examples, unchecked, unequal_pairs

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build, hf_model, word_tokenizer

API = "bridge" if HAS_BRIDGE else "hooked"
NAME = f"{API}-gpt2"
EXAMPLES = random_examples(4, equal=True)
model_of = cache(lambda: build(NAME, tokenizer=word_tokenizer(leading_space=True)))
TOKENS = torch.tensor([e.base for e in EXAMPLES])
ANSWERS = {"answers": [5, 6, 7, 8], "wrong_answers": [9, 9, 9, 9]}


def trace(*, model: Any = None, pairs: Any = None, groups: Any = None, **options: Any) -> mt.Tracer:
    model = model_of() if model is None else model
    return mt.Tracer(model, pairs or pairs_of(EXAMPLES), groups or mt.heads(model), **options)


def hooks_left(model: Any) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    yield
    model = model_of()
    assert hooks_left(model) == 0
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


# --------------------------------------------------------------------------------------------------------- prompts
TEXT = {"base": ["The doctor said that", "The nurse said that"], "source": ["The man said that", "The woman said that"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": ["The man said that", "The old woman said that"]},
            r"pair 1: base has 5 tokens, source has 6 \(",
        ),
        ({"answers": [" he", "she"]}, r"pair 1: the answer 'she' has no leading space.*Write ' she'"),
        ({"answers": [" he", " zebra"]}, r"pair 1: the answer ' zebra' holds a word this tokenizer does not know"),
        ({"answers": [" he", ""]}, r"pair 1: the answer '' is empty"),
        ({"answers": [" he", []]}, r"pair 1: no answer"),
        ({"wrong_answers": [" she", " she"]}, r"pair 1: answer ' she' and wrong answer ' she' are the same tokens \["),
        ({"base": [], "source": [], "answers": []}, r"base must be a non-empty list of prompts"),
        ({"base": "The doctor"}, r"base must be a non-empty list of prompts"),
        ({"source": "The"}, r"source must hold one entry per pair, got the single string 'The': pass a list"),
        ({"answers": " he"}, r"answers must hold one entry per pair, got the single string ' he'"),
        ({"answers": [" he"]}, r"2 base prompts but 1 answers: give one of each per pair"),
        ({"labels": ["a"]}, r"2 base prompts but 1 labels"),
        ({"subject": ["doctor"]}, r"2 base prompts but 1 subject"),
        (
            {"subject": ["doctor", "teacher"]},
            r"pair 1: the subject 'teacher' is not in the prompt 'The nurse",
        ),
    ],
)
def test_text_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    given = {**TEXT, "answers": [" he", " she"], "wrong_answers": [" she", " he"], **changes}
    with unchecked(), pytest.raises(ValueError, match=message):
        mt.PromptPairs.from_text(model_of(), **given)


def test_text_without_a_tokenizer() -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer, so text cannot be read.*PromptPairs.from_tokens"):
        mt.PromptPairs.from_text(build(NAME), **TEXT, answers=[" he", " she"])


@pytest.mark.parametrize("side", ["starts", "ends"])
@pytest.mark.parametrize("which", ["base", "source"])
def test_pads_without_lengths(side: str, which: str) -> None:
    """The tokenizer's pad id at either end, and no lengths: the model would attend to it."""
    padded = TOKENS.clone()
    padded[2, 0 if side == "starts" else -1] = 1
    prompts = [padded, TOKENS] if which == "base" else [TOKENS, padded]
    message = rf"{which}_tokens row 2 {side} with padding \(id 1\), but no lengths were given.*pass lengths="
    with pytest.raises(ValueError, match=message):
        trace(pairs=mt.PromptPairs.from_tokens(*prompts, **ANSWERS))
    trace(pairs=mt.PromptPairs.from_tokens(*prompts, **ANSWERS, lengths=[8] * 4))  # the user knows better


def test_pads_that_are_the_bos_token() -> None:
    """GPT-2's tokenizer in TransformerLens pads with BOS: one in front is BOS, two are padding."""
    tokenizer = word_tokenizer(leading_space=True)
    tokenizer.pad_token = tokenizer.bos_token
    model = build(NAME, tokenizer=tokenizer)
    once, twice = TOKENS.clone(), TOKENS.clone()
    once[:, 0] = 0
    twice[1, :2] = 0
    trace(model=model, pairs=mt.PromptPairs.from_tokens(once, once, **ANSWERS))
    with pytest.raises(ValueError, match=r"base_tokens row 1 starts with padding \(id 0\)"):
        trace(model=model, pairs=mt.PromptPairs.from_tokens(twice, TOKENS, **ANSWERS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": 128}, r"base_tokens holds the id 128, but .* has 128 tokens. Were the prompts tokenised for another"),
        ({"source": 500}, r"source_tokens holds the id 500"),
        ({"base": -3}, r"base_tokens holds the id -3"),
        ({"answer": 128}, r"candidates holds the id 128"),
    ],
)
def test_tokens_outside_the_vocabulary(change: dict[str, int], message: str) -> None:
    base, source, answers = TOKENS.clone(), TOKENS.clone(), dict(ANSWERS)
    base[1, 2] = change.get("base", 5)
    source[1, 2] = change.get("source", 5)
    answers["answers"] = [5, 6, 7, change.get("answer", 8)]
    with pytest.raises(ValueError, match=message):
        trace(pairs=mt.PromptPairs.from_tokens(base, source, **answers))


@pytest.mark.parametrize(("length", "answer", "fits"), [(32, 1, True), (32, 2, False), (31, 2, True), (40, 1, False)])
def test_prompts_longer_than_the_context(length: int, answer: int, fits: bool) -> None:
    tokens = torch.randint(3, 60, (2, length), generator=torch.Generator().manual_seed(0))
    pairs = mt.PromptPairs.from_tokens(tokens, tokens, [[[5, 6][:answer]]] * 2, [9, 9])
    if fits:
        trace(pairs=pairs)
        return
    message = rf"a prompt with its answer has {length + answer - 1} tokens, but .* takes 32. Shorten or drop it"
    with pytest.raises(ValueError, match=message):
        trace(pairs=pairs)


def test_a_source_prompt_longer_than_the_context() -> None:
    pairs = unequal_pairs([Example([5] * 20, [5] * 32, [[6, 7]], [[8]])], "right")
    with pytest.raises(ValueError, match="a prompt with its answer has 33 tokens"):
        trace(pairs=pairs)


def test_a_metric_without_its_wrong_answers() -> None:
    pairs = mt.PromptPairs.from_tokens(TOKENS, TOKENS, [5, 6, 7, 8], [[9], [9], [], [9]])
    for metric in (mt.LogitDiff(), mt.OddsRatio(), mt.WeightedSum(((1.0, mt.OddsRatio()),))):
        with pytest.raises(ValueError, match=rf"the metric {metric.name} compares answers with wrong answers"):
            trace(pairs=pairs, metric=metric)
    trace(pairs=pairs, metric=mt.AnswerProb())


# ---------------------------------------------------------------------------------------------------------- groups
def test_unknown_span_and_positions_outside() -> None:
    model = model_of()
    with pytest.raises(ValueError, match=r"name the span 'verb', but the prompts have only \['subject'\].*subject="):
        trace(groups=mt.heads(model, positions="verb"))
    pairs = mt.PromptPairs.from_tokens(TOKENS, TOKENS, **ANSWERS)
    with pytest.raises(ValueError, match="name the span 'subject', but the prompts have only none"):
        trace(pairs=pairs, groups=mt.heads(model, positions="subject"))
    for position in (8, -9, slice(8, 12)):
        with pytest.raises(ValueError, match=r"position (8|-9) is outside every prompt \(the longest has 8 tokens\)"):
            trace(groups=mt.heads(model, positions=position))


def test_no_groups_and_groups_of_another_model() -> None:
    from tiny_models import random_gpt2

    model = model_of()
    with pytest.raises(ValueError, match=r"there are no hook groups: pass heads\(model\)"):
        mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model)[:0])
    wide, deep = random_gpt2(2, 8, 32, 128, 32), random_gpt2(5, 4, 32, 128, 32)
    with pytest.raises(ValueError, match=r"of a model with 8 heads per layer, but .* has 4. Make them for this model"):
        trace(groups=mt.heads(wide))
    with pytest.raises(ValueError, match=r"the hook groups reach layer 4, but .* has layers 0 to 2"):
        trace(groups=mt.mlps(deep))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(11), r"the mask has shape \(11,\), but there are 12 hook groups"),
        (torch.ones(1, 12), r"the mask has shape \(1, 12\)"),
        (torch.zeros(0), r"the mask has shape \(0,\)"),
        (torch.full((12,), 1.2), r"mask values must lie in \[0, 1\], got 1.2 to 1.2"),
        (-torch.eye(12)[0], r"mask values must lie in \[0, 1\], got -1 to"),
        (torch.full((12,), torch.nan), r"mask values must lie in \[0, 1\], got nan"),
    ],
)
def test_masks_that_do_not_fit(mask: Any, message: str) -> None:
    tracer = trace()
    for use in (tracer.effect, tracer.gradient, tracer.log_effect, lambda m: tracer.loss_gradient(m, torch.mean)):
        with pytest.raises(ValueError, match=message):
            use(mask)
    with pytest.raises(ValueError, match=message):
        tracer.groups.fwd_hooks(mask, {})


def test_labels_that_are_not_there() -> None:
    with pytest.raises(KeyError, match=r"L7H0 is not among these 12 groups"):
        trace().effect(["L0H0", "L7H0"])


# ---------------------------------------------------------------------------------------------------------- metrics
def test_metrics_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"metric is the class LogitDiff: pass an instance, LogitDiff\(\)"):
        trace(metric=mt.LogitDiff)
    with unchecked(), pytest.raises(TypeError, match=r"metric must be a Metric or a callable .*, got str"):
        trace(metric="logit_diff")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda out: out.token_logp, r"\(4, 2, 1\)"),
        (lambda out: out.token_logp.mean(), r"\(\)"),
        (lambda out: 3.0, "float"),
    ],
)
def test_metrics_of_the_wrong_shape(value: Any, got: str) -> None:
    def shapeless(out: mt.Answers, base: mt.Answers) -> Any:
        return value(out)

    with pytest.raises(ValueError, match=rf"metric 'shapeless' must return a tensor of shape \(4,\), .*, got {got}"):
        trace(metric=shapeless)


def test_a_metric_without_a_gradient() -> None:
    def rounded(out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        return out.token_logp[:, 0, 0].detach()

    tracer = trace(metric=rounded)
    tracer.effect(torch.ones(12))
    with pytest.raises(ValueError, match=r"the metric 'rounded' has no gradient.*such as Greedy\(\)"):
        tracer.gradient(torch.ones(12))


# ----------------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), "gpt2", None], ids=["module", "name", "none"])
def test_not_a_transformerlens_model(model: Any) -> None:
    message = r"expected a TransformerLens model \(HookedTransformer or TransformerBridge\), got (Linear|str|NoneType)"
    with pytest.raises(TypeError, match=message):
        mt.heads(model)
    with pytest.raises(TypeError, match=message):
        mt.Tracer(model, pairs_of(EXAMPLES), mt.heads(model_of()))


def test_a_hugging_face_model_is_told_how_to_get_in() -> None:
    with pytest.raises(TypeError, match=r"got GPT2LMHeadModel.*boot_transformers\(name, hf_model=model"):
        mt.ModelView(hf_model("gpt2"))


def test_a_model_in_train_mode_is_warned_about_and_traced_in_eval_mode() -> None:
    model = build(NAME)
    wanted = trace(model=model).effect(torch.ones(12))
    model.train()
    with pytest.warns(UserWarning, match=r"the model is in train mode; it is traced in eval mode.*model.eval\(\)"):
        tracer = trace(model=model)
    assert torch.equal(tracer.effect(torch.ones(12)), wanted)
    assert model.training


def weight_of(model: Any, part: str) -> torch.Tensor:
    return next(p for n, p in model.named_parameters() if part in n and p.ndim > 1)


def test_nan_in_an_embedding_names_hook_and_example() -> None:
    """Only the third prompt holds the token whose embedding is broken."""
    model = build("hooked-native" if API == "hooked" else "bridge-native")
    others = set(TOKENS[[0, 1, 3]].flatten().tolist())
    token = next(t for t in TOKENS[2, :4].tolist() if t not in others)
    with torch.no_grad():
        weight_of(model, "embed")[token] = torch.nan
    with pytest.raises(mt.NonFiniteError, match=r"base run .* in batch 0: first at blocks\.0\.attn\.hook_z, example 2"):
        trace(model=model)
    with pytest.raises(mt.NonFiniteError, match=r"in batch 1: first at blocks\.1\.attn\.hook_z, example 2"):
        trace(model=model, groups=mt.mlps(model, [1]) + mt.heads(model, [1]), batch_size=2)
    assert hooks_left(model) == 0


def test_nan_in_a_source_prompt_alone() -> None:
    model = build("hooked-native" if API == "hooked" else "bridge-native")
    source = TOKENS.clone()
    source[1, 3] = 99
    with torch.no_grad():
        weight_of(model, "embed")[99] = torch.nan
    pairs = mt.PromptPairs.from_tokens(TOKENS, source, **ANSWERS)
    for limit, size in ((None, None), (0, 1)):
        tracer = trace(model=model, pairs=pairs, memory_limit=limit, batch_size=size)
        assert torch.equal(tracer.effect(torch.zeros(12)), torch.zeros(4))
        for use in (tracer.effect, tracer.gradient, lambda m: tracer.loss_gradient(m, torch.mean)):  # noqa: B023
            batch = 0 if size is None else 1
            where = rf"batch {batch}: first in the source run at blocks\.0\.attn\.hook_z, example 1"
            with pytest.raises(mt.NonFiniteError, match=where):
                use(torch.full((12,), 0.5))
    assert hooks_left(model) == 0


def test_nan_in_the_unembedding_names_the_weight() -> None:
    model = build("hooked-native" if API == "hooked" else "bridge-native")
    with torch.no_grad():
        name, weight = [(n, p) for n, p in model.named_parameters() if p.ndim > 1][-1]
        weight.fill_(torch.nan)
    with pytest.raises(mt.NonFiniteError, match=rf"not finite in batch 0: first in the weights \({name}\)"):
        trace(model=model)


def test_a_metric_that_becomes_infinite() -> None:
    def broken(out: mt.Answers, base: mt.Answers) -> torch.Tensor:
        same = torch.isclose(out.token_logp, base.token_logp).all(-1).all(-1)
        return torch.where(same, 0.0, torch.inf)

    tracer = trace(metric=broken)
    with pytest.raises(
        mt.NonFiniteError, match=r"the metric is not finite in batch 0, first in example \d: the log prob.*are finite"
    ):
        tracer.effect(torch.ones(12))
