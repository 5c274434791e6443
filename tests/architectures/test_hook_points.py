"""What a hook point holds is read from a run: widths, experts, hybrids, latent attention; what is refused, and how."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from typing import Any

import pytest
import torch
from configs import ARCHITECTURES, D_MLP, D_MODEL
from sweep import Sweep
from table import ready

import tl_multitrace as mt
from tiny_models import TL_MAJOR, forked_rng
from tl_multitrace.groups import MissingError, Points
from tl_multitrace.groups.outputs import Outputs

pytestmark = [
    pytest.mark.lens,
    pytest.mark.skipif(TL_MAJOR < 4, reason="these architectures come with TransformerLens 4"),
    pytest.mark.filterwarnings("ignore"),
]

model_of = cache(lambda name: ready(ARCHITECTURES[name]))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("OPTForCausalLM-narrow", D_MLP),
        ("FalconForCausalLM", D_MLP),
        ("XGLMForCausalLM", D_MLP),
        ("Lfm2ForCausalLM", 32),
    ],
)
def test_neurons_are_as_many_as_the_activation_has(name: str, width: int) -> None:
    model = model_of(name)
    assert mt.ModelView(model).d_mlp != width  # which the configuration does not say
    assert len(mt.neurons(model, [1])) == width
    with pytest.raises(ValueError, match=rf"L0N{width} is outside .*3 layers of {width} neurons"):
        mt.HookGroups.of(model, [mt.Component("neuron", 0, width)])


@pytest.mark.parametrize(
    "name", ["GptOssForCausalLM-square", "MixtralForCausalLM", "AfmoeForCausalLM", "Qwen3MoeForCausalLM"]
)
def test_neurons_of_experts_are_refused_and_their_outputs_offered(name: str) -> None:
    with pytest.raises(mt.HookError, match=r"mlp\.hook_post is the layer's output.*mlp_dims\(model\), mlps\(model\)"):
        mt.neurons(model_of(name), [2])
    assert len(mt.mlp_dims(model_of(name), [2])) == D_MODEL


def test_a_dense_layer_among_experts_has_neurons(caplog: pytest.LogCaptureFixture) -> None:
    groups = mt.neurons(model_of("Llama4ForCausalLM"))
    assert set(groups.first_layers.tolist()) == {0, 2}
    assert "neurons of layers [0, 2] alone. Layer 1: blocks.1.mlp.hook_post is the layer's output" in caplog.text


@pytest.mark.parametrize(
    "name", ["Lfm2ForCausalLM", "JambaForCausalLM", "Qwen3NextForCausalLM", "GraniteMoeHybridForCausalLM"]
)
def test_hybrids_have_heads_where_they_have_attention(name: str) -> None:
    model = model_of(name)
    for made in (mt.heads, mt.attn_layers):
        assert set(made(model).first_layers.tolist()) == {1}
        with pytest.raises(mt.HookError, match=r"in layer 2: .* Use layers=\[1\] or .*residual\(model\)"):
            made(model, [1, 2])
    checks = {check.name: check for check in mt.doctor(model).checks}
    assert checks["heads"].status == checks["attention layers"].status == "ok"


def test_a_state_space_model_is_told_what_it_has() -> None:
    model = model_of("FalconMambaForCausalLM")
    for made in (mt.heads, mt.neurons, mt.mlps, mt.mlp_dims, mt.attn_layers):
        with pytest.raises(MissingError, match=r"Use residual\(model\), residual\(model, site='post'\)\."):
            made(model)
    checks = {check.name: check.status for check in mt.doctor(model).checks}
    assert (checks["heads"], checks["neurons"], checks["residual stream"]) == ("left out", "left out", "ok")


def test_parts_of_heads_are_not_taken_for_heads() -> None:
    with pytest.raises(
        mt.HookError, match=r"hook_z is cut into 8 parts of 4 numbers, but the layer has 4 heads.*attn_layers"
    ):
        mt.heads(model_of("DeepseekV3ForCausalLM"))
    assert len(mt.heads(model_of("DeepseekV3ForCausalLM-even"))) == 12


def test_a_point_that_breaks_under_edits_is_refused() -> None:
    with pytest.raises(mt.HookError, match=r"fails where a hook at blocks\.0\.hook_resid_mid returns something.*Use "):
        mt.residual(model_of("OPTForCausalLM-projected"), site="mid")


def test_layers_of_unequal_width() -> None:
    model = model_of("LagunaForCausalLM-heads")
    assert [len(mt.heads(model, [layer])) for layer in range(3)] == [4, 2, 4]
    Sweep(model, 1e-5).kind("heads")
    tokens = torch.tensor([[3, 4, 5]])
    for label in ("L1H1", "L2H3"):
        circuit = mt.HookGroups.of(model, [c for c in mt.heads(model) if c.label == label])
        assert circuit.labels == [label]
    with pytest.raises(ValueError, match="L1H2 is outside"):
        mt.HookGroups.of(model, [mt.Component("head", 1, 2)])
    assert model(tokens).isfinite().all()


def test_several_stacks_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"HrmTextForCausalLM is not one stack.*L_blocks and H_blocks"):
        mt.heads(model_of("HrmTextForCausalLM"))


def encoder_decoder(name: str) -> Any:
    import transformers
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    sizes = {"vocab_size": 64, "d_model": 32, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    bart = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))
    }
    own = {
        "T5": {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        "Bart": {**bart, "max_position_embeddings": 32},
    }
    config = getattr(transformers, f"{name}Config")(**sizes, **own[name], attn_implementation="eager")
    with forked_rng(0):
        hf = getattr(transformers, f"{name}ForConditionalGeneration")(config)
        return build_bridge_from_module(hf, type(hf).__name__, hf_config=config).eval()


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_encoder_decoders_are_refused_by_name_wherever_they_come_in(name: str) -> None:
    model = encoder_decoder(name)
    pairs = mt.PromptPairs.from_tokens(torch.tensor([[3, 4]]), torch.tensor([[5, 6]]), [7], [8])
    groups = mt.heads(model_of("GPT2LMHeadModel"))
    for enter in (
        lambda: mt.ModelView(model),
        lambda: mt.heads(model),
        lambda: mt.Tracer(model, pairs, groups),
        lambda: mt.causal_trace(model, [3, 4, 5], subject=(0, 1), answer=[7]),
        lambda: mt.task("professions", model),
    ):
        with pytest.raises(ValueError, match=rf"is an encoder-decoder \({name}ForConditionalGeneration\)"):
            enter()
    found = mt.doctor(model)
    assert [check.name for check in found.failed] == ["model"]
    assert f"is an encoder-decoder ({name}ForConditionalGeneration)" in found.failed[0].found


# ------------------------------------------------------------------------------------ what lies between two components
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("LlamaForCausalLM", set()),
        ("BloomForCausalLM", set()),
        ("OPTForCausalLM-projected", set()),
        ("FalconH1ForCausalLM", {"mamba"}),
        ("Lfm2ForCausalLM", {"conv"}),
        ("JambaForCausalLM", {"mixer"}),
        ("GraniteMoeHybridForCausalLM", {"mixer", "shared_mlp", "moe"}),
        ("GraniteMoeHybridForCausalLM-dense", {"mixer"}),
    ],
)
def test_everything_that_blocks_add_is_kept_along_a_path(name: str, parts: set[str]) -> None:
    found = Outputs.of(model_of(name))
    assert {point.split(".")[2] for point in found.other} == parts


def test_a_path_past_a_part_without_hook_point_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(ARCHITECTURES["Lfm2ForCausalLM"])
    hidden = dict(model.hook_dict)
    for layer in (0, 2):
        del hidden[f"blocks.{layer}.conv.hook_out"]
    monkeypatch.setattr(type(model), "hook_dict", property(lambda self: hidden))
    with pytest.raises(mt.HookError, match=r"cannot be measured.*a token still acts on later ones.*causal_trace"):
        Outputs.of(model)


# ------------------------------------------------------------------------------------------------ one run per model
def test_a_model_is_looked_at_once_and_not_kept_alive() -> None:
    model = ready(ARCHITECTURES["GPT2LMHeadModel"])
    runs: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda *args: runs.append(1))
    first = Points.of(model)
    mt.heads(model), mt.neurons(model)
    assert Points.of(model) is first and len(runs) == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_model_whose_mlp_was_replaced_is_looked_at_again() -> None:
    model = ready(ARCHITECTURES["GPT2LMHeadModel"])
    assert len(mt.neurons(model, [0])) == D_MLP
    mlp = model.original_model.transformer.h[0].mlp
    hf = getattr(mlp, "original_component", mlp)
    with torch.no_grad():
        hf.c_fc.weight = torch.nn.Parameter(hf.c_fc.weight[:, :10].clone())
        hf.c_fc.bias = torch.nn.Parameter(hf.c_fc.bias[:10].clone())
        hf.c_fc.nf = 10
        hf.c_proj.weight = torch.nn.Parameter(hf.c_proj.weight[:10].clone())
    assert len(mt.neurons(model, [0])) == 10
