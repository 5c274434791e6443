"""A prompt as tokens: where its subject is, where the answer is read, and what was meant is not guessed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tl_multitrace.models.compat import ModelView
from tl_multitrace.token_ids import whole_numbers
from tl_multitrace.tokens import Encoder, Span, repeated, spans_in

Prompt = str | Sequence[int] | Int[Tensor, "*one pos"]
Subject = str | Sequence[int] | Literal["all"]
Answer = str | int | Sequence[int] | None


@dataclass(frozen=True)
class Reading:
    """A prompt as tokens, with what its tokenizer can tell about it.

    Attributes:
        view: the model.
        encoder: its tokenizer, if it has one.
        ids: token ids.
        text: the prompt, where it was given as text.
    """

    view: ModelView
    encoder: Encoder | None
    ids: tuple[int, ...]
    text: str | None

    @classmethod
    def of(cls, view: ModelView, prompt: Prompt, prepend_bos: bool | None) -> Reading:
        """Tokenise a prompt, or take its tokens.

        Raises:
            ValueError: no tokens, more than the model takes, or ids that it does not have.
        """
        encoder = Encoder.of(view, prepend_bos) if view.tokenizer is not None or isinstance(prompt, str) else None
        if isinstance(prompt, str):
            assert encoder is not None
            made = cls(view, encoder, tuple(encoder.prompt(prompt)), prompt)
        else:
            made = cls(view, encoder, _given_ids(prompt), None)
        made._check_ids()
        return made

    def _check_ids(self) -> None:
        d_vocab, n_ctx = self.view.d_vocab, self.view.n_ctx
        outside = [i for i in self.ids if not 0 <= i < d_vocab]
        if outside:
            raise ValueError(
                f"the prompt holds the id {outside[0]}, but {self.view.name} has {d_vocab} tokens. Was it tokenised "
                "for another model?"
            )
        if n_ctx and len(self.ids) > n_ctx:
            raise ValueError(f"the prompt has {len(self.ids)} tokens, but {self.view.name} takes {n_ctx}. Shorten it.")

    def words(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Tokens as text; ids in brackets without a tokenizer."""
        return tuple(f"[{i}]" for i in ids) if self.encoder is None else self.encoder.words(ids)

    def doubts(self, subject: Subject) -> tuple[str, ...]:
        """What is doubtful about prompt and subject, in words: unknown tokens, a subject that stands there twice."""
        if self.encoder is None:
            return ()
        places = self._places(subject) if isinstance(subject, str) and subject != "all" else []
        return tuple(filter(None, [repeated(str(subject), places), self.encoder.doubt({"prompt": self.text or ""})]))

    # ------------------------------------------------------------------ the answer

    @property
    def masks(self) -> tuple[int, ...]:
        """Positions of the tokenizer's mask."""
        return self.encoder.masks(self.ids) if self.encoder else ()

    def position(self, given: int | None) -> int:
        """Whose logits predict the answer's first token.

        Raises:
            ValueError: outside the prompt; no mask, or several, where a masked language model was not told which.
        """
        n = len(self.ids)
        if given is not None:
            if not -n <= operator.index(given) < n:
                raise ValueError(f"answer_position {given} is outside the prompt of {n} tokens.")
            return given % n
        if self.encoder is None and self.view.masked:
            raise ValueError(
                f"{self.view.name} fills in masks, and has no tokenizer to find one: pass answer_position=."
            )
        return n - 1 if self.encoder is None else self.encoder.reads_at(self.ids)

    def answer(self, answer: Answer, position: int) -> tuple[int, ...]:
        """Ids of an answer that is read at ``position``; none for the model's own.

        Raises:
            ValueError: empty, unknown to the tokenizer, not a continuation of the prompt, or several tokens at a place
                where one is predicted.
        """
        ids = () if answer is None else self._text_answer(answer) if isinstance(answer, str) else self._ids_of(answer)
        if len(ids) > 1 and (self.view.masked or position != len(self.ids) - 1):
            raise ValueError(
                f"the answer {''.join(self.words(ids))!r} has {len(ids)} tokens, but position {position} predicts one. "
                "Choose an answer of one token."
            )
        return ids

    def _ids_of(self, answer: Any) -> tuple[int, ...]:
        try:
            whole = whole_numbers(answer, "the answer's ids").reshape(-1).tolist()
        except (TypeError, ValueError, RuntimeError):
            whole = []
        # all but the last are fed to the model again
        bounds = [*[self.view.d_vocab] * (len(whole) - 1), self.view.d_vocab_out]
        if not whole or not all(0 <= i < bound for i, bound in zip(whole, bounds, strict=True)):
            raise ValueError(
                f"the answer {answer!r} must be text, or hold token ids from 0 to {self.view.d_vocab_out - 1}."
            )
        return tuple(whole)

    def _text_answer(self, answer: str) -> tuple[int, ...]:
        if self.encoder is None:
            raise ValueError(f"{self.view.name} has no tokenizer: give the answer {answer!r} as token ids.")
        return self._ids_of(self.encoder.answer(self.text or "", answer))

    # ------------------------------------------------------------------ the subject

    def span(self, subject: Subject) -> Span:
        """``[start, stop)`` positions of a subject.

        Raises:
            ValueError: not in the prompt, not at token boundaries, outside, or nothing but the mask.
        """
        if isinstance(subject, str):
            found = self._everything() if subject == "all" else self._places(subject)[0]
        else:
            found = self._inside(subject)
        if all(p in self.masks for p in range(*found)):
            raise ValueError(f"the subject {subject!r} holds nothing but the mask, which is not corrupted.")
        return found

    def _inside(self, subject: Sequence[int]) -> Span:
        try:
            start, stop = (int(p) for p in subject if int(p) == p)
        except (TypeError, ValueError):
            raise ValueError(
                f"the subject {subject!r} must be a part of the prompt, a (start, stop) span of positions, or 'all'."
            ) from None
        n = len(self.ids)
        start, stop = start + n * (start < 0), stop + n * (stop < 0)
        if not 0 <= start < stop <= n:
            raise ValueError(
                f"the subject span ({start}, {stop}) must lie in the prompt's {n} tokens and not be empty."
            )
        return start, stop

    def frame(self) -> tuple[int, int]:
        """How many special tokens stand in front of the prompt and after it; a mask is none of them."""
        special = self._specials()
        said = [p for p, i in enumerate(self.ids) if i not in special or p in self.masks]
        if not said:
            return 0, 0
        return said[0], len(self.ids) - 1 - said[-1]

    def _specials(self) -> set[Any]:
        if self.encoder is None:
            return set()
        before, after = self.encoder.frame or ((), ())
        named = [getattr(self.encoder.tokenizer, f"{n}_token_id", None) for n in ("bos", "eos", "cls", "sep")]
        # TransformerLens gives an encoder's tokenizer a BOS that it may not know: that is no separator
        unknown = getattr(self.encoder.tokenizer, "unk_token_id", None) if self.encoder.frame is not None else None
        return {*named, *before, *after} - {unknown}

    def _everything(self) -> Span:
        # a corrupted BOS breaks the model altogether, and separators are not what is said
        before, after = self.frame()
        return before, len(self.ids) - after

    def _places(self, subject: str) -> list[Span]:
        if self.encoder is None:
            raise ValueError(
                f"{self.view.name} has no tokenizer: give the subject {subject!r} as a (start, stop) span."
            )
        if self.text is not None:
            return self.encoder.spans(self.text, subject)
        words = self.words(self.ids)
        ends = [sum(len(w) for w in words[: p + 1]) for p in range(len(words))]
        return spans_in("".join(words), list(zip([0, *ends[:-1]], ends, strict=True)), subject)


def _given_ids(prompt: Any) -> tuple[int, ...]:
    """The ids of one prompt that was given as tokens."""
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"the prompt {prompt!r} must be text, or a list of token ids.") from None
    if not ids.numel():
        raise ValueError("the prompt has no tokens.")
    if ids.ndim > 2 or (ids.ndim == 2 and len(ids) > 1):
        raise ValueError(
            f"the prompt is a tensor of shape {tuple(ids.shape)}: one prompt is traced at a time, as [pos]."
        )
    return tuple(whole_numbers(ids, "the prompt's ids").reshape(-1).tolist())
