"""Every public name says what it is: a sentence, shapes, units, errors, and an example. All offenders at once."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Iterable
from typing import Any

from public_names import PACKAGE, Public, every_method, public_names

from tl_multitrace.objective import Aim, Objective, TracerAim
from tl_multitrace.solvers import SOLVERS, Solver

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Warns|Examples):$", re.MULTILINE)
NUMBERS = {"float", "float | None"}
UNIT = re.compile(
    r"nats|unit|probabilit|share|relative|percent|seconds|forward|standard deviation|p-value|overlap|size of|score|p\("
    r"|from -?\d|0 to 1|loss|bytes|odds|factor|effect|change|mean|derivative|gain|CPR|CMD|area",
    re.IGNORECASE,
)
SHAPE = re.compile(r"(Float|Int|Bool|Shaped|Num)\[")


def sections(doc: str) -> dict[str, str]:
    """The parts of a docstring under its headings; what stands before them under ``""``."""
    parts = SECTION.split(doc)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


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


def documented() -> list[tuple[Public, str]]:
    """Every public name and method with its docstring; a method has also what is said of it above its class."""
    methods = [(m, f"{m.doc}\n{said_above(owner_of(m), m.name.rpartition('.')[2])}") for m in every_method()]
    return [(public, public.doc) for public in public_names()] + methods


def listed(offenders: Iterable[str]) -> str:
    return "\n".join(offenders)


# ----------------------------------------------------------------------------------------------------------- the rules
def test_a_name_says_in_a_sentence_what_it_is() -> None:
    def says_nothing(public: Public) -> bool:
        summary = " ".join(public.doc.partition("\n\n")[0].split())
        generated = summary.startswith(f"{public.name.rpartition('.')[2]}(")  # a dataclass's own docstring
        return generated or " " not in summary or summary[-1] not in ".:!?"

    assert not (silent := [public.name for public, _ in documented() if says_nothing(public)]), listed(silent)


def test_a_name_has_an_example() -> None:
    without = [p.name for p in public_names() if ">>> " not in sections(p.doc).get("Examples", "")]
    assert not without, listed(without)


def test_what_is_raised_is_said() -> None:
    functions = [(public, function_of(public.what), doc) for public, doc in documented()]
    silent = [
        f"{public.name} raises {error}"
        for public, function, doc in functions
        if function is not None
        for error in sorted(raised(function))
        if error not in doc
    ]
    assert not silent, listed(silent)


def lacks(returned: str, doc: str) -> str:
    """What a reader would miss of a returned tensor or number; empty where nothing."""
    if re.search(r"\bTensor\b|ndarray", returned) and not (SHAPE.search(returned) or re.search(r"``\[\w+", doc)):
        return "a tensor without a shape"
    number = (returned in NUMBERS or "Tensor" in returned) and not re.search(r"(Bool|Int)\[", returned)
    return "a number without a unit or range" if number and not UNIT.search(doc) else ""


def test_a_tensor_has_a_shape_and_a_number_a_unit() -> None:
    functions = [(public.name, function_of(public.what), doc) for public, doc in documented()]
    returns = [(name, ast.unparse(f.returns), doc) for name, f, doc in functions if f is not None and f.returns]
    vague = [f"{name} returns {what}" for name, returned, doc in returns if (what := lacks(returned, doc))]
    assert not vague, listed(vague)


# ------------------------------------------------------------------------------------------------- the rules themselves
def test_the_rules_themselves() -> None:
    assert set(sections("What it is.\n\nArgs:\n    a: one.\n\nRaises:\n    ValueError: no.\n")) == {
        "",
        "Args",
        "Raises",
    }
    assert lacks("Tensor", "Gains.") and lacks("float", "A number.") and not lacks("Float[Tensor, ' n']", "In nats.")
    function = ast.parse("def f():\n    raise ValueError('x')").body[0]
    assert isinstance(function, ast.FunctionDef) and raised(function) == {"ValueError"}
    assert len(public_names()) > 150 and len(every_method()) > 200
    assert not [
        p.name for p in public_names() if p.is_class and not str(inspect.getfile(p.what)).startswith(str(PACKAGE))
    ]
