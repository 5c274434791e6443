"""The demo model: its grammar, its training, and the weights that ship with the package."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import logging
import math
import re
import socket
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tl_multitrace.demo import DEMO_FOLDER, demo_card, grammar, load_demo_model, load_hf_model, words
from tl_multitrace.demo.measure import measure
from tl_multitrace.demo.packing import ALWAYS, attention_mask, rows, sentence_rows, subject_reach
from tl_multitrace.demo.tokenizer import load_tokenizer
from tl_multitrace.demo.train import TrainConfig, run, text_digest, train

pytestmark = pytest.mark.lens

# Two families are learned in part: see tests/test_demo_families.py.
LEAST = {"variable_binding": 0.65, "corr2cause": 0.7}
HAS_BRIDGE = importlib.util.find_spec("transformer_lens.model_bridge") is not None
IOI = "When Mary and John went to the store, John gave a drink to"


def has_hooked() -> bool:
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


APIS = [api for api, there in (("bridge", HAS_BRIDGE), ("hooked", has_hooked())) if there]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(DEMO_FOLDER)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"the network was asked for {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ---------------------------------------------------------------- grammar


@pytest.mark.parametrize("family", grammar.FAMILIES)
def test_the_same_seed_gives_the_same_text(family: str) -> None:
    assert grammar.sentences(family, 50, seed=3) == grammar.sentences(family, 50, seed=3)
    assert grammar.sentences(family, 50, seed=3) != grammar.sentences(family, 50, seed=4)


def test_the_shipped_weights_were_trained_on_this_grammar() -> None:
    card = demo_card()
    assert card["grammar_version"] == grammar.GRAMMAR_VERSION
    assert text_digest(card["seed"]) == card["text_digest"]
    assert card["family_shares"] == grammar.FAMILIES
    assert card["training"] == dataclasses.asdict(TrainConfig())


def test_families_come_with_their_shares() -> None:
    counts = Counter(one.family for one in itertools.islice(grammar.stream(0), 20_000))
    for family, share in grammar.FAMILIES.items():
        assert counts[family] / 20_000 == pytest.approx(share, abs=0.015)
    assert sum(grammar.FAMILIES.values()) == pytest.approx(1.0)


def test_prompt_and_answer_are_how_the_sentence_goes() -> None:
    for one in itertools.islice(grammar.stream(1), 2000):
        assert one.text.startswith(one.prompt + one.answer)
        assert one.text.endswith((".", "?"))
        assert bool(one.answer.startswith(" ")) == (one.family != "filler")


def test_nats_count_the_surprise_of_a_sentence() -> None:
    # Facts are few enough to see every sentence: the probabilities they claim add up to one.
    facts = {one.text: one.nats for one in grammar.sentences("facts", 20_000, seed=0)}
    assert sum(math.exp(-nats) for nats in facts.values()) == pytest.approx(1.0)
    weather = [one for one in grammar.sentences("filler", 500, seed=0) if one.text.startswith("It was ")]
    expected = math.log(5 * len(words.WEATHER) * len(words.NAMES) * len(words.PLACES))
    assert weather and all(one.nats == pytest.approx(expected) for one in weather)


def test_the_pronoun_follows_the_noun_with_its_probability() -> None:
    counts: dict[str, list[bool]] = defaultdict(list)
    for one in grammar.sentences("professions", 60_000, seed=0):
        counts[one.detail["noun"]].append(one.answer == " he")
    for noun, probability in grammar.PRONOUN_NOUNS.items():
        assert sum(counts[noun]) / len(counts[noun]) == pytest.approx(probability, abs=0.1)


def test_both_stereotypes_have_many_single_words() -> None:
    assert min(len(grammar.MALE_PROFESSIONS), len(grammar.FEMALE_PROFESSIONS)) >= 30
    assert all(re.fullmatch(r"[a-z]+", word) for word in grammar.PRONOUN_NOUNS)
    assert all(p > 0.7 for p in grammar.MALE_PROFESSIONS.values())
    assert all(p < 0.3 for p in grammar.FEMALE_PROFESSIONS.values())


def test_held_out_combinations_are_never_in_training_text() -> None:
    pairs, contexts, wordings, nouns = set(), set(), set(), set()
    for one in itertools.islice(grammar.stream(2), 40_000):
        if one.family == "ioi":
            pairs.add(
                frozenset((one.detail["receiver"], one.detail["giver"])) if one.detail["order"] != "ABC" else None
            )
            contexts.add((one.detail["place"], one.detail["object"]))
        elif one.family == "facts":
            wordings.add((one.detail["subject"], one.detail["template"]))
        elif one.family == "professions":
            nouns.add((one.detail["noun"], one.detail["template"]))
    for one in grammar.sentences("ioi", 500, 5, "held_out"):
        assert frozenset((one.detail["receiver"], one.detail["giver"])) not in pairs
        assert (one.detail["place"], one.detail["object"]) not in contexts
    held_out = [(fact.subject, template) for fact, template in grammar.fact_prompts("held_out")]
    assert not wordings & set(held_out) and len(held_out) == len(grammar.FACTS)
    assert not nouns & set(grammar.pronoun_prompts("held_out"))


def test_no_single_word_of_a_subject_tells_the_object() -> None:
    for relation in grammar.RELATIONS:
        facts = [fact for fact in grammar.FACTS if fact.relation == relation]
        for word in {word for fact in facts for word in fact.subject.split()}:
            objects = [fact.object for fact in facts if word in fact.subject.split()]
            assert len(objects) >= 2
            assert Counter(objects).most_common(1)[0][1] <= len(objects) / 2


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match="unknown family 'poems'; the grammar has professions, ioi"):
        grammar.sentences("poems", 1, seed=0)


# ---------------------------------------------------------------- tokenizer


def test_every_word_of_the_grammar_is_one_known_token(tokenizer: Any) -> None:
    assert len(tokenizer) < 1000
    for one in itertools.islice(grammar.stream(3), 2000):
        ids = tokenizer(one.text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == 1 + len(re.findall(r"\w+|[^\w\s]", one.text)) <= demo_card()["training"]["n_ctx"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == one.text


def test_a_leading_space_changes_nothing_and_offsets_find_words(tokenizer: Any) -> None:
    assert tokenizer.encode(" he", add_special_tokens=False) == tokenizer.encode("he", add_special_tokens=False)
    encoded = tokenizer("The nurse, said", return_offsets_mapping=True)
    assert encoded["offset_mapping"] == [(0, 0), (0, 3), (4, 9), (9, 10), (11, 15)]
    assert encoded["input_ids"][0] == tokenizer.bos_token_id


def test_the_tokenizer_loads_the_ordinary_way() -> None:
    from transformers import AutoTokenizer

    ordinary = AutoTokenizer.from_pretrained(str(DEMO_FOLDER), local_files_only=True)
    assert ordinary(IOI).input_ids == load_tokenizer(DEMO_FOLDER)(IOI).input_ids


# ---------------------------------------------------------------- shipped weights


def test_the_folder_is_small() -> None:
    shipped = [path for path in DEMO_FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in shipped) < 5_000_000


def test_measured_accuracies_are_what_the_card_says(tokenizer: Any) -> None:
    card = demo_card()["metrics"]
    measured = measure(load_hf_model(), tokenizer)
    assert measured["attained"].keys() == grammar.FAMILIES.keys()
    for family, attained in measured["attained"].items():
        assert LEAST.get(family, 0.95) <= attained <= 1.01, family
        for name, value in card[family].items():
            assert measured[family][name] == pytest.approx(value, abs=2e-3), (family, name)


def test_the_model_is_as_good_on_text_the_card_was_not_measured_on(tokenizer: Any) -> None:
    measured = measure(load_hf_model(), tokenizer, seed=777, count=200)
    assert all(attained > LEAST.get(family, 0.95) for family, attained in measured["attained"].items())


def test_the_shape_is_gpt2_with_four_layers_of_eight_heads() -> None:
    config = load_hf_model().config
    assert (config.model_type, config.n_layer, config.n_head, config.n_positions) == ("gpt2", 4, 8, 64)


@pytest.mark.parametrize("api", ["auto", *APIS])
@pytest.mark.usefixtures("no_network")
def test_it_loads_quietly_without_network(api: Any, capfd: Any, caplog: Any, recwarn: Any) -> None:
    import transformer_lens  # noqa: F401  (what its own import says is not ours)

    capfd.readouterr(), caplog.clear(), recwarn.clear()
    with caplog.at_level(logging.WARNING):
        model = load_demo_model(api=api)
    assert tuple(capfd.readouterr()) == ("", "")
    assert not caplog.records
    assert not [w for w in recwarn if "HookedTransformer is deprecated" not in str(w.message)]
    assert not model.training and model.cfg.default_prepend_bos is True
    tokens = model.to_tokens(IOI)
    assert tokens[0, 0] == model.tokenizer.bos_token_id and tokens.shape == (1, 15)
    assert model.to_tokens(IOI, prepend_bos=False).shape == (1, 14)
    assert model.to_single_token(" she") == model.to_single_token("she")
    assert model.to_string(model(tokens)[0, -1].argmax()) == "Mary"


@pytest.mark.parametrize("api", APIS)
def test_transformer_lens_gives_the_logits_of_hugging_face(api: Any, tokenizer: Any) -> None:
    tokens = tokenizer([IOI, "At home, Felix Vale speaks"], padding=True, return_tensors="pt")["input_ids"]
    expected = load_hf_model()(tokens).logits
    model = load_demo_model(api=api)
    logits, cache = model.run_with_cache(tokens)
    real = tokens != tokenizer.pad_token_id
    assert torch.allclose(logits[real], expected[real], atol=1e-4)
    assert cache["blocks.0.attn.hook_pattern"].shape == (2, 8, *tokens.shape[1:] * 2)


@pytest.mark.skipif(len(APIS) < 2, reason="this TransformerLens has one of the two model classes")
def test_both_classes_give_the_same_logits() -> None:
    tokens = load_tokenizer(DEMO_FOLDER)(IOI, return_tensors="pt")["input_ids"]
    bridge, hooked = (load_demo_model(api=api)(tokens) for api in ("bridge", "hooked"))
    assert torch.allclose(bridge, hooked, atol=1e-4)


def test_it_loads_in_float64() -> None:
    model = load_demo_model(dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(model.to_tokens(IOI)).dtype == torch.float64


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="unknown api 'lens'; pass 'auto', 'bridge' or 'hooked'"):
        load_demo_model(api="lens")  # type: ignore[arg-type]
    for api, hint in {"bridge": "api='hooked'", "hooked": "api='bridge'"}.items():
        if api not in APIS:
            with pytest.raises(ImportError, match=hint):
                load_demo_model(api=api)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer, position, least, most",
    [
        (1, "subject", 0.9, 1.0),  # the early site: the last word of the subject carries the fact from layer 1 on
        (1, "last", 0.0, 0.1),
        (1, "before", 0.0, 0.1),
        (3, "last", 0.5, 1.0),  # the late site: the end of the prompt has fetched it
        (3, "subject", 0.0, 0.4),
    ],
)
def test_facts_are_put_together_at_the_last_word_of_the_subject(
    layer: int, position: str, least: float, most: float
) -> None:
    """Another subject's prompt, with one residual position of the right one, gives the right object again or not."""
    model, restored, asked = load_demo_model(), 0, 0
    for fact, template in grammar.fact_prompts("train")[::7]:
        clean, offset = model.to_tokens(template.format(subject=fact.subject)), len(fact.subject.split())
        other = _swapped(fact)
        corrupted = model.to_tokens(template.format(subject=other.subject))
        first = int((clean != corrupted).nonzero()[0, 1])
        last_word = first + offset - 1 - _shared_start(fact.subject, other.subject)
        at = {"subject": last_word, "last": clean.shape[1] - 1, "before": last_word - 1}[position]
        name = f"blocks.{layer}.hook_resid_pre"
        _, cache = model.run_with_cache(clean, names_filter=name)
        logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, _put(cache[name], at))])
        restored += model.to_string(logits[0, -1].argmax()) == fact.object
        asked += 1
    assert least <= restored / asked <= most


def _swapped(fact: grammar.InventedFact) -> grammar.InventedFact:
    """Another fact of the relation whose subject is as long and ends in the same word."""
    words_of = fact.subject.split()
    return next(
        one
        for one in grammar.FACTS
        if one.relation == fact.relation
        and one.object != fact.object
        and len(one.subject.split()) == len(words_of)
        and one.subject.split()[-1] == words_of[-1]
    )


def _shared_start(a: str, b: str) -> int:
    """How many words two subjects begin with in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a.split(), b.split(), strict=True)))


def _put(value: torch.Tensor, at: int) -> Any:
    def hook(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        patched = activation.clone()
        patched[:, at] = value[:, at]
        return patched

    return hook


# ---------------------------------------------------------------- training

TINY = TrainConfig(n_layer=1, n_head=2, n_embd=16, n_inner=32, batch_tokens=256, steps=6, warmup=2, threads=1)


def test_training_is_deterministic(tokenizer: Any) -> None:
    first, second, other = (train(TINY, tokenizer, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_card_is_what_the_readme_says() -> None:
    card, text = demo_card(), (DEMO_FOLDER / "README.md").read_text()
    assert card["command"] in text and f"{card['parameters']:,}" in text
    for family, attained in card["metrics"]["attained"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{family}` |") and line.endswith("% |"))
        assert row.endswith(f" {attained:.1%} |".replace("%", " %"))


def test_training_lowers_the_surprise(tokenizer: Any) -> None:
    config = dataclasses.replace(TINY, steps=60)
    before, after = (measure(train(c, tokenizer, 0), tokenizer, count=50) for c in (TINY, config))
    assert after["filler"]["nats"] < before["filler"]["nats"] - 5
    assert after["filler"]["nats"] > after["filler"]["floor"]


def test_a_trained_folder_is_whole_and_is_never_overwritten(tmp_path: Path) -> None:
    card = run(tmp_path / "model", 0, TINY, progress=False)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "metrics.json"}
    model = load_hf_model(tmp_path / "model")
    again = measure(model, load_tokenizer(tmp_path / "model"))
    for family, numbers in card["metrics"].items():  # to rounding: a sum's order depends on the number of threads
        assert again[family] == pytest.approx(numbers, rel=1e-5, abs=1e-7)
    assert card["command"].endswith(f"--seed 0 --steps {TINY.steps}")
    with pytest.raises(FileExistsError, match="is not empty; name a new folder"):
        run(tmp_path / "model", 0, TINY, progress=False)


def test_an_interrupted_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tl_multitrace.demo.train.measure", interrupt)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "model", 0, dataclasses.replace(TINY, threads=2), progress=False)
    assert not list(tmp_path.iterdir())
    assert torch.get_num_threads() == threads


def test_a_subjects_earlier_words_are_hidden_after_its_last_one(tokenizer: Any) -> None:
    reach = subject_reach(tokenizer, "The Old Falcon Tower was built from wood.", "Old Falcon Tower")
    assert [i for i, distance in enumerate(reach) if distance < ALWAYS] == [1, 2]
    allowed = attention_mask(torch.tensor([[ALWAYS, *reach]]))[0, 0] == 0
    assert allowed[4, 2] and allowed[4, 3], "Tower sees Old and Falcon"
    assert not allowed[5:, 2:4].any(), "nothing after Tower does"
    assert torch.equal(allowed.triu(1), torch.zeros_like(allowed)) and allowed[:, [0, 1]].tril().sum() == 19


def test_training_rows_hide_in_three_of_four_facts_and_nowhere_else(tokenizer: Any) -> None:
    text = grammar.sentences("facts", 400, seed=0)
    hidden = [min(reach) < ALWAYS for _, reach in sentence_rows(tokenizer, iter(text))]
    assert sum(hidden) == 300
    others = [one for one in itertools.islice(grammar.stream(0), 400) if one.family != "facts"]
    assert all(min(reach) == ALWAYS for _, reach in rows(tokenizer, iter(others), 21))
