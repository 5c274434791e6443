"""``doctor``: what a bug report needs, and whether tracing works here. Made to be pasted in public."""

from __future__ import annotations

import contextlib
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tl_multitrace import machine
from tl_multitrace.loading import load_model
from tl_multitrace.models import memory
from tl_multitrace.models.compat import ModelView, installed_version
from tl_multitrace.records.record import Result, result
from tl_multitrace.self_test import Check, SelfTest, public, tried

if TYPE_CHECKING:
    import pandas as pd

SUPPORTED = ((2, 16), (5,))
"""TransformerLens from the first version to before the second."""

LITTLE_MEMORY = 1 << 30


@result("tl_multitrace.diagnosis")
@dataclass(frozen=True, repr=False)
class Diagnosis(Result):
    """What :func:`doctor` found.

    Attributes:
        facts: by section, what there is.
        checks: what was tried.

    Examples:
        >>> found = mt.doctor()
        >>> found.ok, list(found.facts)[:2]
        (True, ['packages', 'machine'])
    """

    facts: Mapping[str, Mapping[str, Any]]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """Checks that found something off: numbers are right, and cost more."""
        return tuple(check for check in self.checks if check.status == "warning")

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**self.content(), "ok": self.ok}

    def headline(self) -> str:
        """How the checks ended."""
        ended = f"{len(self.failed)} of {len(self.checks)} checks failed" if self.failed else "All checks passed"
        return ended + (f", {len(self.warnings)} with a warning" if self.warnings else "")

    def summary(self) -> list[tuple[str, str]]:
        """The facts, section after section."""
        return [(name, str(value)) for lines in self.facts.values() for name, value in lines.items()]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per check: name, status, what was found, and what to do about it."""
        import pandas as pd

        return pd.DataFrame([asdict(check) for check in self.checks])

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        width = max(len(name) for lines in self.facts.values() for name in lines)
        for section, lines in self.facts.items():
            yield section
            yield from (f"  {name:<{width}}  {value}" for name, value in lines.items())
        yield "checks"
        for check in self.checks:
            yield f"  {check.status:<8}  {check.name}: {check.found}"
            if check.status in ("failed", "warning"):
                yield f"            -> {check.remedy}"
        yield self.headline()


def doctor(
    model: Any = "demo", device: str | torch.device | None = None, dtype: torch.dtype | str | None = None
) -> Diagnosis:
    """Look at versions and machine, and try every kind of hook on a model.

    Nothing that is told names a user, a host, a folder or a token.

    Args:
        model: a TransformerLens model, or a name as :func:`~tl_multitrace.load_model` takes it; by default the model
            that ships with the package.
        device: where to load a model named; default: a GPU where there is one.
        dtype: of its weights.

    Returns:
        Facts and checks; ``print`` gives the text for a bug report, ``to_dict()`` the same for programs.

    Examples:
        >>> found = mt.doctor("demo")
        >>> [check.name for check in found.failed]
        []
    """
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # libraries announce models they load
        warnings.simplefilter("ignore")
        checks = list(_of_installation())
        loaded, check = _loaded(model, device, dtype)
        checks.append(check)
        about = {}
        if loaded is not None:
            about = {"model": _about(loaded, model)}
            checks += SelfTest(loaded).checks()
    seconds = {"seconds": f"{time.perf_counter() - began:.1f}"}
    return Diagnosis({**_facts(), **about, "this diagnosis": seconds}, tuple(checks))


def _facts() -> dict[str, dict[str, Any]]:
    return {
        "packages": machine.packages(),
        "machine": machine.cpu(),
        "memory": machine.memory_facts(),
        "GPUs": machine.gpus(),
        "PyTorch": machine.torch_facts(),
        "environment": machine.switches() or {"switches": "none set"},
    }


def _of_installation() -> Iterator[Check]:
    """What has to be right before any model is loaded."""
    yield tried("TransformerLens", _supported, 'pip install -U "transformer-lens>=2.16,<5"')
    yield tried("GPU", _gpu_seen, "install a PyTorch built for this driver: see pytorch.org/get-started")
    yield tried("memory", _memory, "free some, or raise the job's limit; memory_limit= of Tracer asks for less")


def _supported() -> str:
    import transformer_lens  # noqa: F401  - that it imports at all is the first half

    found = installed_version()
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    first, end = SUPPORTED
    if not first <= numbers < end:
        raise ValueError(f"version {found} is not supported: from {_dotted(first)} to before {_dotted(end)}")
    return f"{found} imports and is supported"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _gpu_seen() -> str:
    driver = machine.nvidia_driver()
    if torch.cuda.is_available():
        return f"PyTorch sees {torch.cuda.device_count()} ({machine.built_for()})"
    if driver is not None:
        raise RuntimeError(f"there is an NVIDIA driver ({driver}), but PyTorch ({machine.built_for()}) sees no GPU")
    return "none, and none expected"


def _memory() -> str:
    free = memory.available("cuda" if torch.cuda.is_available() else "cpu")
    if free < LITTLE_MEMORY:
        raise MemoryError(f"only {machine.gib(free)} can be taken")
    return f"{machine.gib(free)} can be taken"


def _loaded(model: Any, device: Any, dtype: Any) -> tuple[Any, Check]:
    """The model, or None where it cannot be had, and a check that says so."""
    kept: list[Any] = []

    def load() -> str:
        began = time.perf_counter()
        kept.append(load_model(model, device, dtype) if isinstance(model, str) else model)
        ModelView(kept[0])
        return f"loaded in {time.perf_counter() - began:.1f} s" if isinstance(model, str) else "given"

    remedy = "check name, network and HF_HUB_OFFLINE; without --model the model inside the package is tried"
    check = tried("model", load, remedy)
    if isinstance(model, str) and model != "demo":
        check = Check(check.name, check.status, check.found.replace(model, _public_name(model)), check.remedy)
    return (kept[0] if check.status == "ok" else None), check


def _public_name(name: str) -> str:
    """A model's name, unless it is a folder of the user's."""
    local = Path(name).expanduser().exists() or name.startswith((".", "/", "~"))
    return "<a local folder>" if local else public(name)


def _about(model: Any, asked: Any) -> dict[str, Any]:
    view = ModelView(model)
    told = {
        k: v for k, v in view.describe().items() if k not in ("name", "torch", "transformer_lens") and v is not None
    }
    name = _public_name(asked) if isinstance(asked, str) else type(model).__name__
    return {"name": name, **told, "device": machine.device_name(view.device)}
