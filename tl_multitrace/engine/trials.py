"""What a model allows beyond a whole run, tried once before it is relied on.

A run may restart at a later block, or at a later token with stored keys and values; prompts of different lengths may
share a batch; several continuations may share a row. Each of these changes how the model is run and must not change
what comes out. So each is compared once per model with the plain way, on two prompts of different lengths and with a
changed input, and where the two differ, or the model refuses, the plain way is taken and a warning says why.
What the trials cost is not counted in ``cost``: it is paid once per model, whatever is traced afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor

from tl_multitrace.engine.exhausted import is_out_of_memory
from tl_multitrace.engine.forward import Forward, Start, leave_untold, padded, run, session
from tl_multitrace.engine.past import Past
from tl_multitrace.models.compat import BLOCK_INPUT, ModelView
from tl_multitrace.models.embeddings import embedding_width, has_embeddings
from tl_multitrace.rows import Attention

logger = logging.getLogger(__name__)

LONGEST = 24
"""Tokens of the longer trial prompt at most."""

SIZE = 3.0
"""Standard deviations of token embeddings that the changed input differs by."""


@dataclass(frozen=True)
class Trial:
    """One optimisation on one model.

    Attributes:
        name: what was tried.
        on: whether runs do it.
        why: what came out, or why it is off.
    """

    name: str
    on: bool
    why: str


@dataclass(eq=False)
class Trials:
    """What one model allows; each is tried when it is first asked for.

    Attributes:
        model: the model, which what is known of it does not keep alive.
        prompt: token ids to try on.
        done: outcomes so far, by name.
    """

    model: Callable[[], Any]
    prompt: tuple[int, ...]
    done: dict[str, Trial] = field(default_factory=dict)

    @property
    def view(self) -> ModelView:
        """The model."""
        return ModelView(self.model())

    # ------------------------------------------------------------------ what may be asked

    @cached_property
    def start_blocks(self) -> frozenset[int]:
        """Blocks that a run may start at, given their input."""
        found: frozenset[int] = self._tried("block restarts", self._blocks, frozenset())
        return found

    @cached_property
    def start_tokens(self) -> bool:
        """Whether a run may start at a later token, given the keys and values of those before."""
        return bool(self._tried("token restarts", self._tokens, False))

    @cached_property
    def padding(self) -> bool:
        """Whether prompts of different lengths may share a batch."""
        return bool(self._tried("padded batches", self._padding, False))

    def packing(
        self, prompt: list[int], continuations: list[list[int]], row: list[int], mask: Tensor, position: Tensor
    ) -> bool:
        """Whether several continuations of a prompt may share a row.

        Args:
            prompt: token ids.
            continuations: token ids of each.
            row: the prompt and all its continuations.
            mask: what each token of that row sees.
            position: its position ids.
        """
        if "packed rows" not in self.done:
            device = self.view.device
            packed = replace(padded([row], device), attention=Attention(mask.to(device), position.to(device)))
            self._tried("packed rows", lambda: (True, self._packing(prompt, continuations, packed)), False)
        return self.done["packed rows"].on

    # ------------------------------------------------------------------ trying

    def _tried(self, name: str, work: Callable[[], tuple[Any, str]], otherwise: Any) -> Any:
        """What ``work`` finds; ``otherwise``, with a warning, where it fails."""
        with torch.no_grad(), session(self.view):
            try:
                found, why = work()
            except _Differs as error:
                found, why = otherwise, str(error)
            except Exception as error:  # every model refuses in its own way; the plain way always works
                if is_out_of_memory(error):
                    raise
                found, why = otherwise, f"{type(error).__name__}: {' '.join(str(error).split())[:160].rstrip('.')}"
        self.done[name] = Trial(name, bool(found), why)
        if not found:
            logger.warning(
                "%s: %s are off, because %s. Runs are whole there, and cost more.", self.view.name, name, why
            )
        return found

    @cached_property
    def _rows(self) -> list[list[int]]:
        """A prompt, and a shorter one."""
        longer = list(self.prompt[:LONGEST])
        return [longer, longer[: max(1, 2 * len(longer) // 3)]]

    @cached_property
    def _plain(self) -> Forward:
        return padded(self._rows, self.view.device)

    def _changed(self, column: int = 0) -> Forward:
        """The prompts with other embeddings from a column on; with other tokens where nothing reaches those."""
        if not has_embeddings(self.view):
            tokens = self._plain.tokens.clone()
            tokens[:, column:] = (tokens[:, column:] + 1) % self.view.d_vocab
            return replace(self._plain, tokens=tokens)
        spread = float(self.view.embed(self._plain.tokens[0]).float().std()) or 1.0
        draw = torch.Generator().manual_seed(0)
        noise = SIZE * spread * torch.randn(*self._plain.tokens.shape, embedding_width(self.view), generator=draw)
        noise[:, :column] = 0.0
        return replace(self._plain, noise=noise)

    def _logp(self, logits: Tensor, column: int = 0) -> Float[Tensor, "places vocab"]:
        """Log probabilities at real tokens from a column on; ``logits`` begin there."""
        lengths = torch.tensor([len(row) for row in self._rows])
        real = (torch.arange(max(lengths.tolist())) < lengths[:, None])[:, column:]
        values = logits.double() if logits.dtype == torch.float64 else logits.float()
        return values.log_softmax(-1)[real.to(logits.device)]

    def _same(self, found: Tensor, wanted: Tensor, other: Tensor | None, what: str) -> float:
        """Largest difference, where two runs agree; ``other`` is what the unchanged input gives.

        Raises:
            _Differs: they do not, or the change does not show.
        """
        if not bool(wanted.isfinite().all()):
            raise _Differs("the whole run is not finite")
        if other is not None and not bool((wanted - other).abs().max() > 1e-6):
            raise _Differs("a changed input changes nothing, so nothing can be tried")
        worst = float((found - wanted).abs().max())
        # parts of a float64 model may run in float32
        allowed = max(torch.finfo(self.view.dtype).eps ** 0.5, 1e-5) * max(1.0, float(wanted.abs().max()))
        if not worst <= allowed:
            raise _Differs(f"{what} gives other log probabilities than the whole run (by {worst:.2g})")
        return worst

    # ------------------------------------------------------------------ the trials

    def _blocks(self) -> tuple[frozenset[int], str]:
        view = self.view
        names = {i: BLOCK_INPUT.format(layer=i) for i in range(1, view.n_layers)}
        names = {i: name for i, name in names.items() if view.has_point(name)}
        if not names:
            return frozenset(), "no block but the first has an input that can be put in"
        plain = self._logp(run(view, self._plain).logits)
        changed = replace(self._changed(), keep=frozenset(names.values()))
        ran = run(view, changed)
        wanted, good, worst, reason = self._logp(ran.logits), set(), 0.0, ""
        # a block may leave state for later ones, which the restarts below must not find as the run above left it: so
        # another run comes in between, and the last block goes first, which renews nothing of the earlier ones
        run(view, self._plain)
        for layer, name in reversed(names.items()):
            at = Start(layer, ran.kept[name])
            try:
                part = run(view, replace(self._plain, start=at)).logits
                worst = max(worst, self._same(self._logp(part), wanted, plain, f"a run from block {layer}"))
                good.add(layer)
            except Exception as error:  # see _tried
                if is_out_of_memory(error):
                    raise
                text = str(error) if isinstance(error, _Differs) else f"{type(error).__name__}: {error}"
                reason = reason or f"block {layer}: {' '.join(text.split())[:160]}"
        if reason and good:
            logger.warning("%s: runs do not restart at every block (%s).", view.name, reason)
        return frozenset(good), reason if not good else f"equal to a whole run (to {worst:.1g})"

    def _tokens(self) -> tuple[bool, str]:
        view, column = self.view, len(self._rows[1]) // 2
        if column < 1 or len(self._rows[0]) < 3:
            return False, "the prompts are too short to try"
        past = Past.record(view, 2, lambda cache: run(view, replace(self._plain, start=Start(past=cache))))
        changed = self._changed(column)
        layer = max((i for i in self.start_blocks if 2 * i <= view.n_layers), default=0)
        name = BLOCK_INPUT.format(layer=layer)
        ran = run(view, replace(changed, keep=frozenset([name] if layer else [])))
        wanted = self._logp(ran.logits[:, column:], column)
        plain = self._logp(run(view, self._plain).logits[:, column:], column)
        noise = None if changed.noise is None else changed.noise[:, column:]
        cut = replace(changed, tokens=changed.tokens[:, column:], noise=noise)
        starts = [replace(cut, start=Start(column=column, past=past.cache(slice(None), column, 1)))]
        if layer:
            at = Start(layer, ran.kept[name][:, column:], column, past.cache(slice(None), column, 1))
            starts.append(replace(cut, noise=None, start=at))
        logits = [run(view, start).logits for start in starts]
        worst = max(self._same(self._logp(x, column), wanted, plain, "a run from a later token") for x in logits)
        return True, f"equal to a whole run (to {worst:.1g})"

    def _padding(self) -> tuple[bool, str]:
        view = self.view
        # what the model says of each prompt alone, when nothing is said of padding
        bare = [replace(padded([row], view.device), attention=Attention(None)) for row in self._rows]
        wanted = torch.cat([run(view, one).logits[0] for one in bare])
        wanted = (wanted.double() if wanted.dtype == torch.float64 else wanted.float()).log_softmax(-1)
        try:
            found = self._logp(run(view, self._plain).logits)
            return True, f"equal to prompts one by one (to {self._same(found, wanted, None, 'a padded batch'):.1g})"
        except (_Differs, RuntimeError, TypeError, ValueError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            leave_untold(view)
            logger.warning("%s is not told which tokens are padding: where it is, %s.", view.name, error)
        found = self._logp(run(view, self._plain).logits)
        worst = self._same(found, wanted, None, "a padded batch")
        return True, f"equal to prompts one by one (to {worst:.1g}), without an attention mask"

    def _packing(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]], packed: Forward) -> str:
        view, n = self.view, len(prompt)
        apart = run(view, padded([[*prompt, *c] for c in continuations], view.device)).logits
        wanted = torch.cat([apart[i, n : n + len(c)] for i, c in enumerate(continuations)]).float().log_softmax(-1)
        found = run(view, packed).logits[0, n:].float().log_softmax(-1)
        return f"equal to a row each (to {self._same(found, wanted, None, 'a packed row'):.1g})"


class _Differs(ArithmeticError):
    """Two runs that were to agree do not."""


_known: WeakKeyDictionary[Any, dict[Any, Trials]] = WeakKeyDictionary()


def trials_of(view: ModelView, prompt: Sequence[int]) -> Trials:
    """The trials of a model, made once for it, its device and its precision.

    Args:
        view: the model.
        prompt: token ids to try on, where nothing was tried yet.
    """
    mine = _known.setdefault(view.model, {})
    key = (str(view.device), view.dtype)
    kept = mine.get(key)
    if kept is None or (len(prompt) >= 3 > len(kept.prompt)):
        kept = mine[key] = Trials(ref(view.model), tuple(int(t) for t in prompt))
    return kept
