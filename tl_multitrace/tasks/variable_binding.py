r"""Variable binding: a program of three lines, and what the last one evaluates to.

Source: the prompts and the two desiderata follow multi-component causal tracing (arXiv:2606.03085) and desiderata-based
masking (Davies et al. 2023, arXiv:2307.03637); the items are drawn anew.

Base ``x = 12\ny = 30\nx + y =``. *Value dependence* (``task.pairs``): the source differs in the value of ``x``; the
answer is the source's result, the wrong answer the base's, so a rise means that the patch carries the value.
*Operation invariance* (``task.desiderata["operation_invariance"]``): the source differs in the sign only, values are
the same. A set that holds the values and not the operation leaves the base's answer alone, so here the metric is not to
rise: 0 is perfect, and ``direction`` is ``"minimize"``. Subgroups: the sign of the base.

The paper patches the last token of the prompt. Results are never negative. Where a tokenizer splits numbers, the first
token of the result is asked for, as in the paper, and pairs whose results begin alike are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tl_multitrace.metrics import LogitDiff
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

VALUES = range(10, 100)
SIGNS: dict[str, Callable[[int, int], int]] = {"+": int.__add__, "-": int.__sub__}
LETTERS, DEMO_LETTERS = ("x", "y"), ("x", "y", "z")


@dataclass(frozen=True)
class Program:
    """Variables (letter, value) in the order they are bound, and the expression at the end."""

    bound: tuple[tuple[str, int], ...]
    left: str
    sign: str
    right: str

    @property
    def result(self) -> int:
        """What the expression evaluates to."""
        values = dict(self.bound)
        return SIGNS[self.sign](values[self.left], values[self.right])

    @property
    def text(self) -> str:
        """The program up to the last equals sign."""
        lines = [f"{letter} = {value}" for letter, value in self.bound]
        return "\n".join([*lines, f"{self.left} {self.sign} {self.right} ="])

    def with_value(self, value: int) -> Program:
        """Another value for the variable before the sign."""
        return replace(self, bound=tuple((a, value if a == self.left else old) for a, old in self.bound))


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    wish: str = "value_dependence",
    demo: bool = False,
    values: Sequence[int] | None = None,
    signs: Sequence[str] = tuple(SIGNS),
) -> Iterator[Row]:
    """Random programs without end, the signs in turn.

    The other program has another value (``wish="value_dependence"``) or another sign (``"operation_invariance"``). The
    demo model's have one digit a value, and two of three letters in any order, as it was trained.

    Raises:
        ValueError: an unknown sign, fewer than two values, or one sign where the sign is to differ.
    """
    numbers = list(values or (range(1, 10) if demo else VALUES))
    _check(numbers, signs, wish)

    def drawn(sign: str) -> tuple[Program, Program]:
        letters = rng.sample(DEMO_LETTERS, 2) if demo else LETTERS
        bound = [(letter, rng.choice(numbers)) for letter in letters]
        if demo:
            rng.shuffle(bound)
        base = Program(tuple(bound), letters[0], sign, letters[1])
        if wish == "operation_invariance":
            return base, replace(base, sign=rng.choice([other for other in signs if other != sign]))
        return base, base.with_value(rng.choice([value for value in numbers if value != dict(bound)[letters[0]]]))

    while True:
        for sign in signs:
            base, source = drawn(sign)
            while min(base.result, source.result) < 0 or base.result == source.result:
                base, source = drawn(sign)
            yield _row(sieve, base, source)


def _check(values: Sequence[int], signs: Sequence[str], wish: str) -> None:
    unknown = [sign for sign in signs if sign not in SIGNS]
    if unknown:
        raise ValueError(f"unknown sign {unknown[0]!r}: use {' or '.join(map(repr, SIGNS))}.")
    if len(set(values)) < 2:
        raise ValueError(f"values= must hold at least two different numbers, got {list(values)}.")
    if wish == "operation_invariance" and len(set(signs)) < 2:
        raise ValueError(f"operation invariance compares two signs, got {list(signs)}.")


def _row(sieve: Sieve, base: Program, source: Program) -> Row:
    # a space at the prompt's end where the space before a number is a token of its own, as the paper writes it
    gap, space = (" ", "") if sieve.added("x =", " 5") > 1 else ("", " ")

    def answer(number: int) -> tuple[str]:
        """The whole number where it is one token, else its first digit."""
        whole = f"{space}{number}"
        return (whole if sieve.added(base.text + gap, whole) == 1 else f"{space}{str(number)[0]}",)

    return Row(base.text + gap, source.text + gap, answer(source.result), answer(base.result), base.sign)


INVARIANCE = TaskInfo(
    "operation_invariance",
    "Does the set leave the operation alone?",
    partial(rows, wish="operation_invariance"),
    LogitDiff(),
    "heads/last,mlps/last",
    single_token=True,
    direction="minimize",
)
TASK = TaskInfo(
    "variable_binding",
    "Which components fetch the value that a variable is bound to?",
    rows,
    LogitDiff(),
    "heads/last,mlps/last",
    single_token=True,
    desiderata=(INVARIANCE,),
)
