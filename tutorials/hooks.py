"""What mkdocs needs beyond its folder of pages: files that have their place elsewhere, and roles in docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

TUTORIALS = Path(__file__).parent
ROOT = TUTORIALS.parent
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>(~?)([^<]*)</code>")
ELSEWHERE = {
    "choosing_a_solver.md": TUTORIALS / "choosing_a_solver.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "benchmarks/index.md": ROOT / "tests/benchmarks/README.md",
    "benchmarks/CALIBRATION.md": ROOT / "tests/benchmarks/CALIBRATION.md",
    "benchmarks/RECOVERY.md": ROOT / "tests/benchmarks/RECOVERY.md",
    "benchmarks/MEMORY.md": ROOT / "tests/benchmarks/MEMORY.md",
    "benchmarks/BF16.md": ROOT / "tests/benchmarks/BF16.md",
}
LINKS = {
    "../../tutorials/choosing_a_solver.md": "../choosing_a_solver.md",
    "../tests/benchmarks/RECOVERY.md": "benchmarks/RECOVERY.md",
    "../tests/benchmarks/CALIBRATION.md": "benchmarks/CALIBRATION.md",
    "../tests/benchmarks/MEMORY.md": "benchmarks/MEMORY.md",
    "../tests/benchmarks/BF16.md": "benchmarks/BF16.md",
    "../tests/benchmarks/README.md": "benchmarks/index.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add pages, pictures and notebooks from where they are."""
    pictures = {f"img/{p.name}": p for p in sorted((TUTORIALS / "img").glob("*.png"))}
    notebooks = {f"notebooks/{p.name}": p for p in sorted(TUTORIALS.glob("*.ipynb"))}
    for name, path in {**ELSEWHERE, **pictures, **notebooks}.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of those pages lead where the site has their targets."""
    for here, there in LINKS.items():
        markdown = markdown.replace(f"]({here})", f"]({there})")
    markdown = (
        markdown.replace("<!-- names -->", names_of_examples()) if page.file.src_uri == "api/index.md" else markdown
    )
    return markdown.replace("<!-- notebooks -->", notebook_table()) if page.file.src_uri == "notebooks.md" else markdown


def names_of_examples() -> str:
    """The set-up that the package's docstring states for all examples, as code."""
    import ast

    text = ast.get_docstring(ast.parse((ROOT / "tl_multitrace/__init__.py").read_text(encoding="utf-8"))) or ""
    lines = [line.strip().removeprefix(">>> ") for line in text.splitlines() if ">>> " in line]
    return "\n".join(["```python", *lines, "```"])


def notebook_table() -> str:
    """One line for each notebook: its title, and the sentence under it."""
    import json

    lines = ["| notebook | about |", "|---|---|"]
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "".join(cells[0]["source"]).strip() or path.stem
        title, _, rest = text.partition("\n")
        prose = re.sub(r"^\[!\[.*|\*\*The question\.\*\*", "", rest, flags=re.MULTILINE)  # without the badge
        text = " ".join(prose.split())
        about = re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0]
        lines.append(f"| [{title.lstrip('# ')}](notebooks/{path.name}) | {about} |")
    return "\n".join(lines)


def on_page_content(html: str, **_: Any) -> str:
    """``:class:`~a.b.C``` of a docstring reads ``C``."""
    return ROLE.sub(lambda m: f"<code>{m[2].rpartition('.')[2] if m[1] else m[2]}</code>", html)
