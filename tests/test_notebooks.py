"""The tutorials as files: what each has to have, and the check of its outputs against a fresh run."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from check_notebooks import cells, differences, main, printed

import planted
import tl_multitrace as mt
from tiny_models import HAS_BRIDGE

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
COLAB = "https://colab.research.google.com"
QUICKSTART = FOLDER / "01_quickstart.ipynb"

each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@each
def test_a_notebook_installs_only_on_colab_and_has_one_switch(notebook: Path) -> None:
    first, *rest = cells(notebook)
    assert '"google.colab" in sys.modules' in source(first) and "pip" in source(first)
    assert not any("pip install" in source(cell) for cell in rest)
    assert sum(source(cell).count('MODEL = "demo"  # or "gpt2"') for cell in rest) == 1


@each
def test_a_badge_opens_colab(notebook: Path) -> None:
    first = source(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]).splitlines()
    assert first[0].startswith("# ")
    assert first[2].startswith(f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/")


@each
def test_a_notebook_is_kept_as_run_from_top_to_bottom(notebook: Path) -> None:
    kept = cells(notebook)
    assert [cell["execution_count"] for cell in kept] == list(range(1, len(kept) + 1))
    outputs = [output for cell in kept for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any(printed(cell) for cell in kept)


@each
def test_links_lead_somewhere(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    prose = "\n".join(source(cell) for cell in content["cells"] if cell["cell_type"] == "markdown")
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) if "://" not in t]
    assert not [t for t in targets if not (FOLDER / t).is_file()]


@pytest.mark.skipif(not HAS_BRIDGE, reason="the notebook builds its models as bridges")
@pytest.mark.parametrize(
    ("maker", "name", "way"),
    [("conjunction", "and2_hard", "restoring"), ("backup", "backup", "noising"), ("inhibitor", "inhibitor", "noising")],
)
def test_the_models_in_the_notebook_on_solvers_are_the_planted_ones(maker: str, name: str, way: Any) -> None:
    """That notebook is given to Colab by itself, so it builds the models that the tests know in a cell of its own."""
    (cell,) = [source(c) for c in cells(FOLDER / "03_choosing_a_solver.ipynb") if "class Planted" in source(c)]
    names: dict[str, Any] = {"mt": mt}
    exec(compile(cell, "03_choosing_a_solver.ipynb", "exec"), names)
    own, ours = names[maker](), planted.build(f"{name}-large-rotated-leaks")
    assert torch.equal(own.tracer(way).base_metric, ours.tracer(way).base_metric)
    assert torch.equal(own.model(ours.source_tokens), ours.model(ours.source_tokens))
    assert own.members == ours.labels(c for c in ours.components if c not in ours.leaks)
    assert own.best == pytest.approx(ours.best[way][2], abs=1e-12)


# ---------------------------------------------------------------------- the check itself


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """The folder of a copy of the quickstart in whose outputs a text is replaced."""
    content = json.loads(QUICKSTART.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        text = json.dumps(cell.get("outputs", []), ensure_ascii=False)
        cell["outputs"] = json.loads(text.replace(old, new))
    (tmp_path / QUICKSTART.name).write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / QUICKSTART.name


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("8   ", "8   ", True),
        ("L0H3", "L1H3", False),
        ("339 [271, 413]", "340 [271, 413]", True),
        ("339 [271, 413]", "439 [271, 413]", False),
        ("forward equivalents, 3", "forward equivalents, 93", True),
        ("image/png", "image/none", False),
    ],
)
def test_what_counts_as_another_output(old: str, new: str, same: bool, tmp_path: Path) -> None:
    assert old in QUICKSTART.read_text(encoding="utf-8")
    assert (list(differences(QUICKSTART, changed(tmp_path, old, new))) == []) == same


def test_other_code_is_no_fresh_run(tmp_path: Path) -> None:
    content = json.loads(QUICKSTART.read_text(encoding="utf-8"))
    other = copy.deepcopy(content)
    next(c for c in other["cells"] if c["cell_type"] == "code")["source"] = ["pass"]
    (tmp_path / "other.ipynb").write_text(json.dumps(other), encoding="utf-8")
    assert list(differences(QUICKSTART, tmp_path / "other.ipynb")) == [
        "01_quickstart.ipynb: the two do not have the same code"
    ]


def test_the_command_says_how_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(str(FOLDER), str(FOLDER)) == 0
    assert f"{len(NOTEBOOKS)} notebooks" in capsys.readouterr().out
    assert main(str(tmp_path), str(tmp_path)) == 1, "an empty folder proves nothing"
