"""The README: its code runs in order, prints what it says, and its commands are ones that exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from interop_cases import check_table
from printed import disagreement
from typer.testing import CliRunner

import tl_multitrace as mt
from tl_multitrace.cli import app as cli
from tl_multitrace.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block and what stands right above it."""

    language: str
    text: str
    marker: str


def blocks() -> list[Block]:
    pattern = re.compile(r"(?:<!-- (?P<marker>[\w-]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
    return [Block(m["language"], m["text"], m["marker"] or "") for m in pattern.finditer(README)]


def of_language(language: str) -> list[Block]:
    return [b for b in blocks() if b.language == language]


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("  L0H1   293  98%", "L0H1 295 98%", True),
        ("L0H1 293", "L0H2 293", False),
        ("L0H1 293", "L0H1 193", False),
        ("cost 25 forwards, 1.5 s", "cost 25 forwards, 99.1 s", True),
        ("[-0.05, 6.77]", "[-0.051, 6.8]", True),
        ("budget 1-8 of 20", "budget 1-9 of 20", False),
        ("a\nb", "a", False),
    ],
)
def test_the_comparison_itself(printed: str, shown: str, same: bool) -> None:
    assert (disagreement(printed, shown) is None) == same


@pytest.mark.slow
@pytest.mark.moves_rng
def test_the_code_runs_and_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    printed, compared = "", 0
    for block in blocks():
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, "README.md", "exec"), namespace)
            printed = out.getvalue()
        elif block.language == "text":
            assert (problem := disagreement(printed, block.text)) is None, problem
            compared += 1
    assert compared == len(of_language("text")) >= 2
    assert (tmp_path / "professions.circuit.json").is_file()


def commands() -> list[str]:
    lines = [line for b in of_language("bash") if not b.marker for line in b.text.splitlines()]
    return [line for line in lines if line.startswith("tl-multitrace ")]


@pytest.mark.parametrize("command", commands())
def test_the_commands_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(cli, "run_into", lambda *_: done.append("run"))
    monkeypatch.setattr("tl_multitrace.cli.show.shown", lambda path: done.append("show") or [])
    for name in ("load_model", "load_facts"):
        monkeypatch.setattr(f"tl_multitrace.cli.trace.{name}", lambda *_, **__: [])
    for name in ("trace_prompt", "trace_facts"):
        monkeypatch.setattr(f"tl_multitrace.cli.trace.{name}", lambda *_, **__: done.append("trace"))
    monkeypatch.setattr("tl_multitrace.cli.convert.convert", lambda *_, **__: done.append("convert"))
    monkeypatch.setattr("tl_multitrace.cli.reproduce.reproduce", lambda *_, **__: done.append("reproduce"))
    healthy = mt.Diagnosis({"packages": {"tl_multitrace": mt.__version__}}, ())
    monkeypatch.setattr("tl_multitrace.cli.doctor.doctor", lambda *_: done.append("doctor") or healthy)
    result = CliRunner().invoke(cli.app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert done == [shlex.split(command)[1]]


def test_the_file_of_own_prompts_can_be_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marked = {b.marker: b.text for b in blocks() if b.marker}
    Path("mine.csv").write_text(marked["own-prompts"], encoding="utf-8")
    known = mt.task_from_file("mine.csv", mt.load_model("demo"))
    assert len(known.pairs) == len(marked["own-prompts"].splitlines()) - 1 >= 8 and not known.dropped
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda page: bool(opened.append(page)))
    for command in marked["first-steps"].splitlines()[1:]:  # the first needs the demo's own folder
        result = CliRunner().invoke(cli.app, [*shlex.split(command)[1:], *(["-q"] if " run " in command else [])])
        assert result.exit_code == 0, result.output
    assert opened == [(tmp_path / "mine-run" / "report.html").as_uri()] and "no browser was found" in result.output


def test_two_commands_do_the_set_up() -> None:
    marked = {b.marker: b.text.strip() for b in blocks() if b.marker and b.marker.endswith("-command")}
    assert set(marked) == {"demo-command", "test-command"}
    assert all("\n" not in text and text.startswith("python3 -m venv .venv && ") for text in marked.values())
    assert marked["demo-command"].endswith("tl-multitrace demo --out demo-run")
    assert "pytest" in marked["test-command"]
    versions = {re.findall(r"torch==[\d.]+", text)[0] for text in marked.values()}
    assert len(versions) == 1


def test_every_solver_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \(`([\w-]+)`\)", README, re.MULTILINE)
    assert {name: key for key, name in rows} == {name: kind.__name__ for name, kind in SOLVERS.items()}


def test_every_task_is_in_the_table() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|[^|]*\| `\w+` \| (?:a file|generated)", README, re.MULTILINE))
    assert listed == set(mt.tasks()["name"])


def test_every_format_is_in_the_table() -> None:
    check_table(README)


def test_local_links_lead_somewhere() -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    assert not [t for t in targets if not (ROOT / t).is_file()]
