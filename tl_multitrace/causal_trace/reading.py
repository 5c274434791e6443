"""A prompt as tokens: where its subject is, where the answer is read, and what was meant is not guessed.

A masked language model reads its answer at the mask, whose place is found in the prompt; a decoder at the prompt's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tl_multitrace.compat import ModelView
from tl_multitrace.tokens import Encoder

Prompt = str | Sequence[int] | Int[Tensor, "*one pos"]
Subject = str | Sequence[int] | Literal["all"]
Answer = str | int | Sequence[int] | None
Span = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """A prompt as tokens, with what its tokenizer can tell about it.

    Attributes:
        view: the model.
        encoder: its tokenizer, if it has one.
        ids: token ids.
        text: the prompt, where it was given as text.
        framed: whether separators were put around the text, as masked language models want.
    """

    view: ModelView
    encoder: Encoder | None
    ids: tuple[int, ...]
    text: str | None
    framed: bool = False

    @classmethod
    def of(cls, view: ModelView, prompt: Prompt, prepend_bos: bool | None) -> Reading:
        """Tokenise a prompt, or take its tokens.

        Raises:
            ValueError: no tokens, more than the model takes, or ids that it does not have.
        """
        encoder = Encoder.of(view, prepend_bos) if view.tokenizer is not None or isinstance(prompt, str) else None
        if isinstance(prompt, str):
            assert encoder is not None
            mask = getattr(encoder.tokenizer, "mask_token", None)
            framed = view.masked or bool(mask and mask in prompt)
            ids = encoder.tokenizer(prompt)["input_ids"] if framed else encoder.prompt(prompt)
            made = cls(view, encoder, tuple(ids), prompt, framed)
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

    # ------------------------------------------------------------------ the answer

    @property
    def masks(self) -> tuple[int, ...]:
        """Positions of the tokenizer's mask."""
        mask = getattr(self.encoder.tokenizer, "mask_token_id", None) if self.encoder else None
        return tuple(p for p, i in enumerate(self.ids) if i == mask and mask is not None)

    def position(self, given: int | None) -> int:
        """Whose logits predict the answer's first token.

        Raises:
            ValueError: outside the prompt; no mask, or several, where a masked language model was not told which.
        """
        n = len(self.ids)
        if given is not None:
            if not -n <= given < n:
                raise ValueError(f"answer_position {given} is outside the prompt of {n} tokens.")
            return given % n
        if len(self.masks) > 1:
            raise ValueError(f"the prompt has masks at {list(self.masks)}: say which one is asked by answer_position=.")
        if self.view.masked and not self.masks:
            mask = getattr(getattr(self.encoder, "tokenizer", None), "mask_token", None)
            where = f"put {mask} where the answer belongs" if mask else "pass answer_position="
            raise ValueError(f"{self.view.name} fills in masks, and the prompt has none: {where}.")
        return self.masks[0] if self.masks else n - 1

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
            ids = torch.as_tensor(answer).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            ids = torch.empty(0)
        whole = [] if ids.is_floating_point() else [int(i) for i in ids]
        if not whole or not all(0 <= i < self.view.d_vocab for i in whole):
            raise ValueError(
                f"the answer {answer!r} must be text, or hold token ids from 0 to {self.view.d_vocab - 1}."
            )
        return tuple(whole)

    def _text_answer(self, answer: str) -> tuple[int, ...]:
        if self.encoder is None:
            raise ValueError(f"{self.view.name} has no tokenizer: give the answer {answer!r} as token ids.")
        if not self.framed and self.text is not None:
            return tuple(self.encoder.answer(0, self.text, answer))
        ids = self.encoder.tokenizer(answer, add_special_tokens=False)["input_ids"]
        unknown = getattr(self.encoder.tokenizer, "unk_token_id", None)
        if not ids or unknown in ids:
            raise ValueError(f"the answer {answer!r} is empty, or holds a word this tokenizer does not know ({ids}).")
        return tuple(ids)

    # ------------------------------------------------------------------ the subject

    def span(self, subject: Subject) -> Span:
        """``[start, stop)`` positions of a subject.

        Raises:
            ValueError: not in the prompt, not at token boundaries, outside, or nothing but the mask.
        """
        if isinstance(subject, str):
            found = self._everything() if subject == "all" else self._find(subject)
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
        special = self._separators()
        said = [p for p, i in enumerate(self.ids) if i not in special or p in self.masks]
        if not said:
            return 0, 0
        return said[0], len(self.ids) - 1 - said[-1]

    def _separators(self) -> set[Any]:
        if self.encoder is None:
            return set()
        found = {n: getattr(self.encoder.tokenizer, f"{n}_token_id", None) for n in ("bos", "eos", "cls", "sep", "unk")}
        unknown = found.pop("unk")
        # TransformerLens gives an encoder's tokenizer a BOS that it may not know: that is no separator
        return set(found.values()) - ({unknown} if found["cls"] is not None else set())

    def _everything(self) -> Span:
        # a corrupted BOS breaks the model altogether, and separators are not what is said
        before, after = self.frame()
        return before, len(self.ids) - after

    def _find(self, subject: str) -> Span:
        if self.encoder is None:
            raise ValueError(
                f"{self.view.name} has no tokenizer: give the subject {subject!r} as a (start, stop) span."
            )
        if self.text is not None and not self.framed:
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
        if self.framed and self.text is not None and getattr(self.encoder.tokenizer, "is_fast", False):
            offsets = self.encoder.tokenizer(self.text, return_offsets_mapping=True)["offset_mapping"]
            return [(int(a), int(b)) for a, b in offsets], self.text
        words = self.words(self.ids)
        ends = [sum(len(w) for w in words[: p + 1]) for p in range(len(words))]
        return list(zip([0, *ends[:-1]], ends, strict=True)), "".join(words)


def _given_ids(prompt: Any) -> tuple[int, ...]:
    """The ids of one prompt that was given as tokens."""
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"the prompt {prompt!r} must be text, or a list of token ids.") from None
    if not ids.numel():
        raise ValueError("the prompt has no tokens.")
    if ids.is_floating_point() or ids.ndim > 2 or (ids.ndim == 2 and len(ids) > 1):
        raise ValueError(
            f"the prompt is a {str(ids.dtype).removeprefix('torch.')} tensor of shape {tuple(ids.shape)}: one prompt "
            "is traced at a time, as whole numbers [pos]."
        )
    return tuple(int(i) for i in ids.reshape(-1))


@contextmanager
def unnumbered() -> Iterator[None]:
    """The errors of prompt sets name the pair; a single prompt has no number."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).removeprefix("pair 0: ")) from None
