"""The demo model's tokenizer: one token per word or punctuation mark.

Spaces separate and are not part of a token, so ``" he"`` and ``"he"`` are the same token; prompts and answers written
for GPT-2's tokenizer (answers with a leading space) work unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tl_multitrace.records.read import load_json
from tl_multitrace.tasks.corpus import DEMO_TOKENIZER

BOS, PAD, UNK = "<|bos|>", "<|pad|>", "<|unk|>"
NAME = DEMO_TOKENIZER


def tokenizer_settings(n_ctx: int) -> dict[str, Any]:
    """Return the contents of ``tokenizer_config.json``.

    ``add_bos_token`` matters: TransformerLens reloads any tokenizer that lacks it by name, which asks the hub.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "add_bos_token": True,
        "padding_side": "right",
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def build_tokenizer(words: Sequence[str]) -> Any:
    """Make the word-level ``tokenizers.Tokenizer`` for a list of words; ids 0, 1, 2 are BOS, PAD, UNK."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocab = {word: index for index, word in enumerate([BOS, PAD, UNK, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    tokenizer.add_special_tokens([BOS, PAD, UNK])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # words and runs of punctuation, with offsets
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])])
    # The word-piece decoder never meets its prefix here; it is used for putting no space before punctuation.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def save_tokenizer(words: Sequence[str], n_ctx: int, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    build_tokenizer(words).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings(n_ctx), indent=2) + "\n")


def load_tokenizer(folder: Path) -> Any:
    """Load the saved tokenizer as a ``PreTrainedTokenizerFast``, without any look-up by name."""
    from transformers import PreTrainedTokenizerFast

    settings = load_json(folder / "tokenizer_config.json")
    del settings["tokenizer_class"]
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), name_or_path=NAME, **settings)
