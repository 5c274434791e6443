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

BY_DAY = {
    *("BambaForCausalLM", "BloomForCausalLM", "Gemma4ForCausalLM-shared", "GptOssForCausalLM", "LlamaForCausalLM"),
    *("OpenAIGPTLMHeadModel", "OPTForCausalLM-projected", "RwkvForCausalLM"),
}
"""Swept whenever the suite runs: one of each kind that once went wrong. All others run with ``-m nightly``."""

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
    assert set(lines_of(PAGE.read_text())) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in BY_DAY else pytest.mark.nightly) for n in ARCHITECTURES if n not in BROKEN],
)
def test_every_number_is_the_plain_loops(name: str) -> None:
    architecture = ARCHITECTURES[name]
    if architecture.name not in factory():
        pytest.skip("this TransformerLens does not know it")
    row = Sweep(ready(architecture), architecture.tolerance).run()
    *kinds, bound = page_row(name).rstrip(" |").split("|")
    *ours, _ = line(name, row).rstrip(" |").split("|")
    assert ours == kinds, "the page says otherwise: python tests/architectures/table.py " + name
    assert not row.works or row.error <= 10 * float(bound)


@pytest.mark.parametrize("name", BROKEN)
def test_what_transformer_lens_itself_cannot_run(name: str) -> None:
    with pytest.raises(AttributeError):
        ready(ARCHITECTURES[name])
