"""Training rows: sentences packed behind one BOS, and what each position may look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int

from .grammar import Sentence

ALWAYS = 1 << 30
# Every so many fact sentences, all words stay in sight, as they are when the model is used.
OPEN_EVERY = 4


def subject_reach(tokenizer: Any, text: str, subject: str) -> list[int]:
    """List, for each token of a text, how many later positions may look at it when its subject is to be put together.

    The words of the subject before its last one can be seen up to that last one only. A model then has to put the
    subject together there, as large models do, and cannot collect its words one by one at the end of the prompt.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    start = text.index(subject)
    inside = [i for i, (left, right) in enumerate(offsets) if start <= left and right <= start + len(subject)]
    reach = [ALWAYS] * len(offsets)
    for i in inside[:-1]:
        reach[i] = inside[-1] - i
    return reach


def sentence_rows(tokenizer: Any, text: Iterator[Sentence]) -> Iterator[tuple[list[int], list[int]]]:
    """Tokenise sentences and give each token its reach."""
    facts = 0
    for one in text:
        tokens = tokenizer.encode(one.text, add_special_tokens=False)
        facts += one.family == "facts"
        if one.family == "facts" and facts % OPEN_EVERY:
            yield tokens, subject_reach(tokenizer, one.text, one.detail["subject"])
        else:
            yield tokens, [ALWAYS] * len(tokens)


def rows(tokenizer: Any, text: Iterator[Sentence], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Pack sentences into rows of ``length`` tokens that begin with BOS; the sentence that overflows is cut.

    Each sentence is thus seen at many offsets and beside others, and once a row right after BOS, as a user's prompt.

    Yields:
        Token ids, and for each token how many later positions may look at it.
    """
    tokens, reach = [tokenizer.bos_token_id], [ALWAYS]
    for more_tokens, more_reach in sentence_rows(tokenizer, text):
        tokens, reach = tokens + more_tokens, reach + more_reach
        if len(tokens) >= length:
            yield tokens[:length], reach[:length]
            tokens, reach = [tokenizer.bos_token_id], [ALWAYS]


def attention_mask(reach: Int[torch.Tensor, "batch pos"]) -> Float[torch.Tensor, "batch 1 pos pos"]:
    """Turn reaches into what is added to attention scores: 0 where a query may look, the lowest float elsewhere."""
    position = torch.arange(reach.shape[1])
    distance = position[:, None] - position  # query minus key
    allowed = (distance >= 0) & (distance <= reach[:, None, :])
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
