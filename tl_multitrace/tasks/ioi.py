"""Indirect object identification: who receives?

Source: the task is that of Wang et al. 2022 (arXiv:2211.00593); names, places, objects and templates are this
package's own, or those of the original code: ``path=``.

Base "When Mary and John went to the store, John gave a drink to" calls for Mary; in the source the giver is swapped
("..., Mary gave a drink to"), which calls for John. The answer is the source's. Subgroup ``ABB``: the base's giver is
the second name; ``BAB``: the first.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_multitrace.metrics import LogitDiff
from tl_multitrace.records.text_files import JsonItems, check_text, read_text, wrong
from tl_multitrace.tasks.corpus import GIVING_VERBS, IOI_TEMPLATES, NAMES, OBJECTS, PLACES
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, Sieve

KINDS = ("BABA_TEMPLATES", "BABA_LONG_TEMPLATES", "BABA_LATE_IOS", "BABA_EARLY_IOS")
NOUNS = {"[PLACE]": "{place}", "[OBJECT]": "{object}"}
_PLACEHOLDER = re.compile(r"\[[A-Z]+\]")


@dataclass(frozen=True)
class Templates:
    """What indirect-object sentences are made of.

    Attributes:
        names: first names.
        frames: sentences with ``{a} {b} {s} {place} {object}``, ``{s}`` being the giver, cut off before the receiver.
        places: for ``{place}``.
        objects: for ``{object}``.
    """

    names: tuple[str, ...]
    frames: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]


def read_ioi(path: str | Path, kind: str = "BABA_TEMPLATES") -> Templates:
    """The lists of ``ioi_dataset.py`` from JSON: an object with ``NAMES``, ``PLACES``, ``OBJECTS`` and templates.

    Templates come as BABA, ``[B]`` being the giver named first; ABBA is the same sentence with the names of its
    beginning exchanged, which the task does itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, a list that is missing or holds something else, a template of another form.
    """
    if kind not in KINDS:
        raise ValueError(f"templates must be one of {', '.join(KINDS)}, got {kind!r}.")
    content = JsonItems(path, read_text(path, "file of IOI templates")).whole()
    if not isinstance(content, dict):
        expected = "a JSON object with the lists NAMES, PLACES, OBJECTS and templates"
        raise wrong(path, 1, expected, type(content).__name__)
    lists = {name: _texts(path, content, name) for name in ("NAMES", "PLACES", "OBJECTS", kind)}
    if len(set(lists["NAMES"])) < 2:
        raise wrong(path, 1, "at least two different names in 'NAMES'", repr(lists["NAMES"]))
    frames = tuple(_frame(path, kind, template) for template in lists[kind])
    return Templates(lists["NAMES"], frames, lists["PLACES"], lists["OBJECTS"])


def _texts(path: str | Path, content: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = content.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(x, str) and x.strip() for x in found):
        shown = "no such list" if name not in content else repr(found)
        raise wrong(path, 1, f"a list of texts in {name!r}", shown)
    return tuple(check_text(path, 1, text) for text in found)


def _frame(path: str | Path, kind: str, template: str) -> str:
    """``Then, [B] and [A] went. [B] gave a [OBJECT] to [A]`` as ``Then, {a} and {b} went. {s} gave a {object} to``."""
    people = [m.group() for m in _PLACEHOLDER.finditer(template) if m.group() in ("[A]", "[B]")]
    strange = [m.group() for m in _PLACEHOLDER.finditer(template) if m.group() not in ("[A]", "[B]", *NOUNS)]
    whole = people == ["[B]", "[A]", "[B]", "[A]"] and not strange and not set("{}") & set(template)
    if not whole or not template.rstrip().endswith("[A]"):
        raise wrong(path, 1, f"templates in {kind!r} with [B], [A], [B] and at the end [A]", repr(template))
    frame = template.rstrip().removesuffix("[A]").rstrip()
    for place, name in (("[B]", "{a}"), ("[A]", "{b}"), ("[B]", "{s}")):
        frame = frame.replace(place, name, 1)
    for placeholder, name in NOUNS.items():
        frame = frame.replace(placeholder, name)
    return frame


def rows(
    sieve: Sieve,
    rng: random.Random,
    *,
    demo: bool = False,
    names: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    path: str | Path | None = None,
    kind: str = "BABA_TEMPLATES",
) -> Iterator[Row]:
    """Random names, places and objects without end, the two orders in turn.

    Templates are sentences with ``{a} {b} {s} {place} {verb} {object}``, ``{s}`` being the giver. With ``path``, names,
    templates (of that ``kind``), places and objects are those of the original code's lists; see :func:`read_ioi`.
    """
    own = Templates(tuple(NAMES), tuple(IOI_TEMPLATES), tuple(PLACES), tuple(OBJECTS))
    lists = own if path is None else read_ioi(path, kind)
    people, frames = lists.names if names is None else names, lists.frames if templates is None else templates
    if len(set(people)) < 2:
        raise ValueError(f"indirect objects need at least two different names, got {list(people)}.")
    while True:
        for order in ("ABB", "BAB"):
            a, b = rng.sample(sorted(set(people)), 2)
            scene = {"place": rng.choice(lists.places), "object": rng.choice(lists.objects)}
            scene["verb"] = rng.choice(GIVING_VERBS)
            frame, giver, receiver = rng.choice(frames), *((b, a) if order == "ABB" else (a, b))
            base, source = (frame.format(a=a, b=b, s=s, **scene) for s in (giver, receiver))
            yield Row(base, source, (f" {giver}",), (f" {receiver}",), order)


TASK = TaskInfo(
    "ioi", "Which components name the receiver (the name that is not the giver)?", rows, LogitDiff(), "heads"
)
