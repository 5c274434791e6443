"""What runs, and what is read: no code of a model unless typed, nothing outside of a folder, no unsafe call."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE
from tl_multitrace import cli
from tl_multitrace.demo import DEMO_FOLDER

# ------------------------------------------------------------------------------------------------ code of a model
CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

Path({marker!r}).touch()


class OwnConfig(GPT2Config):
    model_type = "own"


class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig


class OwnTokenizer(GPT2Tokenizer):
    pass
"""
BRINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "config and model": (
        {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}},
        {},
    ),
    "model": ({"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "own.OwnModel"}}, {}),
    "tokenizer": (
        {},
        {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}},
    ),
}
"""By what needs the code: changes to the model's configuration, and to its tokenizer's."""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is run is copied to a cache first: to one that goes away."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def model_folder(folder: Path, brings: str, marker: Path) -> Path:
    """The demo model with code of its own beside it."""
    shutil.copytree(DEMO_FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config, tokenizer = BRINGS[brings]
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        known = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({**known, **changes}))
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    return folder


@pytest.mark.moves_rng
@pytest.mark.usefixtures("modules")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("brings", BRINGS)
def test_code_of_a_model_is_not_run_unless_that_is_typed(brings: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = model_folder(tmp_path / "model", brings, marker)
    refused = pytest.raises(
        ValueError, match=r"brings Python code of its own.*was not run.*trust_remote_code=True\), or"
    )
    # where transformers has a tokenizer of its own for such a model, it needs none that the folder brings
    with contextlib.suppress(ValueError) if brings == "tokenizer" else refused:
        mt.load_model(str(folder), "cpu")
    assert not marker.exists()
    try:
        mt.load_model(str(folder), "cpu", trust_remote_code=True)
    except Exception as error:  # whether TransformerLens can use such a model is another question
        assert "trust_remote_code" not in str(error)
    assert marker.exists(), "the trap works"


@pytest.mark.usefixtures("modules")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--task", "ioi", "--out"],
        ["trace", "--prompt", "The old doctor said", "--subject", "old doctor", "--out"],
    ],
)
def test_the_command_line_says_what_to_type(command: list[str], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = model_folder(tmp_path / "model", "config and model", marker)
    shown = CliRunner().invoke(cli.app, [*command, str(tmp_path / "out"), "--model", str(folder), "--device", "cpu"])
    assert shown.exit_code == 1 and "--trust-remote-code" in shown.output
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_the_flag_reaches_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []

    def load(*_: Any, trust_remote_code: bool) -> Any:
        asked.append(trust_remote_code)
        raise ValueError("enough")

    for module in ("job", "cli_trace"):
        monkeypatch.setattr(f"tl_multitrace.{module}.load_model", load)
    run = ["run", "--task", "ioi", "--out", str(tmp_path / "a")]
    trace = ["trace", "--prompt", "a b", "--subject", "b", "--out", str(tmp_path / "b")]
    for command in (run, trace):
        CliRunner().invoke(cli.app, command)
        CliRunner().invoke(cli.app, [*command, "--trust-remote-code"])
    assert asked == [False, True, False, True]


@pytest.mark.skipif(HAS_BRIDGE, reason="only TransformerLens 2 trusts publishers by itself")
def test_publishers_that_transformer_lens_trusts_are_asked_about_too() -> None:
    with pytest.raises(ValueError, match=r"phi-2 brings Python code of its own"):
        mt.load_model("phi-2", "cpu")
