"""Traces of many facts: classes of tokens, intervals over facts, files of facts, and a folder to resume from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_multitrace as mt
from tiny_models import MODEL_NAMES, build, word_tokenizer
from tl_multitrace.causal_trace import Fact, TraceGrid, average, average_causal_trace, load_facts, subject_std
from tl_multitrace.causal_trace.classes import CLASSES, class_members
from tl_multitrace.demo.templates import FACT_TEMPLATES
from tl_multitrace.demo.words import FACTS
from trace_oracle import PlainTrace, window_cells

pytestmark = pytest.mark.filterwarnings("ignore:the total effect", "ignore:window")

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [
    ("The old doctor said that", "old doctor", " he"),
    ("The nurse said that", "nurse", " she"),
    ("When Mary and John went to", "Mary and John", None),
    ("The capital of France is", "France", " Paris"),
]


@cache
def model() -> Any:
    return build(MODEL_NAMES[0], tokenizer=word_tokenizer())


@cache
def demo() -> Any:
    return mt.load_model("demo", device="cpu")


def demo_facts(n: int) -> list[Fact]:
    made = [(FACT_TEMPLATES[f.relation][0].format(subject=f.subject), f.subject, f" {f.object}") for f in FACTS]
    return [Fact(*fact, id=str(i)) for i, fact in enumerate(made[:n])]


def traced(facts: Any = PROMPTS, **options: Any) -> TraceGrid:
    return average_causal_trace(model(), facts, **{"samples": 2, "known_only": False, **options})


# ---------------------------------------------------------------------------------------------------------- classes
@pytest.mark.parametrize(
    ("n", "subject", "answer_position", "expected"),
    [
        (9, (1, 5), None, [[1], [2, 3], [4], [5], [6, 7], [8]]),
        (6, (1, 3), None, [[1], [], [2], [3], [4], [5]]),
        (5, (2, 3), None, [[2], [], [2], [3], [], [4]]),  # one token is first and last
        (4, (1, 3), None, [[1], [], [2], [3], [], [3]]),  # the first subsequent is the last
        (4, (1, 4), None, [[1], [2], [3], [], [], [3]]),  # nothing follows the subject
        (9, (1, 3), 6, [[1], [], [2], [3], [4, 5, 7, 8], [6]]),  # a mask inside
        (9, (4, 6), 2, [[4], [], [5], [6], [7, 8], [2]]),  # a mask before the subject
    ],
)
def test_classes_of_tokens(n: int, subject: Any, answer_position: int | None, expected: list[list[int]]) -> None:
    assert class_members(n, subject, answer_position) == expected


def test_the_average_equals_a_plain_loop_over_facts() -> None:
    grid = traced(corruption="fixed")  # nothing is drawn: every fact is one sample
    assert grid.tokens == CLASSES and grid.dims == ("fact", "position", "layer") and grid.averaged
    for row, (text, subject, answer) in enumerate(PROMPTS):
        ids = [0, *model().tokenizer(text)["input_ids"]]
        start = 1 + text.split().index(subject.split()[0])
        span = (start, start + len(subject.split()))
        case = PlainTrace(model(), ids, span, [0], -model().embed(torch.tensor([ids])).detach())
        with torch.no_grad():
            top = int(model()(torch.tensor([ids]))[0, -1].argmax())
        case.answer = [top if answer is None else model().tokenizer(answer)["input_ids"][0]]
        cells = case.grid(window_cells(["resid"], len(ids), 3, 1))[0].reshape(len(ids), 3)
        members = class_members(len(ids), span)
        for place, positions in enumerate(members):
            found = grid.restored[row, place].double()
            if positions:
                assert torch.allclose(found, cells[positions].mean(0), atol=1e-5)
            else:
                assert bool(found.isnan().all())
        assert float(grid.corrupted[row]) == pytest.approx(case.corrupted(0), abs=1e-6)
        assert float(grid.clean[row]) == pytest.approx(case.run(ids, []), abs=1e-6)


def test_a_facts_value_is_its_own_trace_and_the_unit_is_that_of_all_subjects(tmp_path: Path) -> None:
    grid = traced(folder=tmp_path, restore="mlp", window=2)
    unit = subject_std(model(), [s for _, s, _ in PROMPTS])
    assert grid.provenance["intervention"]["std"] == pytest.approx(unit)
    assert "tokens of 4 subjects" in grid.provenance["corruption_text"]
    ids = model().tokenizer("old doctor nurse Mary and John France")["input_ids"]
    assert unit == pytest.approx(float(model().W_E[ids].detach().std()), rel=1e-5)
    one = TraceGrid.load(tmp_path / "facts" / "0.json")
    assert len(one.corrupted) == 2 and torch.allclose(one.restored.mean(0)[3], grid.restored[0, 2], atol=1e-6)
    given = traced(subjects=["nurse", "doctor"]).provenance
    assert "tokens of 2 subjects" in given["corruption_text"]


def test_a_corruption_of_ones_own_keeps_its_unit_unless_subjects_are_given() -> None:
    own = mt.NoiseCorruption(noise=2.0, std="embedding")
    assert "2 x " in (text := traced(corruption=own).provenance["corruption_text"]) and "whole embedding" in text
    assert "tokens of 2 subjects" in traced(corruption=own, subjects=["nurse", "he"]).provenance["corruption_text"]
    number = mt.NoiseCorruption(std=0.5)
    assert traced(corruption=number).provenance["intervention"]["std"] == 0.5


def test_every_fact_has_draws_of_its_own() -> None:
    same = [Fact(*PROMPTS[0], id=name) for name in "ab"]
    grid, other = traced(same), traced(same, seed=1)
    assert float((grid.corrupted[0] - grid.corrupted[1]).abs()) > 1e-9
    assert torch.equal(grid.corrupted, traced(same).corrupted) and not torch.equal(grid.corrupted, other.corrupted)


def test_units_and_groups_of_ones_own_are_averaged_too() -> None:
    heads = traced(restore="head", units=[0, 2], layers=[1])
    assert heads.restored.shape == (4, 6, 1, 2)
    own = traced(restore=mt.mlps(model(), positions=[2, 3]))
    assert own.dims == ("fact", "group") and own.restored.shape == (4, 6)


# --------------------------------------------------------------------------------------------------- which facts count
def test_facts_that_the_model_does_not_know_are_left_out_and_counted() -> None:
    facts = [("The old doctor said that", "old doctor", None), *PROMPTS[:2], ("The nurse said", "pilot", None)]
    grid = traced(facts, known_only=True)
    assert len(grid.corrupted) == 1
    assert grid.provenance["left_out"].keys() == {"1", "2", "3"}
    assert grid.notes[0].startswith("3 of 4 facts left out: 2 not predicted by the model; 1 unreadable (fact 3: ")
    assert "not in the prompt" in grid.provenance["left_out"]["3"]
    everything = traced(facts)
    assert len(everything.corrupted) == 3
    assert "2 of 3 answers are not what the model predicts (known_only=False)." in everything.notes
    with pytest.raises(ValueError, match="no fact is left of 2: 2 of 2 facts left out"):
        traced(PROMPTS[:2], known_only=True)


def test_replacements_come_from_the_other_facts() -> None:
    facts = [*PROMPTS[:2], ("The teacher said that", "teacher", " he"), PROMPTS[2]]
    grid = traced(facts, corruption="replace")
    assert len(grid.corrupted) == 2  # nurse and teacher; the others have no subject of their length to draw
    assert grid.provenance["left_out"].keys() == {"0", "3"}
    nurse = PlainTrace(model(), [], (0, 0), [model().tokenizer("she")["input_ids"][0]])
    ids = [0, *model().tokenizer("The teacher said that")["input_ids"]]
    assert float(grid.corrupted[0]) == pytest.approx(nurse.run(ids, []), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number from 1"),
        ({"restore": "soul"}, "cannot restore 'soul'"),
        ({"layers": [9]}, "layer 9 is outside the model"),
        ({"severed": "resid"}, "paths can be severed"),
        ({"noise": -1.0}, "noise must be"),
        ({"subjects": []}, "at least one subject"),
        ({"facts": []}, "there are no facts"),
        ({"facts": [("a", "b", "c", "d")]}, "fact 0 is"),
        ({"facts": [Fact("x y", "x", id="a"), Fact("x z", "x", id="a")]}, "two facts have the id 'a'"),
    ],
    ids=str,
)
def test_bad_input_leaves_no_folder(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        traced(**{"folder": tmp_path / "run", **options})
    assert not list(tmp_path.iterdir())


def test_doubts_are_said() -> None:
    with pytest.warns(UserWarning, match=r"does not exclude zero: the corruption does not reach"):
        quiet = traced(noise=0.0)
    assert quiet.total.mean == pytest.approx(0, abs=1e-6) and "does not exclude zero" in quiet.notes[-1]
    with pytest.warns(UserWarning, match="window 10 is larger than the model's 3 layers"):
        assert any("window 10" in note for note in traced(restore="mlp").notes)


# ----------------------------------------------------------------------------------------------------------- resuming
@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """How many facts were traced; an exception to raise instead of a given one."""
    state: dict[str, Any] = {"traced": 0, "stop_before": None}
    real = average.trace_question

    def counting(*args: Any, **options: Any) -> TraceGrid:
        if state["traced"] == state["stop_before"]:
            raise KeyboardInterrupt
        state["traced"] += 1
        return real(*args, **options)

    monkeypatch.setattr(average, "trace_question", counting)
    yield state


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, counted: dict[str, Any]) -> None:
    whole = traced()
    counted.update(traced=0, stop_before=2)
    with pytest.raises(KeyboardInterrupt):
        traced(folder=tmp_path)
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "facts").glob("*.json")}
    assert len(done) == 2
    counted.update(traced=0, stop_before=None)
    resumed = traced(folder=tmp_path)
    assert counted["traced"] == 2
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert torch.equal(resumed.restored.nan_to_num(-1), whole.restored.nan_to_num(-1))
    assert torch.equal(resumed.corrupted, whole.corrupted)
    counted.update(traced=0)
    again = traced(folder=tmp_path)
    assert counted["traced"] == 0 and repr(again).splitlines()[1:] == repr(resumed).splitlines()[1:]


def test_arrays_without_a_description_are_traced_again(tmp_path: Path, counted: dict[str, Any]) -> None:
    traced(folder=tmp_path)
    (tmp_path / "facts" / "1.json").unlink()  # killed between the two files
    counted.update(traced=0)
    traced(folder=tmp_path)
    assert counted["traced"] == 1


def test_a_broken_fact_is_named(tmp_path: Path) -> None:
    traced(folder=tmp_path)
    broken = tmp_path / "facts" / "1.json"
    broken.write_text(broken.read_text()[:90])
    with pytest.raises(ValueError, match=r"facts.1\.json is not complete JSON"):
        traced(folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"samples": 3}, "samples"),
        ({"noise": 2.0}, "noise"),
        ({"seed": 1}, "seed"),
        ({"restore": "mlp", "window": 1}, "restore"),
        ({"severed": "mlp"}, "severed"),
        ({"layers": [1]}, "layers"),
        ({"subjects": ["nurse"]}, "subjects"),
        ({"corruption": "uniform"}, "corruption"),
        ({"facts": PROMPTS[:3]}, "facts"),
    ],
    ids=str,
)
def test_another_runs_folder_is_not_taken(options: dict[str, Any], what: str, tmp_path: Path) -> None:
    traced(folder=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=f"a run with other .*{what}"):
        traced(folder=tmp_path, **options)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    other = build(MODEL_NAMES[0], tokenizer=word_tokenizer(), seed=1)
    with pytest.raises(ValueError, match="a run with other model"):
        average_causal_trace(other, PROMPTS, samples=2, known_only=False, folder=tmp_path)


def test_ids_that_no_file_could_have_stay_apart(tmp_path: Path) -> None:
    ids = ["a/b", "a_b", "a b", "../../evil", "\u00e9" * 300]
    facts = [Fact(*PROMPTS[i % 4], id=name) for i, name in enumerate(ids)]
    whole, kept = traced(facts), traced(facts, folder=tmp_path / "run")
    assert torch.equal(whole.corrupted, kept.corrupted)
    files = [p for p in tmp_path.rglob("*.json") if p.name != "settings.json"]
    assert len(files) == len(ids) and {p.parent for p in files} == {tmp_path / "run" / "facts"}
    assert torch.equal(traced(facts, folder=tmp_path / "run").corrupted, whole.corrupted)


KILLED = """
import sys, tl_multitrace as mt
sys.path.insert(0, "tests")
from test_average_trace import demo_facts
mt.average_causal_trace(mt.load_model("demo", device="cpu"), demo_facts(60), samples=8, folder=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_run_loses_at_most_the_fact_in_hand(tmp_path: Path, counted: dict[str, Any]) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    facts = tmp_path / "facts"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while len(list(facts.glob("*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    done = len(list(facts.glob("*.json")))
    assert process.returncode == -signal.SIGKILL and 3 <= done < 60
    assert len(list(facts.glob("*.safetensors"))) <= done + 1
    average_causal_trace(demo(), demo_facts(60), samples=8, folder=tmp_path)
    assert counted["traced"] == 60 - done


# ------------------------------------------------------------------------------------------------------ files of facts
KNOWN = {
    "known_id": 7,
    "subject": "Space Needle",
    "attribute": "Seattle",
    "template": "{} is in the city of",
    "prediction": " Seattle, which",
    "prompt": "Space Needle is in the city of",
    "relation_id": "P131",
}
REWRITE = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "{}, which {is} in",
        "relation_id": "P17",
        "target_new": {"str": "Spain", "id": "Q29"},
        "target_true": {"str": "Japan", "id": "Q17"},
        "subject": "Mount Fuji",
    },
    "paraphrase_prompts": ["x"],
}
SINGLE = {"base_prompt": "Fuji lies in", "prompt": "Redefine: Fuji ...", "subject": "Fuji", "target_true": " Japan"}


@pytest.mark.parametrize("lines", [False, True])
def test_published_layouts(lines: bool, tmp_path: Path) -> None:
    plain = {"prompt": "A is ", "subject": "A", "answer": "B", "id": "x"}
    path, records = tmp_path / "facts.json", [KNOWN, REWRITE, SINGLE, plain]
    path.write_text("\n\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=1))
    assert load_facts(path) == [
        Fact("Space Needle is in the city of", "Space Needle", " Seattle", "7"),
        Fact("Mount Fuji, which {is} in", "Mount Fuji", " Japan", "3"),
        Fact("Fuji lies in", "Fuji", " Japan", "2"),
        Fact("A is ", "A", "B", "x"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "fact 0 is 1"),
        ('[{"prompt": "a"}]', r"fact 0 has the keys \['prompt'\]"),
        ('{"prompt": ', "facts.json, line 1: expected one JSON object, found no JSON"),
        ("[]", "there are no facts"),
        ('[{"requested_rewrite": {"prompt": "{} is"}}]', "requested_rewrite needs prompt, subject and target_true.str"),
        ('[{"prompt": "", "subject": "a"}]', "needs a prompt and a subject"),
        ("\xff\xfe", "facts.json, line 1: expected UTF-8 text, found the byte 0xff"),
    ],
)
def test_files_that_hold_no_facts(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        load_facts(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_facts(tmp_path / "none.json")


def test_the_published_files_can_be_read(shared_data: Path) -> None:
    known = load_facts(shared_data / "known_1000" / "known_1000.json")
    assert len(known) == 1209 and known[0] == Fact(
        "Vinson Massif is located in the continent of", "Vinson Massif", " Antarctica", "0"
    )
    counterfact = load_facts(shared_data / "counterfact" / "counterfact_compmech_gpt2_10k.json")
    assert len(counterfact) == 10_000 and counterfact[0].answer == " Toyota"
    assert all(f.subject in f.prompt for f in known)


# ------------------------------------------------------------------------------------------------------ the demo model
def test_the_demo_model_has_an_early_and_a_late_site() -> None:
    grid = average_causal_trace(demo(), demo_facts(16), samples=3, seed=0)
    assert grid.total.low > 0.5 and not grid.notes
    low, high = grid.interval()
    subject, last = CLASSES.index("last subject token"), CLASSES.index("last token")
    others = [CLASSES.index(c) for c in ("first subject token", "first subsequent token", "further tokens")]
    assert float(low[subject, 0]) > 0.5 and float(low[last, 2]) > 0.5  # early site, late site
    assert float(high[subject, 3]) < 0.05 and float(high[last, 0]) < 0.1  # and neither at the other end
    assert float(high[others].max()) < 0.1
