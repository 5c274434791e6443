"""From text to token ids, with every doubtful case decided or refused."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tl_multitrace.models.compat import ModelView
from tl_multitrace.token_ids import NO_TOKEN as NO_TOKEN
from tl_multitrace.token_ids import pad_rows as pad_rows
from tl_multitrace.token_ids import picks as picks

logger = logging.getLogger(__name__)

Span = tuple[int, int]

NO_TOKENS = "a prompt without tokens"
UNKNOWN = "a word the tokenizer does not know"
LENGTHS = "token lengths differ"
SAME_PROMPT = "base and source are the same tokens"
TOO_LONG = "longer than the model's context"
NO_ANSWER = "an answer does not continue its prompt (does it lack its leading space?)"
SAME_ANSWER = "answer and wrong answer are the same tokens"
SEVERAL = "an answer of several tokens"
SUBJECT = "the subject is not whole tokens"
MASK = "not one mask at the same place in base and source"


class UnfitError(ValueError):
    """Text that a tokenizer cannot use as it is; ``reason`` is one of a few by which such texts are counted."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and what is decided about special tokens.

    Attributes:
        tokenizer: the model's Hugging Face tokenizer.
        bos_id: id put in front of every prompt, or None.
        pad_id: id for padding; never attended to, so any id serves.
        frame: of a masked language model, the separators in front of a prompt and behind it; its answers are read at
            the mask. None for a decoder.
    """

    tokenizer: Any
    bos_id: int | None
    pad_id: int
    frame: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    _texts: dict[tuple[int | None, int], str] = field(default_factory=dict, repr=False)
    _encoded: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, view: ModelView, prepend_bos: bool | None = None) -> Encoder:
        """The encoder of a model.

        Raises:
            ValueError: the model has no tokenizer, or BOS was asked for and the tokenizer or kind of model has none.
        """
        tokenizer = view.tokenizer
        if tokenizer is None:
            raise ValueError(
                f"{view.name} has no tokenizer, so text cannot be read. Set model.tokenizer, or use "
                "PromptPairs.from_tokens."
            )
        pad_id = int(tokenizer.pad_token_id or 0)
        if view.masked:
            if prepend_bos:
                raise ValueError(
                    f"prepend_bos=True, but {view.name} is a masked language model, whose prompts stand between the "
                    "tokenizer's separators. Leave prepend_bos out."
                )
            return cls(tokenizer, None, pad_id, _separators(tokenizer))
        bos_id = _own_bos(view)
        if prepend_bos and bos_id is None:
            raise ValueError("prepend_bos=True, but the tokenizer has no BOS token. Pass prepend_bos=False.")
        return cls(tokenizer, bos_id if (view.prepends_bos if prepend_bos is None else prepend_bos) else None, pad_id)

    # ------------------------------------------------------------------ prompts

    def prompt(self, text: str) -> list[int]:
        """Ids of a prompt, with BOS or separators exactly once where they are wanted; raises for an empty prompt."""
        ids = list(self.known(text))
        before, after = self._around(ids)
        if not (before or ids or after):
            raise UnfitError(NO_TOKENS, f"the prompt {text!r} has no tokens.")
        return [*before, *ids, *after]

    def _around(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """What is put in front of a text and behind it; nothing that it brings itself."""
        before, after = self.frame or ((() if self.bos_id is None else (self.bos_id,)), ())
        front = [] if tuple(ids[: len(before)]) == before else list(before)
        return front, [] if after and tuple(ids[-len(after) :]) == after else list(after)

    def known(self, text: str) -> tuple[int, ...]:
        """Ids of a text alone, without special tokens; remembered, since texts are asked for again and again."""
        found = self._encoded.get(text)
        if found is None:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            found = self._encoded[text] = tuple(ids)
        return found

    def unknown(self, text: str) -> list[str]:
        """The pieces of a text that the tokenizer does not know."""
        unk = getattr(self.tokenizer, "unk_token_id", None)
        if unk is None or unk not in self.known(text):
            return []
        if getattr(self.tokenizer, "is_fast", False):
            pieces = [text[a:b] for (a, b), i in zip(self._bounds(text), self.known(text), strict=True) if i == unk]
        else:  # without offsets, the words that hold one
            pieces = [word for word in text.split() if unk in self.known(word)]
        # GPT-2 calls its end-of-text token the unknown one, and a text may hold that
        return [piece for piece in pieces if piece.strip() != str(self.tokenizer.unk_token)]

    def doubt(self, texts: Mapping[str, str]) -> str:
        """How many tokens of some named texts the tokenizer does not know, and the first, in words; empty for none."""
        strange = [(name, piece) for name, text in texts.items() for piece in self.unknown(text)]
        if not strange:
            return ""
        return (
            f"{len(strange)} tokens are unknown to the tokenizer and read as {self.tokenizer.unk_token}; the first is "
            f"{strange[0][1]!r} ({strange[0][0]}). The model sees no difference between such tokens: write them as it "
            "was trained with (case, spaces)"
        )

    def masks(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Positions of the tokenizer's mask."""
        mask = getattr(self.tokenizer, "mask_token_id", None)
        return () if mask is None else tuple(p for p, i in enumerate(ids) if i == mask)

    def reads_at(self, ids: Sequence[int]) -> int:
        """The position that predicts an answer: the mask of a masked language model, else a prompt's last token."""
        if self.frame is None:
            return len(ids) - 1
        found = self.masks(ids)
        if len(found) > 1:
            raise UnfitError(
                MASK, f"the prompt has masks at {list(found)}: say which one is asked by answer_position=."
            )
        if not found:
            mask = getattr(self.tokenizer, "mask_token", None)
            where = f"put {mask} where the answer belongs" if mask else "pass answer_position="
            raise UnfitError(MASK, f"the model fills in masks, and the prompt has none: {where}.")
        return found[0]

    # ------------------------------------------------------------------ answers

    def answer(self, prompt: str, answer: str, joined: bool = False) -> list[int]:
        """Ids that ``answer`` adds to ``prompt``, or puts at its mask; ``joined``: inside the prompt's last word.

        Raises:
            UnfitError: it does not continue the prompt, is unknown, or has several tokens for one mask.
        """
        if not answer.strip():
            raise UnfitError(NO_ANSWER, f"the answer {answer!r} is empty.")
        ids = self._at_mask(prompt, answer) if self.frame is not None else self._behind(prompt, answer, joined)
        if self.unknown(answer):
            raise UnfitError(UNKNOWN, f"the answer {answer!r} holds a word this tokenizer does not know ({ids}).")
        return ids

    def _at_mask(self, prompt: str, answer: str) -> list[int]:
        ids, mask = list(self.known(answer)), str(getattr(self.tokenizer, "mask_token", None))
        before = prompt.partition(mask)[0][-1:] if mask in prompt else ""
        if before.isspace() and not answer[0].isspace() and self.known(" " + answer) != tuple(ids):
            raise UnfitError(NO_ANSWER, f"the answer {answer!r} has no leading space. Write {' ' + answer!r}.")
        if len(ids) != 1:
            raise UnfitError(SEVERAL, f"the answer {answer!r} has {len(ids)} tokens, but a mask stands for one.")
        return ids

    def _behind(self, prompt: str, answer: str, joined: bool) -> list[int]:
        if joined and self._fits(prompt, answer):
            return list(self.known(answer))
        before, whole = self.known(prompt), self.known(prompt + answer)
        # where white space carries nothing, as between residues, no space is missing
        spaced = whole == self.known(f"{prompt} {answer}")
        if not joined and not spaced and _continues_a_word(prompt[-1:], answer[:1]):
            run_on = (prompt.split()[-1:] or [""])[0] + answer
            raise UnfitError(
                NO_ANSWER,
                f"the answer {answer!r} has no leading space, so it would continue the prompt's last word "
                f"({run_on!r}). Write {' ' + answer!r}.",
            )
        if whole[: len(before)] != before or len(whole) == len(before):
            raise UnfitError(
                NO_ANSWER,
                f"the answer {answer!r} does not tokenise as a continuation of {prompt!r} (the tokenizer merges across "
                "the boundary). Move the space between prompt and answer to the other side, or use from_tokens.",
            )
        return list(whole[len(before) :])

    def _fits(self, prompt: str, answer: str) -> bool:
        """Whether the answer's own tokens put behind the prompt's read as the two texts joined."""
        last, alone = self.known(prompt)[-1:], self.known(answer)
        shown = str(self.tokenizer.decode([*last, *alone]))
        return bool(alone) and shown.endswith(prompt[-1:] + answer)

    # ------------------------------------------------------------------ parts and words

    def spans(self, prompt: str, part: str) -> list[Span]:
        """Token positions ``[start, stop)`` of each place of ``part`` in ``prompt``, special tokens counted."""
        shift = len(self._around(list(self.known(prompt)))[0])
        return [(start + shift, stop + shift) for start, stop in spans_in(prompt, self._bounds(prompt), part)]

    def _bounds(self, text: str) -> list[Span]:
        """Character range of each token, from offsets or, for slow tokenizers, from decoding ever longer prefixes."""
        if getattr(self.tokenizer, "is_fast", False):
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
        ids = self.known(text)
        ends = [len(self.tokenizer.decode(list(ids[: k + 1]))) for k in range(len(ids))]
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def words(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as the text it adds after the one before it, so that the words joined read like the prompt."""
        return tuple(self._added_text(previous, token) for previous, token in zip([None, *ids[:-1]], ids, strict=True))

    def _added_text(self, previous: int | None, token: int) -> str:
        known = self._texts.get((previous, token))
        if known is None:
            before = "" if previous is None else str(self.tokenizer.decode([previous]))
            whole = str(self.tokenizer.decode([token] if previous is None else [previous, token]))
            known = whole[len(before) :] if whole.startswith(before) else str(self.tokenizer.decode([token]))
            self._texts[previous, token] = known
        return known


def _own_bos(view: ModelView) -> int | None:
    """A BOS id that is a token of its own: TransformerLens fills in ``<|endoftext|>``, which may be the unknown one."""
    tokenizer = view.tokenizer
    bos_id, text = tokenizer.bos_token_id, getattr(tokenizer, "bos_token", None)
    named = getattr(tokenizer, "convert_ids_to_tokens", None)
    if bos_id is None or (view.d_vocab and not 0 <= bos_id < view.d_vocab):
        return None
    return None if named and text is not None and named(int(bos_id)) != str(text) else int(bos_id)


def _separators(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a masked language model was trained with around a text."""
    unk, mask = getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "mask_token_id", None)
    cls, sep = (getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "sep"))
    whole = [] if mask is None else [i for i in tokenizer(tokenizer.mask_token)["input_ids"] if i != unk]
    at = whole.index(mask) if mask in whole else 0
    before, after = tuple(whole[:at]), tuple(whole[at + 1 :])
    if cls is None or sep is None or unk in (cls, sep) or (before[:1], after[-1:]) == ((cls,), (sep,)):
        return before, after
    # a bridge reloads a fast tokenizer with add_bos_token=True, and transformers 5 then forgets the template
    logger.info("the tokenizer frames nothing any more: prompts are put between its CLS and SEP (%d, %d)", cls, sep)
    return (cls,), (sep,)


def spans_in(text: str, bounds: Sequence[Span], part: str) -> list[Span]:
    """Tokens ``[start, stop)`` of each place of ``part`` in ``text``, given the characters of each token.

    Raises:
        UnfitError: ``part`` is not there, or nowhere begins and ends at token boundaries.
    """
    at = text.find(part) if part else -1
    if at < 0:
        raise UnfitError(SUBJECT, f"the subject {part!r} is not in the prompt {text!r}.")
    found, around = [], ""
    while at >= 0:
        inside = [t for t, (a, b) in enumerate(bounds) if b > at and a < at + len(part) and b > a]
        covered = text[bounds[inside[0]][0] : bounds[inside[-1]][1]] if inside else ""
        around = around or covered
        if covered.strip() == part.strip():
            found.append((inside[0], inside[-1] + 1))
        at = text.find(part, at + 1)
    if not found:
        raise UnfitError(
            SUBJECT,
            f"the subject {part!r} does not end at token boundaries; the tokens around it read {around!r}. Use that "
            "text as the subject.",
        )
    return found


def repeated(part: str, spans: Sequence[Span]) -> str:
    """A subject that stands in its prompt more than once, in words; empty for one place."""
    if len(spans) < 2:
        return ""
    places = ", ".join(f"[{start}, {stop})" for start, stop in spans)
    return f"the subject {part!r} occurs {len(spans)} times, at the tokens {places}; the first is taken"


def _continues_a_word(before: str, after: str) -> bool:
    """Whether a space is missing between two characters: not between letters without case (Chinese), nor two digits."""
    if before.isdigit() and after.isdigit():
        return False
    caseless = unicodedata.category(before or " ") == unicodedata.category(after or " ") == "Lo"
    return before.isalnum() and after.isalnum() and not caseless
