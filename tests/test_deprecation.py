"""Old names work, say so at the caller's line without any filter set, and name the release in which they go."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tl_multitrace.deprecation import deprecated, renamed, renamed_argument


@deprecated("new", removed_in="9.0")
def old(a: int, b: int = 1) -> int:
    """Sum."""
    return a + b


@renamed_argument("k", "budget", removed_in="9.0")
def choose(pairs: str, budget: int = 8) -> tuple[str, int]:
    return pairs, budget


class Owner:
    @deprecated("Owner.new", removed_in="9.0")
    def old(self) -> str:
        return "same"

    @renamed_argument("size", "budget", removed_in="9.0")
    def pick(self, *, budget: int) -> int:
        return budget


lookup = renamed("tools", {"chooser": ("select", sorted)}, removed_in="9.0")


@pytest.mark.parametrize(
    ("call", "value", "text"),
    [
        (lambda: old(1, b=2), 3, "old is deprecated and will be removed in tl_multitrace 9.0: use new."),
        (lambda: choose("p", k=3), ("p", 3), "the argument k of choose is deprecated .* 9.0: use budget."),
        (lambda: Owner().old(), "same", "Owner.old is deprecated .* 9.0: use Owner.new."),
        (lambda: Owner().pick(size=2), 2, "the argument size of Owner.pick .* 9.0: use budget."),
        (lambda: lookup("chooser"), sorted, "tools.chooser is deprecated .* 9.0: use tools.select."),
    ],
)
def test_the_old_name_works_and_warns_names_the_new_one(call: Callable[[], Any], value: Any, text: str) -> None:
    with pytest.warns(FutureWarning, match=text) as caught:
        assert call() == value
    assert len(caught) == 1


def test_the_new_name_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("p", 3) == choose("p", budget=3) == ("p", 3)
        assert Owner().pick(budget=2) == 2


def test_what_is_wrong_is_refused() -> None:
    for call in (lambda: choose("p", 3, k=4), lambda: choose("p", budget=3, k=4)):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="both 'budget' and its old name 'k'"):
            call()
    with pytest.raises(TypeError, match="no argument 'b'"):
        renamed_argument("a", "b", removed_in="9.0")(lambda c: c)
    with pytest.raises(AttributeError, match="module 'tools' has no attribute 'other'"):
        lookup("other")


def test_name_and_docstring_stay() -> None:
    assert old.__name__ == "old" and old.__doc__ == "Sum."


USE = """
from tl_multitrace.deprecation import deprecated, renamed, renamed_argument

@deprecated("new", removed_in="9.0")
def old():
    return 1

@renamed_argument("k", "budget", removed_in="9.0")
def choose(budget):
    return budget

lookup = renamed("tools", {"chooser": ("select", sorted)}, removed_in="9.0")

def use():
    old()  # here
    choose(k=1)  # here
    lookup("chooser")  # here
"""


def test_a_user_sees_it_without_asking(tmp_path: Path) -> None:
    """From a module that is imported, where Python hides deprecation warnings; at the line of the call."""
    (tmp_path / "helper.py").write_text(USE)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import helper; helper.use()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [number for number, line in enumerate(USE.splitlines(), 1) if line.endswith("# here")]
    assert [int(n) for n in re.findall(r"helper\.py:(\d+): FutureWarning", run.stderr)] == lines
