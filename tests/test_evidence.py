"""Evidence is counted once, and nothing is claimed without it: copies, single prompts, ratios to zero, one verdict."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Example, oriented, pairs_of, random_examples
from simulated_tasks import circuit_of

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, build
from tl_multitrace.cli.show import closing_lines
from tl_multitrace.copies import copies_of, distinct
from tl_multitrace.evaluation import Verdict, beyond_chance, random_sets
from tl_multitrace.records.stats import Estimate, Score, estimates, once, redraws, sign_flip_p, undefined
from tl_multitrace.render import Run
from tl_multitrace.render.report import report_html
from tl_multitrace.runs.job import Log

CHOSEN = [1, 6, 9]
REPEATS = {
    "all four times": [0, 1, 2, 3, 4, 5] * 4,
    "one many times": [0, 1, 2, 3, 4, 5] + [2] * 9,
    "in another order": [5, 3, 3, 0, 1, 5, 2, 4, 0, 5],
}
"""Rows of a set of six prompts, each of which holds all of them."""


@cache
def model() -> Any:
    return build(f"{'bridge' if HAS_BRIDGE else 'hooked'}-gpt2", torch.float64)


@cache
def examples(n: int = 6) -> list[Example]:
    return oriented(random_examples(n, seed=2), model(), mt.heads(model()))


@cache
def pairs() -> mt.PromptPairs:
    return pairs_of(examples(), labels=["a", "b", "a", "b", "a", "a"])


@cache
def cancelling() -> mt.PromptPairs:
    """Every prompt twice, with its answers exchanged the second time: effects cancel exactly."""
    turned = [replace(e, answers=e.wrong, wrong=e.answers) for e in examples()]
    return pairs_of([*examples(), *turned])


def circuit(members: list[int] | None = None, direction: str = "maximize") -> mt.Circuit:
    return circuit_of(mt.Tracer(model(), pairs(), mt.heads(model())), CHOSEN if members is None else members, direction)


# ------------------------------------------------------------------------------------------------ copies of a prompt
@pytest.mark.parametrize("rows", REPEATS.values(), ids=REPEATS.keys())
def test_copies_stay_on_one_side_of_a_split(rows: list[int]) -> None:
    doubled = pairs()[rows]
    for seed in range(6):
        first, rest = doubled.split(0.5, seed=seed)
        sides = [{tuple(t) for t in part.base_tokens.tolist()} for part in (first, rest)]
        assert not sides[0] & sides[1]
        assert len(first) + len(rest) == len(rows) and len(sides[0]) + len(sides[1]) == 6
    assert distinct(doubled).tolist() == [rows.index(i) for i in rows]


def test_a_split_of_distinct_pairs_is_what_it_was() -> None:
    """The numbers that 0.1 drew: no held-out set of anybody changes."""
    first, rest = pairs().split(0.5, seed=3)
    generator = torch.Generator().manual_seed(3)
    chosen: list[int] = []
    for label in ("a", "b"):
        members = torch.tensor([i for i, own in enumerate(pairs().labels) if own == label])
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen += shuffled[: round(0.5 * len(members))].tolist()
    assert torch.equal(first.base_tokens, pairs()[sorted(chosen)].base_tokens)
    assert len(first) + len(rest) == 6


def test_the_same_prompts_with_other_answers_are_pairs_of_their_own() -> None:
    """As two continuations of one beginning are: 0.1's split of them is nobody's to change."""
    first, rest = cancelling().split(0.5, seed=0)
    assert len(set(distinct(cancelling()).tolist())) == 12
    assert len(first) == len(rest) == 6


VERBS: dict[str, Callable[[mt.PromptPairs], Any]] = {
    "evaluate": lambda p: [replace(a, effects=(), full_effects=(), kept_effects=()) for a in _report(p).ablations],
    "significance": lambda p: _significance(p),
    "cpr_cmd": lambda p: mt.cpr_cmd(range(12), tracer=mt.Tracer(model(), p, mt.heads(model()))).curves,
    "compare": lambda p: mt.compare(circuit(), circuit([2, 6]), pairs_a=p, pairs_b=p).transfers,
    "side_effects": lambda p: mt.side_effects(circuit(), {"own": (p, mt.LogitDiff())}, side="base").effects,
    "held out": lambda p: mt.select(mt.Tracer(model(), pairs(), mt.heads(model())), 2, held_out=p).choice(2).held_out,
}


def _report(p: mt.PromptPairs) -> mt.CircuitReport:
    return mt.evaluate(circuit(), p, draws=19)


def _significance(p: mt.PromptPairs) -> Any:
    found = mt.significance(circuit(), p, draws=19, replacements=5)
    return found.effect, found.p_zero, found.p_chance, found.tests, found.n


def _rounded(value: Any) -> Any:
    """A result as text, its numbers to seven digits: other batches round elsewhere."""
    return re.sub(
        r"-?\d+\.\d+(e-?\d+)?", lambda m: f"{float(m[0]):.7g}" if abs(float(m[0])) > 1e-9 else "0", str(value)
    )


@pytest.mark.parametrize("verb", VERBS)
def test_copies_change_no_interval_and_no_p_value(verb: str) -> None:
    wanted = _rounded(VERBS[verb](pairs()))
    for rows in REPEATS.values():
        assert _rounded(VERBS[verb](pairs()[sorted(rows)])) == wanted


def test_copies_are_told() -> None:
    notes = _report(pairs()[[0, 1, 2, 3, 4, 5, 5, 5]]).notes
    assert "2 of 8 prompts are copies of others: copies count once" in notes
    assert not any("copies" in note for note in _report(pairs()).notes)


def test_an_ablation_does_not_run_the_source() -> None:
    """One base prompt with three sources is three observations where sources are patched, and one where zeros are."""
    base = examples()[0]
    same = pairs_of([replace(base, source=e.source[: len(base.source)]) for e in (examples()[0], examples()[4])])
    groups = mt.heads(model())
    assert len(set(copies_of(mt.Tracer(model(), same, groups)))) == 2
    for ablation in (mt.ZeroAblation(), mt.MeanAblation(), mt.ResampleAblation(reference=pairs())):
        assert len(set(copies_of(mt.Tracer(model(), same, groups, intervention=ablation)))) == 1


def test_four_rows_four_times_are_four_rows() -> None:
    values = np.array([0.3, 1.0, 0.4, 2.0])
    for copies in (None, [0, 1, 2, 3]):
        assert sign_flip_p(values, copies=copies) == 1 / 16
    assert sign_flip_p(np.tile(values, 4), copies=[0, 1, 2, 3] * 4) == 1 / 16
    assert sign_flip_p(np.tile(values, 4)) < 1e-3  # what it was
    assert Score.of(np.tile(values, 4), copies=[0, 1, 2, 3] * 4) == Score.of(values)
    unequal = Score.of([1.0, 1.0, 1.0, 5.0], copies=[0, 0, 0, 1])
    assert (unequal.mean, unequal.n) == (3.0, 2)
    assert Score.of([1.0, 1.0, 1.0, 5.0], copies=[0, 0, 0, 1], weighted=True).mean == 2.0


# -------------------------------------------------------------------------------------------------- without evidence
def test_one_prompt_has_no_interval_and_no_claim() -> None:
    for rows in ([0], [3, 3, 3], [5] * 9):
        one = pairs()[rows]
        report = mt.evaluate(circuit(), one, draws=19)
        assert (report.effect.low, report.effect.high, report.effect.n) == (None, None, 1)
        assert report.verdict.beyond is not True and "no interval" in str(report.effect)
        assert report.ablations[0].p_zero == 1.0
        assert not any("leaves 0 out" in note for note in report.notes)
        side = mt.side_effects(circuit(), {"own": (one, mt.LogitDiff())}, side="base")
        assert not side.effects[0].clear and "fewer than 5 distinct prompts" in repr(side)
        assert mt.compare(circuit(), circuit([2]), pairs_a=one).transfers[0].own.low is None
        curve = mt.cpr_cmd(range(12), tracer=mt.Tracer(model(), one, mt.heads(model()))).curves[0]
        assert curve.cpr is not None and curve.cpr.low is None


def test_a_subgroup_of_one_prompt_is_no_evidence() -> None:
    singles = ((i, circuit([i]).tracer.effect([float(j == i) for j in range(12)]).numpy()) for i in range(12))
    member, effects = next((i, e) for i, e in singles if e.min() < 0 < e.max())
    odd = int(np.argmin(effects * np.sign(effects.mean())))
    labels = ["odd" if i == odd else "rest" for i in range(6)]
    report = mt.evaluate(circuit([member]), pairs_of(examples(), labels=labels), draws=0)
    note = next(n for n in report.notes if "subgroup 'odd'" in n)
    assert "(no interval)" in note and "leaves 0 out" not in note


@pytest.mark.parametrize("n", [2, 3, 4])
def test_below_five_it_is_said(n: int) -> None:
    report = mt.evaluate(circuit(), pairs()[:n], draws=19)
    assert f"from {n} only" in str(report.effect)
    assert any(f"only {n} distinct prompts" in note for note in report.notes)
    assert report.verdict.beyond is not True


def test_a_trace_of_one_sample_has_no_interval() -> None:
    demo = mt.load_model("demo")
    fact = {"subject": "Falcon Tower", "answer": " Rome"}
    grid = mt.causal_trace(demo, "The Falcon Tower is in the city of", restore="mlp", samples=1, **fact)
    low, high = grid.interval()
    assert bool(low.isnan().all() and high.isnan().all())
    assert grid.total.low is None and "(1 sample)" in repr(grid) and "nan" not in repr(grid)
    grid.plot()
    assert (
        not mt.causal_trace(demo, "The Falcon Tower is in the city of", samples=3, **fact).interval()[0].isnan().any()
    )


def test_a_fact_counts_once_and_one_fact_has_no_interval(tmp_path: Path) -> None:
    facts = [("The Falcon Tower is in the city of", "Falcon Tower", " Rome")] * 2
    demo = mt.load_model("demo")
    one, two = (mt.average_causal_trace(demo, facts[:n], samples=2, layers=[0, 3], known_only=False) for n in (1, 2))
    assert any("1 of 2 facts are copies of others: intervals count them once" in note for note in two.notes)
    for grid in (one, two):
        assert grid.total.low is None and "(no interval)" in repr(grid)
        assert bool(grid.interval()[0].isnan().all())
    assert "(1 fact)" in repr(one)
    again = mt.TraceGrid.load(two.save(tmp_path / "trace.json"))
    assert again.copies == two.copies == (0, 0) and again.total == two.total
    three = [*facts, ("The Amber Bridge is in the city of", "Amber Bridge", " Paris")]
    apart, doubled = (
        mt.average_causal_trace(demo, f, samples=1, noise=0.0, known_only=False) for f in (three[1:], three)
    )
    assert doubled.copies == (0, 0, 2) and apart.total.n == doubled.total.n == 2


# ----------------------------------------------------------------------------------------------------- ratios to zero
def test_ratios_to_effects_that_cancel_are_undefined_and_say_so(tmp_path: Path) -> None:
    report = mt.evaluate(circuit(), cancelling(), draws=0)
    scores = report.ablations[0]
    assert max(map(abs, scores.full_effects)) > 0.1 and abs(report.full_effect.mean) < 1e-9
    assert report.faithfulness is report.completeness is report.share is None
    assert set(report.minimality.values()) == {None}
    assert "may be 0" in scores.undefined and "changes nothing" not in repr(report)
    assert repr(report).count("undefined: the effect of patching everything") >= 2
    scored = mt.cpr_cmd(range(12), tracer=mt.Tracer(model(), cancelling(), mt.heads(model())))
    assert scored.cpr is scored.cmd is None and "undefined" in repr(scored)
    assert scored == mt.MibScores.load(scored.save(tmp_path / "mib.json"))
    scored.plot()


def test_a_whole_mask_that_may_do_nothing_has_no_share(tmp_path: Path) -> None:
    path = mt.select(mt.Tracer(model(), cancelling(), mt.heads(model())), [2])
    assert path[2].share is None and path.full_score is not None and not path.full_score.clear
    assert "of all       undefined" in re.sub(" +", " ", repr(path[2])).replace("of all ", "of all       ")
    assert mt.SubsetPath.load(path.save(tmp_path / "path.json"))[2].no_share == path[2].no_share
    assert mt.Circuit.load(path[2].save(tmp_path / "circuit.json")).share is None


def test_a_value_is_within_its_own_interval() -> None:
    """Skewed ratios, whose percentile intervals can miss what all prompts give."""
    rng = np.random.default_rng(0)
    known = 0
    for trial in range(200):
        n = int(rng.integers(2, 12))
        rows = np.stack([rng.standard_t(2, n) ** 3, 1.0 + rng.exponential(3, n) * rng.choice([-0.2, 1], n)])
        for found in estimates(lambda m: np.stack([m[0] / m[1], np.abs(1 - m[0] / m[1])]), rows, over=1, seed=trial):
            if found is not None and found.low is not None:
                known += 1
                assert found.low <= found.value <= found.high
        full = Score.of(rows[1], seed=trial)
        assert full.low <= full.mean <= full.high
        assert bool(undefined(full)) == (full.low <= 0 <= full.high)
    assert known > 100


# ------------------------------------------------------------------------------------------ one chance, one verdict
def test_the_mean_of_random_sets_is_within_its_own_interval() -> None:
    """One set in two hundred that holds the mechanism draws the mean beyond all others."""
    chance = mt.Score.of_sets([*np.linspace(-0.1, 0.1, 199), 1700.0])
    assert chance.low is not None and chance.high is not None and chance.low <= chance.mean <= chance.high
    assert chance.mean == pytest.approx(8.5) and chance.median < 0.1
    # beyond nearly all sets, and not beyond their mean: no claim
    assert beyond_chance(mt.Score.of([4.0, 5.0, 5.0, 6.0, 7.0]), chance).beyond is False
    assert beyond_chance(mt.Score.of([14.0, 15.0, 15.0, 16.0, 17.0]), chance).beyond is True


def test_random_sets_are_nested() -> None:
    groups = mt.heads(model()) + mt.neurons(model(), [0])[:20]
    small, large = (1, 2, 15), (1, 2, 3, 6, 15, 16, 17)
    for seed in range(3):
        few, many = (random_sets(groups, members, 12, seed).bool() for members in (small, large))
        assert bool((few <= many).all())
        assert few.sum(1).tolist() == [3] * 12 and many[:, :12].sum(1).tolist() == [4] * 12
        assert torch.equal(random_sets(groups, small, 30, seed)[:12].bool(), few)
        assert len({tuple(row) for row in few.tolist()}) > 6


def score(*values: float, n: int = 8) -> Score:
    low, mean, high = map(float, values)
    return Score(mean, low, high, mean, n)


SETS = Score(1.0, 0.2, 2.0, 1.0, 20)


@pytest.mark.parametrize(
    ("effect", "chance", "options", "beyond", "words"),
    [
        (score(2.1, 3, 4), SETS, {}, True, "beyond chance: its interval is wholly above what 95 % of 20 random sets"),
        (score(1.9, 3, 4), SETS, {}, False, "not clearly beyond chance: its interval is not wholly above"),
        (score(-0.1, 3, 4), SETS, {}, False, "not clearly beyond chance: its interval holds 0"),
        (score(-3, 0.9, 4), SETS, {}, False, "no more than chance"),
        (score(-4, -3, 0.1), SETS, {"direction": "minimize"}, False, "not clearly beyond chance: its interval holds 0"),
        (score(-4, -3, -2), SETS, {"direction": "minimize"}, True, "beyond chance: its interval is wholly below"),
        (score(2.1, 3, 4, n=4), SETS, {}, None, "no claim about chance from 4 distinct prompts"),
        (Score(3.0, None, None, 3.0, 1), SETS, {}, None, "no claim about chance from 1 distinct prompt (of 5 needed)"),
        (score(2.1, 3, 4), replace(SETS, n=5), {}, None, "no claim about chance from 5 random sets (of 19 needed)"),
        (
            score(2.1, 3, 4),
            SETS,
            {"full": score(-1, 0.1, 1)},
            None,
            "the effect of patching everything, 0.1 [-1, 1], may",
        ),
        (None, SETS, {}, None, "not compared with chance"),
        (score(2.1, 3, 4), None, {}, None, "not compared with chance"),
    ],
)
def test_the_verdict(effect: Any, chance: Any, options: dict[str, Any], beyond: bool | None, words: str) -> None:
    verdict = beyond_chance(effect, chance, **options)
    assert verdict.beyond is beyond and words in verdict.words
    assert str(verdict) == verdict.words and isinstance(verdict, Verdict)


@pytest.mark.parametrize("solver", [mt.Greedy(), mt.RandomSubset(), mt.AttributionPatching()])
def test_terminal_report_and_notes_say_the_same(solver: Any) -> None:
    demo = mt.load_model("demo")
    task = mt.task("ioi", demo, n=24)
    train, held_out = task.pairs.split(0.5, seed=0)
    path = mt.select(mt.Tracer(demo, train, mt.heads(demo), task.metric), [12], solver, held_out=held_out)
    judged = mt.evaluate(path[12], held_out, draws=39)
    circuit = path[12].with_scores(chance=judged.ablations[0].chance)
    run = Run(path, circuit, tracer=path.tracer, held_out=held_out, evaluation=judged).measured(examples=1)
    words = judged.verdict.words
    printed = "\n".join(closing_lines(run, Log(), Path("out")))
    page = re.sub("<[^>]+>", "", report_html(run))
    assert words == run.verdict.words and f"Verdict     {words}" in printed
    assert page.count(words) >= 2  # the lead sentence and the evaluation
    assert judged.verdict.beyond or f"interchange: {words}" in judged.notes
    assert not [line for line in printed.splitlines() if "beyond chance" in line and words not in line]
    assert run.circuit.chance is not None and page.count(f"{run.circuit.chance.n} random sets of the same size") >= 1


# -------------------------------------------------------------------------------------------- two numbers of one thing
def test_signs_that_disagree_are_explained() -> None:
    groups, tracer = mt.heads(model()), circuit().tracer
    found = None
    for members in ([0, 1, 2], [3, 6, 9], [1, 6, 9], [2, 5, 8, 10], [0, 4, 7, 11]):
        path = mt.select(tracer, [len(members)], mt.Greedy(), forced=members)
        report = mt.evaluate(path[len(members)], pairs(), draws=0)
        kept = dict(zip(path[len(members)].labels, path[len(members)].marginals, strict=True))
        full = report.full_effect.mean
        odd = [k for k, m in report.minimality.items() if m is not None and m.value * kept[k] * full < 0]
        notes = [n for n in report.notes if "opposite signs, and both are right" in n]
        assert bool(notes) == bool(odd)
        if odd:
            found = notes[0]
            assert found.startswith(", ".join(odd[:5]))
    assert found is not None and len(groups) == 12


@pytest.mark.parametrize("members", [[1, 6, 9], [2], [0, 3, 4, 7]])
def test_show_counts_the_same_with_and_without_prompts(members: list[int]) -> None:
    shown = circuit(members)
    own, given = shown.show(examples=1).title, shown.with_scores(tracer=None).show(model(), pairs(), examples=1).title
    assert own == given and own.startswith(f"Circuit of {len(members)} of 12 components")


# ----------------------------------------------------------------------------------------------------- one place for it
def test_prompts_are_redrawn_in_one_file_alone() -> None:
    package = Path(mt.__file__).parent
    drawing = re.compile(r"stats\.bootstrap|permutation_test\(|generator\.choice|\.integers\(0|\.permutation\(")
    rooms = ("evaluation", "objective", "render", "causal_trace", "flow", "interop", "records", "runs", "cli")
    files = [f for room in rooms for f in (package / room).rglob("*.py")] + list(package.glob("*.py"))
    assert len(files) > 90
    drawn = {f.relative_to(package).as_posix() for f in files if drawing.search(f.read_text())}
    assert drawn == {"records/stats.py"}


def test_numbers_of_redrawn_prompts() -> None:
    assert redraws(5, 0, 3).tolist() == np.random.default_rng(0).integers(0, 5, (3, 5)).tolist()
    assert once([[1.0, 2.0, 3.0]], [7, 9, 7]).tolist() == [[2.0, 2.0]]
    assert str(Estimate(0.5, None, None)) == "0.5 (no interval)"
