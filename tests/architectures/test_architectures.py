"""Every text decoder that TransformerLens knows: no number but the plain loop's; what has no hook refused in words."""

from __future__ import annotations

from typing import Any

import pytest
from configs import ARCHITECTURES, BROKEN
from sweep import Sweep
from table import PAGE, line, lines_of, ready

from tiny_models import TL_MAJOR

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.lens,
    pytest.mark.skipif(TL_MAJOR < 4, reason="these architectures come with TransformerLens 4"),
    pytest.mark.filterwarnings("ignore"),
]

ENGINE = {
    "BambaForCausalLM": "a restart gives blocks another container than they expect",
    "BloomForCausalLM": "the last MLP takes the residual too; noise comes after the embedding's norm",
    "DeepseekV4ForCausalLM": "there is no point to restart from",
    "Gemma4ForCausalLM-shared": "later blocks read keys and values of earlier ones",
    "GlmMoeDsaForCausalLM": "a restart gives blocks another container than they expect",
    "MPTForCausalLM": "the last MLP takes the residual too",
    "ModernBertDecoderForCausalLM": "noise comes after the embedding's norm",
    "MptForCausalLM": "the last MLP takes the residual too",
    "OPTForCausalLM-projected": "noise is as wide as the residual stream, the embeddings are not",
    "RwkvForCausalLM": "blocks return three things",
    "Zamba2ForCausalLM": "padding moves gradients through a float32 state by rounding",
    "OpenAIGPTLMHeadModel": "blocks return a list; an attention mask changes what tokens attend to",
}
"""Architectures that fail in the forward, and how."""

NOT_DECODERS = (
    *("ForConditionalGeneration", "ForMaskedLM", "ForCTC", "ForPreTraining", "MTModel", "Classification"),
    *("HubertModel", "Wav2Vec2Model", "ViTModel", "DeiTModel", "BertLMHeadModel"),
)
"""Encoder-decoders, encoders, and models of images and sound, by the ends of their names."""


def factory() -> dict[str, Any]:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return SUPPORTED_ARCHITECTURES


def page_row(name: str) -> str:
    return lines_of(PAGE.read_text())[name]


def test_every_decoder_that_can_be_built_is_swept() -> None:
    import transformers

    swept = {architecture.name for architecture in ARCHITECTURES.values()}
    built = {name for name in factory() if hasattr(transformers, name) and not name.endswith(NOT_DECODERS)}
    assert built <= swept
    assert len(swept) >= 92
    assert set(lines_of(PAGE.read_text())) | set(ENGINE) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in BROKEN])
def test_every_number_is_the_plain_loops(name: str, request: pytest.FixtureRequest) -> None:
    architecture = ARCHITECTURES[name]
    if architecture.name not in factory():
        pytest.skip("this TransformerLens does not know it")
    if name in ENGINE:
        request.applymarker(pytest.mark.xfail(reason=ENGINE[name], strict=False))
    row = Sweep(ready(architecture), architecture.tolerance).run()
    *kinds, bound = page_row(name).rstrip(" |").split("|")
    *ours, _ = line(name, row).rstrip(" |").split("|")
    assert ours == kinds, "the page says otherwise: python tests/architectures/table.py " + name
    assert not row.works or row.error <= 10 * float(bound)


@pytest.mark.parametrize("name", BROKEN)
def test_what_transformer_lens_itself_cannot_run(name: str) -> None:
    with pytest.raises(AttributeError):
        ready(ARCHITECTURES[name])
