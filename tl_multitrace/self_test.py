"""Does tracing work on this model, with this TransformerLens? Small runs whose right answers are known.

For every kind of component, in two layers: the mask of zeros is the base run, and the mask of ones is what
TransformerLens gives with the source run's activations put in by plain hooks of its own. Prompts are a few random
tokens, so that any model can be asked.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.cost import HookError
from tl_multitrace.engine.forward import Forward, padded, run, session
from tl_multitrace.groups import HookGroups, MissingError
from tl_multitrace.models.compat import ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.spec import groups_from_text
from tl_multitrace.tracer import Tracer

Status = Literal["ok", "warning", "failed", "left out"]

KINDS = {
    "heads": "heads",
    "attention patterns": "heads:pattern",
    "neurons": "neurons",
    "MLP layers": "mlps",
    "attention layers": "attn",
    "residual stream": "resid",
}
"""What is tried, as text for :func:`~tl_multitrace.spec.groups_from_text`."""

PROMPTS, WIDTH = 4, 8

NEW_TOKENS = 6
"""Tokens that are generated with and without stored keys and values."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.2}
"""Largest difference from the plain run, as a share of the largest effect; batches and restarts round differently."""

_HIDDEN = (
    (r"//[^/@\s]+@", "//"),
    (r"hf_\w{8,}", "<token>"),
    (r"(?<![\w./<])/(?!/)[^\s'\"]+", "<path>"),
    (r"\b[A-Za-z]:\\[^\s'\"]*", "<path>"),
)
"""What an error message may hold and a bug report must not: passwords in addresses, tokens, paths."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: what.
        status: ``"ok"``, ``"warning"`` where it works but costs more, ``"failed"``, or ``"left out"`` where it does not
            apply.
        found: what came out, in a line.
        remedy: what to do where it failed.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def public(text: object) -> str:
    """A message on one line, without paths, home folder or tokens."""
    line = " ".join(str(text).split())
    home = str(Path.home())  # which may hold spaces, as no other path here may
    for pattern, instead in ((re.escape(home) + r"[^\s'\"]*", "<path>"), *_HIDDEN) if len(home) > 1 else _HIDDEN:
        line = re.sub(pattern, instead, line)
    return line[:400]


def tried(name: str, work: Callable[[], str], remedy: str) -> Check:
    """A check from a function that says what it found, or raises."""
    try:
        return Check(name, "ok", work())
    except Exception as error:  # whatever goes wrong on a user's machine is what the report is for
        return Check(name, "failed", f"{type(error).__name__}: {public(error)}", remedy)


class Disagreement(ArithmeticError):
    """A run that is not what it should be."""


# ---------------------------------------------------------------------- the tests


@dataclass
class SelfTest:
    """Small runs on one model.

    Attributes:
        model: a TransformerLens model.
        kinds: component kinds that work, as they are found.
    """

    model: Any
    kinds: list[str] = field(default_factory=list)

    @cached_property
    def view(self) -> ModelView:
        """The model."""
        return ModelView(self.model)

    @cached_property
    def pairs(self) -> PromptPairs:
        """A few random prompts of one length, without special tokens."""
        special = set(getattr(self.view.tokenizer, "all_special_ids", None) or ())
        usable = torch.tensor([i for i in range(min(self.view.d_vocab, 4096)) if i not in special])
        width = min(WIDTH, max(1, (self.view.n_ctx or WIDTH) - 1))
        draw = torch.Generator().manual_seed(0)
        base, source = (usable[torch.randint(len(usable), (PROMPTS, width), generator=draw)] for _ in range(2))
        answers = usable[torch.randperm(len(usable), generator=draw)[: 2 * PROMPTS]]
        full = torch.full((PROMPTS,), width)
        return PromptPairs.from_tokens(base, source, answers[:PROMPTS], answers[PROMPTS:], lengths=full)

    def groups(self, kind: str) -> HookGroups:
        """Components of a layer in the middle and of the last that has them: runs restart, large models stay quick.

        Raises:
            MissingError: no layer has any.
        """
        everything = groups_from_text(self.model, kind)
        there = sorted(set(everything.first_layers.tolist()))
        chosen = np.isin(everything.first_layers, [there[len(there) // 2], there[-1]])
        return everything[torch.from_numpy(chosen)]

    def checks(self) -> Iterator[Check]:
        """Everything, one after the other."""
        if self.view.masked:
            yield Check("hooks", "left out", "a masked language model: only causal_trace and causal_tokens apply")
            return
        for name, kind in KINDS.items():
            yield self._of_kind(name, kind)
        yield tried("gradients", self._gradients, "use solvers that need none: Greedy(), TopK()")
        yield tried("generation", self._generation, "load the model with tl_multitrace.load_model, which mends this")
        if self.kinds:
            yield from self._optimisations()
        yield tried("speed", self._speed, "report this, with the whole output")

    def _of_kind(self, name: str, kind: str) -> Check:
        try:
            self.groups(kind)
        except MissingError as error:
            return Check(name, "left out", public(error))
        check = tried(name, lambda: self._identities(kind), _remedy(kind))
        if check.status == "ok":
            self.kinds.append(kind)
        return check

    def tracer(self, kind: str) -> Tracer:
        """A tracer over two layers' components."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a model in train mode
            return Tracer(self.model, self.pairs, self.groups(kind))

    def _identities(self, kind: str) -> str:
        tracer = self.tracer(kind)
        groups, n = tracer.groups, len(tracer.groups)
        last = (groups.first_layers == groups.first_layers.max()).astype(np.float32)
        both = np.stack([np.zeros(n), np.ones(n), last]).astype(np.float32)
        effects = tracer.effects(torch.from_numpy(both)).double().cpu()
        if bool((effects[0] != 0).any()):
            raise Disagreement(f"the mask of zeros changes the metric by {float(effects[0].abs().max()):.3g}")
        wanted = [self._plain(groups, mask) for mask in both]
        error = max(float((effects[i] - (wanted[i] - wanted[0])).abs().max()) for i in (1, 2))
        size = max(float((wanted[1] - wanted[0]).abs().max()), float(effects.abs().max()))
        allowed = TOLERANCE.get(self.view.dtype, 1e-3) * max(size, 1e-3)
        if not error <= allowed:
            raise Disagreement(f"the mask of ones is off the source run by {error:.3g} (effects are up to {size:.3g})")
        return f"mask 0 is the base run, mask 1 the source run (to {error:.1g} of {size:.2g} nats)"

    def _plain(self, groups: HookGroups, mask: Float[np.ndarray, " groups"]) -> Float[Tensor, " n"]:
        """The metric with the source run's activations put in whole, by hooks of TransformerLens alone."""
        chosen = {s.hook_name for sites, on in zip(groups.sites, mask, strict=True) if on for s in sites}
        with torch.no_grad(), session(self.view):
            seen = run(self.view, replace(self._run(self.pairs.source_tokens), keep=frozenset(chosen))).kept
            # put in whole, not mixed in: a wrong mix is what is looked for
            logits = self._last(replace(self._run(self.pairs.base_tokens), hide=seen))
        right, wrong = self.pairs.candidates[:, 0, 0], self.pairs.candidates[:, 1, 0]
        return logits.gather(1, right[:, None])[:, 0] - logits.gather(1, wrong[:, None])[:, 0]

    def _run(self, tokens: Int[Tensor, "n pos"]) -> Forward:
        return padded(tokens.tolist(), self.view.device)

    def _last(self, forward: Forward) -> Float[Tensor, "n vocab"]:
        return run(self.view, forward).logits[:, -1].double().cpu()

    def _any_kind(self) -> str:
        if not self.kinds:
            raise HookError("no kind of component works")
        return self.kinds[0]

    def _gradients(self) -> str:
        tracer = self.tracer(self._any_kind())
        gradient = tracer.gradient(torch.full((len(tracer.groups),), 0.5))
        if not bool((gradient != 0).any()):
            raise Disagreement("the derivative to the mask is zero everywhere")
        return f"reach the mask, largest {float(gradient.abs().max()):.2g} nats"

    def _generation(self) -> str:
        """Greedy text with stored keys and values is the text without."""
        generate = getattr(self.model, "generate", None)
        if generate is None:
            return "this model does not generate"
        room = min(NEW_TOKENS, self.view.n_ctx - self.pairs.base_tokens.shape[1] if self.view.n_ctx else NEW_TOKENS)
        options = {"max_new_tokens": room, "do_sample": False, "stop_at_eos": False, "verbose": False}
        prompt = self.pairs.base_tokens[:1].to(self.view.device)
        with torch.no_grad(), self.view.modes_kept():  # a HookedTransformer's own generate() leaves evaluation mode on
            stored, whole = (generate(prompt, use_past_kv_cache=on, **options) for on in (True, False))
        differ = (stored != whole).flatten().nonzero()
        if len(differ):
            new = int(differ[0]) - prompt.shape[1] + 1
            raise Disagreement(
                f"greedy text with stored keys and values differs from the text without, from new token {new} on: "
                "what model.generate() writes is wrong"
            )
        return f"{room} greedy tokens are the same with and without stored keys and values"

    def _optimisations(self) -> Iterator[Check]:
        """What is tried on a model before it is relied on, each on or off."""
        tracer = self.tracer(self._any_kind())
        trials = tracer.batches.runs.trials
        _ = trials.start_tokens, trials.padding
        for trial in trials.done.values():
            said = f"on ({trial.why})" if trial.on else f"off, because {public(trial.why)}"
            yield Check(trial.name, "ok" if trial.on else "warning", said, "runs are right without, and cost more")

    def _speed(self) -> str:
        with torch.no_grad(), session(self.view):
            seconds = min(self._timed() for _ in range(3))
        return f"{1000 * seconds:.1f} ms per forward of {self.pairs.base_tokens.numel()} tokens"

    def _timed(self) -> float:
        began = time.perf_counter()
        self._last(self._run(self.pairs.base_tokens))  # comes to the CPU, so that a GPU has finished
        return time.perf_counter() - began


def _remedy(kind: str) -> str:
    if kind == "heads:pattern":
        return "use heads(model) (site='z'), or another version of TransformerLens"
    return "use other components, or another version of TransformerLens; if none works, report this"
