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
from tl_multitrace.tasks.rows import Row, Sieve

VALUES = range(10, 100)
SIGNS: dict[str, Callable[[int, int], int]] = {"+": int.__add__, "-": int.__sub__}
LETTERS, DEMO_LETTERS = ("x", "y"), ("x", "y", "z")


@dataclass(frozen=True)
class Program:
    """Variables with values in the order they are bound, and the expression at the end.

    Attributes:
        bound: (letter, value) of each line.
        left: letter before the sign.
        sign: one of ``SIGNS``.
        right: letter behind it.
    """

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
    other = (
        partial(_other_sign, signs=signs) if wish == "operation_invariance" else partial(_other_value, values=numbers)
    )
    while True:
        for sign in signs:
            yield _row(sieve, *_pair(rng, partial(_program, rng, numbers, sign, demo), other))


def _pair(
    rng: random.Random, program: Callable[[], Program], other: Callable[[random.Random, Program], Program]
) -> tuple[Program, Program]:
    """Two programs with different results, none negative."""
    while True:
        base = program()
        source = other(rng, base)
        if min(base.result, source.result) >= 0 and base.result != source.result:
            return base, source


def _check(values: Sequence[int], signs: Sequence[str], wish: str) -> None:
    unknown = [sign for sign in signs if sign not in SIGNS]
    if unknown:
        raise ValueError(f"unknown sign {unknown[0]!r}: use {' or '.join(map(repr, SIGNS))}.")
    if len(set(values)) < 2:
        raise ValueError(f"values= must hold at least two different numbers, got {list(values)}.")
    if wish == "operation_invariance" and len(set(signs)) < 2:
        raise ValueError(f"operation invariance compares two signs, got {list(signs)}.")


def _program(rng: random.Random, values: Sequence[int], sign: str, demo: bool) -> Program:
    letters = rng.sample(DEMO_LETTERS, 2) if demo else LETTERS
    bound = [(letter, rng.choice(values)) for letter in letters]
    if demo:
        rng.shuffle(bound)
    return Program(tuple(bound), letters[0], sign, letters[1])


def _other_value(rng: random.Random, base: Program, *, values: Sequence[int]) -> Program:
    return base.with_value(rng.choice([value for value in values if value != dict(base.bound)[base.left]]))


def _other_sign(rng: random.Random, base: Program, *, signs: Sequence[str]) -> Program:
    return replace(base, sign=rng.choice([sign for sign in signs if sign != base.sign]))


def _row(sieve: Sieve, base: Program, source: Program) -> Row:
    gap = _gap(sieve)
    answer, wrong = (_first(sieve, base.text + gap, one.result, "" if gap else " ") for one in (source, base))
    return Row(base.text + gap, source.text + gap, (answer,), (wrong,), base.sign)


def _gap(sieve: Sieve) -> str:
    """A space at the prompt's end where the space before a number is a token of its own, as the paper writes it."""
    return " " if sieve.added("x =", " 5") > 1 else ""


def _first(sieve: Sieve, prompt: str, number: int, space: str) -> str:
    """The whole number where it is one token, else its first digit."""
    whole = f"{space}{number}"
    return whole if sieve.added(prompt, whole) == 1 else f"{space}{str(number)[0]}"


INVARIANCE = TaskInfo(
    name="operation_invariance",
    question="Does the set leave the operation alone?",
    make=partial(rows, wish="operation_invariance"),
    metric=LogitDiff(),
    groups="heads/last,mlps/last",
    single_token=True,
    direction="minimize",
)
TASK = TaskInfo(
    name="variable_binding",
    question="Which components fetch the value that a variable is bound to?",
    make=rows,
    metric=LogitDiff(),
    groups="heads/last,mlps/last",
    single_token=True,
    desiderata=(INVARIANCE,),
)
