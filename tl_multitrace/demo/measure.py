"""How good the demo model is, in units of what the grammar leaves attainable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int

from tl_multitrace.tasks.corpus import ANIMALS, YEARS

from .draw import Sentence
from .grammar import FAMILIES, PRONOUN_NOUNS, PRONOUN_TEMPLATES, fact_prompts, pronoun_prompts, sentences

BATCH = 256


def _batches(
    tokenizer: Any, texts: Sequence[str]
) -> Iterator[tuple[Int[torch.Tensor, "batch pos"], Int[torch.Tensor, "batch pos"]]]:
    """Yield right-padded tokens and their mask (1 = real) batch by batch."""
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer(list(texts[start : start + BATCH]), padding=True, return_tensors="pt")
        yield encoded["input_ids"], encoded["attention_mask"]


@torch.no_grad()
def next_log_probs(model: Any, tokenizer: Any, prompts: Sequence[str]) -> Float[torch.Tensor, "n vocab"]:
    """Return the log probabilities of the token after each prompt."""
    rows = []
    for tokens, mask in _batches(tokenizer, prompts):
        logits = model(tokens, attention_mask=mask).logits
        rows.append(logits[torch.arange(len(mask)), mask.sum(1) - 1].log_softmax(-1))
    return torch.cat(rows)


@torch.no_grad()
def sentence_nats(model: Any, tokenizer: Any, texts: Sequence[str]) -> Float[torch.Tensor, " n"]:
    """Return ``-log p(text | BOS)`` of each text."""
    rows = []
    for tokens, mask in _batches(tokenizer, texts):
        log_probs = model(tokens, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        chosen = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        rows.append(-(chosen * mask[:, 1:]).sum(1))
    return torch.cat(rows)


def _accuracy(model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> float:
    """Return the share of prompts whose most likely next token, of the whole vocabulary, is the answer."""
    wanted = torch.tensor([tokenizer.convert_tokens_to_ids(answer.strip()) for answer in answers])
    return float((next_log_probs(model, tokenizer, prompts).argmax(-1) == wanted).float().mean())


def _pronouns(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Compare P(he) and P(she) after every noun with the grammar's probabilities.

    ``agreement`` is one minus the mean absolute error of P(he) / (P(he) + P(she)). ``nats`` is the cross-entropy of
    the grammar's pronoun under the model's whole next-token distribution and ``floor`` its smallest possible value.
    """
    he, she = tokenizer.convert_tokens_to_ids(["he", "she"])
    rows = next_log_probs(model, tokenizer, [template.format(noun=noun) for noun, template in pairs])
    errors, nats, floors = [], [], []
    for (noun, _), row in zip(pairs, rows.double(), strict=True):
        truth, log_he, log_she = PRONOUN_NOUNS[noun], float(row[he]), float(row[she])
        errors.append(abs(1 / (1 + math.exp(log_she - log_he)) - truth))
        nats.append(-truth * log_he - (1 - truth) * log_she)
        floors.append(-truth * math.log(truth) - (1 - truth) * math.log(1 - truth))
    mean = {"error": sum(errors), "nats": sum(nats), "floor": sum(floors)}
    mean = {name: value / len(pairs) for name, value in mean.items()}
    return {"agreement": 1 - mean["error"], "nats": mean["nats"], "floor": mean["floor"]}


def _text_floor(model: Any, tokenizer: Any, texts: Sequence[Sentence]) -> dict[str, float]:
    """Compare the model's surprise at whole sentences, family choice included, with the grammar's entropy."""
    nats = float(sentence_nats(model, tokenizer, [one.text for one in texts]).mean())
    floor = sum(one.nats - math.log(FAMILIES[one.family]) for one in texts) / len(texts)
    return {"nats": nats, "floor": floor}


def _induction_accuracy(model: Any, tokenizer: Any, texts: Sequence[Sentence]) -> float:
    """Return the share of right words in second copies, first word of the copy left out (nothing announces it)."""
    prompts, answers = [], []
    for one in texts:
        words = one.detail["words"].split()
        for seen in range(1, len(words)):
            prompts.append(" ".join(words + words[:seen]))
            answers.append(words[seen])
    return _accuracy(model, tokenizer, prompts, answers)


def _answered(model: Any, tokenizer: Any, texts: Sequence[Sentence]) -> float:
    """Return the share of sentences whose answer is the most likely word of the whole vocabulary."""
    return _accuracy(model, tokenizer, [one.prompt for one in texts], [one.answer for one in texts])


def _years(model: Any, tokenizer: Any, texts: Sequence[Sentence]) -> dict[str, float]:
    """Compare the distribution over last years with the grammar's: later ones only, all equally likely.

    ``later`` is the mean probability of all later years together. ``nats`` is the cross-entropy of the grammar's year
    under the model's whole next-token distribution and ``floor`` its smallest possible value.
    """
    ids = tokenizer.convert_tokens_to_ids(list(YEARS))
    rows = next_log_probs(model, tokenizer, [one.prompt for one in texts]).double()[:, ids]
    first = [YEARS.index(one.detail["year"]) for one in texts]
    later = [row[at + 1 :] for row, at in zip(rows, first, strict=True)]
    mean = {
        "later": sum(float(row.exp().sum()) for row in later),
        "nats": sum(-float(row.mean()) for row in later),
        "floor": sum(math.log(len(row)) for row in later),
    }
    return {name: value / len(texts) for name, value in mean.items()}


def _questions(model: Any, tokenizer: Any, seed: int, count: int) -> dict[str, dict[str, float]]:
    """Score the families of ``families.py`` on combinations that training never shows."""
    texts = {
        family: sentences(family, count, seed, "held_out")
        for family in ("gendered_pronouns", "subject_verb_agreement", "hypernymy", "variable_binding", "corr2cause")
    }
    result = {family: {"accuracy": _answered(model, tokenizer, ones)} for family, ones in texts.items()}
    apart = [one for one in texts["subject_verb_agreement"] if _is_plural(one, "noun") != _is_plural(one, "other")]
    result["subject_verb_agreement"]["accuracy_attractor"] = _answered(model, tokenizer, apart)
    for name, count_of in (("two", "2"), ("three", "3")):
        ones = [one for one in texts["variable_binding"] if one.detail["variables"] == count_of]
        result["variable_binding"][f"accuracy_{name}"] = _answered(model, tokenizer, ones)
    return {**result, "greater_than": _years(model, tokenizer, sentences("greater_than", count, seed, "held_out"))}


def _is_plural(one: Sentence, which: str) -> bool:
    return any(one.detail[which] == plural for _, plural in ANIMALS)


def measure(model: Any, tokenizer: Any, *, seed: int = 12345, count: int = 500) -> dict[str, Any]:
    """Score a Hugging Face causal language model on fresh text of the grammar.

    Args:
        model: A model whose call returns an object with ``logits``; on CPU, in eval mode.
        tokenizer: The demo tokenizer.
        seed: Seed of the fresh text; training uses other seeds.
        count: Sentences per family.

    Returns:
        One dict of numbers per family, and ``"attained"``: per family the share of what is attainable, 1 = perfect.
        Accuracies are over the whole vocabulary. Where the grammar keeps combinations from training, scores are on
        those; ``accuracy_all`` of the facts also counts the trained wordings; ``nats`` and ``floor`` are in nats per
        pronoun (professions), per year (greater_than) or per sentence (filler).
    """
    ioi = sentences("ioi", count, seed, "held_out")
    unseen, seen = fact_prompts("held_out"), fact_prompts("train")
    every_noun = [(noun, template) for noun in PRONOUN_NOUNS for template in PRONOUN_TEMPLATES]

    def fact_accuracy(pairs: Sequence[tuple[Any, str]]) -> float:
        prompts = [template.format(subject=fact.subject) for fact, template in pairs]
        return _accuracy(model, tokenizer, prompts, [fact.object for fact, _ in pairs])

    result: dict[str, Any] = {
        "professions": {
            **_pronouns(model, tokenizer, pronoun_prompts("held_out")),
            "agreement_all": _pronouns(model, tokenizer, every_noun)["agreement"],
        },
        "ioi": {"accuracy": _accuracy(model, tokenizer, [s.prompt for s in ioi], [s.answer for s in ioi])},
        "facts": {
            "accuracy": fact_accuracy(unseen),
            "accuracy_all": fact_accuracy([*unseen, *seen]),
        },
        "induction": {
            "accuracy": _induction_accuracy(model, tokenizer, sentences("induction", max(1, count // 5), seed))
        },
        "filler": _text_floor(model, tokenizer, sentences("filler", count, seed)),
        **_questions(model, tokenizer, seed, count),
    }
    result = {family: result[family] for family in FAMILIES}
    result["attained"] = {family: _attained(result[family]) for family in FAMILIES}
    return result


def _attained(scores: dict[str, float]) -> float:
    """Return the accuracy; where chance decides, entropy over cross-entropy, or the agreement if that is smaller."""
    if "accuracy" in scores:
        return scores["accuracy"]
    return min(scores.get("agreement", math.inf), scores["floor"] / scores["nats"])
