"""Every public name says what it is: docstring, arguments, shapes, units, errors, and an example."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
import types
from typing import Any

import pytest
from public_names import PACKAGE, Public, every_method, public_names

from tl_multitrace.objective import Aim, Objective, TracerAim
from tl_multitrace.solvers import SOLVERS, Solver

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Warns|Examples):$", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\*{0,2}\w+)(?: \([^)]*\))?:", re.MULTILINE)
NUMBERS = {"float", "float | None"}
UNIT = re.compile(
    r"nats|unit|probabilit|share|relative|percent|seconds|forward|standard deviation|p-value|overlap|size of|score|p\("
    r"|from -?\d|0 to 1|loss|bytes|odds|factor|effect|change|mean|derivative|gain|CPR|CMD|area",
    re.IGNORECASE,
)
SHAPE = re.compile(r"(Float|Int|Bool|Shaped|Num)\[")


def names(public: tuple[Public, ...]) -> list[Any]:
    return [pytest.param(one, id=one.name.removeprefix("tl_multitrace.")) for one in public]


def sections(doc: str) -> dict[str, str]:
    """The parts of a docstring under its headings; what stands before them under ``""``."""
    parts = SECTION.split(doc)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(doc: str, *headings: str) -> set[str]:
    """What the lists under some headings name."""
    text = sections(doc)
    return {name.lstrip("*") for heading in headings for name in ENTRY.findall(text.get(heading, ""))}


def function_of(what: Any) -> ast.FunctionDef | None:
    if isinstance(what, type) or not isinstance(inspect.unwrap(what), types.FunctionType):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(what))))
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def raised(function: ast.FunctionDef) -> set[str]:
    """Errors that a function itself raises by name, and does not catch again; not those of helpers."""
    calls = [n.exc for n in ast.walk(function) if isinstance(n, ast.Raise) and n.exc is not None]
    found = {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
    return {name for name in found if name.endswith("Error") and name != "NotImplementedError"}


def protocols(owner: type) -> tuple[type, ...]:
    """The protocols that a class fulfils without inheriting from them."""
    aims = (Aim,) if owner in (TracerAim, Objective) else ()
    return (*aims, Solver) if owner in SOLVERS.values() else aims


@functools.cache
def said_above(owner: type, name: str) -> str:
    """What the classes and protocols above say of a method that a class defines anew."""
    above = [c for c in (*owner.__mro__[1:], *protocols(owner)) if name in vars(c)]
    return "\n".join(inspect.cleandoc(vars(c)[name].__doc__ or "") for c in above)


def owner_of(method: Public) -> Any:
    return next(p.what for p in public_names() if p.name == method.name.rpartition(".")[0])


# ----------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize("public", names(public_names()))
def test_a_name_has_a_summary_and_an_example(public: Public) -> None:
    first = public.doc.partition("\n")[0]
    assert first, f"{public.name} has no docstring"
    assert not first.startswith(f"{public.name.rpartition('.')[2]}("), "the dataclass's own docstring says nothing"
    assert ">>> " in sections(public.doc).get("Examples", ""), f"{public.name} has no example"


@pytest.mark.parametrize("public", names(tuple(p for p in public_names() if p.parameters)))
def test_a_name_describes_what_is_passed(public: Public) -> None:
    if issubclass(public.what, Warning | Exception) if public.is_class else False:
        return
    described = entries(public.doc, "Args", "Attributes")
    if public.is_class:  # named tuples and pydantic's own fields
        described |= set(re.findall(r"``(\w+)``", public.doc)) | {"format", "version", "args", "kwargs"}
    missing = [name for name in public.parameters if name not in described]
    assert not missing, f"{public.name} does not describe {missing}"


@pytest.mark.parametrize("public", names(tuple(p for p in public_names() if function_of(p.what))))
def test_a_function_says_what_it_raises_and_returns(public: Public) -> None:
    assert_errors(public)
    assert_numbers(public)


# --------------------------------------------------------------------------------------------------------- methods
@pytest.mark.parametrize("method", names(every_method()))
def test_a_method_is_described(method: Public) -> None:
    assert method.doc, f"{method.name} has no docstring"
    above = said_above(owner_of(method), method.name.rpartition(".")[2])
    text = f"{method.doc}\n{above}"
    known = entries(text, "Args") | ({"options"} if re.search(r"see (:func:|``)", text) else set())
    missing = [n for n in method.parameters if n not in known and not re.search(rf"``[^`]*\b{n}\b", text)]
    assert not missing, f"{method.name} does not describe {missing}"
    assert_errors(method, text)
    assert_numbers(method, text)


def assert_errors(public: Public, doc: str = "") -> None:
    function, text = function_of(public.what), doc or public.doc
    assert function is not None
    silent = [name for name in raised(function) if name not in text]
    assert not silent, f"{public.name} raises {silent} and does not say so"


def assert_numbers(public: Public, doc: str = "") -> None:
    """A tensor has its shape in the annotation, a number its unit or range in the text."""
    function, text = function_of(public.what), doc or public.doc
    assert function is not None
    returned = ast.unparse(function.returns) if function.returns is not None else ""
    if re.search(r"\bTensor\b|ndarray", returned):
        assert SHAPE.search(returned) or re.search(r"``\[\w+", text), f"{public.name} returns a tensor without a shape"
    if returned in NUMBERS or "Tensor" in returned:
        assert UNIT.search(text) or "Bool[" in returned or "Int[" in returned, f"{public.name}: in what unit?"


# ------------------------------------------------------------------------------------------------- the rules themselves
def test_the_rules_themselves() -> None:
    doc = "What it is.\n\nArgs:\n    a: one.\n    b: two,\n        on two lines: so.\n\nRaises:\n    ValueError: no.\n"
    assert entries(doc, "Args") == {"a", "b"}
    assert set(sections(doc)) == {"", "Args", "Raises"}
    function = ast.parse("def f():\n    raise ValueError('x')").body[0]
    assert isinstance(function, ast.FunctionDef) and raised(function) == {"ValueError"}
    assert len(public_names()) > 150 and len(every_method()) > 200
    assert not [
        p.name for p in public_names() if p.is_class and not str(inspect.getfile(p.what)).startswith(str(PACKAGE))
    ]
