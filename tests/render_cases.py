"""One small finished search, for the tests of figures, views and report."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build, word_tokenizer
from tl_multitrace.render import Run

EVIL = "</script><script>window.pwned=1;document.title='pwned'</script>"
EVIL_IMAGE = "<img src=x onerror=\"window.pwned=1;document.title='pwned'\">"
NAME = MODEL_NAMES[0]
NOUNS = ("doctor", "nurse", "teacher", "engineer", "secretary", "farmer")


@cache
def model(name: str = NAME) -> Any:
    return build(name, tokenizer=word_tokenizer(leading_space=True))


def prompts(**options: Any) -> mt.PromptPairs:
    base = [f"The {noun} said that" for noun in NOUNS] * 2
    source = ["The woman said that"] * 6 + ["The man said that"] * 6
    labels = ["to woman"] * 6 + ["to man"] * 6
    answers, wrong = [" she"] * 6 + [" he"] * 6, [" he"] * 6 + [" she"] * 6
    return mt.PromptPairs.from_text(model(), base, source, answers, wrong, labels=labels, **options)


def tracer_of(groups: mt.HookGroups, pairs: mt.PromptPairs | None = None, **options: Any) -> mt.Tracer:
    return mt.Tracer(model(), prompts() if pairs is None else pairs, groups, **options)


def chosen(tracer: mt.Tracer, members: list[int]) -> mt.Circuit:
    """A circuit of exactly these mask entries."""
    path = mt.select(tracer, len(members), mt.TopK(), forced=members)
    circuit = path[len(members)]
    assert list(circuit.indices) == sorted(members)
    return circuit


@cache
def run() -> Run:
    """Heads, MLP layers and neurons, searched greedily, with held-out prompts and another solver beside."""
    m = model()
    search, held_out = prompts().split(0.7, seed=0)
    groups = mt.heads(m) + mt.mlps(m) + mt.neurons(m, layers=[1])
    tracer = mt.Tracer(m, search, groups, metric=mt.OddsRatio())
    path = mt.select(tracer, range(1, 8), mt.Greedy(), held_out=held_out)
    other = mt.select(tracer, [2, 4, 7], mt.TopK())
    return Run(path, path[7], tracer, held_out, title="A small run", others=(other,))


@cache
def measured() -> Run:
    return run().measured()


def evil_run() -> Run:
    """The same run with text that wants to run as code wherever a user's text can come from."""
    known = measured()
    assert known.views is not None and known.effects is not None
    effects = known.effects.copy()
    effects["base"], effects["source"], effects["answers"] = EVIL, EVIL_IMAGE, EVIL
    effects["label"] = [f"{EVIL_IMAGE} ${label}$" for label in effects["label"]]
    examples = []
    for example in known.views.examples:
        runs = {k: replace(r, words=[EVIL, EVIL_IMAGE, *r.words[2:]]) for k, r in example.runs.items()}
        answers = [EVIL, EVIL_IMAGE][: len(example.answers)]
        examples.append(replace(example, runs=runs, label=EVIL, answers=answers))
    facts = {**known.circuit.provenance, "model": {**known.circuit.provenance["model"], "name": EVIL}}
    return replace(
        known,
        tracer=None,
        title=EVIL,
        effects=effects,
        views=replace(known.views, examples=examples, left_out=[EVIL_IMAGE]),
        circuit=replace(known.circuit, provenance=facts, certificate=EVIL),
        facts={EVIL: EVIL_IMAGE},
    )
