"""The model that all benchmarks share."""

from __future__ import annotations

from typing import Any

import pytest
from sides import model


@pytest.fixture(scope="session")
def gpt2() -> Any:
    return model()
