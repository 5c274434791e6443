"""One forward of the model under masks: hooks attached once, sources kept, restarts, logits where they are read.

Nothing else touches the model's hooks. Data flows one way: mask -> share per hook point (``mixing``) -> mixed
activations -> log probabilities of the candidate answers (``metrics.Answers``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.compat import BLOCK_INPUT, HookFn, ModelView, tracing
from tl_multitrace.cost import Cost, HookError
from tl_multitrace.engine.precision import float32_unembed
from tl_multitrace.forward.held import Held
from tl_multitrace.forward.prefix import Prefix as Prefix  # part of this module's names
from tl_multitrace.forward.sources import Sources
from tl_multitrace.groups import HookGroups
from tl_multitrace.groups.mixing import compile_plans, from_column, mix
from tl_multitrace.interventions import NOISE_HOOK, Intervention, Run
from tl_multitrace.last_mlp import Reads
from tl_multitrace.models.ambient import check_attached
from tl_multitrace.rows import Attention, Batch, Rows


@dataclass(repr=False)  # TransformerLens names a hook by its repr: that of a bound method would print every tensor here
class Engine:
    """Runs one model on one prompt set under masks over one set of hook groups.

    Attributes:
        view: the model.
        rows: the prompts as rows.
        groups: the mask's entries.
        intervention: base and source runs.
        sources: source activations.
        dtype: of masks, log probabilities and sums.
        held: sites that a mask may freeze at the base run's values.
        whole: all rows of the prompt set, where these are some of them.
        inputs_on: where block inputs are kept; None: the model's device.
        cost: forwards and backwards so far.
    """

    view: ModelView
    rows: Rows
    groups: HookGroups
    intervention: Intervention
    sources: Sources
    dtype: torch.dtype
    needs_last: bool = False
    held: Held | None = None
    whole: Rows | None = None
    inputs_on: torch.device | None = None
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        device = self.view.device
        self.plans = {name: plan.to(device) for name, plan in compile_plans(self.groups).items()}
        self._entries = {name: plan.entries().cpu().numpy() for name, plan in self.plans.items()}
        self.first_layers = self.groups.first_layers
        self._restart_layers = sorted({int(layer) for layer in self.first_layers} - {0})
        # held sites are hooked like the others; where both meet at one hook point, one hook serves both
        self.hooked = {**(self.held.plans if self.held else {}), **self.plans}
        self.base: Run | None = None
        self._fired: Counter[str] = Counter()
        self._capture: dict[str, Tensor] | None = None
        self._capture_names: set[str] = set()
        self._poison: set[str] = set()
        self._shares: dict[str, Tensor] = {}
        self._source: dict[str, Tensor] = {}
        self._embedding: tuple[Tensor, Tensor | None] | None = None
        self._reads: tuple[Tensor, Tensor] | None = None
        self._depth = 0
        self._reduced: torch.dtype | None = None
        self._read_act: Tensor | None = None
        self.float32, self._trial = float32_unembed(self.view), True

    # ------------------------------------------------------------------ session

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hooks attached and weights frozen for the duration; sessions nest."""
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        with tracing(self.view, self._hooks()):
            self._depth = 1
            try:
                yield
            finally:
                self._depth = 0
                self._capture = None

    @contextmanager
    def reduced(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Forwards in lower precision (autocast), where a dtype is given."""
        self._reduced = dtype
        try:
            yield
        finally:
            self._reduced = None

    def _hooks(self) -> list[tuple[str, HookFn]]:
        # order matters where names meet at one hook point: noise, then the stored block input, then mixing, then
        # reading
        names = [BLOCK_INPUT.format(layer=layer) for layer in self._restart_layers]
        hooks = [(NOISE_HOOK, self._corrupt)] if self.view.has_point(NOISE_HOOK) else []
        hooks += [(name, self._grabber(name)) for name in names]
        hooks += [(name, self._mixer(name)) for name in self.hooked]
        return [*hooks, (self.view.unembed_input, self._read)]

    def _corrupt(self, act: Tensor, hook: Any) -> Tensor | None:
        if self._embedding is None:
            return None
        noise, replaced = self._embedding
        kept = act if replaced is None else act.masked_fill(replaced[..., None].to(act.device), 0)
        return (kept + noise.to(act)).contiguous()

    def _grabber(self, name: str) -> HookFn:
        key = "input:" + name

        def grab(act: Tensor, hook: Any) -> None:
            if self._capture is not None and key in self._capture_names:
                self._capture[key] = act.detach().clone()

        return grab

    def _mixer(self, name: str) -> HookFn:
        def mixer(act: Tensor, hook: Any) -> Tensor | None:
            self._fired[name] += 1
            if self._capture is not None and name in self._capture_names:
                self._capture[name] = act.detach().clone()
            if name in self._poison:
                return torch.full_like(act, torch.nan)
            frozen = None if self.held is None else self.held.frozen(name, act)
            share = self._shares.get(name)
            return frozen if share is None else mix(act if frozen is None else frozen, self._source[name], share)

        return mixer

    def _read(self, act: Tensor, hook: Any) -> Tensor | None:
        if self._reads is None:
            return None
        rows, columns = self._reads
        self._read_act = act[rows.to(act.device), columns.to(act.device)][None].contiguous()
        return self._read_act

    def set_base(self, run: Run) -> None:
        """The base run, whose corrupted embeddings every evaluation starts from."""
        self.base = run

    # ------------------------------------------------------------------ forwards

    def answers(
        self,
        batch: Batch,
        mask: Float[Tensor, "k r groups"] | None = None,
        *,
        start: int = 0,
        prefix: Prefix | Sequence[Prefix] | None = None,
        record: Sequence[Prefix] = (),
        held: Float[Tensor, "k 1 held"] | None = None,
        column: int = 0,
        past: Any = None,
    ) -> Answers:
        """Answers of ``k * e`` runs: every mask on every example of the batch, masks slowest.

        Args:
            batch: examples to run.
            mask: values in [0, 1]; ``r`` is 1, or the number of rows for one mask each. None: no intervention.
            start: first block to run; ``prefix`` holds its input.
            prefix: stored block inputs, for all masks or one per mask.
            record: where to put these runs' block inputs, one per mask.
            held: per mask, which held sites to freeze.
            column: first token to run; ``past`` holds the keys and values of those before it.
            past: the model's own cache for ``k`` copies of the batch; an empty one is filled.
        """
        k = 1 if mask is None else mask.shape[0]
        self._prepare(batch, mask, k, start)
        if held is not None and self.held is not None:
            self.held.choose(self, batch, held, start)
        if column:
            self._narrow(column)
        expected = [name for name, plan in self.hooked.items() if plan.layer >= start]
        if record:
            self._capture, self._capture_names = (
                {},
                {"input:" + BLOCK_INPUT.format(layer=i) for i in self._restart_layers},
            )
        runs = () if prefix is None or not start else [prefix] * k if isinstance(prefix, Prefix) else prefix
        inputs = [run.input(start, batch, column) for run in runs]
        resid = torch.cat(inputs) if inputs else None
        tokens = batch.tokens[:, column:].repeat(k, 1)
        logits = self._forward(tokens, batch.attention.repeated(k), start, resid, self._reads, past)
        self._check_fired(expected)
        if record:
            self._keep_inputs(batch, record, column)
        self.cost.forwards += k * self.fraction(batch, start, column)
        return self._score(batch, logits, k)

    def share(self, n_rows: int) -> float:
        """What part of the prompt set some rows are."""
        return n_rows / len(self.whole or self.rows)

    def fraction(self, batch: Batch, start: int, column: int) -> float:
        """Share of a whole forward over the prompt set that a batch from a layer and a token on is."""
        of_tokens = 1 - column / batch.tokens.shape[1]
        return self.share(batch.n_rows) * (1 - start / self.view.n_layers) * of_tokens

    def _prepare(self, batch: Batch, mask: Tensor | None, k: int, start: int) -> None:
        self._shares, self._source = {}, {}
        if mask is not None:
            active = (mask.detach() != 0).flatten(0, 1).any(0).cpu().numpy()
            for name, plan in self.plans.items():
                if plan.layer >= start and (mask.requires_grad or active[self._entries[name]].any()):
                    self._source[name] = self.sources.get(self, name, batch)
                    self._shares[name] = plan.share(mask, plan.selection(batch.places), batch.places)
        self._embedding = None if start else self._embedding_of(self.base, batch.rows, batch.tokens.shape[1], k)
        offset = torch.arange(k, device=batch.tokens.device)[:, None] * batch.n_rows
        self._reads = ((batch.read_row + offset).flatten(), batch.read_position.repeat(k))

    def _narrow(self, column: int) -> None:
        """Drop the columns before ``column`` from what the next forward uses."""
        self._shares = {n: s if s.shape[2] == 1 else s[:, :, column:] for n, s in self._shares.items()}
        self._source = {n: from_column(v, column) for n, v in self._source.items()}
        if self._embedding is not None:
            noise, replaced = self._embedding
            self._embedding = noise[:, column:], None if replaced is None else replaced[:, column:]
        if self._reads is not None:
            self._reads = self._reads[0], self._reads[1] - column
        if self.held is not None:
            self.held.narrow(column)

    def _embedding_of(
        self, run: Run | None, rows: slice | Int[Tensor, " b"], width: int, k: int = 1
    ) -> tuple[Tensor, Tensor | None] | None:
        """What a run adds to its embeddings and where it drops them first, for ``k`` copies of some rows."""
        if run is None or run.noise is None:
            return None
        device = self.view.device
        replaced = None if run.replaced is None else run.replaced[rows, :width].to(device).repeat(k, 1)
        return run.noise[rows, :width].to(device).repeat(k, 1, 1), replaced

    def _forward(
        self,
        tokens: Tensor,
        attention: Attention,
        start: int,
        resid: Tensor | None,
        reads: Reads | None = None,
        past: Any = None,
    ) -> Tensor:
        check_attached(self.view.model)
        self._fired.clear()
        began = time.perf_counter()
        lower = torch.autocast(self.view.device.type, self._reduced) if self._reduced is not None else nullcontext()
        try:
            with lower:
                return self.view.run(
                    tokens,
                    attention.mask,
                    position_ids=attention.position_ids,
                    start_layer=start,
                    residual=resid,
                    reads=reads,
                    past=past,
                )
        finally:
            self.cost.seconds += time.perf_counter() - began
            # between forwards the hooks are inert, so that several tracers may hold sessions on one model
            self._shares, self._source, self._embedding, self._reads = {}, {}, None, None
            if self.held is not None:
                self.held.clear()

    def _check_fired(self, expected: list[str]) -> None:
        for name in expected:
            if self._fired[name] != 1:
                raise HookError(
                    f"the hook {name} fired {self._fired[name]} times in a forward instead of once, so an intervention "
                    "there would "
                    f"be lost. On {type(self.view.model).__name__} this point is not computed in the usual way; choose "
                    "other groups."
                )

    def _keep_inputs(self, batch: Batch, records: Sequence[Prefix], column: int) -> None:
        assert self._capture is not None
        for layer in self._restart_layers:
            value = self._capture.get("input:" + BLOCK_INPUT.format(layer=layer))
            if value is None:
                continue
            for record, part in zip(records, value.unflatten(0, (len(records), -1)), strict=True):
                record.put(layer, part, batch, column, self.rows, self.inputs_on or value.device)
        self._capture = None

    @property
    def kept(self) -> list[Sources]:
        """Source activations, and the base run's at held sites."""
        return [self.sources, *([self.held.values] if self.held else [])]

    def drop_captured(self) -> None:
        """Forget what a forward that failed has left."""
        self._capture = None
        for sources in self.kept:
            sources.drop_batch()

    def _score(self, batch: Batch, logits: Tensor, k: int) -> Answers:
        if self.float32 is not None and self._read_act is not None and self._reduced is None:
            if self.float32.on or (self._trial and self.float32.tried(self._read_act, logits)):
                logits = self.float32(self._read_act)
            self._trial, self._read_act = False, None
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

    def run_source(self, run: Run, rows: slice | Int[Tensor, " b"], names: set[str]) -> dict[str, Tensor]:
        """Activations of a run's rows at hook points, without intervention, trimmed to the longest row."""
        width = int(run.lengths[rows].max())
        tokens = run.tokens[rows, :width].to(self.view.device)
        attention = self.rows.attention(rows, run.lengths[rows], width, self.view.device)
        kept = (self._shares, self._source, self._reads, self._embedding)
        outer = (self._capture, self._capture_names)  # a source run may be needed in the middle of a captured one
        self._shares, self._source = {}, {}
        # unembed one position only: the logits of a source run are never read
        self._reads = (torch.zeros(1, dtype=torch.long, device=tokens.device),) * 2
        self._capture, self._capture_names = {}, names
        self._embedding = self._embedding_of(run, rows, width)
        try:
            with torch.no_grad():
                self._forward(tokens, attention, 0, None)
            self._check_fired(sorted(names))
            return self._capture
        finally:
            self._capture, self._capture_names = outer
            self._shares, self._source, self._reads, self._embedding = kept

    @contextmanager
    def capturing(self, names: set[str]) -> Iterator[dict[str, Tensor]]:
        """Activations at hook points of whatever runs in the block, before they are mixed, in the order they come."""
        self._capture, self._capture_names = {}, names
        try:
            yield self._capture
        finally:
            self._capture = None

    # ------------------------------------------------------------------ checks

    def probe(self, batch: Batch) -> None:
        """Check that a hook's return value is used, kind by kind.

        Returning NaN must make the logits NaN, whatever the weights are; halving would miss a zero weight.

        Raises:
            HookError: the model ignores edits at that kind of hook point.
        """
        kinds: dict[str, set[str]] = {}
        for name in self.hooked:
            kinds.setdefault(name.split(".", 2)[-1], set()).add(name)
        for names in kinds.values():
            self._poison = names
            try:
                with torch.no_grad():
                    logp = self.answers(batch).token_logp
            finally:
                self._poison = set()
            if bool(logp[batch.present].isfinite().any()):
                raise HookError(
                    f"{type(self.view.model).__name__} ignores what a hook at {sorted(names)[0]} returns, so an "
                    "intervention there "
                    "would have no effect. TransformerLens 3.x does so for attention patterns of native bridges: use "
                    "heads(site='z'), "
                    "or TransformerLens 4."
                )
