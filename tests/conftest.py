"""What every test runs under: no hub, one thread, and a random state that nobody moves."""

from __future__ import annotations

import os

# Before transformers or a BLAS is imported, or they have no effect.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nightly import pytest_collection_modifyitems as pytest_collection_modifyitems  # the hook itself

from tiny_models import build, few, word_tokenizer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL_MODELS = "TL_MULTITRACE_REAL_MODELS"


def pytest_configure() -> None:
    torch.set_num_threads(1)


def _random_states() -> dict[str, Any]:
    """The global generators that must not move; not Python's own, which beartype draws from to check containers."""
    name, keys, *rest = np.random.get_state()
    return {"torch": torch.get_rng_state().numpy().tobytes(), "numpy": (name, keys.tobytes(), *rest)}


@pytest.fixture(autouse=True)
def unmoved_random_state(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that draws from, or seeds, a global generator; ``@pytest.mark.moves_rng`` allows it."""
    before = _random_states()
    yield
    moved = [name for name, state in _random_states().items() if state != before[name]]
    if moved and not request.node.get_closest_marker("moves_rng"):
        pytest.fail(f"the test moved the global random state of {' and '.join(moved)}; use a generator of its own")


@pytest.fixture(params=few("native", "attn-only"))
def tiny_model(request: pytest.FixtureRequest) -> Any:
    """Tiny models in turn, freshly built, with a word tokenizer."""
    return build(request.param, tokenizer=word_tokenizer())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets beside the repository; skips where it is not there."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the public data sets are not at ../shared/data ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder that ``real_models/make.py`` filled; skips where there is none."""
    folder = os.environ.get(REAL_MODELS)
    if not folder:
        pytest.skip(f"no real models: `python tests/real_models/make.py FOLDER`, then set {REAL_MODELS}=FOLDER")
    if not Path(folder).is_dir():
        pytest.fail(f"{REAL_MODELS}={folder} is no folder")
    return Path(folder)
