"""Direct effects by path patching: what one component does to another's input, and that input to the metric.

    1. Sender at its other value, every later attention and MLP output kept at its value in the base run. What a
       receiver's queries, keys, values or MLP are now has changed by the sender's direct contribution alone.
    2. The base run with one of these inputs put in the receiver's place: the receiver's own output is recorded. Keys
       and values may be shared by a group of query heads; nothing but the receiver's output is taken on.
    3. The base run with that output in its place and everything downstream running: the metric's change is the effect.

(Goldowsky-Dill et al. 2023, arXiv:2304.05969. Wang et al. 2022, arXiv:2211.00593, let MLPs run between sender and
receiver; here they are kept like the heads, so that an edge is what the sender does with nothing in between.)
Of the answer itself step 1 is all: the change of the metric is the sender's direct effect on the logits.

Step 1 serves all receivers of a sender, step 2 all attention receivers: attention outputs are kept at the base run's in
every layer, so no layer sees what was changed in another. Step 3 is one run per edge, restarted at the receiver.
Memory: the attention and MLP outputs of one batch, and queries, keys and values where there are attention receivers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.answers import Answers
from tl_multitrace.cost import HookError
from tl_multitrace.engine.forward import session
from tl_multitrace.engine.sources import StoredRun
from tl_multitrace.flow.nodes import Edge, Nodes
from tl_multitrace.groups import ATTENTION_INPUTS, SITES
from tl_multitrace.groups.mixing import Plan, mix
from tl_multitrace.groups.outputs import Outputs
from tl_multitrace.progress import track
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.rows import Batch
from tl_multitrace.tracer import Tracer

ATTENTION_OUT = SITES["attn", "out"].hook


@dataclass(frozen=True)
class Reference:
    """The run that a batch's edges are measured in.

    Attributes:
        batch: its prompts.
        base: answers of the base run, which some metrics are relative to.
        values: activations by hook name.
        metric: per example.
        quiet: ``kept`` for a run in which no component's output changes.
    """

    batch: Batch
    base: Answers
    values: Mapping[str, Tensor]
    metric: Float[Tensor, " e"]
    quiet: Mapping[str, Tensor]


@dataclass(frozen=True)
class Job:
    """A receiver's output under one changed input, whose effect on the metric is wanted."""

    edge: Edge
    hook: str
    value: Float[Tensor, "rows ..."]


class PathPatching:
    """Measures the edges between some nodes.

    Args:
        tracer: model, metric and intervention.
        nodes: components and tokens.
        pairs: prompts.
        patched: nodes that are at their source values in the run that edges are measured in.
    """

    def __init__(self, tracer: Tracer, nodes: Nodes, pairs: PromptPairs, patched: Sequence[int] = ()) -> None:
        self.tracer = Tracer(
            tracer.model,
            pairs,
            nodes.groups,
            tracer.metric,
            tracer.intervention,
            batch_size=tracer.batch_size,
            dtype=tracer.dtype,
            memory_limit=tracer.given_limit,
        )
        self.nodes, self.groups, self.view = nodes, nodes.groups, self.tracer.view
        self._own, self._runs = self.tracer.batches, self.tracer.batches.runs
        self.background = torch.zeros(len(nodes.groups), device=self.view.device, dtype=self.tracer.dtype)
        self.background[list(patched)] = 1.0
        self._reference_inputs = StoredRun(self.background.cpu().numpy())
        eps = torch.finfo(self.view.dtype).eps
        self._rounding = 16 * eps if eps < 1e-4 else 0.0  # half precision: runs that agree agree exactly
        self._outputs = Outputs.of(tracer.model)

    @property
    def noise(self) -> float:
        """Size of an effect that may be rounding alone."""
        return 4 * self._rounding * max(1.0, float(self._own.base_values.abs().max()))

    # ------------------------------------------------------------------ all edges

    def direct_effects(self, progress: bool | None = None) -> dict[Edge, Float[Tensor, " n"]]:
        """Effect of every edge per prompt: the metric with the edge minus without; edges that carry nothing left out.

        Raises:
            HookError: the model ignores edits at queries, keys, values or layer outputs, or does not compute them.
            NonFiniteError: the metric became NaN or infinite.
        """
        found: dict[Edge, Tensor] = {}
        for attempt in self._own.attempts():
            with attempt:
                found = self._all_edges(progress)
        return {edge: self._own.unsorted(values[None])[0].cpu() for edge, values in found.items()}

    def _all_edges(self, progress: bool | None) -> dict[Edge, Float[Tensor, " n"]]:
        """The same with prompts in internal order."""
        found: dict[Edge, Tensor] = {}
        with session(self.view), torch.no_grad():
            self._probe(self._runs.rows.batch(torch.tensor([0]), self.view.device))
            work = [(i, s) for i in range(len(self._own.parts)) for s in range(len(self.groups))]
            reference: Reference | None = None
            means: list[float] = []
            for i, sender in track(work, "senders", progress, lambda: self._so_far(means)):
                if reference is None or reference.batch is not self._own.parts[i]:
                    reference = self._reference(self._own.parts[i], self._own.base[i])
                for edge, values in self._from(sender, reference):
                    zeros = torch.zeros(self._own.n, dtype=self.tracer.dtype, device=self.view.device)
                    found.setdefault(edge, zeros)[reference.batch.examples] = values
                    means.append(float(values.mean()))
        return found

    def _so_far(self, means: Sequence[float]) -> dict[str, float | None]:
        """The strongest edge in any batch, and the cost, for a progress bar."""
        return {"effect": max(means, key=abs, default=None), "cost": self.tracer.cost.equivalents}

    def _points(self) -> list[str]:
        """Hook points that are watched or kept: layer outputs, the receivers' own, and what attention reads."""
        own = [component.hook_name for component in self.groups]
        inputs = [self._input(x, layer) for x in ATTENTION_INPUTS for layer in self._layers(self.nodes.components)]
        return list(dict.fromkeys([*inputs, *own, *self._outputs]))

    def _layers(self, nodes: Iterable[int]) -> list[int]:
        """Layers of the attention receivers among some nodes."""
        return sorted({self.nodes[n].layer for n in nodes if self.nodes.is_attention(n)})

    @staticmethod
    def _input(which: str, layer: int) -> str:
        return ATTENTION_INPUTS[which].format(layer=layer)

    def _run(
        self, batch: Batch, masks: Float[Tensor, "k groups"], layer: int = 0, **more: Any
    ) -> tuple[Answers, dict[str, Tensor]]:
        """Answers from a layer on, and what ``keep_after`` names: the activation that is there, with ``put`` in it."""
        at = self._reference_inputs
        start = max((i for i in at.residuals if i <= layer), default=0)
        # what happens before the first block that runs has happened in the stored run
        more = {what: self._from_layer(start, given) if start else given for what, given in more.items()}
        seen: dict[str, Tensor] = {}
        return self._runs.answers(batch, masks[:, None], start=start, runs=[at], seen=seen, **more), seen

    @staticmethod
    def _from_layer(start: int, given: Any) -> Any:
        late = [name for name in given if int(name.split(".")[1]) >= start]
        return {name: given[name] for name in late} if isinstance(given, Mapping) else frozenset(late)

    def _reference(self, batch: Batch, base: Answers) -> Reference:
        record = [self._reference_inputs] if self._own.plan.stored_runs > 1 else []
        seen: dict[str, Tensor] = {}
        mask = self.background[None, None]
        answers = self._runs.answers(batch, mask, record=record, keep_after=frozenset(self._points()), seen=seen)
        quiet = {name: seen[name] for name in self._outputs}
        values = self.tracer.metric(answers, base)
        self._own.check(values, batch, mask, "the metric", answers.token_logp)
        return Reference(batch, base, seen, values, quiet)

    # ------------------------------------------------------------------ one sender

    def _from(self, sender: int, at: Reference) -> Iterator[tuple[Edge, Float[Tensor, " e"]]]:
        if not self._differs(sender, at):
            return
        receivers = [r for r in self.nodes.receivers(sender) if not self.background[r]]
        sign = -1.0 if self.background[sender] else 1.0
        inputs, direct = self._send(sender, receivers, at)
        yield Edge(sender, None, "out"), sign * direct
        jobs = [*self._mlp_jobs(sender, receivers, inputs), *self._attention_jobs(sender, receivers, inputs, at)]
        for job, effect in self._measure([j for j in jobs if self._changed(j, at)], at):
            yield job.edge, sign * effect

    def _differs(self, sender: int, at: Reference) -> bool:
        """Whether the sender's other value is another one: a token may be the same in both prompts."""
        if self.background[sender]:
            return True
        name = self.nodes[sender].hook_name
        source, base = self._runs.sources.get(self._runs, name, at.batch), at.values[name]
        changed = mix(base, source, self._share(name, [sender], at.batch)) - base
        return bool(changed.abs().max() > self._rounding * base.abs().max())

    def _send(
        self, sender: int, receivers: Sequence[int], at: Reference
    ) -> tuple[dict[str, Tensor], Float[Tensor, " e"]]:
        """Inputs of all receivers with the sender at its other value, and its direct effect on the metric."""
        mask = self.background.clone()
        mask[sender] = 1.0 - mask[sender]
        own = self.nodes.writes_at(sender)
        record = {self._input(x, layer) for x in ATTENTION_INPUTS for layer in self._layers(receivers)}
        record |= {self.nodes[r].hook_name for r in receivers if not self.nodes.is_attention(r)}
        kept = {name: value for name, value in at.quiet.items() if name != own}
        answers, seen = self._run(
            at.batch, mask[None], self.nodes[sender].layer, keep_after=frozenset(record), hide=kept
        )
        return seen, self._effect(answers, at)[0]

    def _mlp_jobs(self, sender: int, receivers: Sequence[int], inputs: Mapping[str, Tensor]) -> list[Job]:
        """An MLP's output follows from its input in the same run."""
        found = [r for r in receivers if not self.nodes.is_attention(r)]
        return [Job(Edge(sender, r, "in"), (name := self.nodes[r].hook_name), inputs[name]) for r in found]

    def _attention_jobs(
        self, sender: int, receivers: Sequence[int], inputs: Mapping[str, Tensor], at: Reference
    ) -> list[Job]:
        """Outputs of attention receivers under changed queries, keys and values: one copy of the batch for each."""
        found = [r for r in receivers if self.nodes.is_attention(r)]
        layers, ways = self._layers(found), list(ATTENTION_INPUTS)
        if not layers:
            return []
        only = torch.eye(len(ways), device=self.view.device)[..., None, None, None]  # [way, copy, 1, 1, 1]
        swaps = {
            (name := self._input(x, layer)): (inputs[name], only[i]) for i, x in enumerate(ways) for layer in layers
        }
        outs = frozenset(self.nodes[r].hook_name for r in found)
        masks = self.background.expand(len(ways), -1)
        _, seen = self._run(at.batch, masks, layers[0], keep_after=outs, hide=at.quiet, put=swaps)
        outputs = {name: value.unflatten(0, (len(ways), -1)) for name, value in seen.items()}
        return [
            Job(Edge(sender, r, x), (name := self.nodes[r].hook_name), outputs[name][ways.index(x)])
            for r in found
            for x in self.nodes.inputs(r)
        ]

    # ------------------------------------------------------------------ from a receiver's output to the metric

    def _changed(self, job: Job, at: Reference) -> bool:
        assert job.edge.receiver is not None
        base = at.values[job.hook]
        changed = mix(base, job.value, self._share(job.hook, [job.edge.receiver], at.batch)) - base
        return bool(changed.abs().max() > self._rounding * base.abs().max())

    def _measure(self, jobs: Sequence[Job], at: Reference) -> Iterator[tuple[Job, Float[Tensor, " e"]]]:
        """Effects of receivers' outputs, several in one forward where they are of one layer."""
        size = max(1, self._own.restarts.tile // at.batch.tokens.numel())
        for hook in dict.fromkeys(job.hook for job in jobs):
            here = [job for job in jobs if job.hook == hook]
            for first in range(0, len(here), size):
                part = here[first : first + size]
                yield from zip(part, self._effects_of(part, hook, at), strict=True)

    def _effects_of(self, jobs: Sequence[Job], hook: str, at: Reference) -> Float[Tensor, "k e"]:
        receivers = [job.edge.receiver for job in jobs if job.edge.receiver is not None]
        swap = torch.stack([job.value for job in jobs]), self._share(hook, receivers, at.batch)
        masks = self.background.expand(len(jobs), -1)
        answers, _ = self._run(at.batch, masks, self.nodes[receivers[0]].layer, put={hook: swap})
        return self._effect(answers, at)

    def _effect(self, answers: Answers, at: Reference) -> Float[Tensor, "k e"]:
        k = len(answers.right) // len(at.metric)
        values = self.tracer.metric(answers, at.base.repeated(k))
        self._own.check(values, at.batch, None, "the metric", answers.token_logp)
        return values.reshape(k, -1) - at.metric

    def _share(self, hook: str, nodes: Sequence[int], batch: Batch) -> Float[Tensor, "k ..."]:
        """Where each of some nodes has its activation."""
        plan: Plan = self._runs.plans[hook]
        masks = torch.zeros(len(nodes), 1, len(self.groups), device=self.view.device, dtype=self.tracer.dtype)
        masks[torch.arange(len(nodes)), 0, list(nodes)] = 1.0
        return plan.share(masks, plan.selection(batch.places), batch.places)

    # ------------------------------------------------------------------ checks

    def _probe(self, batch: Batch) -> None:
        """Check that the model uses what is put in at inputs and kept at outputs.

        Raises:
            HookError: it ignores either.
        """
        base = self._own.base[0]
        at = self._reference(batch, base.picked(base.right.new_zeros(1, dtype=torch.long)))
        for names in (self._outputs.attention, self._outputs.mlp):
            poison = {name: torch.full_like(at.values[name], torch.nan) for name in names}
            answers, _ = self._run(batch, self.background[None], hide=poison)
            if names and bool(answers.token_logp[answers.present].isfinite().any()):
                self._ignored(names[0])
        for which in ATTENTION_INPUTS if batch.tokens.shape[1] > 1 else ():  # one token attends to itself alone
            self._probe_input(which, batch, at)

    def _probe_input(self, which: str, batch: Batch, at: Reference) -> None:
        # not by NaN: HookedTransformer puts zeros in its place in attention weights
        names = {layer: self._input(which, layer) for layer in self._layers(self.nodes.components)}
        noise = torch.Generator().manual_seed(0)
        swaps = {}
        for name in names.values():
            value = torch.randn(at.values[name].shape, generator=noise).to(at.values[name])
            swaps[name] = value, torch.ones(1, 1, 1, 1, device=self.view.device)
        outs = [ATTENTION_OUT.format(layer=layer) for layer in names]
        _, seen = self._run(batch, self.background[None], keep_after=frozenset(outs), hide=at.quiet, put=swaps)
        if names and all(torch.equal(seen[name], at.values[name]) for name in outs):
            self._ignored(next(iter(names.values())))

    def _ignored(self, name: str) -> None:
        raise HookError(
            f"{type(self.view.model).__name__} ignores what a hook at {name} returns, so effects along single paths "
            "cannot be measured on it. Load the model with eager attention (attn_implementation='eager')."
        )
