"""The embeddings of tokens, measured where noise is added to them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.models.compat import ModelView


def has_embeddings(view: ModelView) -> bool:
    """Whether a hook reaches the token embeddings, before any norm that follows them."""
    behind_norm = not view.is_bridge and getattr(view.model.cfg, "post_embedding_ln", False)
    return not behind_norm and view.has_point(view.embedding_point)


def embedding_width(view: ModelView) -> int:
    """Numbers in a token's embedding, which a model may project to its own width (OPT).

    Raises:
        ValueError: no hook reaches the token embedding, so no noise can be added to it.
    """
    if not has_embeddings(view):
        raise ValueError(
            f"the token embeddings of {view.name} cannot be corrupted: its {type(view.model).__name__} has no hook "
            "point between them and what follows. Load it as a TransformerBridge (TransformerLens 3 or later), or "
            "replace tokens: TokenReplacement()."
        )
    return int(view.embed(torch.zeros(1, dtype=torch.long)).shape[-1])


def embedding_moments(view: ModelView) -> tuple[Float[Tensor, " width"], float]:
    """Mean vector and overall standard deviation of the embedding matrix, in chunks."""
    total, square, count = torch.zeros(embedding_width(view), dtype=torch.float64), 0.0, 0
    for ids in torch.arange(view.d_vocab).split(4096):
        rows = view.embed(ids).double().cpu()
        total, square, count = total + rows.sum(0), square + float((rows**2).sum()), count + rows.numel()
    mean = float(total.sum()) / count
    return total / view.d_vocab, ((square - count * mean**2) / (count - 1)) ** 0.5
