"""AntiBERTy, a masked language model of antibodies: it knows a heavy chain's framework, not the tip of its loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE

pytestmark = [
    pytest.mark.real,
    pytest.mark.moves_rng,  # loading draws weights first
    pytest.mark.skipif(not HAS_BRIDGE, reason="masked language models need TransformerBridge"),
]

HEAVY_CHAIN = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"
    "VSYLSTASSLDYWGQGTLVTVSS"
)


@pytest.fixture(scope="module")
def model(real_models: Path) -> Any:
    return mt.load_model(str(real_models / "antiberty"))


@pytest.fixture(scope="module")
def masked(model: Any) -> mt.PromptPairs:
    """One prompt for each residue, with that residue masked and as the answer."""
    tokens = torch.tensor(model.tokenizer(" ".join(HEAVY_CHAIN))["input_ids"])
    at = torch.arange(1, len(HEAVY_CHAIN) + 1)
    prompts = tokens.repeat(len(at), 1)
    prompts[at - 1, at] = model.tokenizer.mask_token_id
    return mt.PromptPairs.from_tokens(prompts, prompts, tokens[at], answer_positions=at)


@pytest.fixture(scope="module")
def probabilities(model: Any, masked: mt.PromptPairs) -> torch.Tensor:
    """Of each true residue, as the metric reads it: ``[residue]``."""
    return mt.Tracer(model, masked, mt.heads(model), metric=mt.AnswerProb()).base_metric


def test_it_knows_the_framework_and_not_the_loop(probabilities: torch.Tensor) -> None:
    assert probabilities.mean().item() == pytest.approx(0.90, abs=0.005)
    conserved = {22: "C", 36: "W", 96: "C"}  # by their place in the chain, from 1
    assert all(HEAVY_CHAIN[place - 1] == residue for place, residue in conserved.items())
    assert min(probabilities[place - 1] for place in conserved) > 0.985
    assert probabilities[98:103].max() < 0.085  # where antibodies differ most


def test_it_is_the_model_in_its_own_class(
    probabilities: torch.Tensor, masked: mt.PromptPairs, real_models: Path
) -> None:
    plain = transformers.BertForMaskedLM.from_pretrained(real_models / "antiberty").eval()
    some = torch.arange(0, len(masked), 5)
    with torch.no_grad():
        logits = plain(masked.base_tokens[some]).logits[torch.arange(len(some)), some + 1]
    expected = logits.softmax(-1)[torch.arange(len(some)), masked.candidates[some, 0, 0]]
    torch.testing.assert_close(probabilities[some], expected, atol=1e-5, rtol=0)
