"""Token views in a real browser: drawn from the file alone, and hostile tokens do nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from render_cases import EVIL
from test_report_browser import CHROMIUM, browse
from test_trace_grid import made, traced

from tl_multitrace.causal_trace import CausalTokens

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:the model does not predict", "ignore:the corruption"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it to check pages in a browser (apt: chromium)"),
]


def drawn(page: Path) -> str:
    """The document after its scripts ran, without the scripts."""
    return re.sub(r"<script.*?</script>", "", browse(page), flags=re.DOTALL)


def test_every_token_and_layer_is_drawn(tmp_path: Path) -> None:
    grid = traced()
    seen = drawn(grid.show().save(tmp_path / "trace.html"))
    assert all(f"layer {i}" in seen for i in range(3)) and "doctor*" in seen and "rgb" in seen


def test_both_effects_of_tokens_are_drawn(tmp_path: Path) -> None:
    grid = traced()
    shape = (len(grid.corrupted), 2)
    tokens = CausalTokens(
        grid.tokens, (2, 3), 0.9, grid.corrupted, grid.restored.flatten(1)[:, :2], grid.restored.new_ones(shape), " he"
    )
    seen = drawn(tokens.show().save(tmp_path / "tokens.html"))
    assert "corrupted alone" in seen and "restored alone" in seen and "doctor" in seen


def test_a_hostile_token_does_nothing(tmp_path: Path) -> None:
    seen = browse(made(words=(EVIL, " Space", " Needle", " of"), answer=EVIL).show().save(tmp_path / "evil.html"))
    assert "<title>Causal trace</title>" in seen and "Needle*" in seen
