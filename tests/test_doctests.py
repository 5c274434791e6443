"""The examples in the docstrings: they run, as a reader would type them, and give what they show."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from public_names import PACKAGE, under_constants

import tl_multitrace as mt
from tl_multitrace.tasks import registry

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
NEEDS_NEWEST = {"from_attribution_result", "from_patching_result", "to_attribution_result", "to_patching_result"}
"""Results of TransformerLens 4's own tools."""


def has_newest() -> bool:
    found = importlib.util.find_spec("transformer_lens.tools")
    return found is not None and hasattr(importlib.import_module("transformer_lens.patching"), "PatchingResult")


def modules() -> list[str]:
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts if p[-1] != "__main__"]


def examples() -> Iterator[doctest.DocTest]:
    """Every docstring with an example: of modules, classes, functions, methods and constants."""
    finder, parser = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestParser()
    for name in modules():
        module = importlib.import_module(name)
        yield from (test for test in finder.find(module, name, globs={}) if test.examples)
        for constant, text in under_constants(Path(str(module.__file__))).items():
            test = parser.get_doctest(text, {}, f"{name}.{constant}", module.__file__, 0)
            if test.examples:
                yield test


EXAMPLES = list(examples())


@pytest.fixture(autouse=True)
def as_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, the demo model loaded once for all examples, and a list of tasks that is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mt, "load_model", demo_once)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    yield
    if "matplotlib.pyplot" in __import__("sys").modules:
        importlib.import_module("matplotlib.pyplot").close("all")


load_model = mt.load_model


@functools.cache
def demo_once(name: str) -> Any:
    return load_model(name)


# ------------------------------------------------------------------------------------- what examples need not define
def set_up() -> dict[str, str]:
    """The names that the package's docstring gives to all examples, with the expression behind each."""
    lines = [ast.parse(e.source).body[0] for e in doctest.DocTestParser().get_examples(str(mt.__doc__))]
    made = [line for line in lines if isinstance(line, ast.Assign)]
    return {ast.unparse(line.targets[0]): ast.unparse(line.value) for line in made}


class Names(dict[str, Any]):
    """Makes a name when it is asked for; once for all examples, but for the tracer, whose cost they print."""

    def __missing__(self, name: str) -> Any:
        if name not in set_up():
            raise KeyError(name)
        return made(name) if name == "tracer" else made_once(name)


def made(name: str) -> Any:
    return eval(set_up()[name], {"mt": mt}, Names())


made_once = functools.cache(made)


def given_to(example: doctest.DocTest) -> dict[str, Any]:
    """Those of the names that an example uses."""
    tree = ast.parse("".join(e.source for e in example.examples))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return {"mt": mt, **{name: Names()[name] for name in set_up() if name in used}}


@pytest.mark.parametrize("example", EXAMPLES, ids=[test.name.removeprefix("tl_multitrace.") for test in EXAMPLES])
@pytest.mark.filterwarnings("ignore::tl_multitrace.LeftOut")
def test_the_example_gives_what_it_shows(example: doctest.DocTest) -> None:
    if example.name.rpartition(".")[2] in NEEDS_NEWEST and not has_newest():
        pytest.skip("this TransformerLens has no such results")
    said: list[str] = []
    example.globs.update(given_to(example))
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(example, out=said.append, clear_globs=True)
    assert runner.failures == 0, "".join(said)


def test_the_names_are_those_of_the_page() -> None:
    assert set(set_up()) == {"model", "task", "pairs", "groups", "tracer", "path", "circuit"}
    assert "<!-- names -->" in (PACKAGE.parent / "tutorials/pages/api/index.md").read_text(encoding="utf-8")


def test_no_example_is_skipped() -> None:
    skipped = [t.name for t in EXAMPLES if any(doctest.SKIP in e.options for e in t.examples)]
    assert not skipped
    assert len(EXAMPLES) > 150


def test_a_wrong_example_is_noticed() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=lambda _: None)
    assert runner.failures == 1
