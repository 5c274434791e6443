"""There is one way to run a model: one function attaches hooks and runs it, and the way there is short."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import pairs_of, random_examples
from test_package import PACKAGE, dotted, modules, where

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build

HOOKS = {"add_hook", "attached", "register_forward_hook", "register_forward_pre_hook", "run_with_hooks", "hooks"}
RUNS = {"run_with_cache", "run_with_hooks"}

# Who may attach hooks or run a model: the two that stand for all others, and what is not a measurement.
ALLOWED = {
    "loading.py": "a conversion is held against what it was made of",
    "models/": "the models' own interfaces",
    "engine/forward.py": "the one way",
    "groups/hook_groups.py": "hooks for a user's own runs",
    "switching.py": "hooks for a user's own runs",
    "demo/train.py": "training",
    "demo/measure.py": "training",
}
MOST_FRAMES = 12


def runs_a_model(call: ast.Call) -> bool:
    """``view.run(...)``, ``model(...)``, ``self.model(...)``, ``tracer.model(...)``, or one of TransformerLens' own."""
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    given = bool(call.args or call.keywords)  # a weak reference to a model is called with nothing
    its_own = name in ("model", "self.model", "tracer.model", "view.model") and given
    return last in RUNS or name.endswith("view.run") or its_own


def attaches(call: ast.Call) -> bool:
    name = dotted(call.func) or (call.func.attr if isinstance(call.func, ast.Attribute) else "")
    last = name.rpartition(".")[2]
    return last in HOOKS - {"hooks"} or name.endswith("model.hooks")


def elsewhere() -> Iterator[str]:
    """Calls that attach hooks or run a model in other files."""
    for _, path, tree in modules():
        if any(path.relative_to(PACKAGE).as_posix().startswith(own) for own in ALLOWED):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (attaches(node) or runs_a_model(node)):
                yield f"{where(path, node)}: {ast.unparse(node)[:80]}"


def test_nothing_else_attaches_hooks_or_runs_a_model() -> None:
    assert not list(elsewhere())


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("point.add_hook(f)", True),
        ("ModelView(model).attached(hooks)", True),
        ("module.register_forward_hook(f)", True),
        ("self.view.run(tokens, mask)", True),
        ("model(tokens)", True),
        ("self.model(tokens)", True),
        ("model.run_with_cache(tokens)", True),
        ("run(view, forward)", False),
        ("self.model()", False),
        ("self.model.eval()", False),
        ("tracer.effects(masks)", False),
    ],
)
def test_the_rule_itself(code: str, found: bool) -> None:
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)]
    assert any(attaches(c) or runs_a_model(c) for c in calls) == found


def test_every_exception_is_needed() -> None:
    def used(own: str) -> bool:
        trees = [t for _, p, t in modules() if p.relative_to(PACKAGE).as_posix().startswith(own)]
        nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)]
        return any(attaches(n) or runs_a_model(n) for n in nodes)

    assert [own for own in ALLOWED if not used(own)] == []


def test_a_tracer_is_held_and_not_inherited_from() -> None:
    classes = [(path, n) for _, path, tree in modules() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    heirs = [where(p, n) for p, n in classes if any(dotted(b).rpartition(".")[2] == "Tracer" for b in n.bases)]
    assert not heirs


def package_frames() -> list[str]:
    """The package's own frames on the stack, the innermost first."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            found.append(f"{path.relative_to(PACKAGE)}:{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return found


def test_from_a_search_to_a_hook_it_is_a_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_multitrace.engine import forward

    real, ways = forward.mix, []

    def noted(*args: Any) -> torch.Tensor:
        ways.append(package_frames())
        return real(*args)

    model = build(MODEL_NAMES[0])
    tracer = mt.Tracer(model, pairs_of(random_examples(3)), mt.heads(model))
    monkeypatch.setattr(forward, "mix", noted)
    mt.select(tracer, [1, 2], mt.TopK())
    assert ways and all(way[-1].endswith(":select") for way in ways)
    longest = max(ways, key=len)
    assert len(longest) <= MOST_FRAMES, "\n".join(longest)
