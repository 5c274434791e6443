"""Small masked language models with random weights, built offline, and a tokenizer that frames what it reads."""

from __future__ import annotations

from typing import Any

from tiny_models import D_MLP, D_MODEL, D_VOCAB, HAS_BRIDGE, N_CTX, N_HEADS, N_LAYERS, TL_MAJOR, forked_rng, randomise
from tiny_tokenizer import WORDS

MASKED = ["bert", "roberta"][: 0 if not HAS_BRIDGE else 1 if TL_MAJOR < 4 else 2]
"""Architectures that the installed TransformerLens can bridge; it has no bridge for ESM up to 4.3."""

NO_BRIDGE = "masked language models need TransformerBridge, which this TransformerLens does not have"
SPECIAL = ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")


def masked_tokenizer() -> Any:
    """One token per word, ``<cls>`` in front and ``<sep>`` at the end, as BERT's tokenizer does; with offsets."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", special_tokens=[("<cls>", SPECIAL.index("<cls>")), ("<sep>", SPECIAL.index("<sep>"))]
    )
    named = {f"{word.strip('<>')}_token": word for word in SPECIAL}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, name_or_path="tiny-masked", **named
    )
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


def masked_model(kind: str, tokenizer: Any = None, seed: int = 0) -> Any:
    """A bridge around a tiny encoder of this architecture, in eval mode."""
    import transformers
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    prefix = {"bert": "Bert", "roberta": "Roberta"}[kind]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=D_MLP,
        max_position_embeddings=N_CTX,
        pad_token_id=SPECIAL.index("<pad>"),
        attn_implementation="eager",
    )
    with forked_rng(seed):
        hf = getattr(transformers, f"{prefix}ForMaskedLM")(config)
        randomise(hf, seed)
        bridge = build_bridge_from_module(hf.eval(), type(hf).__name__, hf_config=config, tokenizer=tokenizer)
    return bridge.eval()
