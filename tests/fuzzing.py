"""Damage for files: to the structure of what they say, and to their bytes."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st

EXAMPLES = "TL_MULTITRACE_FUZZ"
"""Environment variable: damaged files per loader; the suite alone tries a few."""

FEW = 40


def profile() -> settings:
    """As many examples as were asked for; the same ones every time."""
    return settings(
        max_examples=int(os.environ.get(EXAMPLES, FEW)),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # a shrunk example is smaller, and the search for it takes hours
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )


# ---------------------------------------------------------------------- what is put in

RAW = {
    "@nan": "NaN",
    "@inf": "-Infinity",
    "@huge": "1e999",
    "@tiny": "1e-999",
    "@digits": "9" * 5000,
    "@deep": "[" * 40 + "]" * 40,
    "@deeper": '{"a":' * 3000 + "1" + "}" * 3000,
    "@many": "[" + ",".join(["0"] * 4000) + "]",
    "@half": '"\\ud800"',
    "@twice": '{"a": 1, "a": [2]}',
}
"""Written into JSON as they are: what Python's own writer would not write."""

TEXTS = (
    "../../../../etc/passwd /etc/passwd .. . a/b \\\\host\\share C:\\x.json file:///etc/passwd nan inf 1e999 -1 0 1 "
    "L0H0 L1N7 L999999999H0 a0.h0 a9999999.h0 m0 input logits m0->a1.h0<q> id:x head neuron resid mlp pattern pre "
    "last everywhere format version tl_multitrace.circuit model cost seed name __proto__ __class__ key self "
    "incoming_graph_data node_for_adding u_for_edge attr_dict blocks.0.hook_resid_pre blocks.999999.hook_mlp_in"
).split()
TEXTS += [
    "",
    " ",
    "\n",
    "\x00",
    "\x1b[31m",
    "\u2028",
    "\ufeff",
    "\U0001f600",
    "</script><!--",
    "<img onerror=1>",
    "{0}",
]
TEXTS += ["=cmd|' /C calc'!A0", "%s%n", "x" * 5000, "{" * 50, "$x_{$", "[A] [B]", "a,b", '"', "'", "é"]
NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 2**64, 10**9, 10**400, 0.5, -0.0, 1e308, 5e-324, 1e9]
EMPTY: list[Any] = [None, True, False, [], {}, [[]], [{}], {"": None}, [None], [1, 2], ["a", "b"], [[0, 0], [0, 1]]]
JUNK: list[Any] = [*RAW, *TEXTS, *NUMBERS, *EMPTY]
LETTERS = "aZ09 ._-/\\\"'<>&{}[]:,$\t\n\r\x00\x1b\u00e9\u0301\u2028\ufffe\U0001f600"

KINDS = "drop set set set type wrap copy double many rename negate empty add".split()
PIECES = [b"\xff", b"\x00", b'"', b"[", b"]", b"{", b"}", b",", b":", b"\t", b"\n", b"\r", b"\\ud800", b"1e999", b"-"]
PIECES += [
    b"NaN",
    b"null",
    b"[[[[",
    b"9" * 5000,
    b"\xe2\x80\xa8",
    b"../",
    b" ",
    b"PK\x03\x04",
    b"\x80\x02",
    b"\x1f\x8b",
    b"",
]


class Change(NamedTuple):
    """One change of a structure: what, where, where else, with what."""

    kind: str
    where: int
    other: int
    value: Any


class Cut(NamedTuple):
    """One change of bytes."""

    kind: str
    at: int
    length: int
    piece: bytes


class Damage(NamedTuple):
    """What happens to one file of several: structure first, then bytes; or it is replaced as a whole."""

    file: int
    changes: list[Change]
    cuts: list[Cut]
    instead: bytes | None


SHAPES = ("structure", "structure", "structure", "bytes", "both", "whole")


def damage_of(number: int) -> Damage:
    """The damage of that number; drawing all its parts one by one takes hypothesis far longer than reading a file."""
    draw = random.Random(number)
    shape = draw.choice(SHAPES)
    changes = [_some_change(draw) for _ in range(draw.randint(1, 4) if shape in ("structure", "both") else 0)]
    cuts = [_some_cut(draw) for _ in range(draw.randint(1, 3) if shape in ("bytes", "both") else 0)]
    whole = draw.randbytes(draw.randint(0, 40)) if draw.random() < 0.3 else dumped(_some_value(draw))
    return Damage(draw.getrandbits(40), changes, cuts, whole if shape == "whole" else None)


def _some_change(draw: random.Random) -> Change:
    return Change(draw.choice(KINDS), draw.getrandbits(40), draw.getrandbits(40), _some_value(draw))


def _some_cut(draw: random.Random) -> Cut:
    kind = draw.choice(("insert", "delete", "flip", "swap", "end"))
    return Cut(kind, draw.getrandbits(40), draw.getrandbits(40), draw.choice(PIECES))


def _some_value(draw: random.Random) -> Any:
    if draw.random() < 0.7:
        return draw.choice(JUNK)
    text = "".join(draw.choices(LETTERS, k=draw.randint(0, 8)))
    return draw.choice([text, draw.getrandbits(draw.randint(1, 140)), -draw.getrandbits(20), draw.gauss(0, 1e3)])


DAMAGE = st.integers(0, 2**64 - 1).map(damage_of)


# ---------------------------------------------------------------------- structures


def changed(content: Any, changes: list[Change]) -> Any:
    """A copy with the changes made, one after the other."""
    box = [copy.deepcopy(content)]
    for number, change in enumerate(changes):
        holder, key = _place(box, change.where)
        if change.kind != "many" or number == 0:  # many times many is only large
            _change(holder, key, change._replace(value=copy.deepcopy(change.value)), box)
    return box[0]


def _place(box: list[Any], where: int) -> tuple[Any, Any]:
    """Some value, by its holder and key: downwards, stopping at every level with a chance of one in five."""
    holder, key = box, 0
    while True:
        where, stop = divmod(where, 5)
        inside = holder[key]
        if stop == 0 or not isinstance(inside, list | dict) or not inside:
            return holder, key
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        where, at = divmod(where, len(keys))
        holder, key = inside, keys[at]


def _change(holder: Any, key: Any, change: Change, box: list[Any]) -> None:
    old = holder[key]
    if change.kind == "drop" and holder is not box:
        del holder[key]
    elif change.kind == "rename" and isinstance(holder, dict):
        holder[_key(change.value)] = holder.pop(key)
    elif change.kind == "double" and holder is not box:
        holder.insert(key, copy.deepcopy(old)) if isinstance(holder, list) else holder.update({f"{key}2": old})
    elif change.kind == "add":
        if isinstance(old, dict):
            old[_key(change.value)] = copy.deepcopy(box[0]) if change.other % 2 else change.other
        elif isinstance(old, list):
            old.append(change.value)
    else:
        holder[key] = _other(old, change, box)


def _other(old: Any, change: Change, box: list[Any]) -> Any:
    number = isinstance(old, int | float)
    if change.kind == "type":
        retyped = {dict: lambda: list(old.items()), list: lambda: dict(enumerate(old)), str: lambda: [old]}
        return retyped.get(type(old), lambda: str(old))()
    if change.kind == "wrap":
        return [old] if change.other % 2 else {"a": old}
    if change.kind == "copy":
        source, key = _place(box, change.other)
        return copy.deepcopy(source[key])
    if change.kind == "many" and isinstance(old, list | str):
        return old * min(500, 20000 // max(1, len(str(old))))
    if change.kind == "negate" and number:
        return -old if change.other % 2 else old + change.other
    return (
        type(old)()
        if change.kind == "empty" and old is not None and not isinstance(old, torch.Tensor)
        else change.value
    )


def _key(value: Any) -> Any:
    return value if isinstance(value, str) else str(value)[:50]


def dumped(content: Any) -> bytes:
    """As JSON, what no writer writes included."""
    if isinstance(content, str) and content in RAW:
        return RAW[content].encode()
    digits = int.__lt__(10**400, content) if isinstance(content, int) else False
    if digits:
        return b"9" * 4000
    text = json.dumps(content, default=str)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------------- bytes


def cut(content: bytes, cuts: list[Cut]) -> bytes:
    """The bytes with pieces put in, taken out, turned over or moved, or the end cut off."""
    for kind, at, length, piece in cuts:
        i = at % (len(content) + 1)
        n = 1 + length % 30
        if kind == "insert":
            content = content[:i] + piece + content[i:]
        elif kind == "delete":
            content = content[:i] + content[i + n :]
        elif kind == "flip" and i < len(content):
            content = content[:i] + bytes([content[i] ^ (1 << length % 8)]) + content[i + 1 :]
        elif kind == "swap":
            content = content[i : i + n * 10] + content[:i] + content[i + n * 10 :]
        elif kind == "end":
            content = content[:i]
    return content


# ---------------------------------------------------------------------- tensors


RAN: list[str] = []
"""What payloads have done; nothing, unless one is unpickled."""


def run_payload(what: str) -> str:
    RAN.append(what)
    return what


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return run_payload, ("a payload",)


def odd_tensors() -> Iterator[Any]:
    """Values that only a file of tensors can hold, by number."""
    yield torch.zeros(1).expand(10**9, 10**6)
    yield torch.zeros(1).expand(10**9)
    yield torch.ones(3, 4).to_sparse()
    yield torch.ones(2, dtype=torch.complex64)
    yield torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)
    yield torch.full((2, 3), float("nan"))
    yield torch.full((9, 21), float("inf"))
    yield torch.ones(0)
    yield torch.ones(())
    yield torch.ones(2, 2, requires_grad=True)
    yield torch.ones(3, dtype=torch.bool)
    yield torch.empty(10**6, 10**6, device="meta")
    yield torch.ones(2, 3, dtype=torch.bfloat16)
    yield (None, None, 0)
    yield (None,)
    yield {1, 2}
    yield b"bytes"
    yield Payload()
    yield OrderedDict(weight=torch.ones(1, 1))
    yield {(1, 2): True}


def saved(content: Any, changes: list[Change]) -> bytes:
    """As ``torch.save`` writes it, some values being tensors of an unfit kind; or as a plain pickle."""
    odd = list(odd_tensors())
    for change in changes:
        if change.other % 3 == 0 and isinstance(content, dict) and content:
            box = [content]
            holder, key = _place(box, change.where)
            holder[key] = odd[change.other // 3 % len(odd)]
            content = box[0]
    buffer = io.BytesIO()
    if changes and changes[0].other % 41 == 0:
        return pickle.dumps(content)
    try:
        torch.save(content, buffer, _use_new_zipfile_serialization=not (changes and changes[0].other % 7 == 0))
    except (RuntimeError, TypeError, NotImplementedError, pickle.PicklingError):  # what cannot be in such a file
        torch.save([1], buffer)
    return buffer.getvalue()
