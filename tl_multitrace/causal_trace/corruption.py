"""How the subject is corrupted: one object that makes the baseline and the sweep from the same draw.

==============  =====================================================================================================
``gaussian``    noise on the subject's token embeddings (Meng et al. 2022)
``uniform``     the same, uniform in ``[-noise, noise]`` units
``fixed``       every embedding of the subject becomes one fixed vector
``replace``     the subject's tokens become other tokens (symmetric replacement, Zhang and Nanda 2023,
                arXiv:2309.16042), which keeps the model on inputs that it knows
==============  =====================================================================================================
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_multitrace.causal_trace.question import Question
from tl_multitrace.cost import NonFiniteError
from tl_multitrace.interventions import Interchange, Intervention, NoiseCorruption
from tl_multitrace.models.compat import ModelView
from tl_multitrace.models.embeddings import embedding_moments
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.rows import Rows
from tl_multitrace.token_ids import whole_numbers
from tl_multitrace.tokens import Encoder

KINDS = ("gaussian", "uniform", "fixed", "replace")


@dataclass(frozen=True)
class TokenReplacement:
    """Symmetric token replacement: the corrupted prompt has other tokens in the subject's place.

    Args:
        prompts: corrupted prompts as text or token ids, of the clean prompt's length; one sample each.
        among: texts to draw the replacement from, such as other facts' subjects; those of the subject's token count
            are used. Without ``prompts`` and ``among`` tokens are drawn from the vocabulary.
        seed: of the draw.

    Examples:
        >>> from tl_multitrace.causal_trace import TokenReplacement
        >>> prompt, other = "The Falcon Tower is in the city of", "The Maple Tower is in the city of"
        >>> replaced = TokenReplacement([other])
        >>> grid = mt.causal_trace(model, prompt, subject="Falcon", answer=" Rome", corruption=replaced)
        >>> round(grid.total.mean, 1)
        1.0
    """

    prompts: Sequence[Any] | str | None = None
    among: Sequence[str] = ()
    seed: int = 0
    name: ClassVar[str] = "replace"

    def tokens(self, view: ModelView, question: Question, samples: int) -> Int[Tensor, "n pos"]:
        """The corrupted prompts.

        Args:
            view: the model.
            question: the clean prompt and its subject.
            samples: how many prompts.

        Raises:
            ValueError: a given prompt of another length, or nothing of the subject's length to draw from.
        """
        if self.prompts is not None:
            return self._given(view, question)
        width, generator = len(question.corrupted), torch.Generator().manual_seed(self.seed)
        pool = self._pool(view, question, width)
        rows = []
        for _ in range(samples):
            drawn = pool[torch.randint(len(pool), (width if pool.shape[1] == 1 else 1,), generator=generator)].flatten()
            row = torch.tensor(question.ids)
            row[question.corrupted] = drawn
            rows.append(row)
        return torch.stack(rows)

    def _given(self, view: ModelView, question: Question) -> Int[Tensor, "n pos"]:
        given = [] if self.prompts is None or not len(self.prompts) else self.prompts
        single = isinstance(given, str) or (len(given) and isinstance(given[0], int))
        rows = [_ids(view, p, question) for p in ([given] if single else given)]
        if not rows:
            raise ValueError("TokenReplacement(prompts=) is empty: give a corrupted prompt, or leave it out to draw.")
        wrong = next((r for r in rows if len(r) != len(question.ids)), None)
        if wrong is not None:
            raise ValueError(
                f"a replacement prompt has {len(wrong)} tokens, the prompt {question.text!r} has {len(question.ids)}: "
                "positions would not line up. Choose a replacement of the same number of tokens."
            )
        moved = [p for p in question.masks if any(row[p] != question.ids[p] for row in rows)]
        if moved:
            raise ValueError(f"a replacement prompt has no mask at position {moved[0]}, where the answer is read.")
        return torch.tensor(rows)

    def _pool(self, view: ModelView, question: Question, width: int) -> Int[Tensor, "options width"]:
        own = tuple(question.ids[p] for p in question.corrupted)
        if self.among:
            encoder = Encoder.of(view)
            _warn_unknown(encoder, self.among, "text to draw from")
            # as the subject stands in its prompt: with a space in front where it has one there
            space = " " if question.words[question.subject[0]][:1] == " " else ""
            options = {encoder.known(space + t.strip()) for t in self.among}
            fitting = sorted(o for o in options if len(o) == width and o != own)
            if not fitting:
                raise ValueError(
                    f"none of the {len(self.among)} texts to draw from has the subject's {width} tokens. Pass others "
                    "as TokenReplacement(among=...), or corrupt with noise."
                )
            return torch.tensor(fitting)
        special = set(getattr(view.tokenizer, "all_special_ids", []) or [])
        known = min(view.d_vocab, len(view.tokenizer)) if view.tokenizer is not None else view.d_vocab
        words = [i for i in range(known) if i not in special and i not in own]
        return torch.tensor(words)[:, None]


def _ids(view: ModelView, prompt: Any, question: Question) -> list[int]:
    if not isinstance(prompt, str):
        return list(whole_numbers(prompt, "a replacement prompt's ids").reshape(-1).tolist())
    before, after = question.frame  # as the prompt itself was read
    encoder = Encoder.of(view)
    _warn_unknown(encoder, [prompt], "replacement prompt")
    return [*question.ids[:before], *encoder.known(prompt), *question.ids[len(question.ids) - after :]]


def _warn_unknown(encoder: Encoder, texts: Sequence[str], what: str) -> None:
    if doubt := encoder.doubt({f"{what} {i}": text for i, text in enumerate(texts)}):
        warnings.warn(f"{doubt}.", stacklevel=4)


Corruption = NoiseCorruption | TokenReplacement


@dataclass(frozen=True)
class _NoiseOnSubject(NoiseCorruption):
    """Noise on the subject, without the masks in it."""

    masks: tuple[int, ...] = ()

    def _where(self, rows: Rows) -> Bool[Tensor, "rows pos"]:
        where = super()._where(rows)
        where[:, list(self.masks)] = False
        return where


def _sparing(corruption: NoiseCorruption, masks: tuple[int, ...]) -> NoiseCorruption:
    if not masks:
        return corruption
    return _NoiseOnSubject(**{f.name: getattr(corruption, f.name) for f in fields(NoiseCorruption)}, masks=masks)


@dataclass(frozen=True)
class Corrupted:
    """A question under a corruption, ready for a tracer.

    Attributes:
        pairs: one pair per sample.
        intervention: base run corrupted, source run clean.
        record: what was done, for the result: kind, size, unit and what the unit was measured over.
        first: the first corrupted position.
    """

    pairs: PromptPairs
    intervention: Intervention
    record: dict[str, Any]
    first: int = 0

    @classmethod
    def of(
        cls,
        view: ModelView,
        question: Question,
        corruption: Corruption,
        samples: int,
        subjects: Sequence[str] | None = None,
        *,
        restore: bool = True,
    ) -> Corrupted:
        """Put the corruption on the subject of ``samples`` copies of the prompt.

        Args:
            view: the model.
            question: the prompt.
            corruption: what is done to the subject.
            samples: draws; a corruption that draws nothing has one sample.
            subjects: texts whose token embeddings give the unit of the noise.
            restore: the corrupted run is the base and clean activations are restored; False the other way round.
        """
        clean = torch.tensor([question.ids])
        if isinstance(corruption, TokenReplacement):
            tokens = corruption.tokens(view, question, samples)
            same = clean.expand(len(tokens), -1)
            pairs = question.pairs(same, tokens) if restore else question.pairs(tokens, same)
            first = int((tokens != clean).any(0).long().argmax())
            return cls(pairs, Interchange(), _replaced(corruption, len(tokens)), first)
        n = 1 if corruption.kind == "fixed" else samples
        unit, over = noise_unit(view, corruption, question, subjects)
        placed = replace(_sparing(corruption, question.masks), at="subject", restore=restore, std=unit)
        tokens = clean.expand(n, -1)
        record = {**placed.describe(), "unit_of": over, "samples": n}
        return cls(question.pairs(tokens, tokens), placed, record, question.subject[0])


def _replaced(corruption: TokenReplacement, n: int) -> dict[str, Any]:
    origin = "given prompts" if corruption.prompts is not None else "given texts" if corruption.among else "vocabulary"
    return {"name": "replace", "from": origin, "seed": corruption.seed, "samples": n}


def named_corruption(
    corruption: str | Corruption, noise: float, seed: int, subjects: Sequence[str] | None = None
) -> Corruption:
    """A corruption from its name, or itself.

    Raises:
        ValueError: unknown name.
        TypeError: neither a name nor a corruption.
    """
    if isinstance(subjects, str):
        raise ValueError(f"subjects must be a list of texts, got the single string {subjects!r}.")
    if isinstance(corruption, NoiseCorruption | TokenReplacement):
        return corruption
    if not isinstance(corruption, str):
        raise TypeError(
            f"corruption must be one of {', '.join(KINDS)}, a NoiseCorruption or a TokenReplacement, got "
            f"{corruption!r}."
        )
    if corruption == "replace":
        return TokenReplacement(among=tuple(subjects or ()), seed=seed)
    if corruption not in KINDS:
        raise ValueError(f"unknown corruption {corruption!r}: use one of {', '.join(KINDS)}.")
    return NoiseCorruption(noise=noise, seed=seed, kind=corruption, std="embedding")  # type: ignore[arg-type]


def noise_unit(
    view: ModelView, corruption: NoiseCorruption, question: Question, subjects: Sequence[str] | None
) -> tuple[float, str]:
    """The standard deviation that the noise is measured in, and what it is of."""
    if isinstance(corruption.std, int | float):
        return float(corruption.std), "a given number"
    if corruption.kind == "fixed":
        return 1.0, "nothing"
    if subjects is not None:
        return subject_std(view.model, subjects), f"the tokens of {len(subjects)} subjects"
    if corruption.std == "prompts":
        ids = torch.tensor([question.ids[p] for p in question.corrupted])
        return _finite(float(view.embed(ids).float().std()), "this prompt's subject tokens")
    return _finite(embedding_moments(view)[1], "the whole embedding matrix")


def _finite(spread: float, of: str) -> tuple[float, str]:
    """A standard deviation of embeddings and what it is of; refused where it is no number."""
    if not math.isfinite(spread):
        raise NonFiniteError(f"the standard deviation of the embeddings of {of} is {spread}. Check the weights.")
    return spread, of


def subject_std(model: Any, subjects: Sequence[str]) -> float:
    """Standard deviation of the embeddings of all tokens of some texts (the unit of noise in Meng et al. 2022).

    Args:
        model: a TransformerLens model with a tokenizer.
        subjects: texts; each is tokenised as it stands, without BOS.

    Raises:
        ValueError: no subjects.
        NonFiniteError: an embedding is not finite.

    Examples:
        >>> from tl_multitrace.causal_trace import subject_std
        >>> round(subject_std(model, ["Falcon Tower", "Crystal Tower"]), 3)
        0.161
    """
    if not subjects:
        raise ValueError("subject_std needs at least one subject.")
    view = ModelView(model)
    encoder = Encoder.of(view)
    _warn_unknown(encoder, subjects, "subject")
    ids = torch.tensor([i for text in subjects for i in encoder.known(text)])
    return _finite(float(view.embed(ids).float().std()), f"the tokens of {len(subjects)} subjects")[0]


def describe_corruption(record: dict[str, Any]) -> str:
    """A corruption in words."""
    if record["name"] == "replace":
        return f"tokens replaced, from {record['from']}, {record['samples']} samples, seed {record['seed']}"
    if record["kind"] == "fixed":
        return f"embeddings set to {record['value']}"
    return (
        f"{record['kind']} noise of {record['noise']:g} x {record['std']:.4g} (standard deviation of "
        f"{record['unit_of']}), {record['samples']} samples, seed {record['seed']}"
    )
