"""Random contents of other tools' files, written down from their formats and not by the code under test."""

from __future__ import annotations

import importlib
import math
import re
from collections import OrderedDict
from typing import Any

import torch
from hypothesis import strategies as st

from tl_multitrace import interop


def check_table(text: str) -> None:
    """Every format has a row in a page's table, with the functions that read and write it."""
    rows = re.findall(r"^\| .* \(`([\w-]+)`\) \| `(\w+)`, `(\w+)` \|", text, re.MULTILINE)
    assert {key for key, *_ in rows} == set(interop.FORMATS)
    for key, *names in rows:
        for function in (getattr(interop, name) for name in names):
            assert importlib.import_module(function.__module__).FORMAT is interop.FORMATS[key]


NUMBERS = st.floats(-1e6, 1e6)
SINGLE = st.floats(-1e6, 1e6, width=32)


@st.composite
def configs(draw: Any, parallel: bool = True) -> dict[str, Any]:
    """Sizes of a small model."""
    return {
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": draw(st.integers(1, 3)),
        "parallel_attn_mlp": draw(st.booleans()) if parallel else False,
        "d_model": draw(st.integers(1, 4)),
    }


def forward_names(cfg: dict[str, Any]) -> list[str]:
    """Sources: the input, then per layer the heads and the MLP."""
    names = ["input"]
    for layer in range(cfg["n_layers"]):
        names += [f"a{layer}.h{h}" for h in range(cfg["n_heads"])] + [f"m{layer}"]
    return names


def real_edges(cfg: dict[str, Any]) -> list[tuple[str, str]]:
    """Every (source, destination), the destination with its suffix."""
    found = []
    stream = ["input"]
    for layer in range(cfg["n_layers"]):
        heads = [f"a{layer}.h{h}" for h in range(cfg["n_heads"])]
        found += [(s, f"{head}<{x}>") for s in stream for head in heads for x in "qkv"]
        before_mlp = stream if cfg["parallel_attn_mlp"] else stream + heads
        found += [(s, f"m{layer}") for s in before_mlp]
        stream = [*stream, *heads, f"m{layer}"]
    return found + [(s, "logits") for s in stream]


@st.composite
def eap_ig_contents(draw: Any) -> dict[str, Any]:
    """What EAP-IG's ``to_json`` may have written."""
    cfg = draw(configs())
    scored, split = draw(st.booleans()), draw(st.booleans())
    nodes: dict[str, Any] = {}
    for name in forward_names(cfg):
        nodes[name] = {"in_graph": draw(st.booleans())}
        if scored and draw(st.booleans()):
            nodes[name]["score"] = draw(NUMBERS)
        if split:
            nodes[name]["neurons"] = draw(st.lists(st.booleans(), min_size=cfg["d_model"], max_size=cfg["d_model"]))
            nodes[name]["neurons_scores"] = [draw(NUMBERS) for _ in range(cfg["d_model"])]
    nodes["logits"] = {"in_graph": True}
    kept = draw(st.lists(st.sampled_from(real_edges(cfg)), unique=True, min_size=1, max_size=12))
    edges = {f"{s}->{d}": {"score": draw(NUMBERS), "in_graph": draw(st.booleans())} for s, d in kept}
    return {"cfg": cfg, "nodes": nodes, "edges": edges}


@st.composite
def eap_ig_tensors(draw: Any) -> dict[str, Any]:
    """What EAP-IG's ``to_pt`` may have written; NaN is "not scored"."""
    cfg = draw(configs())
    sources, n_layers, n_heads = forward_names(cfg), cfg["n_layers"], cfg["n_heads"]
    backward = n_layers * (3 * n_heads + 1) + 1
    destinations = []
    for layer in range(n_layers):
        destinations += [f"a{layer}.h{h}<{x}>" for x in "qkv" for h in range(n_heads)] + [f"m{layer}"]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scores = torch.zeros(len(sources), backward)
    flags = torch.zeros(len(sources), backward, dtype=torch.bool)
    for source, destination in real_edges(cfg):
        place = forward_index(cfg, source), backward_index(cfg, destination)
        scores[place] = float(torch.randn((), generator=generator))
        flags[place] = bool(torch.rand((), generator=generator) < 0.5)
    scores[0, 0] = draw(st.sampled_from([0.0, 1.0, math.nan]))
    content = {
        "cfg": cfg,
        "src_nodes": sources,
        "dst_nodes": [*destinations, "logits"],
        "edges_scores": scores,
        "edges_in_graph": flags,
        "nodes_in_graph": torch.rand(len(sources), generator=generator) < 0.5,
    }
    if draw(st.booleans()):
        rest = [draw(st.one_of(st.just(math.nan), SINGLE)) for _ in sources[1:]]
        content["nodes_scores"] = torch.tensor([draw(SINGLE), *rest])
    if draw(st.booleans()):
        shape = (len(sources), cfg["d_model"])
        content["neurons_in_graph"] = torch.rand(shape, generator=generator) < 0.5
        content["neurons_scores"] = torch.randn(shape, generator=generator)
    return content


def forward_index(cfg: dict[str, Any], name: str) -> int:
    if name == "input":
        return 0
    layer, _, head = name[1:].partition(".h")
    return 1 + int(layer) * (cfg["n_heads"] + 1) + (cfg["n_heads"] if name[0] == "m" else int(head))


def backward_index(cfg: dict[str, Any], name: str) -> int:
    if name == "logits":
        return cfg["n_layers"] * (3 * cfg["n_heads"] + 1)
    if name[0] == "m":
        return int(name[1:]) * (3 * cfg["n_heads"] + 1) + 3 * cfg["n_heads"]
    node, letter = name[:-1].split("<")
    layer, _, head = node[1:].partition(".h")
    return int(layer) * (3 * cfg["n_heads"] + 1) + "qkv".index(letter) * cfg["n_heads"] + int(head)


@st.composite
def prune_scores(draw: Any) -> dict[str, Any]:
    """What auto-circuit may have saved: scores of one or more tasks and algorithms, or of one alone."""
    cfg = draw(configs())
    pos = draw(st.sampled_from([(), (), (2,)]))
    per_layer = cfg["n_heads"] + 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scores = {}
    for layer in range(cfg["n_layers"]):
        before = 1 + layer * per_layer
        for x in "qkv":
            name = f"blocks.{layer}.hook_{x}_input"
            scores[name] = torch.randn(*pos, cfg["n_heads"], before, generator=generator)
        mlp = before if cfg["parallel_attn_mlp"] else before + cfg["n_heads"]
        scores[f"blocks.{layer}.hook_mlp_in"] = torch.randn(*pos, mlp, generator=generator)
    last = f"blocks.{cfg['n_layers'] - 1}.hook_resid_post"
    scores[last] = torch.randn(*pos, 1 + cfg["n_layers"] * per_layer, generator=generator)
    return draw(st.sampled_from([scores, {"IOI": {"ACDC": scores}}]))


def acdc_keys(cfg: dict[str, Any], mlp_in: str = "hook_mlp_in", embeddings: tuple[str, ...] = ()) -> list[Any]:
    """The keys of ACDC's own graph: every edge between nodes, and those inside a node."""
    found: list[Any] = []
    senders: list[Any] = [(name, (None,)) for name in embeddings or ("blocks.0.hook_resid_pre",)]
    for layer in range(cfg["n_layers"]):
        heads = [(None, None, h) for h in range(cfg["n_heads"])]
        for at in heads:
            for x in "qkv":
                receiver = f"blocks.{layer}.hook_{x}_input"
                found += [(receiver, at, *sender) for sender in senders]
                found.append((f"blocks.{layer}.attn.hook_{x}", at, receiver, at))
                found.append((f"blocks.{layer}.attn.hook_result", at, f"blocks.{layer}.attn.hook_{x}", at))
        senders += [(f"blocks.{layer}.attn.hook_result", at) for at in heads]
        receiver = f"blocks.{layer}.{mlp_in}"
        found += [(receiver, (None,), *sender) for sender in senders]
        found.append((f"blocks.{layer}.hook_mlp_out", (None,), receiver, (None,)))
        senders.append((f"blocks.{layer}.hook_mlp_out", (None,)))
    return found + [(f"blocks.{cfg['n_layers'] - 1}.hook_resid_post", (None,), *sender) for sender in senders]


@st.composite
def acdc_edges(draw: Any) -> OrderedDict[Any, bool]:
    """What ACDC's ``save_subgraph`` writes, of its newer or its older graph, with one embedding or two."""
    mlp_in = draw(st.sampled_from(["hook_mlp_in", "hook_resid_mid"]))
    embeddings = draw(st.sampled_from([(), ("hook_embed", "hook_pos_embed")]))
    keys = acdc_keys(draw(configs(parallel=False)), mlp_in, embeddings)
    return OrderedDict((key, draw(st.booleans())) for key in keys)


@st.composite
def kept_edges(draw: Any) -> list[list[str]]:
    """An ``edges.json`` of Edge Pruning, with or without the steps inside heads."""
    cfg = draw(configs(parallel=False))
    pairs = []
    for source, destination in real_edges(cfg):
        reader = destination.replace("<", ".").removesuffix(">") if destination != "logits" else "resid_post"
        pairs += [[w, reader] for w in (["tok_embeds", "pos_embeds"] if source == "input" else [source])]
    kept: list[list[str]] = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=12, unique_by=tuple))
    inside = [[f"a0.h0.{x}", "a0.h0"] for x in "qkv"] if draw(st.booleans()) else []
    return [*kept, *inside] if any(name[0] in "am" for pair in kept for name in pair) else [*kept, ["m0", "resid_post"]]


@st.composite
def head_groups(draw: Any) -> dict[str, list[list[int | None]]]:
    """Lists of heads by role, never all empty."""
    heads = st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 3))).map(list)
    groups: dict[str, list[list[int | None]]] = draw(
        st.dictionaries(st.text(), st.lists(heads, max_size=5), min_size=1, max_size=4)
    )
    return groups if any(groups.values()) else {**groups, "one": [[0, 1]]}


@st.composite
def graph_documents(draw: Any) -> dict[str, Any]:
    """A graph JSON: features, errors, embeddings, logits of a transcoder graph, and heads and MLPs."""
    n_heads, length = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kinds = ["cross layer transcoder", "mlp reconstruction error", "embedding", "logit", "attention head", "mlp"]
    nodes: dict[str, Any] = {}
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=8)):
        layer, at = draw(st.integers(0, 5)), draw(st.integers(0, length - 1))
        feature = {"attention head": n_heads - 1, "mlp": n_heads, "mlp reconstruction error": -1}.get(kind, at)
        shown = {"embedding": "E", "logit": "7"}.get(kind, str(layer))
        node = {"node_id": f"{shown}_{feature}_{at}", "feature": feature, "layer": shown, "ctx_idx": at}
        more = {"feature_type": kind, "token_prob": 0.0, "is_target_logit": kind == "logit", "clerp": draw(st.text())}
        scores = {"influence": draw(st.none() | NUMBERS), "activation": draw(st.none() | NUMBERS)}
        nodes[node["node_id"] + kind] = {**node, **more, **scores}
    distinct = list({n["node_id"]: n for n in nodes.values()}.values())
    ids = [n["node_id"] for n in distinct]
    ends = draw(st.lists(st.tuples(st.sampled_from(ids), st.sampled_from(ids)), unique=True, max_size=6)) if ids else []
    metadata = {"slug": draw(st.text()), "scan": "gemma-2-2b", "prompt_tokens": ["a"] * length, "prompt": "a" * length}
    supernodes = [["group", *ids[:2]]] if draw(st.booleans()) else []
    return {
        "metadata": {**metadata, "node_threshold": draw(st.none() | NUMBERS), "schema_version": 1},
        "qParams": {"pinnedIds": ids[:1], "supernodes": supernodes, "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": distinct,
        "links": [{"source": a, "target": b, "weight": draw(NUMBERS)} for a, b in ends],
    }
