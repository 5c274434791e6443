"""What runs, and what is read: no code of a model unless typed, nothing outside of a folder, no unsafe call."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_cases
import pytest
from test_trace_grid import made
from typer.testing import CliRunner

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE
from tl_multitrace.cli import app as cli
from tl_multitrace.demo import DEMO_FOLDER
from tl_multitrace.runs.folder import read_run

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

    for module in ("runs.job", "cli.trace"):
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


# ------------------------------------------------------------------------------------------------ unsafe calls
PACKAGE = Path(mt.__file__).parent
MODULES = (
    "pickle cPickle dill cloudpickle marshal shelve joblib subprocess pty ctypes code codeop runpy yaml urllib http "
    "socket ssl ftplib smtplib telnetlib xmlrpc requests httpx aiohttp webbrowser xml"
).split()
"""What may not be imported: it runs what it reads, starts programs, or opens connections."""

NAMES = "eval exec compile print input breakpoint __import__".split()
CALLS = (
    "os.system os.popen os.fork os.startfile tempfile.mktemp numpy.fromfile pandas.read_pickle pandas.read_hdf "
    "pandas.read_clipboard torch.hub.load torch.jit.load torch.package.PackageImporter shutil.unpack_archive"
).split()
METHODS = "read_pickle to_pickle extractall load_state_dict_from_url set_safe_globals".split()
STARTS = ("os.exec", "os.spawn", "os.posix_spawn")
SHORT = {"np": "numpy", "pd": "pandas", "nx": "networkx"}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or attribute, usual short names of modules spelt out; else nothing."""
    if isinstance(node, ast.Name):
        return SHORT.get(node.id, node.id)
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def constant(call: ast.Call, name: str) -> Any:
    """The constant that a keyword is given; None without one."""
    value = next((k.value for k in call.keywords if k.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else None


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What no module of the package may do, with its line."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", "?")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{line}: import {name}" for name in names if name.partition(".")[0] in MODULES)
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle", "shell"):
            if isinstance(node.value, ast.Constant) and node.value.value is not False:
                yield f"{line}: {node.arg}={node.value.value}"
        if isinstance(node, ast.Call):
            yield from (f"{line}: {what}" for what in unsafe_call(node))


def unsafe_call(call: ast.Call) -> Iterator[str]:
    name, method = dotted(call.func), call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if (
        name in NAMES
        or name in CALLS
        or method in METHODS
        or name.startswith(("os.exec", "os.spawn", "os.posix_spawn"))
    ):
        yield name or method
    if name == "torch.load" and constant(call, "weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name == "numpy.load" and constant(call, "allow_pickle") is not False:
        yield "numpy.load without allow_pickle=False"
    if name.endswith("import_module") and not (call.args and within_a_package(call.args[0])):
        yield "import of a module whose name is computed"


def within_a_package(name: ast.expr) -> bool:
    """A module named in the code, or one of a package that is."""
    parts = name.values if isinstance(name, ast.JoinedStr) else [name]
    first = parts[0].value if parts and isinstance(parts[0], ast.Constant) else None
    return isinstance(first, str) and (len(parts) == 1 or "." in first)


ALLOWED = {
    "cli/app.py: import webbrowser": "webbrowser.open(page.resolve().as_uri())",  # the report just written, where asked
    "engine/exhausted.py: import ctypes": "ctypes.CDLL(None).malloc_trim(0)",  # gives freed memory back to the system
}
"""What stands in one place, for the one call beside it."""


def test_no_module_makes_an_unsafe_call() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(PACKAGE)}:{what.partition(':')[2]}" for what in unsafe(ast.parse(code))]
    assert found == sorted(ALLOWED)
    for where, call in ALLOWED.items():
        code = (PACKAGE / where.partition(":")[0]).read_text(encoding="utf-8")
        assert code.count(call) == code.count(f"{where.rpartition(' ')[2]}.") == 1


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from urllib.request import urlopen",
        "import xml.etree",
        "eval(x)",
        "exec('1')",
        "print(1)",
        "os.system('ls')",
        "os.execv(a, b)",
        "tempfile.mktemp()",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=flag)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "pd.read_pickle(p)",
        "frame.to_pickle(p)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "run(x, shell=True)",
        "importlib.import_module(name)",
        "importlib.import_module(f'{name}.x')",
        "__import__(name)",
    ],
)
def test_an_unsafe_call_is_seen(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


def test_a_safe_call_is_let_through() -> None:
    safe = (
        "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); re.compile(x); model.eval(); view.print(1)"
    )
    safe += "; f(p, trust_remote_code=False); f(p, trust_remote_code=trust); importlib.import_module('datasets')"
    assert not list(unsafe(ast.parse(safe)))


def test_our_scripts_write_no_markup() -> None:
    for script in sorted(PACKAGE.rglob("*.js")):
        code = script.read_text(encoding="utf-8")
        assert not re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(", code
        )


# ------------------------------------------------------------------------------------------------ paths
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust") / "run"
    folder.mkdir()
    fuzz_cases.run_folder(folder)
    return folder


def linked(folder: Path, name: str) -> Path:
    """The folder with one of its files moved away and a link in its place."""
    secret = folder.parent / f"moved-{name}"
    shutil.move(folder / name, secret)
    (folder / name).symlink_to(secret)
    return folder


@pytest.mark.parametrize("name", fuzz_cases.RUN_FILES)
def test_a_link_out_of_a_run_folder_is_not_followed(name: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert read_run(folder)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is a link out of its folder, and is not followed"):
        read_run(linked(folder, name))


def test_a_link_within_a_run_folder_and_to_the_folder_are_followed(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "circuit.json").rename(folder / "best.json")
    (folder / "circuit.json").symlink_to("best.json")
    (tmp_path / "latest").symlink_to(folder)
    assert read_run(tmp_path / "latest").circuit == read_run(whole).circuit


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b.safetensors",
        "..\\secret",
        "C:\\x",
        "a\x00b",
        "x" * 5000,
        "é" * 200,
    ],
)
def test_arrays_are_read_from_beside_their_description_alone(name: str, tmp_path: Path) -> None:
    path = made().save(tmp_path / "in" / "a.json")
    shutil.copy(path.with_suffix(".safetensors"), tmp_path / "secret.safetensors")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "arrays": name}))
    with pytest.raises(ValueError, match="is not a plain file name; nothing outside of"):
        mt.TraceGrid.load(path)


def test_arrays_that_are_a_link_are_not_followed(tmp_path: Path) -> None:
    path = made().save(tmp_path / "in" / "a.json")
    linked(path.parent, "a.safetensors")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        mt.TraceGrid.load(path)


# ------------------------------------------------------------------------------------------------ bounds
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_groups": 10**9}, "n_groups"),
        ({"effect": "nan"}, "effect"),
        ({"indices": ["0"]}, "indices.0"),
        ({"provenance": {"model": {"n_layers": 10**9}}}, "provenance has no such model"),
        ({"provenance": {"cost": {"equivalents": "much"}}}, "provenance has no such cost"),
        ({"provenance": {"seed": -1}}, "provenance has no such seed"),
        ({"provenance": {"seed": 10**50}}, "whole number above 3e"),
        ({"provenance": {"note": "\ud800"}}, "half a character"),
    ],
)
def test_a_circuit_file_is_within_bounds(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    groups = mt.HookGroups((mt.Component("mlp", 0),), ((mt.Component("mlp", 0),),), {})
    path = mt.Circuit(groups, (0,), 1, 0.5).save(tmp_path / "a.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        mt.Circuit.load(path)


def test_the_terminal_is_given_no_control_characters(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;pwned\x07\x9b31m\u202egnp"
    path = made(words=("a", evil, "b", "c"), notes=(evil,)).save(tmp_path / "trace.json")
    groups = mt.HookGroups((mt.Component("mlp", 0, position=evil),), ((mt.Component("mlp", 0, position=evil),),), {})
    circuit = mt.Circuit(groups, (0,), 1, 0.5, certificate=evil, provenance={"model": {"name": evil}})
    (tmp_path / "broken.json").write_text(json.dumps({"format": evil}))
    for file in (path, circuit.save(tmp_path / "circuit.json"), tmp_path / "broken.json", tmp_path / f"none{evil}"):
        shown = CliRunner().invoke(cli.app, ["show", str(file)]).output
        assert "pwned" in shown.replace("\n", "") and not re.findall(r"[\x1b\x07\x9b\u202e]", shown), repr(shown)
