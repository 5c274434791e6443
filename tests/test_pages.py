"""The documentation's pages: their code runs and prints what they show, and what they quote is still so."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from interop_cases import check_table
from public_names import PACKAGE, public_names
from test_readme import disagreement

import tl_multitrace as mt
from tiny_models import TL_MAJOR
from tl_multitrace.metrics import BY_NAME
from tl_multitrace.records.record import KINDS

TUTORIALS = PACKAGE.parent / "tutorials"
PAGES = TUTORIALS / "pages"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)

OF_THE_NEWEST = {"scaling"}
"""Pages that show what the model itself takes in memory: another TransformerLens, another number."""


def pages() -> list[Path]:
    return [p for p in sorted(PAGES.glob("*.md")) if "```python" in p.read_text(encoding="utf-8")]


def read(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def fences(text: str, language: str) -> list[str]:
    return [m["text"] for m in FENCE.finditer(text) if m["language"] == language]


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.stem)
@pytest.mark.moves_rng  # a search of one's own, or generation, may draw
@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
def test_the_code_runs_and_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
        if fence["language"] == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(fence["text"], page.name, "exec"), namespace)
            printed = out.getvalue()
        elif fence["language"] == "text" and printed and (TL_MAJOR >= 4 or page.stem not in OF_THE_NEWEST):
            assert (problem := disagreement(printed, fence["text"])) is None, problem
            printed = None


def test_every_page_with_code_is_run() -> None:
    assert {p.stem for p in pages()} >= set("index concepts signs migrating extending errors files scaling".split())


# -------------------------------------------------------------------------------------------------------------- errors
def worded(node: ast.AST) -> str:
    """A message as it stands in the source, with an ellipsis for every value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(worded(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return worded(node.left) + worded(node.right)
    return "…"


@cache
def messages() -> frozenset[str]:
    """Every message that an error is raised with, or returned in."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    raised = [n.exc for t in trees for n in ast.walk(t) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    # a pair that does not fit is named where it is refused: what is raised first says a kind, and the rest
    unfit = [call for call in raised if getattr(call.func, "id", "") == "UnfitError"]
    return frozenset(
        {worded(call.args[0]) for call in raised if call.args}
        | {f"pair …: {worded(call.args[1])}" for call in unfit if len(call.args) > 1}
    )


def quoted() -> list[str]:
    before, _, _ = read("errors.md").partition("## Trying one")
    return [text.strip() for text in fences(before, "text")]


@pytest.mark.parametrize("message", quoted(), ids=lambda m: m[:40])
def test_the_message_is_still_worded_so(message: str) -> None:
    assert message in messages()


def test_enough_messages_are_explained() -> None:
    assert len(quoted()) >= 30
    assert len(messages()) > 300


# --------------------------------------------------------------------------------------------------------- conventions
def test_every_metric_is_in_the_table() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", read("signs.md"), re.MULTILINE))
    assert rows == {kind.__name__: kind.name for kind in BY_NAME} | {"WeightedSum": "weighted_sum"}


def test_every_format_and_its_version_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(tl_multitrace\.\w+)` \|.*\| (\d+) \|$", read("files.md"), re.MULTILINE)
    assert {name: int(version) for name, version in rows} == {k: kind.FILE.version for k, kind in KINDS.items()}


def test_every_field_of_a_circuit_is_in_the_table() -> None:
    section = read("files.md").partition("## circuit.json")[2].partition("## path.json")[0]
    first = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    named = {name.partition(".")[0] for cell in first for name in re.findall(r"`([\w.]+)`", cell)}
    saved = {f.name for f in fields(mt.Circuit)} - {"tracer"}
    assert named == saved | {"format", "version"}


def test_every_other_format_is_in_the_table() -> None:
    check_table(read("files.md"))


# ----------------------------------------------------------------------------------------------------------------- site
def test_every_public_name_has_a_place_in_the_reference() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in (PAGES / "api").glob("*.md"))
    listed = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed)), "a name stands twice"
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    missing = {p.name.rpartition(".")[2] for p in public_names()} - {n.rpartition(".")[2] for n in listed}
    assert not missing


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES.rglob("*.md"):
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        gone = [t for t in targets if not (page.parent / t).is_file() and not (TUTORIALS / Path(t).name).is_file()]
        assert not gone, f"{page.name} links to {gone}"


def test_the_examples_of_other_tools_are_not_run() -> None:
    """They stand in ```py; what is in ```python is ours."""
    assert fences(read("migrating.md"), "py") and fences(read("migrating.md"), "python")
