"""Causal tracing: which activations, restored in a corrupted run, bring the answer back.

Architectures that were run against a plain loop: as decoders GPT-2, Llama, Qwen 2 and 3 (grouped queries), GPT-NeoX
(parallel attention), Gemma-2 and TransformerLens' own; as masked language models, through ``TransformerBridge``, BERT
(TransformerLens 3 and later) and RoBERTa (4 and later). TransformerLens has no bridge for ESM up to 4.3.
"""

from tl_multitrace.causal_trace.average import average_causal_trace
from tl_multitrace.causal_trace.corruption import TokenReplacement, subject_std
from tl_multitrace.causal_trace.grid import TraceGrid
from tl_multitrace.causal_trace.sweep import causal_trace
from tl_multitrace.causal_trace.tokens import CausalTokens, causal_tokens
from tl_multitrace.records.fact_files import Fact, load_facts

__all__ = [
    "CausalTokens",
    "Fact",
    "TokenReplacement",
    "TraceGrid",
    "average_causal_trace",
    "causal_tokens",
    "causal_trace",
    "load_facts",
    "subject_std",
]
