"""What is asked of the model: a prompt, the subject in it, and the answer with its probability.

Text becomes tokens here, once. For a masked language model the answer is read at the mask, whose place is found in the
prompt; for the others at the prompt's end.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.compat import ModelView, tracing
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tokens import Encoder

Prompt = str | Sequence[int] | Int[Tensor, " pos"]
Subject = str | Sequence[int] | Literal["all"]
Answer = str | int | Sequence[int] | None
Span = tuple[int, int]


@dataclass(frozen=True)
class Question:
    """A prompt with its subject and answer, as tokens.

    Attributes:
        ids: token ids, BOS included where the model wants one.
        words: each token as text; ids in brackets without a tokenizer.
        subject: ``[start, stop)`` positions that are corrupted.
        answer: token ids of the answer.
        answer_text: the answer as text.
        answer_position: whose logits predict the answer's first token.
        probability: of the whole answer, in the clean run.
        rank: of the answer's first token among the clean run's predictions; 0 is the top one.
        top: the clean run's top prediction as text.
        pad_id: id that fills padding.
    """

    ids: tuple[int, ...]
    words: tuple[str, ...]
    subject: Span
    answer: tuple[int, ...]
    answer_text: str
    answer_position: int
    probability: float
    rank: int
    top: str
    pad_id: int = 0

    @classmethod
    def ask(
        cls,
        model: Any,
        prompt: Prompt,
        subject: Subject,
        answer: Answer = None,
        *,
        answer_position: int | None = None,
        prepend_bos: bool | None = None,
    ) -> Question:
        """Tokenise, find the subject, and run the model once for its answer.

        Args:
            model: a TransformerLens model.
            prompt: text or token ids.
            subject: a part of the prompt, a ``(start, stop)`` span of positions, or ``"all"`` (every token but BOS).
            answer: text with its leading space, or token ids; default: the model's own top prediction.
            answer_position: default: the mask of a masked language model, else the prompt's last token.
            prepend_bos: for text; default: what TransformerLens does for this model.

        Raises:
            ValueError: an empty prompt; a subject that is not in it, splits a token, or lies outside; an answer that
                does not continue the prompt.
        """
        view = ModelView(model)
        with _unnumbered():
            reading = _Reading.of(view, prompt, prepend_bos)
            span = reading.span(subject)
            position = reading.position(answer_position)
            given = reading.answer(answer)
        logp = clean_run(view, [*reading.ids, *given[:-1]], position, max(1, len(given)))
        answer_ids = given or (int(logp[0].argmax()),)
        picked = logp[torch.arange(len(answer_ids)), list(answer_ids)]
        return cls(
            ids=reading.ids,
            words=reading.words(reading.ids),
            subject=span,
            answer=answer_ids,
            answer_text="".join(reading.words(answer_ids)),
            answer_position=position,
            probability=float(picked.sum().exp()),
            rank=int((logp[0] > logp[0, answer_ids[0]]).sum()),
            top="".join(reading.words([int(logp[0].argmax())])),
            pad_id=reading.encoder.pad_id if reading.encoder else 0,
        )

    @property
    def text(self) -> str:
        """The prompt as text."""
        return "".join(self.words)

    @property
    def predicted(self) -> bool:
        """Whether the answer's first token is the model's top prediction."""
        return self.rank == 0

    def warn_unpredicted(self) -> str | None:
        """Warn where the answer is not what the model predicts; the warning's text, or None."""
        if self.predicted:
            return None
        note = (
            f"the model does not predict the answer {self.answer_text!r}: its rank is {self.rank} (0 is the top), with "
            f"probability {self.probability:.3g}; the top prediction is {self.top!r}. A trace then follows an answer "
            "that is hardly there. Leave answer= out to trace the prediction."
        )
        warnings.warn(note, stacklevel=4)
        return note

    def pairs(self, sources: Int[Tensor, "n pos"], bases: Int[Tensor, "n pos"]) -> PromptPairs:
        """Prompt pairs of this question with the given tokens, the subject as a named span."""
        n = len(bases)
        pairs = PromptPairs.from_tokens(
            bases,
            sources,
            [[list(self.answer)]] * n,
            lengths=[len(self.ids)] * n,
            answer_positions=[self.answer_position] * n,
        )
        return replace(pairs, spans={"subject": torch.tensor([self.subject] * n)}, pad_id=self.pad_id)


@dataclass(frozen=True)
class _Reading:
    """A prompt as tokens, with what its tokenizer can tell about it."""

    view: ModelView
    encoder: Encoder | None
    ids: tuple[int, ...]
    text: str | None
    special: bool = False

    @classmethod
    def of(cls, view: ModelView, prompt: Prompt, prepend_bos: bool | None) -> _Reading:
        encoder = Encoder.of(view, prepend_bos) if view.tokenizer is not None or isinstance(prompt, str) else None
        if not isinstance(prompt, str):
            ids = torch.as_tensor(prompt).reshape(-1).tolist()
            if not ids:
                raise ValueError("the prompt has no tokens.")
            return cls(view, encoder, tuple(int(i) for i in ids), None)
        assert encoder is not None
        mask = getattr(encoder.tokenizer, "mask_token", None)
        if mask and mask in prompt:  # a masked language model wants its separators as well
            return cls(view, encoder, tuple(encoder.tokenizer(prompt)["input_ids"]), prompt, special=True)
        return cls(view, encoder, tuple(encoder.prompt(prompt)), prompt)

    def words(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"[{i}]" for i in ids) if self.encoder is None else self.encoder.words(ids)

    @property
    def mask_positions(self) -> list[int]:
        mask = getattr(self.encoder.tokenizer, "mask_token_id", None) if self.encoder else None
        return [] if mask is None else [p for p, i in enumerate(self.ids) if i == mask]

    def position(self, given: int | None) -> int:
        n = len(self.ids)
        if given is None:
            masks = self.mask_positions
            if len(masks) > 1:
                raise ValueError(f"the prompt has masks at {masks}: say which one is asked with answer_position=.")
            return masks[0] if masks else n - 1
        if not -n <= given < n:
            raise ValueError(f"answer_position {given} is outside the prompt of {n} tokens.")
        return given % n

    def answer(self, answer: Answer) -> tuple[int, ...]:
        if answer is None:
            return ()
        if not isinstance(answer, str):
            ids = [answer] if isinstance(answer, int) else [int(i) for i in answer]
            outside = [i for i in ids if not 0 <= i < self.view.d_vocab]
            if outside or not ids:
                raise ValueError(f"the answer {ids} must hold token ids from 0 to {self.view.d_vocab - 1}.")
            return tuple(ids)
        if self.encoder is None:
            raise ValueError(f"{self.view.name} has no tokenizer: give the answer {answer!r} as token ids.")
        if self.special or self.text is None:
            return tuple(self.encoder.tokenizer(answer, add_special_tokens=False)["input_ids"])
        return tuple(self.encoder.answer(0, self.text, answer))

    def span(self, subject: Subject) -> Span:
        if isinstance(subject, str):
            return self._everything() if subject == "all" else self._find(subject)
        start, stop = (int(p) for p in subject)
        n = len(self.ids)
        start, stop = start + n * (start < 0), stop + n * (stop < 0)
        if not 0 <= start < stop <= n:
            raise ValueError(
                f"the subject span ({start}, {stop}) must lie in the prompt's {n} tokens and not be empty."
            )
        return start, stop

    def _everything(self) -> Span:
        # a corrupted BOS breaks the model altogether, and separators and the mask are not what is said
        special = set(getattr(self.encoder.tokenizer, "all_special_ids", []) if self.encoder else [])
        first = 1 if len(self.ids) > 1 and self.ids[0] in special else 0
        last = len(self.ids) - (1 if self.special and self.ids[-1] in special else 0)
        return first, last

    def _find(self, subject: str) -> Span:
        if self.encoder is None:
            raise ValueError(
                f"{self.view.name} has no tokenizer: give the subject {subject!r} as a (start, stop) span."
            )
        if self.text is not None and not self.special:
            start, stop = self.encoder.span(0, self.text, subject)
            return start, stop
        bounds, text = self._bounds()
        at = text.find(subject) if subject else -1
        if at < 0:
            raise ValueError(f"the subject {subject!r} is not in the prompt {text!r}.")
        inside = [p for p, (a, b) in enumerate(bounds) if b > at and a < at + len(subject) and b > a]
        covered = text[bounds[inside[0]][0] : bounds[inside[-1]][1]]
        if covered.strip() != subject.strip():
            raise ValueError(
                f"the subject {subject!r} does not end at token boundaries; the tokens around it read {covered!r}. Use "
                "that text as the subject."
            )
        return inside[0], inside[-1] + 1

    def _bounds(self) -> tuple[list[Span], str]:
        """Character range of each token, and the text these are of."""
        assert self.encoder is not None
        if self.special and self.text is not None:
            offsets = self.encoder.tokenizer(self.text, return_offsets_mapping=True)["offset_mapping"]
            return [(int(a), int(b)) for a, b in offsets], self.text
        words = self.words(self.ids)
        ends = [sum(len(w) for w in words[: p + 1]) for p in range(len(words))]
        return list(zip([0, *ends[:-1]], ends, strict=True)), "".join(words)


@contextmanager
def _unnumbered() -> Iterator[None]:
    """The errors of prompt sets name the pair; a single prompt has no number."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).removeprefix("pair 0: ")) from None


def clean_run(view: ModelView, ids: Sequence[int], position: int, steps: int) -> Float[Tensor, "steps vocab"]:
    """Log probabilities of the untouched model at ``steps`` positions from ``position`` on."""
    tokens = torch.tensor([list(ids)], device=view.device)

    def gather(act: Tensor, hook: Any) -> Tensor:
        return act[:, position : position + steps].contiguous()

    with tracing(view, [(view.unembed_input, gather)]), torch.no_grad():
        logits = view.run(tokens, torch.ones_like(tokens))
    dtype = torch.float64 if view.dtype == torch.float64 else torch.float32
    return logits[0].to(dtype).log_softmax(-1).cpu()
