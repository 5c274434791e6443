"""Runs of a prompt set under masks: from mask values to a ``Forward``, and from its logits to answers.

Data flows one way: mask -> share per hook point (``groups.mixing``) -> what a run mixes in -> log probabilities of the
candidate answers (``answers.Answers``). Nothing here is remembered between two runs but source activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.cost import Cost, HookError
from tl_multitrace.engine.forward import Forward, Mixed, Ran, Start, run
from tl_multitrace.engine.precision import float32_unembed
from tl_multitrace.engine.sources import Sources, StoredRun
from tl_multitrace.engine.trials import Trials
from tl_multitrace.groups import HookGroups
from tl_multitrace.groups.mixing import Plan, compile_plans, from_column
from tl_multitrace.interventions import Intervention, Run
from tl_multitrace.models.compat import BLOCK_INPUT, ModelView
from tl_multitrace.rows import Batch, Rows


@dataclass(eq=False, repr=False)
class MaskRuns:
    """One model on one prompt set, under masks over one set of hook groups.

    Attributes:
        view: the model.
        rows: the prompts as rows.
        groups: the mask's entries.
        intervention: base and source runs.
        dtype: of masks, log probabilities and sums.
        trials: what the model allows.
        whole: all rows of the prompt set, where ``rows`` are some of them.
        needs_last: whether answers hold the whole distribution at the answer position.
        frozen_groups: sites that a mask may freeze at the base run's values (severed paths).
        chunk: rows per source run.
        ends: rows that a source run ends before; see :class:`~tl_multitrace.engine.sources.Sources`.
        inputs_on: where block inputs are kept; None: the model's device.
        cost: forwards and backwards so far.
        autocast: lower precision to run in, for derivatives that only rank.
    """

    view: ModelView
    rows: Rows
    groups: HookGroups
    intervention: Intervention
    dtype: torch.dtype
    trials: Trials
    whole: Rows
    needs_last: bool = False
    frozen_groups: HookGroups | None = None
    chunk: int = 1
    ends: tuple[int, ...] = ()
    inputs_on: torch.device | None = None
    cost: Cost = field(default_factory=Cost)
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        device = self.view.device
        self.plans = {name: plan.to(device) for name, plan in compile_plans(self.groups).items()}
        self._entries = {name: plan.entries().cpu().numpy() for name, plan in self.plans.items()}
        self.base = self.intervention.base_run(self.whole, self.view).picked(self.rows.number)
        self.sources = Sources(self.plans, self.chunk, self.ends, aligned=self.intervention.aligned)
        self.frozen: Sources | None = None
        self.frozen_plans: dict[str, Plan] = {}
        if self.frozen_groups is not None:
            self.frozen_plans = {name: p.to(device) for name, p in compile_plans(self.frozen_groups).items()}
            self.frozen = Sources(self.frozen_plans, self.chunk, self.ends)
        self.float32, self._untried = float32_unembed(self.view), True
        # a mask entry's run starts at its first block, or at the last one before it that the model can start at
        allowed = sorted(self.trials.start_blocks) if int(self.groups.first_layers.max()) else []
        layers = [int(layer) for layer in self.groups.first_layers]
        self.starts = [max((a for a in allowed if a <= layer), default=0) for layer in layers]
        self.start_layers = sorted(set(self.starts) - {0})

    @property
    def stored(self) -> list[Sources]:
        """Source activations, and the base run's at frozen sites."""
        return [self.sources, *([self.frozen] if self.frozen else [])]

    # ------------------------------------------------------------------ a run under masks

    def answers(
        self,
        batch: Batch,
        mask: Float[Tensor, "k r groups"] | None = None,
        *,
        start: int = 0,
        runs: Sequence[StoredRun] = (),
        record: Sequence[StoredRun] = (),
        frozen: Float[Tensor, "k 1 frozen"] | None = None,
        column: int = 0,
        past: object = None,
        seen: dict[str, Tensor] | None = None,
        **more: Any,
    ) -> Answers:
        """Answers of ``k * e`` runs: every mask on every example of the batch, masks slowest.

        Args:
            batch: examples to run.
            mask: values in [0, 1]; ``r`` is 1, or the number of rows for one mask each. None: no intervention.
            start: first block to run; ``runs`` hold its input.
            runs: stored block inputs, one for all masks or one per mask.
            record: where to put these runs' block inputs, one per mask.
            frozen: per mask, which frozen sites stay at the base run's values.
            column: first token to run; ``past`` holds the keys and values of those before it.
            past: the model's own cache for ``k`` copies of the batch.
            seen: receives what is kept (``keep``, then ``keep_after``).
            more: other fields of :class:`Forward`; ``put`` is mixed in after the mask.
        """
        k = 1 if mask is None else mask.shape[0]
        forward = self.forward(batch, mask, start=start, runs=runs, frozen=frozen, column=column, past=past, **more)
        if record:
            inputs = [BLOCK_INPUT.format(layer=layer) for layer in self.start_layers if layer >= max(1, start)]
            forward = replace(forward, keep=forward.keep | set(inputs))
        ran = run(self.view, forward)
        self.cost.forwards += k * self.fraction(batch, start, column)
        self.cost.seconds += ran.seconds
        for layer in self.start_layers if record else ():
            if (value := ran.kept.get(BLOCK_INPUT.format(layer=layer))) is not None:
                for stored, part in zip(record, value.unflatten(0, (k, -1)), strict=True):
                    stored.put(layer, part, batch, column, self.rows, self.inputs_on or value.device)
        if seen is not None:
            seen |= ran.kept | ran.kept_after
        return self._score(batch, self._exact(ran), k)

    def forward(
        self,
        batch: Batch,
        mask: Float[Tensor, "k r groups"] | None = None,
        *,
        start: int = 0,
        runs: Sequence[StoredRun] = (),
        frozen: Float[Tensor, "k 1 frozen"] | None = None,
        column: int = 0,
        past: object = None,
        put: Mapping[str, Mixed] | None = None,
        **more: Any,
    ) -> Forward:
        """The run of :meth:`answers` as a value."""
        k = 1 if mask is None else mask.shape[0]
        mixed: dict[str, list[Mixed]] = {}
        if frozen is not None and self.frozen is not None:
            self._mix_in(mixed, self.frozen, self.frozen_plans, batch, frozen, start)
        if mask is not None:
            self._mix_in(mixed, self.sources, self.plans, batch, mask, start)
        for name, one in (put or {}).items():
            mixed.setdefault(name, []).append(one)
        if column:
            mixed = {
                name: [(from_column(v, column), _late(s, column)) for v, s in all_] for name, all_ in mixed.items()
            }
        inputs = [run.input(start, batch, column) for run in (runs if start else ())]
        resid = None if not inputs else inputs[0].repeat(k, 1, 1) if len(inputs) == 1 else torch.cat(inputs)
        # a run that starts later than the embedding finds noise in the input that it starts from
        noise, replaced = (None, None) if start else self._embeddings(self.base, batch.rows, batch.tokens.shape[1])
        offset = torch.arange(k, device=batch.tokens.device)[:, None] * batch.n_rows
        made = Forward(
            tokens=batch.tokens[:, column:].repeat(k, 1),
            attention=batch.attention.repeated(k),
            noise=None if noise is None else noise[:, column:].repeat(k, 1, 1),
            replaced=None if replaced is None else replaced[:, column:].repeat(k, 1),
            put=mixed,
            reads=((batch.read_row + offset).flatten(), batch.read_position.repeat(k) - column),
            start=Start(start, resid, column, past),
            autocast=self.autocast,
        )
        return replace(made, **more) if more else made

    def _mix_in(
        self,
        mixed: dict[str, list[Mixed]],
        sources: Sources,
        plans: Mapping[str, Plan],
        batch: Batch,
        mask: Float[Tensor, "k r entries"],
        start: int,
    ) -> None:
        """Add what a mask mixes in, hook point by hook point; nothing where it is 0."""
        active = (mask.detach() != 0).flatten(0, 1).any(0).cpu().numpy()
        for name, plan in plans.items():
            entries = self._entries[name] if plans is self.plans else plan.entries().cpu().numpy()
            if plan.layer >= start and (mask.requires_grad or active[entries].any()):
                share = plan.share(mask, plan.selection(batch.places), batch.places)
                mixed.setdefault(name, []).append((sources.get(self, name, batch), share))

    def ran(self, forward: Forward, forwards: float) -> Ran:
        """Run something on the model and charge it, in forwards over the prompt set."""
        found = run(self.view, forward)
        self.cost.forwards += forwards
        self.cost.seconds += found.seconds
        return found

    def _embeddings(self, run: Run, rows: slice | Tensor, width: int) -> tuple[Tensor | None, Tensor | None]:
        """What a run adds to the embeddings of some rows, and where it drops them first."""
        if run.noise is None:
            return None, None
        device = self.view.device
        replaced = None if run.replaced is None else run.replaced[rows, :width].to(device)
        return run.noise[rows, :width].to(device), replaced

    def _exact(self, ran: Ran) -> Tensor:
        """Logits of a run; of a model in half precision unembedded in float32, where that was tried and agrees."""
        own = self.float32
        if own is None or ran.read is None or self.autocast is not None:
            return ran.logits
        if self._untried:
            self._untried = False
            own.tried(ran.read, ran.logits)
        return own(ran.read) if own.on else ran.logits

    def _score(self, batch: Batch, logits: Tensor, k: int) -> Answers:
        logp = logits[0].to(batch.tokens.device, self.dtype).log_softmax(-1).unflatten(0, (k, -1))  # [k, q, vocab]
        token_logp = logp[:, batch.candidate_read, batch.candidate_token].flatten(0, 1)
        last = logp[:, batch.last_read].flatten(0, 1) if self.needs_last else None
        return Answers(
            torch.where(batch.present.repeat(k, 1, 1), token_logp, 0.0),
            batch.present.repeat(k, 1, 1),
            batch.right.repeat(k, 1),
            batch.candidate_token.repeat(k, 1, 1),
            last,
        )

    # ------------------------------------------------------------------ what a run costs

    def share(self, n_rows: int) -> float:
        """What part of the prompt set some rows are."""
        return n_rows / len(self.whole)

    def fraction(self, batch: Batch, start: int, column: int) -> float:
        """Share of a whole forward over the prompt set that a batch from a layer and a token on is."""
        of_tokens = 1 - column / batch.tokens.shape[1]
        return self.share(batch.n_rows) * (1 - start / self.view.n_layers) * of_tokens

    # ------------------------------------------------------------------ runs without a mask

    def kept(self, run: Run, rows: slice | Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Activations of a run's rows at hook points, without intervention, trimmed to the longest row; uncharged."""
        wanted = self.of_run(run, rows)
        # unembed one position only: the logits of a source run are never read
        one = torch.zeros(1, dtype=torch.long, device=wanted.tokens.device)
        with torch.no_grad():
            return self.ran(replace(wanted, keep=frozenset(names), reads=(one, one)), 0.0).kept

    def of_run(self, run: Run, rows: slice | Tensor) -> Forward:
        """A base or source run's rows as a value."""
        width, device = int(run.lengths[rows].max()), self.view.device
        noise, replaced = self._embeddings(run, rows, width)
        return Forward(
            tokens=run.tokens[rows, :width].to(device),
            attention=self.rows.attention(rows, run.lengths[rows], width, device),
            noise=noise,
            replaced=replaced,
        )

    def probe(self, batch: Batch) -> None:
        """Check that a hook's return value is used, kind by kind.

        Returning NaN must make the logits NaN, whatever the weights are; halving would miss a zero weight.

        Raises:
            HookError: the model ignores edits at that kind of hook point.
        """
        kinds: dict[str, list[str]] = {}
        for name in {**self.frozen_plans, **self.plans}:
            kinds.setdefault(name.split(".", 2)[-1], []).append(name)
        nothing = torch.full((), torch.nan, device=self.view.device), torch.ones(1, 1, 1, 1, device=self.view.device)
        for names in kinds.values():
            with torch.no_grad():
                logp = self.answers(batch, put=dict.fromkeys(names, nothing)).token_logp
            if bool(logp[batch.present].isfinite().any()):
                raise HookError(
                    f"{type(self.view.model).__name__} ignores what a hook at {names[0]} returns, so an intervention "
                    "there would have no effect. TransformerLens 3.x does so for attention patterns of native bridges: "
                    "use heads(site='z'), or TransformerLens 4."
                )


def _late(share: Tensor, column: int) -> Tensor:
    """A share from a column on; all where one stands for every position."""
    return share if share.ndim < 3 or share.shape[2] == 1 else share[:, :, column:]
