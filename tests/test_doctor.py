"""``doctor``: facts without secrets, a self-test that fails where something is wrong, exit codes."""

from __future__ import annotations

import getpass
import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_package import pyproject
from typer.testing import CliRunner

import tl_multitrace as mt
from tiny_models import build, few
from tl_multitrace import machine, self_test
from tl_multitrace.cli import app as cli
from tl_multitrace.doctor import SUPPORTED
from tl_multitrace.models.renamed import passes_on_cache
from tl_multitrace.self_test import KINDS, SelfTest, public, tried

pytestmark = pytest.mark.lens

KIND_NAMES = set(KINDS)


@pytest.fixture(scope="module")
def found() -> mt.Diagnosis:
    return mt.doctor()


def by_name(checks: Any) -> dict[str, Any]:
    return {check.name: check for check in checks}


# ----------------------------------------------------------------------------------------------------------- facts
def test_everything_works_here(found: mt.Diagnosis) -> None:
    assert found.ok and not found.failed
    checks = by_name(found.checks)
    assert KIND_NAMES <= set(checks)
    assert all(checks[name].status == "ok" for name in KIND_NAMES)
    assert all(checks[name].found.startswith("on (equal to ") for name in ("block restarts", "token restarts"))
    assert "All checks passed" in repr(found)


def test_the_facts_of_a_bug_report(found: mt.Diagnosis) -> None:
    packages = found.facts["packages"]
    assert packages["tl_multitrace"] == mt.__version__ and packages["torch"] == torch.__version__
    assert packages["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.facts["environment"]["HF_HUB_OFFLINE"] == "1"
    assert "gloo" in found.facts["PyTorch"]["distributed backends"] or not torch.distributed.is_available()
    assert found.facts["model"]["n_layers"] == 4
    assert re.fullmatch(r"[\d.]+ GiB, [\d.]+ GiB free", found.facts["memory"]["machine"])


def test_text_and_json_say_the_same(found: mt.Diagnosis) -> None:
    told, text = json.loads(json.dumps(found.to_dict())), repr(found)
    assert told["ok"] is True and told["format"] == "tl_multitrace.diagnosis"
    assert all(check["found"] in text for check in told["checks"])
    assert all(f"{value}" in text for lines in told["facts"].values() for value in lines.values())


def test_nothing_private_is_told(found: mt.Diagnosis) -> None:
    text = repr(found)
    private = {str(Path.home()), str(Path.cwd()), socket.gethostname(), sys.prefix, str(Path(mt.__file__).parent)}
    private |= {getpass.getuser()} if len(getpass.getuser()) > 4 else set()  # "root" may be part of a word
    assert not [word for word in private - {"/", "localhost"} if word in text]
    assert not re.search(r"(?<![\w.])/[a-z]+/", text)


def test_switches_are_told_and_secrets_are_not() -> None:
    given = {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:128",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "RANK": "/home/someone/secret",
        "PYTHONHASHSEED": "hf_abcdefghijkl",
        "HF_TOKEN": "hf_abcdefghijkl",
        "WORLD_SIZE": "",
    }
    assert machine.switches(given) == {
        **{name: given[name] for name in list(given)[:4]},
        "RANK": "(set)",
        "PYTHONHASHSEED": "(set)",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no file /data/alice/model.bin here", "no file <path> here"),
        ("open 'C:\\Users\\alice\\x.bin'", "open '<path>'"),
        ("see https://huggingface.co/gpt2 and heads/neurons", "see https://huggingface.co/gpt2 and heads/neurons"),
        ("https://alice:word@mirror.example/x", "https://mirror.example/x"),
        ("token hf_AbCdEfGhIjKl refused\n  for ever", "token <token> refused for ever"),
        (f"in {Path.home()}/x", "in <path>"),
    ],
)
def test_error_messages_are_cleaned(text: str, told: str) -> None:
    assert public(text) == told


def test_supported_versions_are_those_that_are_required() -> None:
    first, end = (".".join(map(str, v)) for v in SUPPORTED)
    assert f"transformer-lens>={first},<{end}" in pyproject()["project"]["dependencies"]


@pytest.mark.parametrize("text", ["NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue", "nonsense"])
def test_driver(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "version")
    assert machine.nvidia_driver() is None
    (tmp_path / "version").write_text(text)
    assert machine.nvidia_driver() == ("550.54.15" if "Kernel" in text else None)


def test_a_gpu_that_pytorch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "nvidia_driver", lambda: "550.54.15")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = by_name(mt.doctor("no/such-model").checks)["GPU"]
    assert check.status == "failed" and "550.54.15" in check.found and "pytorch.org" in check.remedy


# ------------------------------------------------------------------------------------------------------- self-test
def test_every_tiny_model_passes(tiny_model: Any) -> None:
    checks = by_name(SelfTest(tiny_model).checks())
    pattern, text = checks.pop("attention patterns"), checks.pop("generation")
    assert not [c for c in checks.values() if c.status == "failed"]
    # of a bridge that nobody has mended, what it generates may be wrong: then the remedy is to load it as we do
    assert text.status == "ok" or (not passes_on_cache(tiny_model) and "tl_multitrace.load_model" in text.remedy)
    assert pattern.status == "ok" or "ignores what a hook" in pattern.found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_pass(dtype: torch.dtype) -> None:
    assert mt.doctor(mt.load_model("demo", "cpu", dtype)).ok


def test_the_model_is_left_alone() -> None:
    model = mt.load_model("demo", "cpu").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert mt.doctor(model).ok
    assert model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_a_wrong_mix_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_multitrace.engine import forward

    model, real = mt.load_model("demo", "cpu"), forward.mix
    monkeypatch.setattr(forward, "mix", lambda act, source, share: real(act, source, 0.9 * share))
    check = by_name(SelfTest(model).checks())["heads"]
    assert check.status == "failed" and "is off the source run" in check.found


def test_weights_that_are_not_finite_are_found() -> None:
    model = mt.load_model("demo", "cpu")
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "W_E" in n or "wte" in n or "embed" in n).fill_(torch.nan)
    found = mt.doctor(model)
    assert not found.ok
    assert {c.name for c in found.failed} >= {"heads", "gradients"}
    assert f"{len(found.failed)} of {len(found.checks)} checks failed" in repr(found)


@pytest.mark.parametrize("name", [n for n in few("attn-only") if n.endswith("attn-only")])
def test_a_model_without_mlps_leaves_them_out(name: str) -> None:
    checks = by_name(SelfTest(build(name)).checks())
    assert checks["neurons"].status == checks["MLP layers"].status == "left out"
    assert checks["heads"].status == "ok"


def test_a_failed_check_is_one_line_with_a_remedy() -> None:
    def fail() -> str:
        raise OSError(f"{Path.home()}/x\nis gone")

    check = tried("disk", fail, "look")
    assert (check.status, check.remedy) == ("failed", "look") and "\n" not in check.found
    text = repr(mt.Diagnosis({"a": {"b": 1}}, (check,)))
    assert "-> look" in text and "1 of 1 checks failed" in text


def test_the_random_prompts_hold_no_special_token() -> None:
    model = mt.load_model("demo", "cpu")
    pairs = SelfTest(model).pairs
    special = set(model.tokenizer.all_special_ids)
    assert special and not special & set(pairs.base_tokens.flatten().tolist() + pairs.source_tokens.flatten().tolist())
    assert self_test.WIDTH == pairs.base_tokens.shape[1]


# --------------------------------------------------------------------------------------------------------- command
def test_the_command_prints_plain_text() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "All checks passed" in result.stdout and "\x1b" not in result.stdout


def test_the_command_prints_json() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--device", "cpu", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["ok"] is True


def test_a_failed_check_is_exit_code_1(tmp_path: Path) -> None:
    missing = tmp_path / "secret-project"
    result = CliRunner().invoke(cli.app, ["doctor", "--model", str(missing), "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and told["ok"] is False
    assert by_name(mt.doctor(str(missing)).checks)["model"].status == "failed"
    assert "secret-project" not in result.stdout and "HF_HUB_OFFLINE" in result.stdout
