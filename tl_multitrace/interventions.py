"""Where the two runs of a trace come from: what the base run is, and which activation replaces a running one.

======================  =============================  =============================================
intervention            base run                       source activation
======================  =============================  =============================================
``Interchange``         base prompts                   the source prompts' own
``ZeroAblation``        base prompts                   0
``MeanAblation``        base prompts                   mean over a reference prompt set
``GivenAblation``       base prompts                   given values
``ResampleAblation``    base prompts                   another prompt's of the reference set
``NoiseCorruption``     base prompts                   base prompts with noised embeddings
``... restore=True``    prompts with noised embeddings  the clean prompts' (causal tracing)
======================  =============================  =============================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_multitrace.groups import Position
from tl_multitrace.groups.mixing import Places
from tl_multitrace.models.compat import ModelView
from tl_multitrace.models.embeddings import embedding_moments, embedding_width
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.rows import Rows
from tl_multitrace.tokens import pad_rows


@dataclass(frozen=True)
class Run:
    """Rows to run for their activations.

    Attributes:
        tokens: right-padded ids.
        lengths: real tokens per row.
        noise: added to the token embeddings.
        replaced: where the token embedding itself is dropped first, so that ``noise`` stands in its place.
    """

    tokens: Int[Tensor, "rows pos"]
    lengths: Int[Tensor, " rows"]
    noise: Float[Tensor, "rows pos size"] | None = None
    replaced: Bool[Tensor, "rows pos"] | None = None

    def picked(self, rows: Int[Tensor, " b"] | None) -> Run:
        """Some of the rows; all of them for None."""
        if rows is None:
            return self
        parts = (None if part is None else part[rows] for part in (self.noise, self.replaced))
        return Run(self.tokens[rows], self.lengths[rows], *parts)


@dataclass(frozen=True)
class Intervention:
    """What replaces a running activation. Subclasses override the runs.

    Attributes:
        name: how results call it.
        averages: None (activations row by row), ``"zero"``, ``"given"`` (by the intervention itself), ``"prompt"`` (one
            mean over prompts and positions) or ``"position"`` (one mean per position).

    Examples:
        >>> mt.Interchange().describe(), mt.ZeroAblation().averages
        ({'name': 'interchange'}, 'zero')
    """

    name: ClassVar[str] = ""

    @property
    def averages(self) -> Literal["zero", "given", "prompt", "position"] | None:
        """How the source run's activations are reduced before use."""
        return None

    @property
    def aligned(self) -> bool:
        """Whether the source run's positions follow the pairs' own alignment (else: those of the base run)."""
        return False

    def base_run(self, rows: Rows, view: ModelView) -> Run:
        """The run that is intervened on.

        Args:
            rows: the prompts, one row each.
            view: the model.
        """
        return Run(rows.base, rows.lengths)

    def source_run(self, rows: Rows, view: ModelView) -> Run | None:
        """The run that activations come from, or None.

        Args:
            rows: the prompts, one row each.
            view: the model.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Provenance record."""
        options = {k: v for k, v in vars(self).items() if isinstance(v, int | float | str | bool | type(None))}
        return {"name": self.name, **options}


@dataclass(frozen=True)
class Interchange(Intervention):
    """Replace by the activation of the source prompt (activation patching, interchange intervention).

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), task.metric, mt.Interchange())
        >>> round(tracer.effect(["L0H3"]).mean().item())
        340
    """

    name: ClassVar[str] = "interchange"

    @property
    def aligned(self) -> bool:
        """The pairs' own alignment."""
        return True

    def source_run(self, rows: Rows, view: ModelView) -> Run:
        """The source prompts."""
        return Run(rows.source, rows.source_lengths)


@dataclass(frozen=True)
class ZeroAblation(Intervention):
    """Replace by 0. Often far from anything the model ever computes: read its effects with care.

    Examples:
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.LogitDiff(), mt.ZeroAblation())
        >>> round(tracer.effect(["L0H3"]).mean().item(), 1)
        1.8
    """

    name: ClassVar[str] = "zero"

    @property
    def averages(self) -> Literal["zero"]:
        """No source run is needed."""
        return "zero"


@dataclass(frozen=True)
class MeanAblation(Intervention):
    """Replace by the mean activation over a reference prompt set.

    Args:
        reference: prompts whose *source* side is averaged, as :meth:`Circuit.ablate` does (``reference.swap()`` gives
            the other side); default: the pairs themselves.
        per_position: one mean per position (prompts must line up from the left) instead of one over all tokens.
            Attention weights always take one mean per position.

    Examples:
        >>> off = mt.MeanAblation(reference=task.pairs)
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.LogitDiff(), off)
        >>> round(tracer.effect(["L0H3"]).mean().item(), 1)
        1.7
    """

    reference: PromptPairs | None = None
    per_position: bool = False
    name: ClassVar[str] = "mean"

    @property
    def averages(self) -> Literal["prompt", "position"]:
        """Over prompts and positions, or per position."""
        return "position" if self.per_position else "prompt"

    def source_run(self, rows: Rows, view: ModelView) -> Run:
        """The reference prompts."""
        if self.reference is None:  # prompts, not rows: no prompt counts twice for having two answers
            return Run(rows.pairs.source_tokens, rows.pairs.source_lengths)
        return Run(self.reference.source_tokens, self.reference.source_lengths)


@dataclass(frozen=True)
class GivenAblation(Intervention):
    """Replace by given values, such as means that were taken once for several prompt sets.

    Args:
        values: per hook name one vector for every prompt and position.
    """

    values: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict)
    name: ClassVar[str] = "given"

    @property
    def averages(self) -> Literal["given"]:
        """No source run is needed."""
        return "given"


@dataclass(frozen=True)
class ResampleAblation(Intervention):
    """Replace by the activation of another prompt of the same length, drawn at random.

    Args:
        reference: prompts to draw from; default: the base prompts themselves (never the prompt itself).
        seed: seed of the draw.

    Raises:
        ValueError: when tracing starts, if some prompt has no other prompt of its length to draw from.

    Examples:
        >>> other = mt.ResampleAblation(seed=1)
        >>> tracer = mt.Tracer(model, task.pairs, mt.heads(model), mt.LogitDiff(), other)
        >>> tuple(tracer.effect(["L0H3"]).shape)
        (16,)
    """

    reference: PromptPairs | None = None
    seed: int = 0
    name: ClassVar[str] = "resample"

    def source_run(self, rows: Rows, view: ModelView) -> Run:
        """For each row a prompt drawn from those of its length, with the row's own answer prefix."""
        generator = torch.Generator().manual_seed(self.seed)
        pool = rows.pairs if self.reference is None else self.reference
        drawn = [self._draw(e, rows, pool, generator) for e in range(rows.n_examples)]
        tokens = []
        for r, e in enumerate(rows.example.tolist()):
            k = int(rows.pairs.lengths[e])
            tokens.append(pool.base_tokens[drawn[e], :k].tolist() + rows.base[r, k : rows.lengths[r]].tolist())
        return Run(pad_rows(tokens, rows.pairs.pad_id), rows.lengths)

    def _draw(self, e: int, rows: Rows, pool: PromptPairs, generator: torch.Generator) -> int:
        length, own = int(rows.pairs.lengths[e]), rows.pairs.base_tokens[e]
        fitting = [int(i) for i in (pool.lengths == length).nonzero()]
        fitting = [i for i in fitting if not torch.equal(pool.base_tokens[i, :length], own[:length])]
        if not fitting:
            raise ValueError(
                f"pair {int(rows.order[e])}: no other prompt of {length} tokens to resample from. Pass reference= with "
                "prompts "
                "of that length, or use MeanAblation()."
            )
        return fitting[int(torch.randint(len(fitting), (1,), generator=generator))]


@dataclass(frozen=True)
class NoiseCorruption(Intervention):
    """Noise on token embeddings (causal tracing, Meng et al. 2022, arXiv:2202.05262).

    Args:
        noise: size of the noise in units of ``std``: the standard deviation of Gaussian noise, the half width of
            uniform noise.
        at: which positions are noised: ``"all"``, a span's name such as ``"subject"``, or a position.
        restore: False: the clean run is the base and noised activations are patched in. True: the noised run is the
            base and clean activations are restored.
        std: unit of the noise: ``"prompts"`` (standard deviation of the embeddings of the tokens at ``at`` over the
            prompt set), ``"embedding"`` (of the whole embedding matrix), or a number.
        shared: the same draw for every prompt instead of one each.
        seed: seed of the draw, which is the same for every mask.
        kind: ``"gaussian"``, ``"uniform"``, or ``"fixed"``: every embedding is replaced by ``value``, nothing is drawn.
        value: what ``"fixed"`` puts in every dimension, or ``"mean"`` for the mean of the embedding matrix.

    Raises:
        ValueError: negative or non-finite noise, unknown kind.

    Examples:
        >>> noise, groups = mt.NoiseCorruption(at=2, restore=True), mt.residual(model, [0], positions=[2])
        >>> tracer = mt.Tracer(model, task.pairs, groups, mt.AnswerProb(), noise)
        >>> tuple(tracer.effect(["L0@2"]).shape)
        (16,)
    """

    noise: float = 3.0
    at: Position = "all"
    restore: bool = False
    std: float | Literal["prompts", "embedding"] = "prompts"
    shared: bool = False
    seed: int = 0
    kind: Literal["gaussian", "uniform", "fixed"] = "gaussian"
    value: float | Literal["mean"] = 0.0
    name: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise must be a finite number from 0, got {self.noise!r}.")
        if self.kind not in ("gaussian", "uniform", "fixed"):
            raise ValueError(f"unknown kind of noise {self.kind!r}: use 'gaussian', 'uniform' or 'fixed'.")
        for name in ("std", "value"):
            given = getattr(self, name)
            if isinstance(given, int | float) and not math.isfinite(given):
                raise ValueError(f"{name} must be finite, got {given!r}.")

    def base_run(self, rows: Rows, view: ModelView) -> Run:
        """The clean prompts, or the noised ones under ``restore``."""
        return self._noised(rows, view) if self.restore else Run(rows.base, rows.lengths)

    def source_run(self, rows: Rows, view: ModelView) -> Run:
        """The noised prompts, or the clean ones under ``restore``."""
        return Run(rows.base, rows.lengths) if self.restore else self._noised(rows, view)

    def _noised(self, rows: Rows, view: ModelView) -> Run:
        where = self._where(rows)
        if self.kind == "fixed":
            return Run(rows.base, rows.lengths, self._fixed(view) * where[..., None], where)
        scale = self.noise * self.unit(rows, view, where)
        return Run(
            rows.base, rows.lengths, self._draws(rows, embedding_width(view))[rows.example] * where[..., None] * scale
        )

    def _where(self, rows: Rows) -> Bool[Tensor, "rows pos"]:
        spans = {k: v[rows.example] for k, v in rows.pairs.spans.items()}
        places = Places(rows.base.shape[1], rows.pairs.lengths[rows.example], rows.lengths, spans=spans)
        return places.select(None if self.at == "all" else self.at)

    def _fixed(self, view: ModelView) -> Float[Tensor, " size"]:
        if self.value == "mean":
            return embedding_moments(view)[0].float().cpu()
        return torch.full((embedding_width(view),), float(self.value))

    def _draws(self, rows: Rows, size: int) -> Float[Tensor, "n pos size"]:
        # drawn example by example in the caller's order and for the prompt alone, so that a prompt's noise depends
        # neither on how batches are sorted nor on how answers share rows
        width, generator = int(rows.pairs.lengths.max()), torch.Generator().manual_seed(self.seed)
        draws = torch.zeros(rows.n_examples, rows.base.shape[1], size)
        draw: Tensor | None = None
        for e in torch.argsort(rows.order).tolist():
            draw = draw if self.shared and draw is not None else self._draw(width, size, generator)
            draws[e, :width] = draw
        return draws

    def _draw(self, width: int, size: int, generator: torch.Generator) -> Float[Tensor, "pos size"]:
        if self.kind == "uniform":
            return 2 * torch.rand(width, size, generator=generator) - 1
        return torch.randn(width, size, generator=generator)

    def unit(self, rows: Rows, view: ModelView, where: Tensor) -> float:
        """The standard deviation that ``noise`` multiplies.

        Args:
            rows: the prompts, one row each.
            view: the model.
            where: which tokens are noised, one boolean each.
        """
        if isinstance(self.std, int | float):
            return float(self.std)
        if self.std == "embedding":
            return embedding_moments(view)[1]
        prompts = rows.starts[:-1]  # one row per prompt, however many answers it has
        return float(view.embed(rows.base[prompts][where[prompts]]).float().std())


def intervention_by_name(name: str, **options: Any) -> Intervention:
    """The built-in intervention that calls itself ``name``.

    Raises:
        ValueError: no such intervention.
    """
    known = {c.name: c for c in (Interchange, ZeroAblation, MeanAblation, ResampleAblation, NoiseCorruption)}
    if name not in known:
        raise ValueError(f"unknown intervention {name!r}: use one of {', '.join(known)}.")
    return known[name](**options)
