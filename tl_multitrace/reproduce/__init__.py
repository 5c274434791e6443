"""Published experiments, run again on whatever model is at hand, beside the published numbers and their source.

Each module is one family; an experiment is an entry of :data:`EXPERIMENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_multitrace.loading import load_model
from tl_multitrace.reproduce import binding, circuits, facts, mediation, multi_component
from tl_multitrace.reproduce import plot as plot  # registers itself as what draws a reproduction
from tl_multitrace.reproduce.experiment import Experiment, Request, Work, as_published
from tl_multitrace.reproduce.result import Curve, Published, Reproduction, Row, check_free

__all__ = ["EXPERIMENTS", "Curve", "Published", "Reproduction", "Request", "Row", "experiment_by_name", "reproduce"]

_FAMILIES = (multi_component, binding, mediation, circuits, facts)
EXPERIMENTS: dict[str, Experiment] = {one.name: one for family in _FAMILIES for one in family.EXPERIMENTS}
"""Every experiment by its name.

Examples:
    >>> from tl_multitrace.reproduce import EXPERIMENTS
    >>> list(EXPERIMENTS)[:3]
    ['winobias', 'winogender', 'professions']
"""


def experiment_by_name(name: str) -> Experiment:
    """An experiment; raises ValueError for an unknown name, with the known ones.

    Args:
        name: a key of ``EXPERIMENTS``.

    Examples:
        >>> from tl_multitrace.reproduce import experiment_by_name
        >>> experiment_by_name("ioi").model
        'gpt2'
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}: use one of {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def reproduce(
    name: str,
    out: str | Path | None = None,
    *,
    model: Any = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    **options: Any,
) -> Reproduction:
    """Run a published experiment again.

    Args:
        name: an entry of ``tl_multitrace.reproduce.EXPERIMENTS``, such as ``"winobias"``.
        out: folder for record, table (CSV, markdown), curve (PNG) and the searches themselves; None: write nothing.
        model: a loaded model, or a name as :func:`load_model` takes it; default: the published one.
        overwrite: replace an earlier reproduction in that folder.
        tell: called with a line for the user at each step.
        progress: show progress bars.
        options: the fields of :class:`~tl_multitrace.reproduce.experiment.Request`, such as ``data=``, ``n=``,
            ``quick=True``.

    Returns:
        Table and curves, with the published numbers beside ours.

    Raises:
        ValueError: unknown experiment, no data for one that needs it, or what a task or solver refuses.
        FileExistsError: the folder holds a reproduction and ``overwrite`` is False.

    Examples:
        >>> found = mt.reproduce("ioi", "repro", model="demo", quick=True, n=8)
        >>> found.name, found.model
        ('ioi', 'tl-multitrace-demo')
    """
    experiment = experiment_by_name(name)
    named = model if isinstance(model, str) else None if model is None else "given"
    request = Request(model=named or experiment.model, **options)
    experiment.check(request)
    if out is not None:
        check_free(Path(out), overwrite=overwrite)
    loaded = _loaded(request, model, tell)
    before = loaded.cfg.default_prepend_bos
    try:
        work = Work(request, as_published(loaded), tell, progress)
        found = experiment.run(work)
    finally:
        loaded.cfg.default_prepend_bos = before
    if out is not None:
        found.write(out, overwrite=overwrite)
        for file, result in work.extras.items():
            result.save(Path(out) / file, overwrite=overwrite)
    return found


def _loaded(request: Request, model: Any, tell: Callable[[str], None]) -> Any:
    if model is not None and not isinstance(model, str):
        return model
    tell(f"Loading {request.model}")
    return load_model(str(request.model), request.device, request.dtype)
