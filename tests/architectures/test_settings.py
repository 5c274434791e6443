"""Every setting of ``HookedTransformerConfig``, on TransformerLens 2.x and 3.x: no number but the plain loop's."""

from __future__ import annotations

import pytest
import torch
from settings import SETTINGS, build, dtype_of
from sweep import Sweep

from tiny_models import HAS_HOOKED

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.lens,
    pytest.mark.skipif(not HAS_HOOKED, reason="HookedTransformer went with TransformerLens 4"),
    pytest.mark.filterwarnings("ignore"),
]

WITHOUT = {
    "attention only": {"neurons", "mlp_dims", "mlps", "residual:mid"},
    "parallel": {"residual:mid"},
    "experts": {"neurons"},
    "gated experts": {"neurons"},
}
"""Kinds that a setting takes away; all others work."""


@pytest.mark.parametrize("name", SETTINGS)
def test_every_number_is_the_plain_loops(name: str) -> None:
    row = Sweep(build(name), tolerance=1e-6 if dtype_of(name) == torch.float64 else 1e-4).run()
    assert set(row.refused) == WITHOUT.get(name, set())
    noise = (
        {"trace"} if name != "norm after the embedding" else set()
    )  # which leaves no place for noise; refused in words
    assert {"flow"} | noise == {"flow", "trace"} & set(row.works)
