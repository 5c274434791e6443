"""The same quantities by plain loops: one prompt at a time, no padding, hand-written hooks, full logits.

Nothing here calls the engine. A mask is applied group by group, ``act += m * (source - act)``, so groups that overlap
give ``1 - (1 - m1)(1 - m2)`` by themselves; every candidate answer is a run of its own. Slow and short on purpose.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import jaxtyping
import torch

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build, word_tokenizer

HOOK = {
    ("head", "z"): "blocks.{}.attn.hook_z",
    ("head", "pattern"): "blocks.{}.attn.hook_pattern",
    ("neuron", "post"): "blocks.{}.mlp.hook_post",
    ("mlp_dim", "out"): "blocks.{}.hook_mlp_out",
    ("mlp", "out"): "blocks.{}.hook_mlp_out",
    ("attn", "out"): "blocks.{}.hook_attn_out",
    ("resid", "pre"): "blocks.{}.hook_resid_pre",
    ("resid", "mid"): "blocks.{}.hook_resid_mid",
    ("resid", "post"): "blocks.{}.hook_resid_post",
}


# ---------------------------------------------------------------------------------------------------- prompts
@dataclass(frozen=True)
class Example:
    """A pair of prompts as plain lists; ``answers`` and ``wrong`` hold candidates of one or more tokens."""

    base: list[int]
    source: list[int]
    answers: list[list[int]]
    wrong: list[list[int]] = field(default_factory=list)
    span: tuple[int, int] | None = None
    shift: int = 0

    @property
    def candidates(self) -> list[list[int]]:
        return self.answers + self.wrong


def random_examples(
    n: int = 4, *, seed: int = 0, longest: int = 8, equal: bool = False, right: int = 1, wrong: int = 1, tokens: int = 1
) -> list[Example]:
    """Random prompts of unequal lengths (unless ``equal``), candidates of up to ``tokens`` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 60, (count,), generator=generator).tolist()

    made = []
    for i in range(n):
        length = longest if equal else longest - i % 4
        firsts = (3 + torch.randperm(57, generator=generator)[: right + wrong]).tolist()
        candidates = [[first, *draw((i + j) % tokens)] for j, first in enumerate(firsts)]
        made.append(Example(draw(length), draw(length), candidates[:right], candidates[right:], (1, 3)))
    return made


@functools.cache
def _speaker() -> Any:
    """A model whose tokenizer has one word for every token id from 3 on."""
    return build(MODEL_NAMES[0], tokenizer=word_tokenizer())


def unequal_pairs(examples: Sequence[Example], align: Any, **options: Any) -> mt.PromptPairs:
    """Examples whose two prompts may differ in length, lined up at one end: by way of text, as tokens must be equal."""
    say = _speaker().tokenizer.decode
    base, source = [say(e.base) for e in examples], [say(e.source) for e in examples]
    right = [[f" {say(answer)}" for answer in e.answers] for e in examples]
    wrong = [[f" {say(answer)}" for answer in e.wrong] for e in examples]
    given = {"prepend_bos": False, "align": align, **options}
    pairs = mt.PromptPairs.from_text(_speaker(), base, source, right, wrong, **given)
    assert pairs.base_tokens[0, : len(examples[0].base)].tolist() == examples[0].base  # the words are the tokens
    return pairs


def pairs_of(examples: Sequence[Example], **options: Any) -> mt.PromptPairs:
    """The examples as padded tensors; the padding id is a real token, so attending to it would show."""
    pad = 7

    def padded(rows: list[list[int]]) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [pad] * (width - len(row)) for row in rows])

    pairs = mt.PromptPairs.from_tokens(
        padded([e.base for e in examples]),
        padded([e.source for e in examples]),
        [e.answers for e in examples],
        [e.wrong for e in examples],
        lengths=[len(e.base) for e in examples],
        **options,
    )
    if all(e.span is not None for e in examples):
        pairs = replace(pairs, spans={"subject": torch.tensor([e.span for e in examples])})
    return pairs


def oriented(examples: Sequence[Example], model: Any, groups: mt.HookGroups) -> list[Example]:
    """Answers exchanged where patching everything lowers the logit difference: then its mean effect is clear."""
    effects = Plain(model, list(examples), groups.sites).effect(torch.ones(len(groups)), logit_diff)
    turned = [replace(e, answers=e.wrong, wrong=e.answers) for e in examples]
    return [e if effect > 0 else t for e, t, effect in zip(examples, turned, effects.tolist(), strict=True)]


# ------------------------------------------------------------------------------------------------- plain runs
def covered(position: Any, prompt: int, total: int, span: tuple[int, int] | None) -> list[int]:
    """Positions that a specification names in a prompt of ``prompt`` tokens, ``total`` with its answer."""
    here = list(range(prompt))
    if position is None:
        return here
    if position == "everywhere":
        return list(range(total))
    if position == "last":
        return here[-1:]
    if isinstance(position, str):
        assert span is not None
        return here[slice(*span)]
    if isinstance(position, tuple):
        start, stop = position
        return here[start : None if start < 0 and stop == 0 else stop]
    return [here[position]] if -prompt <= position < prompt else []


def activations(model: Any, tokens: Sequence[int], names: Iterable[str], noise: Any = None) -> dict[str, torch.Tensor]:
    """Activations of one prompt, batch axis kept."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda act, hook: seen.__setitem__(name, act.detach().clone())

    plain_logits(model, tokens, [(name, keep(name)) for name in names], noise)
    assert set(seen) == set(names)
    return seen


def plain_logits(model: Any, tokens: Sequence[int], hooks: Any = (), noise: Any = None) -> torch.Tensor:
    """Logits ``[pos, vocab]`` of one prompt."""
    added = [] if noise is None else [("hook_embed", lambda act, hook: act + noise.to(act))]
    return model.run_with_hooks(torch.tensor([list(tokens)]), fwd_hooks=[*added, *hooks])[0]


Source = Callable[[int, Example, list[int], list[str]], dict[str, torch.Tensor]]


@dataclass
class Plain:
    """Runs examples under masks, one candidate at a time.

    Attributes:
        model: any TransformerLens model.
        examples: the prompts.
        groups: per mask entry the components it switches (anything with kind, layer, index, position, site).
        source: ``(example number, example, answer prefix, hook names) -> activations``; default: the source prompt's.
        base_noise: per example, added to the embeddings of every run under a mask.
    """

    model: Any
    examples: Sequence[Example]
    groups: Sequence[Sequence[Any]]
    source: Source | None = None
    base_noise: Sequence[torch.Tensor] | None = None
    _base: dict[int, Reading] = field(default_factory=dict)

    def _source(self, i: int, e: Example, prefix: list[int], names: list[str]) -> dict[str, torch.Tensor]:
        if self.source is not None:
            return self.source(i, e, prefix, names)
        return activations(self.model, e.source + prefix, names)

    def hooks(self, i: int, e: Example, prefix: list[int], mask: Any) -> list[tuple[str, Callable[..., Any]]]:
        names = list(dict.fromkeys(HOOK[c.kind, c.site].format(c.layer) for g in self.groups for c in g))
        source = self._source(i, e, prefix, names)

        def hook(name: str) -> Callable[..., Any]:
            def apply(act: torch.Tensor, hook: Any) -> torch.Tensor:
                act = act.clone()
                for value, group in zip(mask, self.groups, strict=True):
                    for c in group:
                        if HOOK[c.kind, c.site].format(c.layer) == name:
                            act = self._mixed(act, source[name], value, c, e, prefix)
                return act

            return apply

        return [(name, hook(name)) for name in names]

    @staticmethod
    def _mixed(act: Any, source: Any, value: Any, c: Any, e: Example, prefix: list[int]) -> torch.Tensor:
        aligned = [p for p in range(len(e.base + prefix)) if 0 <= p + e.shift < len(e.source + prefix)]
        for p in covered(c.position, len(e.base), len(e.base + prefix), e.span):
            if p not in aligned:
                continue
            if c.site == "pattern":
                for q in [q for q in aligned if q <= p]:
                    at, there = (0, c.index, p, q), (0, c.index, p + e.shift, q + e.shift)
                    act[at] = act[at] + value * (source[there] - act[at])
            elif c.index is not None:
                act[0, p, c.index] = act[0, p, c.index] + value * (source[0, p + e.shift, c.index] - act[0, p, c.index])
            else:
                act[0, p] = act[0, p] + value * (source[0, p + e.shift] - act[0, p])
        return act

    def read(self, i: int, mask: Any = None) -> Reading:
        """What the model says about example ``i``."""
        e, logps, last = self.examples[i], [], torch.empty(0)
        for candidate in e.candidates:
            prefix = candidate[:-1]
            hooks = [] if mask is None else self.hooks(i, e, prefix, mask)
            noise = None if self.base_noise is None else self.base_noise[i][: len(e.base + prefix)]
            logp = plain_logits(self.model, e.base + prefix, hooks, noise).log_softmax(-1)
            last = logp[len(e.base) - 1]
            logps.append([logp[len(e.base) - 1 + t, token] for t, token in enumerate(candidate)])
        return Reading(logps, len(e.answers), last)

    def effect(self, mask: Any, metric: Callable[[Reading, Reading], Any]) -> torch.Tensor:
        """``metric(mask) - metric(no mask)`` per example."""
        values = torch.as_tensor(mask).tolist()
        found = []
        with torch.no_grad():
            for i in range(len(self.examples)):
                base = self._base[i] = self._base.get(i) or self.read(i)
                found.append(float(metric(self.read(i, values), base)) - float(metric(base, base)))
        return torch.tensor(found, dtype=torch.float64)

    def slope(self, mask: torch.Tensor, direction: torch.Tensor, metric: Any, step: float = 1e-3) -> torch.Tensor:
        """Derivative of the effect along ``direction``, by a central difference of fourth order."""
        around = [self.effect(mask + k * step * direction, metric) for k in (-2, -1, 1, 2)]
        return (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * step)


# --------------------------------------------------------------------------------------------------- metrics
@dataclass(frozen=True)
class Reading:
    """Log probabilities of every candidate's tokens, the first ``n_right`` candidates being answers."""

    logps: list[list[Any]]
    n_right: int
    last: torch.Tensor

    def scores(self, reduce: str = "mean") -> list[Any]:
        return [sum(row) / (len(row) if reduce == "mean" else 1) for row in self.logps]

    def prob(self, right: bool, reduce: str = "mean") -> Any:
        scores = self.scores(reduce)
        chosen = scores[: self.n_right] if right else scores[self.n_right :]
        return sum(math.exp(s) if isinstance(s, float) else s.exp() for s in chosen)


def logit_diff(out: Reading, base: Reading, reduce: str = "mean") -> Any:
    scores, k = out.scores(reduce), out.n_right
    return sum(scores[:k]) / k - sum(scores[k:]) / len(scores[k:])


def odds_ratio(out: Reading, base: Reading, reduce: str = "mean") -> Any:
    odds = [r.prob(True, reduce) / r.prob(False, reduce) for r in (out, base)]
    return odds[0] / odds[1] - 1


def answer_prob(out: Reading, base: Reading, reduce: str = "mean") -> Any:
    return out.prob(True, reduce)


def answer_logprob(out: Reading, base: Reading, reduce: str = "mean") -> Any:
    return out.prob(True, reduce).log()


def prob_diff(out: Reading, base: Reading, reduce: str = "mean") -> Any:
    return out.prob(True, reduce) - out.prob(False, reduce)


def choice_prob(out: Reading, base: Reading, reduce: str = "mean") -> Any:
    return out.prob(True, reduce) / (out.prob(True, reduce) + out.prob(False, reduce))


def perplexity(out: Reading, base: Reading) -> Any:
    return base.prob(True, "mean") / out.prob(True, "mean") - 1


def kl_divergence(out: Reading, base: Reading) -> Any:
    return sum(p.exp() * (p - q) for p, q in zip(base.last, out.last, strict=True))


def accuracy(out: Reading, base: Reading, reduce: str = "mean") -> float:
    scores, k = [float(s) for s in out.scores(reduce)], out.n_right
    rivals = scores[k:] or [float(out.last.max())]
    return float(max(scores[:k]) >= max(rivals))


# ------------------------------------------------------------------------------------------ masks, small things
@contextmanager
def unchecked() -> Iterator[None]:
    """Shape annotations not checked, as in a user's program, where the package's own checks must speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def soft_mask(n: int, seed: int = 0) -> torch.Tensor:
    """Values well inside (0, 1), so that a difference quotient stays inside."""
    return 0.1 + 0.8 * torch.rand(n, generator=generator(seed), dtype=torch.float64)


def binary_mask(n: int, seed: int = 0, share: float = 0.5) -> torch.Tensor:
    return (torch.rand(n, generator=generator(seed)) < share).double()
