"""Tests marked ``nightly`` run only where ``-m`` names them.

A hook and not ``-m "not nightly"`` in ``addopts``: the last ``-m`` counts, so that ``-m lens`` would bring them back.
"""

from __future__ import annotations

import re

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect them, unless the expression asks for them by name."""
    if re.search(r"\bnightly\b", config.option.markexpr or ""):
        return
    by_night = [item for item in items if item.get_closest_marker("nightly")]
    if by_night:
        config.hook.pytest_deselected(items=by_night)
        items[:] = [item for item in items if item not in by_night]
