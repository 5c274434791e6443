"""What is published: the wheel's and the source archive's files, their metadata, and the types that a user sees."""

from __future__ import annotations

import email.message
import email.parser
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tl_multitrace._version import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tl_multitrace"
DIST_INFO = f"tl_multitrace-{__version__}.dist-info"

builds = pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="the build backend is not installed")
checks_types = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and source archive, by the backend that pyproject.toml names."""
    out = tmp_path_factory.mktemp("dist")
    for kind in ("wheel", "sdist"):
        code = f"from hatchling.build import build_{kind} as build; print(build({str(out)!r}))"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def shipped() -> set[str]:
    """The package's own files, as they are in a checkout."""
    files = (p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(ROOT)) for p in files if p.suffix not in (".pyc", ".pyo")}


# ------------------------------------------------------------------------------------------------------------ archives
@builds
def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    meta = {n for n in names if n.startswith(DIST_INFO)}
    assert names - meta == shipped()
    assert {n.removeprefix(f"{DIST_INFO}/") for n in meta} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "licenses/LICENSE",
    }


@builds
def test_the_wheel_holds_types_weights_and_data(built: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    needed = {"py.typed", "tasks/neutral_sentences.txt", "interop/__init__.py", "demo/metrics.json"}
    needed |= {f"demo/{n}" for n in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")}
    assert {f"tl_multitrace/{n}" for n in needed} <= names
    assert built["wheel"].stat().st_size < 8 << 20


@builds
def test_the_source_archive_holds_what_it_takes_to_test_it(built: dict[str, Path]) -> None:
    names = {n.partition("/")[2] for n in tarfile.open(built["sdist"]).getnames()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "tests/conftest.py"} <= names
    assert not [n for n in names if n.startswith((".ci", "runs/", "dist/", "tutorials/site")) or "__pycache__" in n]


@builds
def test_the_metadata(built: dict[str, Path]) -> None:
    text = zipfile.ZipFile(built["wheel"]).read(f"{DIST_INFO}/METADATA").decode()
    meta: email.message.Message = email.parser.Parser().parsestr(text)
    assert meta["Version"] == __version__
    assert meta["Requires-Python"] == ">=3.10"
    assert meta["Description-Content-Type"] == "text/markdown"
    assert "https://arxiv.org/abs/2606.03085" in str(meta.get_all("Project-URL"))
    assert "Typing :: Typed" in (meta.get_all("Classifier") or [])
    assert len(meta["Summary"]) < 120 and "work/" not in text


# ------------------------------------------------------------------------------------------------------------ versions
def test_citation_and_changelog_agree_with_the_version() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None and cited.group(1) == __version__
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [h for h in headings if h != "Unreleased"]
    assert headings[0] == "Unreleased" or headings[0] == __version__
    assert not released or released[0] == __version__, "the newest release in CHANGELOG.md is not _version.py's"


# --------------------------------------------------------------------------------------------------------------- types
USER = """
import tl_multitrace as mt

model = mt.load_model("demo")
task = mt.task("professions", model, n=16)
tracer = mt.Tracer(model, task.pairs, mt.heads(model), task.metric)
path = mt.select(tracer, budgets=range(1, 4), held_out=task.pairs)
circuit = path[2]
report = mt.evaluate(circuit, task.pairs)
grid = mt.causal_trace(model, "The Falcon Tower is in the city of", subject="Falcon Tower")
for shown in (task, tracer.effect(circuit.mask), path, circuit, circuit.effect, report, grid.total, grid):
    pass
reveal_type(task)
reveal_type(tracer.effect(circuit.mask))
reveal_type(path)
reveal_type(circuit)
reveal_type(circuit.effect)
reveal_type(report.effect)
reveal_type(grid)
mt.select(tracer, budgets="three")
"""
REVEALED = ["Task", "Tensor", "SubsetPath", "Circuit", "float", "Score", "TraceGrid"]


def install(wheel: Path, folder: Path) -> Path:
    """The wheel unpacked into an environment that otherwise sees what this one has; the environment's Python."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "others.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    return folder / "bin" / "python"


@builds
@checks_types
@pytest.mark.slow
def test_a_user_sees_types(built: dict[str, Path], tmp_path: Path) -> None:
    python = install(built["wheel"], tmp_path / "env")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "user.py"]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # not the source tree
    said = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True, check=False).stdout
    found = re.findall(r'note: Revealed type is "([^"]+)"', said)
    assert [t.rpartition(".")[2].rstrip("*?") for t in found] == REVEALED, said
    errors = [line for line in said.splitlines() if ": error:" in line]
    assert len(errors) == 1 and "has incompatible type" in errors[0] and "budgets" in errors[0], said
