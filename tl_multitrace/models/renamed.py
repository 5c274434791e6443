"""Keywords that transformers renamed and TransformerLens still reads under their old names.

transformers 5.24 calls a model's stored keys and values ``cache`` where they were ``past_key_values``. The attention of
TransformerLens 4.3's bridge reads the old name alone: its cache stays empty, so generation sees nothing before the
newest token, and a run that starts after stored keys and values computes something else, without an error.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

OLD, NEW = "past_key_values", "cache"


def pass_on_cache(model: Any) -> list[Any]:
    """Hand stored keys and values to a bridge's attention under the name that it reads.

    Args:
        model: a TransformerLens model; nothing is done to one whose parts agree on the name.

    Returns:
        Handles of the hooks that do it; ``handle.remove()`` takes one off.
    """
    handles = []
    for module, original in _torn(model):
        handles.append(module.register_forward_pre_hook(_under_both_names, with_kwargs=True))
        # the original, where TransformerLens runs it, warns of a value that comes under both names
        handles.append(original.register_forward_pre_hook(_under_the_new_name, with_kwargs=True))
    return handles


def passes_on_cache(model: Any) -> bool:
    """Whether a model's attention finds stored keys and values, whoever calls it."""
    return all(_under_both_names in module._forward_pre_hooks.values() for module, _ in _torn(model))


def cache_keyword(model: Any) -> str:
    """What a bridge's own forward calls stored keys and values."""
    original = getattr(model, "original_model", None)
    return NEW if original is not None and _takes(original, NEW) else OLD


@contextmanager
def cache_passed_on(model: Any) -> Iterator[None]:
    """:func:`pass_on_cache` for the duration, on a model where that has not been done for good."""
    handles = [] if passes_on_cache(model) else pass_on_cache(model)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_TORN: weakref.WeakKeyDictionary[Any, dict[str, weakref.ref[Any]]] = weakref.WeakKeyDictionary()
"""What :func:`_torn` found, by place: it is asked for in every forward, and a walk is a fifth of a small one."""


def _torn(model: Any) -> Iterator[tuple[Any, Any]]:
    """Attention modules that read the old name while transformers gives the new one, with what they wrap."""
    known = _TORN.get(model)
    # a module may have been replaced since; the walk is taken again then
    if known is None or any(model.get_submodule(place) is not module() for place, module in known.items()):
        known = _TORN[model] = {place: weakref.ref(module) for place, module in _walk(model)}
    for place in known:
        module = model.get_submodule(place)
        yield module, module.original_component


def _walk(model: Any) -> Iterator[tuple[str, Any]]:
    for place, module in model.named_modules() if hasattr(model, "blocks") else ():
        original = getattr(module, "original_component", None)
        if original is not None and hasattr(module, "_update_kv_cache") and _takes(original, NEW):
            yield place, module


def _takes(module: Any, keyword: str) -> bool:
    try:
        return keyword in inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # a forward that is not written in Python
        return False


def _under_both_names(module: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    if kwargs.get(NEW) is None or kwargs.get(OLD) is not None:
        return None
    return args, {**kwargs, OLD: kwargs[NEW]}


def _under_the_new_name(module: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    if kwargs.get(NEW) is None or OLD not in kwargs:
        return None
    return args, {name: value for name, value in kwargs.items() if name != OLD}
