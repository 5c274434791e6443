"""Nothing but finite numbers leaves the runs: checks after every run, and where it went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from tl_multitrace.cost import NonFiniteError
from tl_multitrace.engine.mask_runs import MaskRuns
from tl_multitrace.rows import Batch


def checked(
    runs: MaskRuns,
    batches: Sequence[Batch],
    values: Tensor,
    batch: Batch,
    mask: Tensor | None,
    what: str,
    logp: Tensor | None = None,
) -> Tensor:
    """``values``, where they are finite.

    Args:
        runs: that ran the batch, and can run it again to see where it stops being finite.
        batches: all of them, to count by.
        values: one row per example of the batch, or of copies of it; or a single row over all.
        batch: in question.
        mask: that it ran under.
        what: the values are, for the message.
        logp: log probabilities that they come from. An accuracy is finite even where these are not.

    Raises:
        NonFiniteError: they are not; the message names batch, hook point and example.
    """
    finite = values.isfinite().all()  # read once: on a GPU every look waits for it
    if bool(finite if logp is None else finite & logp.isfinite().all()):
        return values
    number = next((i for i, b in enumerate(batches) if b is batch), 0)
    row = _first_broken(values) if len(values) % len(batch.examples) == 0 else None
    example = None if row is None else _caller(runs, batch, row)
    fail(runs, batch, mask, f"{what} is not finite in batch {number}", example)


def fail(runs: MaskRuns, batch: Batch, mask: Tensor | None, what: str, example: int | None) -> NoReturn:
    """Raise NonFiniteError with where a batch first stops being finite; ``example`` if its answers are finite."""
    place = diagnosis(runs, batch, mask)
    if place is not None:
        raise NonFiniteError(
            f"{what}: {place}. Check the weights and the prompts; a float16 model may overflow (load it with "
            "dtype=torch.bfloat16 or float32)."
        )
    which = "" if example is None else f", first in example {example}"
    raise NonFiniteError(
        f"{what}{which}: the log probabilities are finite, but what is computed from them is not. Ratios of odds or of "
        "perplexities overflow where they change by a factor above 1e38; LogOddsRatio, LogitDiff and AnswerLogProb "
        "stay on the log scale."
    )


def diagnosis(runs: MaskRuns, batch: Batch, mask: Tensor | None) -> str | None:
    """Where a batch first stops being finite, as text; None where its answers are finite."""
    found = None if mask is None else _broken_source(runs, batch)
    if found is not None:
        return found
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        answers = runs.answers(batch, mask, keep=frozenset(runs.plans), seen=seen)
    for name, value in seen.items():  # in the order in which the hooks fired
        if (row := _first_broken(value)) is not None:
            return f"first at {name}, example {_of_row(runs, batch, row)}"
    bad = [n for n, p in runs.view.model.named_parameters() if not bool(p.isfinite().all())]
    if bad:
        return f"first in the weights ({bad[0]})"
    last = _first_broken(answers.token_logp)
    return None if last is None else f"first at the logits, example {_caller(runs, batch, last)}"


def _broken_source(runs: MaskRuns, batch: Batch) -> str | None:
    for name in runs.plans:
        value = runs.sources.get(runs, name, batch)
        if (row := _first_broken(value)) is not None:
            which = f", example {_of_row(runs, batch, row)}" if len(value) == batch.n_rows else ""
            return f"first in the source run at {name}{which}"
    return None


def _first_broken(value: Tensor) -> int | None:
    """The first row that is not finite throughout."""
    broken = (~value.isfinite()).reshape(len(value), -1).any(1)
    return int(broken.nonzero()[0]) if bool(broken.any()) else None


def _of_row(runs: MaskRuns, batch: Batch, row: int) -> int:
    """The caller's number of the example that a row of a batch, or of copies of it, belongs to."""
    return _caller(runs, batch, int(batch.example[row % batch.n_rows]))


def _caller(runs: MaskRuns, batch: Batch, index: int) -> int:
    """The caller's number of an example of a batch, or of copies of it."""
    return int(runs.rows.order[int(batch.examples[index % len(batch.examples)])])
