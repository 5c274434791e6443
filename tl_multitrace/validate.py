"""Checks of prompts, groups and metric against the model, before anything runs."""

from __future__ import annotations

import warnings

import torch

from tl_multitrace.groups import HookGroups, axis_length
from tl_multitrace.metrics import Metric
from tl_multitrace.models.compat import ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tokens import NO_TOKEN


def check_inputs(
    view: ModelView, pairs: PromptPairs, groups: HookGroups, metric: Metric, *, interchanged: bool = False
) -> None:
    """Refuse what cannot be traced; warn of pairs without a difference where activations are ``interchanged``.

    Raises:
        ValueError: no groups, or groups of another model; token ids or lengths outside the model; padding without
            lengths; a metric that needs wrong answers.
    """
    if not len(groups):
        raise ValueError("there are no hook groups: pass heads(model), neurons(model), ...")
    if view.model.training:
        warnings.warn(
            "the model is in train mode; it is traced in eval mode (no dropout) and put back afterwards. Call "
            "model.eval() to silence this.",
            stacklevel=3,
        )
    _check_groups(view, groups)
    _check_tokens(view, pairs)
    if interchanged:
        _warn_same(pairs)
    if not pairs.padding_known:
        _check_padding(view, pairs)
    _check_spans(groups, pairs)
    if metric.needs_wrong and not bool(((pairs.candidates != NO_TOKEN).any(-1) & ~pairs.right).any(-1).all()):
        raise ValueError(
            f"the metric {metric.name} compares answers with wrong answers, but some pairs have none: pass "
            "wrong_answers=."
        )


def _warn_same(pairs: PromptPairs) -> None:
    width = min(pairs.base_tokens.shape[1], pairs.source_tokens.shape[1])
    differs = (pairs.base_tokens[:, :width] != pairs.source_tokens[:, :width]).any(1)
    same = (~differs & (pairs.lengths == pairs.source_lengths)).nonzero().flatten().tolist()
    if same:
        warnings.warn(
            f"{len(same)} of {len(pairs)} pairs have the same tokens in base and source (the first is pair "
            f"{pairs.number(same[0])}): interchanging activations changes nothing there, and their effects are 0. "
            "Leave them out, or use another intervention.",
            stacklevel=4,
        )


def _check_tokens(view: ModelView, pairs: PromptPairs) -> None:
    longer = torch.maximum(pairs.lengths, pairs.source_lengths)
    needed = int((longer + (pairs.candidates != NO_TOKEN).sum(-1).amax(-1) - 1).max())
    if view.n_ctx and needed > view.n_ctx:
        raise ValueError(
            f"a prompt with its answer has {needed} tokens, but {view.name} takes {view.n_ctx}. Shorten or drop it."
        )
    fed = pairs.candidates.clone()
    last = (fed != NO_TOKEN).sum(-1, keepdim=True) - 1
    fed.scatter_(-1, last.clamp(min=0), NO_TOKEN)  # all of an answer but its last token is fed to the model
    read = {"base_tokens": pairs.base_tokens, "source_tokens": pairs.source_tokens, "candidates (but the last)": fed}
    for name, ids in read.items():
        _check_ids(ids, name, view.d_vocab, f"{view.name} has {view.d_vocab} tokens")
    _check_ids(pairs.candidates, "candidates", view.d_vocab_out, f"{view.name} predicts {view.d_vocab_out} tokens")


def _check_ids(ids: torch.Tensor, name: str, bound: int, has: str) -> None:
    outside = ids[(ids >= bound) | (ids < (NO_TOKEN if name.startswith("candidates") else 0))]
    if len(outside):
        raise ValueError(
            f"{name} holds the id {int(outside[0])}, but {has}. Were the prompts tokenised for another model?"
        )


def _check_groups(view: ModelView, groups: HookGroups) -> None:
    for (kind, site), size in groups.sizes.items():
        has = axis_length(view, (kind, site))
        if size != has:
            raise ValueError(
                f"the hook groups are of a model with {size} {kind}s per layer, but {view.name} has {has}. Make them "
                "for this model."
            )
    last = max(site.layer for sites in groups.sites for site in sites)
    if last >= view.n_layers:
        raise ValueError(
            f"the hook groups reach layer {last}, but {view.name} has layers 0 to {view.n_layers - 1}. Make them for "
            "this model."
        )


def _check_padding(view: ModelView, pairs: PromptPairs) -> None:
    pad = getattr(view.tokenizer, "pad_token_id", None)
    if pad is None:
        return
    bos = getattr(view.tokenizer, "bos_token_id", None)
    for name in ("base_tokens", "source_tokens"):
        tokens = getattr(pairs, name)
        left = (tokens[:, :1] == pad).all(-1) & ((tokens[:, 1:2] == pad).all(-1) | torch.tensor(pad != bos))
        right = (tokens[:, -1] == pad) & torch.tensor(tokens.shape[1] > 1)
        for side, found in (("starts", left), ("ends", right)):
            if bool(found.any()):
                raise ValueError(
                    f"{name} row {int(found.nonzero()[0])} {side} with padding (id {pad}), but no lengths were given, "
                    "so the model would "
                    "attend to it. Pad on the right and pass lengths= to PromptPairs.from_tokens."
                )


def _check_spans(groups: HookGroups, pairs: PromptPairs) -> None:
    longest = int(pairs.lengths.max())
    for position in {s.position for sites in groups.sites for s in sites}:
        if isinstance(position, str) and position not in ("last", "everywhere", *pairs.spans):
            raise ValueError(
                f"the hook groups name the span {position!r}, but the prompts have only "
                f"{sorted(pairs.spans) or 'none'}. "
                "Pass subject= to PromptPairs.from_text, or use positions='all' or 'last'."
            )
        place = position[0] if isinstance(position, tuple) else position
        if isinstance(place, int) and not -longest <= place < longest:
            raise ValueError(f"position {place} is outside every prompt (the longest has {longest} tokens).")
