"""Holds the outputs that notebooks are kept with against those of a fresh run: ``check_notebooks.py KEPT FRESH``.

Both are folders. Fresh outputs come from running copies of the notebooks, for instance with ``pytest --nbmake
--overwrite``. Ends with status 1, and says where, when a text, or a number in it, is another one; times are not
compared, and of figures only that they are there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from printed import disagreement

Cell = dict[str, Any]


def cells(notebook: Path) -> list[Cell]:
    """The code cells of a notebook."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def printed(cell: Cell) -> str:
    """What a cell printed and showed, as text; warnings go to another stream and are left out."""
    parts = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            parts.append("".join(output["text"]))
        elif "text/plain" in output.get("data", {}) and "image/png" not in output["data"]:
            parts.append("".join(output["data"]["text/plain"]) + "\n")
    return "".join(parts)


def pictures(cell: Cell) -> int:
    """How many figures a cell shows."""
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def differences(kept: Path, fresh: Path) -> Iterator[str]:
    """What a notebook shows that a fresh run does not."""
    old, new = cells(kept), cells(fresh)
    if [c["source"] for c in old] != [c["source"] for c in new]:
        yield f"{kept.name}: the two do not have the same code"
        return
    for number, (before, after) in enumerate(zip(old, new, strict=True), 1):
        if problem := disagreement(printed(after), printed(before)):
            yield f"{kept.name}, code cell {number}: {problem}"
        if pictures(before) != pictures(after):
            yield f"{kept.name}, code cell {number}: {pictures(after)} figures, not {pictures(before)}"


def main(kept: str, fresh: str) -> int:
    """Compare every notebook of a folder; returns the exit status."""
    notebooks = sorted(Path(kept).glob("*.ipynb"))
    found = [d for notebook in notebooks for d in differences(notebook, Path(fresh) / notebook.name)]
    sys.stdout.write("\n".join(found or [f"{len(notebooks)} notebooks show what a fresh run gives"]) + "\n")
    return 1 if found or not notebooks else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
