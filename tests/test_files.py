"""The package's own files: written whole or not at all, read with every doubt spelled out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_multitrace as mt
from tl_multitrace.groups import SITES, Component
from tl_multitrace.records.stats import Score
from tl_multitrace.records.write import write_json, write_text

# --------------------------------------------------------------------------------------------- random circuits
POSITIONS = st.one_of(
    st.none(),
    st.integers(-5, 20),
    st.sampled_from(["last", "everywhere", "subject", "a\u00e9\u2028</script>"]),
    st.tuples(st.integers(-5, 5), st.integers(-5, 9)),
)


@st.composite
def components(draw: Any) -> Component:
    kind, site = draw(st.sampled_from(sorted(SITES)))
    index = None if SITES[kind, site].axis is None else draw(st.integers(0, 9))
    return Component(kind, draw(st.integers(0, 5)), index, draw(POSITIONS), site)


NUMBERS = st.floats(-1e9, 1e9)
SCORES = st.one_of(
    st.none(), st.builds(Score, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(1, 99), st.none() | NUMBERS)
)
FACTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def circuits(draw: Any) -> mt.Circuit:
    named = draw(st.lists(components(), max_size=6, unique=True))
    joined = [draw(st.lists(components(), min_size=1, max_size=3)) if draw(st.booleans()) else [c] for c in named]
    sizes = {key: draw(st.integers(10, 99)) for key in {(s.kind, s.site) for group in joined for s in group}}
    groups = mt.HookGroups(tuple(named), tuple(map(tuple, joined)), sizes)
    indices = draw(st.permutations(range(len(named) + 3)))[: len(named)]
    return mt.Circuit(
        groups=groups,
        indices=tuple(indices),
        n_groups=len(named) + 3,
        effect=draw(NUMBERS),
        score=draw(SCORES),
        held_out=draw(SCORES),
        chance=draw(SCORES),
        full_effect=draw(st.none() | NUMBERS),
        marginals=tuple(draw(NUMBERS) for _ in named) if draw(st.booleans()) else (),
        certificate=draw(st.text()),
        provenance=draw(st.dictionaries(st.text(), FACTS, max_size=4)),
    )


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # which the shape checker does, to look at samples
@settings(max_examples=60, deadline=None)
@given(circuit=circuits())
def test_a_circuit_comes_back_as_it_was(circuit: mt.Circuit, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("circuit") / "deep" / "a.json"
    assert circuit.save(path) == path
    again = mt.Circuit.load(path)
    assert again == circuit
    assert [[(s, s.site) for s in g] for g in again.groups.sites] == [
        [(s, s.site) for s in g] for g in circuit.groups.sites
    ]
    assert [c.site for c in again.components] == [c.site for c in circuit.components]
    assert dict(again.groups.sizes) == dict(circuit.groups.sizes)
    assert torch.equal(again.mask, circuit.mask)


def a_circuit(**changes: Any) -> mt.Circuit:
    groups = mt.HookGroups(
        (Component("head", 0, 1), Component("mlp", 2)), ((Component("head", 0, 1),), (Component("mlp", 2),)), {}
    )
    return mt.Circuit(groups, (1, 4), 6, 0.5, **changes)


def test_an_unmeasured_effect_comes_back_as_nan(tmp_path: Path) -> None:
    union = a_circuit() | a_circuit()
    assert np.isnan(mt.Circuit.load(union.save(tmp_path / "a.json")).effect)


def test_numbers_of_numpy_and_torch_are_written_as_numbers(tmp_path: Path) -> None:
    facts = {"a": np.float64(0.5), "b": np.arange(3), "c": torch.tensor(2.0), "d": torch.arange(2), "e": Path("x")}
    write_json(tmp_path / "a.json", facts)
    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read == {"a": 0.5, "b": [0, 1, 2], "c": 2.0, "d": [0, 1], "e": "x"}


# ------------------------------------------------------------------------------------------------- what is refused
def written(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = a_circuit().save(tmp_path / "a.circuit.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content) or content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=99), r"has version 99 of tl_multitrace.circuit; this tl_multitrace reads up to \d"),
        (lambda c: c.update(version="1"), r"has version '1' of"),
        (lambda c: c.update(format="eap_ig"), r"is not a tl_multitrace.circuit file \(format: 'eap_ig'\)"),
        (lambda c: c.update(format="tl_multitrace.path"), r"is not a tl_multitrace.circuit file"),
        (lambda c: [c], r"is not a tl_multitrace.circuit file \(format: 'list'\)"),
        (lambda c: c.update(effect="much"), r"effect: .* \(1 problem"),
        (lambda c: c.pop("indices") and None, r"indices: Field required"),
        (lambda c: c.update(indices=[1, 6]), r"indices must be distinct numbers below 6, got \[1, 6\]"),
        (lambda c: c.update(indices=[1, 1]), r"indices must be distinct numbers below 6, got \[1, 1\]"),
        (lambda c: c.update(indices=[1]), r"1 indices for 2 components"),
        (lambda c: c.update(marginals=[1.0]), r"1 marginal effects for 2 components"),
        (lambda c: c["groups"]["components"][0].update(kind="expert"), r"unknown kind 'expert'"),
        (lambda c: c["groups"]["components"][0].update(layer=-2), r"layer and index count from 0"),
        (lambda c: c["groups"].update(sites=[None]), r"1 site lists for 2 components"),
        (lambda c: c["groups"].update(sizes={"head.z": 0}), r"unknown site 'head.z' of size 0"),
        (lambda c: c["provenance"].update(a=nested(40)), r"nested deeper than \d+ levels"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = written(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        mt.Circuit.load(path)
    assert str(path) in str(caught.value)


def nested(levels: int) -> Any:
    return {} if not levels else {"x": nested(levels - 1)}


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.999))
def test_truncated_files_are_refused(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.json"
    content = a_circuit().save(path).read_bytes().rstrip()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"a\.json is not complete JSON .*: the file is cut off or of another kind"):
        mt.Circuit.load(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"", b"[" * 100_000])
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not complete JSON|is nested deeper than \d+ levels"):
        mt.Circuit.load(tmp_path / "a.json")


def test_missing_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file '.*nowhere\.json'"):
        mt.Circuit.load(tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match="no file"):
        mt.Circuit.load(tmp_path)
    path = a_circuit().save(tmp_path / "a.json")
    monkeypatch.setattr("tl_multitrace.records.read.MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"has \d+ bytes; at most 10 are read"):
        mt.Circuit.load(path)


def test_unknown_fields_of_this_version_are_ignored(tmp_path: Path) -> None:
    assert mt.Circuit.load(written(tmp_path, lambda c: c.update(extra=1))) == a_circuit()


# -------------------------------------------------------------------------------------------------- what is written
def test_a_file_is_never_overwritten_unasked(tmp_path: Path) -> None:
    path = a_circuit().save(tmp_path / "a.json")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.json exists.*overwrite=True"):
        a_circuit(certificate="other").save(path)
    assert path.read_bytes() == before
    a_circuit(certificate="other").save(path, overwrite=True)
    assert mt.Circuit.load(path).certificate == "other"


def test_nothing_is_left_when_the_content_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match=r"a\.json was not written: it would hold a number that is not finite"):
        a_circuit(provenance={"loss": float("nan")}).save(path)
    assert list(tmp_path.iterdir()) == []
    a_circuit().save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="was not written"):
        a_circuit(score=Score(float("inf"), 0.0, 0.0, 0.0, 1)).save(path, overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_is_left_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: type[BaseException]
) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(error):
        write_text(path, "new", overwrite=True)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    assert (a_circuit().save(tmp_path / "a.json").stat().st_mode & 0o777) == 0o644
