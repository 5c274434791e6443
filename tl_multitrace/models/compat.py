"""The one file that knows which TransformerLens it runs on (2.16 to 4.x).

A model comes in as an argument and is never dispatched on by class, which would tie this package to one generation.
What differs is all here: where a run restarts, where the unembedding reads, which flags a run touches. A ``ModelView``
changes the model inside of its context managers alone, and each of those puts back what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_multitrace.models.digest import watched
from tl_multitrace.models.offload import device_of
from tl_multitrace.models.renamed import cache_keyword, cache_passed_on
from tl_multitrace.models.skipping import blocks_skipped, noted
from tl_multitrace.models.stacks import refuse_other_shapes

HookFn = Callable[..., Any]
"""A TransformerLens forward hook: ``fn(activation, hook) -> activation | None``."""

BLOCK_INPUT = "blocks.{layer}.hook_resid_pre"
EMBEDDING = "hook_embed"
UNEMBED_INPUTS = ("unembed.hook_in", "ln_final.hook_normalized")

GRAPH_HOOKS = {
    "input": "blocks.0.hook_resid_pre",
    "tok_embeds": EMBEDDING,
    "pos_embeds": "hook_pos_embed",
    "head": "blocks.{layer}.attn.hook_result",
    "mlp": "blocks.{layer}.hook_mlp_out",
    **{f"{x}_input": f"blocks.{{layer}}.hook_{x}_input" for x in "qkv"},
    **{x: f"blocks.{{layer}}.attn.hook_{x}" for x in "qkv"},
    "mlp_input": "blocks.{layer}.hook_mlp_in",
    "old_mlp_input": "blocks.{layer}.hook_resid_mid",
    "logits": "blocks.{layer}.hook_resid_post",
}
"""The hook points that other tools' circuit files name, by what they stand for there; nothing here is hooked."""


def installed_version(package: str = "transformer_lens") -> str:
    """Version of an installed distribution, or ``"not installed"``."""
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "not installed"


def is_bridge(model: Any) -> bool:
    """Whether ``model`` wraps a Hugging Face module (``TransformerBridge``), told from its bases' names."""
    return any(cls.__name__ in ("TransformerBridge", "BridgeCore") for cls in type(model).__mro__)


@dataclass(frozen=True)
class ModelView:
    """What the engine needs of a TransformerLens model, the same for both generations.

    Attributes:
        model: a ``HookedTransformer`` (TransformerLens 2.16 to 3.x) or a ``TransformerBridge`` (3.x, 4.x).

    Raises:
        TypeError: ``model`` has no ``hook_dict`` or ``cfg``, so it is not a TransformerLens model.
        ValueError: it is an encoder-decoder, or not one stack of blocks.

    Examples:
        >>> view = mt.ModelView(mt.load_model("demo"))
        >>> view.n_layers, view.n_heads, view.d_model, view.d_mlp
        (4, 8, 128, 512)
    """

    model: Any

    def __post_init__(self) -> None:
        if not (hasattr(self.model, "hook_dict") and hasattr(self.model, "cfg")):
            raise TypeError(
                "expected a TransformerLens model (HookedTransformer or TransformerBridge), got "
                f"{type(self.model).__name__}. Wrap a Hugging Face model with "
                "TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer)."
            )
        refuse_other_shapes(self.model)

    # ------------------------------------------------------------------ facts

    @property
    def is_bridge(self) -> bool:
        """Whether the model is a ``TransformerBridge``."""
        return is_bridge(self.model)

    def _number(self, name: str) -> int:
        return int(getattr(self.model.cfg, name, None) or 0)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self._number("n_layers")

    @property
    def n_heads(self) -> int:
        """Number of query heads per layer (under grouped queries: not the key/value heads)."""
        return self._number("n_heads")

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._number("d_model")

    @property
    def d_head(self) -> int:
        """Width of one head's output."""
        return self._number("d_head")

    @property
    def d_mlp(self) -> int:
        """Number of MLP neurons per layer; 0 for an attention-only model."""
        return 0 if getattr(self.model.cfg, "attn_only", False) else self._number("d_mlp")

    @property
    def parallel_attn_mlp(self) -> bool:
        """Whether an MLP reads its block's input, and so not the heads of its own block."""
        return bool(getattr(self.model.cfg, "parallel_attn_mlp", False))

    @property
    def d_vocab(self) -> int:
        """Number of token ids."""
        return self._number("d_vocab")

    @property
    def d_vocab_out(self) -> int:
        """Number of token ids that the model predicts, which may be more or fewer than it reads."""
        head = getattr(getattr(self.model, "unembed", None), "original_component", None)
        return int(getattr(head, "out_features", 0) or self._number("d_vocab_out") or self.d_vocab)

    @property
    def n_ctx(self) -> int:
        """Longest prompt the model takes, in tokens."""
        return self._number("n_ctx")

    @property
    def device(self) -> torch.device:
        """Device of the model's first parameter; of an offloaded model, the one that it runs on."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's first floating-point parameter."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def attends_locally(self) -> bool:
        """Whether some layer attends to a window of recent tokens only."""
        config = getattr(getattr(self.model, "original_model", None), "config", None)
        types = (*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ()))
        window = getattr(config, "sliding_window", None) if not types else None
        local = any(kind not in ("full_attention", "global") for kind in types)
        return bool(local or window or getattr(self.model.cfg, "use_local_attn", False))

    @property
    def masked(self) -> bool:
        """Whether this is a masked language model, whose answers stand at a mask in the prompt."""
        return type(getattr(self.model, "original_model", None)).__name__.endswith("ForMaskedLM")

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        return getattr(self.model, "tokenizer", None)

    @property
    def prepends_bos(self) -> bool:
        """Whether TransformerLens puts a BOS token in front of text for this model."""
        return bool(getattr(self.model.cfg, "default_prepend_bos", True))

    @property
    def name(self) -> str:
        """The name the model was loaded by."""
        return str(getattr(self.model.cfg, "model_name", None) or type(self.model).__name__)

    def describe(self) -> dict[str, Any]:
        """Provenance: name, class, shape, weight processing, library versions and a digest."""
        cfg = self.model.cfg
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "revision": getattr(cfg, "checkpoint_value", None) or getattr(cfg, "revision", None),
            "compatibility_mode": bool(getattr(self.model, "compatibility_mode", False)),
            "normalization": str(getattr(cfg, "normalization_type", None)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "d_model": self.d_model,
            "d_mlp": self.d_mlp,
            "d_vocab": self.d_vocab,
            "parallel_attn_mlp": self.parallel_attn_mlp,
            "digest": self.digest(),
            "transformer_lens": installed_version(),
            "torch": torch.__version__,
        }

    def digest(self) -> str:
        """Digest of all that the model computes with: weights, configuration, code, adapters and hooks."""
        return watched(self.model).state().digest

    # ------------------------------------------------------------------ hook points

    def point(self, name: str) -> Any:
        """The ``HookPoint`` called ``name``.

        Raises:
            KeyError: the model has no such hook point; TransformerLens itself ignores some misspelt names.
        """
        points = self._points()
        if name not in points:
            near = [n for n in points if n.split(".")[-1] == name.split(".")[-1]][:3]
            known = f"; it has {', '.join(near)} ..." if near else ""
            raise KeyError(f"{type(self.model).__name__} has no hook point {name!r}{known}")
        return points[name]

    def points(self) -> Mapping[str, Any]:
        """Every ``HookPoint`` by name."""
        return self._points()

    def has_point(self, name: str) -> bool:
        """Whether the model has a hook point called ``name``."""
        return name in self._points()

    def _points(self) -> dict[str, Any]:
        # hook_dict is rebuilt at every access on a bridge (milliseconds on 3.x): keep it beside the view
        cached = self.__dict__.get("_hook_points")
        if cached is None:
            cached = dict(self.model.hook_dict)
            object.__setattr__(self, "_hook_points", cached)
        return cached

    @property
    def unembed_input(self) -> str:
        """The last hook point before the unembedding: what leaves it, and nothing else, is unembedded."""
        return next(filter(self.has_point, UNEMBED_INPUTS), f"blocks.{self.n_layers - 1}.hook_resid_post")

    @property
    def embedding_point(self) -> str:
        """The hook point of the token embedding itself; a bridge's ``hook_embed`` may be the norm behind it (BERT)."""
        return "embed.hook_out" if self.has_point("embed.hook_out") else EMBEDDING

    def embed(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """Embeddings of token ``ids`` as a hook at :attr:`embedding_point` sees them; ``W_E`` lacks Gemma's factor."""
        seen: list[Tensor] = []
        with torch.no_grad(), self.attached([(self.embedding_point, lambda act, hook: seen.append(act.clone()))]):
            seen.append(self.model.embed(ids.to(self.device)[None]))
        return seen[0][0]  # on a HookedTransformer the point lies behind its embedding module

    # ------------------------------------------------------------------ contexts

    @contextmanager
    def attached(self, hooks: Sequence[tuple[str, HookFn]]) -> Iterator[None]:
        """Attach forward hooks for the duration, in the order given; exactly these are removed afterwards.

        Attaching to the ``HookPoint`` itself costs microseconds on every version, where ``model.hooks`` is quadratic in
        the number of hooks on 3.x and ignores unknown names.
        """
        added: list[tuple[Any, Any]] = []
        try:
            for name, fn in hooks:
                point = self.point(name)
                point.add_hook(fn, dir="fwd")
                added.append((point, point.fwd_hooks[-1]))
            with cache_passed_on(self.model):
                yield
        finally:
            for point, handle in reversed(added):
                handle.hook.remove()
                point.fwd_hooks[:] = [h for h in point.fwd_hooks if h is not handle]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Evaluation mode, no gradients to weights, no key/value cache; everything is put back on leaving."""
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        config = getattr(getattr(self.model, "original_model", None), "config", None)
        use_cache = getattr(config, "use_cache", None)
        with self.modes_kept():
            try:
                self.model.eval()
                for parameter, _ in flags:
                    parameter.requires_grad_(False)
                if config is not None and use_cache:
                    config.use_cache = False
                yield
            finally:
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)
                if config is not None and use_cache:
                    config.use_cache = use_cache

    @contextmanager
    def modes_kept(self) -> Iterator[None]:
        """Every module comes back in the mode, training or evaluation, that it had."""
        modes = [(m, m.training) for m in self.model.modules()]
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def watched(
        self,
        names: Iterable[str],
        n_tokens: int,
        put: Mapping[str, Tensor] | None = None,
        back: Iterable[str] = (),
    ) -> dict[str, list[Any]]:
        """What every firing of some hook points shows in a run of a few tokens, however often they fire.

        Args:
            names: hook points; those that the model has not are left out.
            n_tokens: length of the prompt, whose ids are 0, 1, 2 ...
            put: activations to put in first, by hook point.
            back: hook points whose hooks return what they are given, as an intervention would.
        """
        returned = set(back)
        seen: dict[str, list[Any]] = {name: [] for name in names if self.has_point(name)}
        hooks: list[tuple[str, HookFn]] = [(name, _constant(value)) for name, value in (put or {}).items()]
        hooks += [(name, _watcher(found, name in returned)) for name, found in seen.items()]
        tokens = (torch.arange(n_tokens, device=self.device) % max(1, self.d_vocab))[None]
        with torch.no_grad(), self.frozen(), self.attached(hooks):
            self.model(tokens)
        return seen

    # ------------------------------------------------------------------ running

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch width"] | Bool[Tensor, "batch 1 pos pos"] | None,
        *,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        start_layer: int = 0,
        residual: Float[Tensor, "batch pos d_model"] | None = None,
        past: Any = None,
    ) -> Float[Tensor, "..."]:
        """Logits of one forward, or of its blocks from ``start_layer`` on when ``residual`` (their input) is given.

        Args:
            tokens: right-padded token ids.
            attention_mask: 1 at real tokens. Always passed: a bridge does not infer it, ``HookedTransformer`` guesses
                it. On a bridge also what each token may attend to, ``[batch, 1, dest, src]``. None: not passed.
            position_ids: positions other than 0, 1, 2 ...; bridges only.
            start_layer: first block that runs, at least 1 where ``residual`` is given.
            residual: input of block ``start_layer``.
            past: the model's own cache of keys and values before ``tokens``; the mask then covers both.

        Returns:
            Whatever the unembedding gives: ``[batch, pos, d_vocab]``, or fewer positions under a hook that gathers.
        """
        options: dict[str, Any] = {"attention_mask": attention_mask}
        if attention_mask is None:
            options = {}
        elif attention_mask.ndim == 4:  # Hugging Face adds such a mask to the attention scores as it is
            options["attention_mask"] = torch.zeros_like(attention_mask, dtype=self.dtype).masked_fill_(
                ~attention_mask, torch.finfo(self.dtype).min
            )
        if position_ids is not None:
            options["position_ids"] = position_ids
        if past is not None:
            options |= (
                {cache_keyword(self.model): past, "use_cache": True} if self.is_bridge else {"past_kv_cache": past}
            )
            if (
                residual is None and not self.is_bridge and attention_mask is not None
            ):  # which puts the mask of the stored tokens in front itself
                options["attention_mask"] = attention_mask[:, -tokens.shape[1] :]
        if residual is not None and not self.is_bridge:
            logits: Tensor = self.model(residual, start_at_layer=start_layer, **options)
            return logits
        with noted(self.model) if residual is None else blocks_skipped(self.model, start_layer, residual):
            logits = self.model(tokens, **options)
        return logits


def _constant(value: Tensor) -> HookFn:
    return lambda act, hook=None: value


def _watcher(found: list[Any], returns: bool) -> HookFn:
    def watch(act: Any, hook: Any = None) -> Any:
        found.append(act.detach() if isinstance(act, Tensor) else act)
        return act.clone() if returns else None

    return watch
