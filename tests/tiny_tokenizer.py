"""A tokenizer of readable words, in memory, for the vocabulary of the tiny models."""

from __future__ import annotations

from typing import Any

BOS, PAD, UNK = "<bos>", "<pad>", "<unk>"
WORDS = (
    "The the A a doctor nurse teacher engineer secretary farmer old young said that she he her him man woman was is "
    "tired busy very John Mary Tom Anna gave book cup to and went shop When then Paris Rome capital of France Italy "
    "city in one two three , . ?"
).split()


def word_tokenizer(*, leading_space: bool = False, add_bos: bool = False, padding_side: str = "right") -> Any:
    """An in-memory fast tokenizer with one token per word, for the vocabulary of the tiny models.

    Args:
        leading_space: Tell ``"he"`` from ``" he"``, as GPT-2 does, and decode to exactly the text that went in.
            Without it words are split at white space and the two are one token.
        add_bos: Put ``<bos>`` before every text, as the tokenizers of Llama and Gemma do.
        padding_side: ``"right"`` or ``"left"``.

    Returns:
        A ``PreTrainedTokenizerFast`` (offset mapping included); unknown words become ``<unk>``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [BOS, PAD, UNK, *WORDS, *(f"\u0120{word}" for word in WORDS)]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK))
    if leading_space:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:
        core.pre_tokenizer = pre_tokenizers.Whitespace()
    if add_bos:
        core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=BOS,
        unk_token=UNK,
        pad_token=PAD,
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
        name_or_path="tiny-words",
    )
    # TransformerLens reads this note, and loads a tokenizer without it again by its name, from the network.
    # Set afterwards, since transformers 5 would take it for an order to prepend <bos>.
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer
