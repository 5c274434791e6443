"""The house rules that a machine can check: who imports whom, what importing costs, what may not be written."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tl_multitrace"


def pyproject() -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# A room may import those above it in this list, and never one below; `lint-imports` says the same of `pyproject.toml`.
(CONTRACT,) = pyproject()["tool"]["importlinter"]["contracts"]
ROOMS = [*reversed(CONTRACT["layers"]), "__init__", "__main__"]

# The exceptions: who may reach down to a room below, inside a function only, never when it is imported.
# The demo model is found by its name.
LAZY = {
    "demo": {"loading", "tasks"},
}

# The one room that only these may import at all: nothing may come to depend on the demo.
LEAVES = {"demo": {"loading", "tasks", "cli", "__init__"}}

READING_ROOMS = {"records", "interop", "tasks"}
"""Where files are parsed: the readers of other tools and of data sets on their way into the first."""

HOOK_NAME_ROOMS = {"groups", "models"}
HEAVY = ("transformer_lens", "transformers", "matplotlib")
MAX_LINES = 400


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield room_of(path), path, ast.parse(path.read_text(encoding="utf-8"))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"


def scoped_nodes(tree: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, with whether it stands inside a function; blocks for the type checker alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node, inside
        yield from scoped_nodes(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imported_modules(node: ast.AST, path: Path) -> list[str]:
    """Absolute dotted names that an import statement may load: the module, and each name as a submodule of it."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
    base = ".".join([*package, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def rooms_imported(node: ast.AST, path: Path) -> set[str]:
    parts = [name.split(".") for name in imported_modules(node, path)]
    inner = [p for p in parts if p[0] == PACKAGE.name]
    return {p[1] if len(p) > 1 and p[1] in ROOMS else "__init__" for p in inner}


def breach(room: str, target: str, inside: bool) -> str | None:
    """What is wrong with ``room`` importing ``target``, or None."""
    if target == room:
        return None
    if target in LEAVES and room not in LEAVES[target]:
        return f"only {sorted(LEAVES[target])} may import {target}"
    if ROOMS.index(target) < ROOMS.index(room):
        return None
    if room not in LAZY.get(target, ()):
        return f"{target} lies below {room}"
    return None if inside else f"{room} may import {target} inside a function only"


def import_breaches(room: str, path: Path, tree: ast.Module) -> list[str]:
    found = []
    for node, inside in scoped_nodes(tree):
        for target in sorted(rooms_imported(node, path)):
            if problem := breach(room, target, inside):
                found.append(f"{where(path, node)}: {problem}")
    return found


def test_every_module_has_a_room() -> None:
    strangers = sorted({room for room, _, _ in modules()} - set(ROOMS))
    assert not strangers, f"place {strangers} in ROOMS"


def test_imports_point_upwards() -> None:
    assert not [b for room, path, tree in modules() if room in ROOMS for b in import_breaches(room, path, tree)]


@pytest.mark.parametrize(
    ("room", "code", "allowed"),
    [
        ("tracer", "from tl_multitrace.groups import HookGroups", True),
        ("tracer", "from .groups import HookGroups", True),
        ("groups", "from tl_multitrace.tracer import Tracer", False),
        ("groups", "from .tracer import Tracer", False),
        ("groups", "from . import tracer", False),
        ("groups", "import tl_multitrace.tracer", False),
        ("groups", "from tl_multitrace import Tracer", False),
        ("groups", "def f():\n    from tl_multitrace.tracer import Tracer", False),
        ("groups", "if TYPE_CHECKING:\n    from tl_multitrace.tracer import Tracer", True),
        ("circuit", "from tl_multitrace.render import show", False),
        ("circuit", "def f():\n    from tl_multitrace.render import show", False),
        ("loading", "def f():\n    from tl_multitrace.demo import load_demo_model", True),
        ("render", "from tl_multitrace.demo import load_demo_model", False),
        ("cli", "from tl_multitrace.demo import load_demo_model", True),
    ],
)
def test_the_import_rule_itself(room: str, code: str, allowed: bool) -> None:
    assert (not import_breaches(room, PACKAGE / f"{room}.py", ast.parse(code))) == allowed


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import json, sys, tl_multitrace; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []


def test_every_public_name_is_there() -> None:
    import tl_multitrace

    missing = [name for name in tl_multitrace.__all__ if not hasattr(tl_multitrace, name)]
    assert not missing
    assert len(set(tl_multitrace.__all__)) == len(tl_multitrace.__all__)


# ----------------------------------------------------------------------------------------- what may not be written
def dotted(node: ast.AST) -> str:
    """``a.b.c`` for a plain chain of names, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if before else ""


def has_true(call: ast.Call, keyword: str) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


def unsafe_call(call: ast.Call) -> str | None:
    name = dotted(call.func)
    if name == "print":
        return "print: use logging"
    if name == "torch.load" and not has_true(call, "weights_only"):
        return "torch.load without weights_only=True runs code from the file"
    if name.endswith("read_pickle") or has_true(call, "allow_pickle"):
        return "pickle: it runs code from the file"
    if name in ("eval", "exec"):
        return name
    if name == "torch.manual_seed" or (name.startswith("random.") and name != "random.Random"):
        return f"{name} moves the caller's global random state: use a generator"
    return None


def unsafe_import(node: ast.AST, path: Path) -> str | None:
    roots = {name.split(".")[0] for name in imported_modules(node, path)}
    banned = roots & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    return f"import of {sorted(banned)}: files are JSON or safetensors" if banned else None


def forked(tree: ast.Module) -> set[int]:
    """The ids of the nodes under ``with torch.random.fork_rng(...)``, where the global generator is a copy."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.With)]
    kept = [b for b in blocks if any("fork_rng" in ast.unparse(item.context_expr) for item in b.items)]
    return {id(node) for block in kept for node in ast.walk(block)}


def unsafe_code(path: Path, tree: ast.Module) -> list[str]:
    found, safe = [], forked(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.manual_seed" and id(node) in safe:
            continue
        if problem := unsafe_call(node) if isinstance(node, ast.Call) else unsafe_import(node, path):
            found.append(f"{where(path, node)}: {problem}")
    return found


def test_no_print_no_pickle_no_global_seed() -> None:
    assert not [problem for _, path, tree in modules() for problem in unsafe_code(path, tree)]


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("print(1)", False),
        ("import pickle", False),
        ("from pickle import loads", False),
        ("torch.load(path)", False),
        ("torch.load(path, weights_only=False)", False),
        ("torch.load(path, weights_only=True)", True),
        ("np.load(path, allow_pickle=True)", False),
        ("np.load(path)", True),
        ("console.print(1)", True),
        ("random.shuffle(x)", False),
        ("torch.manual_seed(0)", False),
        ("with torch.random.fork_rng():\n    torch.manual_seed(0)", True),
        ("random.Random(0).shuffle(x)", True),
        ("torch.Generator().manual_seed(0)", True),
    ],
)
def test_the_rule_on_unsafe_code_itself(code: str, allowed: bool) -> None:
    assert (not unsafe_code(PACKAGE / "cli.py", ast.parse(code))) == allowed


def reads(tree: ast.Module) -> list[ast.Call]:
    """Calls that parse what may be anybody's."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return [
        c for c in calls if re.fullmatch(r"json\.loads?|torch\.load|csv\.\w*[rR]eader|pd\.read_\w+", dotted(c.func))
    ]


def test_files_are_read_in_one_room() -> None:
    rest = [(path, tree) for room, path, tree in modules() if room not in READING_ROOMS]
    assert not [where(path, call) for path, tree in rest for call in reads(tree)]


def test_the_rule_on_reading_itself() -> None:
    for code in (
        "json.loads(x)",
        "json.load(x)",
        "torch.load(x)",
        "csv.reader(x)",
        "csv.DictReader(x)",
        "pd.read_csv(x)",
    ):
        assert reads(ast.parse(code)), code
    assert not reads(ast.parse("json.dumps(x)\nload_json(x)\nmt.Circuit.load(x)"))


def docstrings(tree: ast.Module) -> set[int]:
    """The ids of the constants that are documentation."""
    owners = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    first = [owner.body[0] for owner in owners if owner.body]
    return {id(statement.value) for statement in first if isinstance(statement, ast.Expr)}


def hook_names(tree: ast.Module) -> list[ast.Constant]:
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    documentation = docstrings(tree)
    return [n for n in strings if id(n) not in documentation and re.search(r"\bhook_[a-z]", n.value)]


def test_hook_names_stand_in_two_rooms_only() -> None:
    rest = [(path, tree) for room, path, tree in modules() if room not in HOOK_NAME_ROOMS]
    assert not [f"{where(path, node)}: {node.value!r}" for path, tree in rest for node in hook_names(tree)]


def test_the_rule_on_hook_names_itself() -> None:
    assert hook_names(ast.parse("site = f'blocks.{layer}.attn.hook_z'"))
    assert not hook_names(ast.parse("def f():\n    '''Mixes ``hook_z``.'''\n    return model.hook_dict"))


def test_no_file_is_two_rooms() -> None:
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in files}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


# ------------------------------------------------------------------------------------------------------- packaging
def test_the_version_stands_in_one_place() -> None:
    version = ast.literal_eval((PACKAGE / "_version.py").read_text(encoding="utf-8").partition("__version__ = ")[2])
    holders = [ROOT / "pyproject.toml", ROOT / "CITATION.cff", *PACKAGE.rglob("*.py")]
    # A quoted version, not a number that happens to read the same.
    found = [f.name for f in holders if re.search(rf"[\"']{re.escape(version)}[\"']", f.read_text(encoding="utf-8"))]
    assert found == ["_version.py"]


def test_the_package_tells_its_version() -> None:
    import tl_multitrace
    from tl_multitrace._version import __version__

    assert tl_multitrace.__version__ == __version__
    try:
        installed = importlib.metadata.version("tl-multitrace")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package runs from its source tree and is not installed")
    assert installed == __version__


def test_only_transformer_lens_is_bounded_above() -> None:
    bounded = [d for d in pyproject()["project"]["dependencies"] if re.search(r"<|==|~=", d)]
    assert bounded == ["transformer-lens>=2.16,<5"]
    assert "numpy" in pyproject()["project"]["dependencies"]


def test_typed_marker_and_licence() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
