"""Published experiments run again: what is written, what is compared with what, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHARED_DATA
from typer.testing import CliRunner

import tl_multitrace as mt
from tiny_models import HAS_BRIDGE, bridge_from_hf, forked_rng, hooked_from_hf
from tl_multitrace.cli import app as cli
from tl_multitrace.demo import load_demo_model
from tl_multitrace.reproduce import EXPERIMENTS, Published, Reproduction, Row
from tl_multitrace.reproduce.binding import VariableBinding, Wish
from tl_multitrace.reproduce.mediation import read_effects
from tl_multitrace.solvers import SolverComparison

FILES = {"reproduction.json", "table.csv", "table.md", "curve.png"}
EFFECTS = "winobias_published_effects/attention_intervention_distilgpt2_filtered_dev.json"
DATA = {
    "winobias": "winobias/pro_stereotyped_type1.txt.dev",
    "winogender": "winogender/all_sentences.tsv",
    "counterfact": "counterfact/counterfact_compmech_gpt2_10k.json",
    "professions": "professions",
}

needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the public data sets are not beside the repository")
demo = cache(load_demo_model)


@cache
def gpt2(layers: int = 6, heads: int = 12, width: int = 48) -> Any:
    """A random model of distilgpt2's layers and heads, with GPT-2's tokenizer."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(SHARED_DATA / "gpt2_tokenizer"))
    shape = {"n_layer": layers, "n_head": heads, "n_embd": width, "n_positions": 128}
    config = transformers.GPT2Config(**shape, attn_implementation="eager")
    with forked_rng(0):
        hf = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return bridge_from_hf(hf.eval(), tokenizer) if HAS_BRIDGE else hooked_from_hf(hf.eval(), "gpt2", tokenizer)


@contextmanager
def without_bos(model: Any) -> Iterator[None]:
    """As the experiments ran GPT-2."""
    model.cfg.default_prepend_bos = False
    try:
        yield
    finally:
        model.cfg.default_prepend_bos = True


# ------------------------------------------------------------------------------------------------- what is written
@pytest.fixture(scope="module")
def ioi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reproduction]:
    out = tmp_path_factory.mktemp("reproduce") / "ioi"
    return out, mt.reproduce("ioi", out, model=demo(), quick=True)


def test_record_tables_and_curve_are_written(ioi: tuple[Path, Reproduction]) -> None:
    out, found = ioi
    assert {p.name for p in out.iterdir()} == FILES | {"path.json"}
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert Reproduction.load(out / "reproduction.json") == found
    assert json.loads((out / "reproduction.json").read_text())["format"] == "tl_multitrace.reproduction"
    table = pd.read_csv(out / "table.csv")
    assert table["quantity"].tolist() == [row.quantity for row in found.rows]
    assert (table["published"].notna() == table["source"].notna()).all()
    assert mt.SubsetPath.load(out / "path.json").sizes == [1, 2, 4]


def test_a_published_number_stands_with_model_and_source_or_not_at_all(ioi: tuple[Path, Reproduction]) -> None:
    text = (ioi[0] / "table.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| F(model): logit_diff"))
    assert "| 3.56 (gpt2) | Wang et al., ICLR 2023, arXiv:2211.00593 |" in row
    row = next(line for line in text.splitlines() if line.startswith("| kept by the best 4"))
    assert "| not published as a number |" in row
    assert ioi[1]["indirect object preferred"].published == Published(0.993, "gpt2", ioi[1].source)


def test_what_a_record_knows(ioi: tuple[Path, Reproduction]) -> None:
    found = ioi[1]
    assert found.cost["equivalents"] > 0 and found.cost["seconds"] > 0
    assert found.settings["quick"] is True and found.settings["task"] == "ioi" and found.settings["seed"] == 0
    assert found.provenance["versions"]["tl_multitrace"] == mt.__version__
    assert found.provenance["model"]["name"] == "tl-multitrace-demo"
    assert any("a quick run" in note for note in found.notes)
    assert "published 3.56 on gpt2" in repr(found) and "<table" in found._repr_html_()
    with pytest.raises(KeyError, match="no quantity 'x'; the table has F"):
        found["x"]


def test_the_kept_share_is_that_of_the_hooks(ioi: tuple[Path, Reproduction]) -> None:
    """Everything but the chosen heads at its mean, by the tracer's arithmetic and by switching it off."""
    out, found = ioi
    model, path = demo(), mt.SubsetPath.load(out / "path.json")
    pairs = mt.task("ioi", model, 24).pairs.split(0.7)[0].swap()
    rest = [i for i in range(32) if i not in path.choice(2).members]
    others = mt.Circuit(path.groups[rest], tuple(rest), 32, 0.0)

    def metric() -> float:
        return float(mt.Tracer(model, pairs, mt.heads(model), mt.LogitDiff()).base_metric.mean())

    whole = metric()
    with others.ablate(model, reference=pairs):
        kept = metric() / whole
    assert found["kept by the best 2 found"].ours == pytest.approx(kept, abs=1e-4)
    assert found["F(model): logit_diff"].ours == pytest.approx(whole, abs=1e-4)


# -------------------------------------------------------------------------------------------- the experiments
def test_known_facts_are_averages_over_traces(tmp_path: Path) -> None:
    found = mt.reproduce("known-facts", tmp_path / "facts", model=demo(), quick=True, n=6)
    grid = mt.TraceGrid.load(tmp_path / "facts" / "trace-resid.json")
    assert found["average total effect"].ours == pytest.approx(grid.total.mean)
    assert found["average total effect"].published == Published(0.186, "gpt2-xl", found.source)
    peak, layer = found["single state: peak at the last subject token"], found["single state: layer of the peak"]
    assert peak.ours == pytest.approx(float(grid.effect[2].max()))
    assert layer.ours == int(grid.effect[2].argmax()) and layer.published is not None and layer.published.value == 15
    assert found["window of MLP layers: peak at the last subject token"].published is not None
    assert any("window of 1 instead of 10" in note for note in found.notes)


@needs_data
def test_a_model_that_knows_no_fact_is_said() -> None:
    with pytest.raises(ValueError, match=r"knows none of the facts .*Try another --model"):
        mt.reproduce("known-facts", model=gpt2(), n=3, data=str(SHARED_DATA / "known_1000" / "known_1000.json"))


@needs_data
@pytest.mark.parametrize("name", DATA)
def test_each_data_set_of_the_paper(name: str, tmp_path: Path) -> None:
    model = gpt2()
    found = mt.reproduce(name, tmp_path, model=model, data=str(SHARED_DATA / DATA[name]), quick=True, n=12)
    comparison = SolverComparison.load(tmp_path / "comparison.json")
    ours = [row for row in found.rows if row.ours is not None]
    table = comparison.to_dataframe()
    assert [row.ours for row in ours] == pytest.approx(table["effect"].tolist())
    assert [row.held_out for row in ours] == pytest.approx(table["held_out"].tolist())
    n = len(comparison["PGB-CT"].groups)
    assert n == (72 if name.startswith("wino") else 6 * 48)
    assert comparison["PGB-CT"].sizes == [round(0.1 * n), round(0.2 * n)]
    assert {"line", "dashed"} <= {curve.kind for curve in found.curves}
    theirs = [row for row in found.rows if row.published is not None]
    assert bool(theirs) == name.startswith("wino")
    assert all(row.ours is None and "papernotes.org" in row.published.source for row in theirs if row.published)
    assert model.cfg.default_prepend_bos  # which the experiment changed for its own duration


@needs_data
def test_published_numbers_stand_beside_the_same_model_and_budget() -> None:
    from tl_multitrace.reproduce import multi_component

    values = multi_component.WINOBIAS["gpt2-medium"]["PGB-CT"]
    at = [multi_component.published_value(values, size, 384, "gpt2-medium") for size in (38, 77, 115, 154, 39)]
    assert [None if p is None else p.value for p in at] == [0.381, 0.394, 0.401, 0.404, None]


@needs_data
def test_mediation_follows_the_published_prompts(tmp_path: Path) -> None:
    model, place = gpt2(), SHARED_DATA / EFFECTS
    found = mt.reproduce("winobias-cma", tmp_path, model=model, published=str(place), n=6)
    theirs = read_effects(place)
    assert (theirs.model, theirs.heads.shape) == ("distilgpt2", (61, 6, 12))
    total = found["total effect"]
    assert total.published is not None
    assert total.published.value == pytest.approx(float(np.mean(theirs.total[:6])))
    by_hand = [odds_change(model, prompts) for prompts in theirs.prompts[:6]]
    assert (total.n, total.ours) == (6, pytest.approx(float(np.mean(by_hand)), abs=1e-5))
    top = [row for row in found.rows if row.quantity.startswith("L")]
    assert len(top) == 10 and all(row.published is not None for row in top)
    published = [row.published.value for row in top if row.published is not None]
    assert published == sorted(published, reverse=True)
    assert -1 <= (found["rank correlation with the published heads"].ours or 0) <= 1


def odds_change(model: Any, prompts: tuple[str, str, str, str]) -> float:
    """The total effect by plain forwards: no BOS, mean log p over the continuation's tokens."""
    she, he, female, male = prompts

    def score(prompt: str, continuation: str) -> float:
        ids = [model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, f" {continuation}")]
        with torch.no_grad():
            logp = model(torch.tensor([ids[0] + ids[1]]))[0].log_softmax(-1)
        steps = logp[len(ids[0]) - 1 : -1]
        return float(steps.gather(-1, torch.tensor(ids[1])[:, None]).mean())

    odds = [score(p, male) - score(p, female) for p in (she, he)]
    return float(np.expm1(odds[1] - odds[0]))


@needs_data
def test_another_shape_of_model_is_not_compared_head_by_head() -> None:
    found = mt.reproduce("winobias-cma", model=gpt2(2, 4, 16), published=str(SHARED_DATA / EFFECTS), n=4)
    assert all(row.published is None for row in found.rows if row.quantity.startswith("L"))
    assert any("with 6 layers of 12" in note for note in found.notes)
    assert found["total effect"].published is not None


@needs_data
def test_the_published_heads_are_measured_in_a_model_of_gpt2s_shape() -> None:
    model = gpt2(12, 12, 24)
    found = mt.reproduce("ioi", model=model, n=6, budget="2", held_out=0.0, solvers=("attribution",))
    kept, whole = found["kept by the published circuit"], found["F(model): logit_diff"]
    assert kept.published is not None and kept.published.value == 0.87
    assert kept.ours == pytest.approx((found["F(published circuit)"].ours or 0) / (whole.ours or 1), rel=1e-4)
    assert kept.held_out is None
    share = found["published components among the best 2"].ours
    assert share is not None and 0 <= share <= 2 / 26


@needs_data
def test_greater_than_keeps_years_by_heads_and_layers() -> None:
    model = gpt2(12, 12, 24)
    found = mt.reproduce("greater-than", model=model, n=4, budget="3", held_out=0.5, solvers=("attribution",))
    assert found["F(model): prob_diff"].published == Published(0.817, "gpt2", found.source)
    kept = found["kept by the published circuit"]
    assert kept.published is not None and kept.published.value == 0.895
    without = found["F(without the published circuit)"]
    assert without.published is not None and without.published.value == -0.366
    experiment: Any = EXPERIMENTS["greater-than"]
    members = experiment.members
    assert len(members) == 17 and set(members) <= set((mt.heads(model) + mt.mlps(model)).labels)
    assert found["kept by the best 3 found"].held_out is not None


@needs_data
def test_variable_binding_judges_each_set_by_both_wishes(tmp_path: Path) -> None:
    model = gpt2(2, 4, 16)
    found = mt.reproduce("variable_binding", tmp_path, model=model, n=12, quick=True, held_out=0.25)
    with without_bos(model):
        made = mt.task("variable_binding", model, 12)
    pairs = made.pairs.split(0.75)[0]
    follows = mt.Tracer(model, pairs, mt.heads(model), mt.Accuracy()).base_metric
    row = found["value_dependence, nothing patched"]
    assert (row.ours, row.n) == (pytest.approx(float(follows.mean())), len(pairs))
    other = made.desiderata["operation_invariance"].pairs.split(0.75)[0]
    follows = mt.Tracer(model, other, mt.heads(model), mt.Accuracy()).base_metric
    assert found["operation_invariance, nothing patched"].ours == pytest.approx(1 - float(follows.mean()))
    assert [c.kind for c in found.curves] == ["line", "dashed"] * 2
    assert all(row.published is None and row.held_out is not None for row in found.rows)


@needs_data
def test_the_size_penalty_of_variable_binding_shrinks_the_set() -> None:
    model = gpt2(2, 4, 16)
    made = mt.task("variable_binding", model, 12)
    groups = (mt.heads(model) + mt.mlps(model)).at("last")
    tracers = [
        mt.Tracer(model, one.pairs, groups, one.metric) for one in (made, made.desiderata["operation_invariance"])
    ]
    wishes = [Wish("one", 1, tracers[0], tracers[0], None), Wish("other", -1, tracers[1], tracers[1], None)]
    sizes = [int((VariableBinding().optimise(wishes, len(groups), l1, 25) >= 0.5).sum()) for l1 in (0.0, 0.002, 5.0)]
    assert sizes[0] >= sizes[1] >= sizes[2] == 0 and sizes[0] > 0


# ---------------------------------------------------------------------------------------------------- the table itself
def test_a_row_without_ours_is_written(tmp_path: Path) -> None:
    row = Row("theirs", "nats", None, published=Published(1.5, "gpt2-xl", "a paper"))
    one = Reproduction("x", "X", "a paper", "demo", (row,), (), ("n", "effect"))
    one.write(tmp_path)
    assert "| theirs | nats | - |  |  |  | 1.5 (gpt2-xl) | a paper |" in (tmp_path / "table.md").read_text()
    with pytest.raises(FileExistsError, match=r"reproduction\.json exists"):
        one.write(tmp_path)
    one.write(tmp_path, overwrite=True)


# ---------------------------------------------------------------------------------------------------- command line
def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["reproduce", *[str(a) for a in arguments]])


def test_the_command(tmp_path: Path) -> None:
    options = ["--model", "demo", "--quick", "--n", 12, "--budget", "5,10", "--solver", "attribution", "--quiet"]
    result = call("professions", *options, "--out", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "attribution patching, 10 components" in result.output and "table.md" in result.output
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES | {"comparison.json"}
    shown = CliRunner().invoke(cli.app, ["show", str(tmp_path / "run" / "reproduction.json")])
    assert shown.exit_code == 0 and "attribution patching, 10 components" in shown.output
    again = call("professions", *options, "--out", tmp_path / "run")
    assert again.exit_code == 1 and "add --overwrite" in again.output


REFUSED = {
    "wino": (["--model", "demo"], 2, "unknown experiment 'wino'"),
    "winobias": (["--model", "demo"], 1, "reads a file that does not ship with the package"),
    "winobias-cma": (["--model", "demo"], 1, "needs --published"),
    "known-facts": (["--model", "demo", "--solver", "greedy"], 1, "searches nothing"),
    "ioi": (["--model", "demo", "--solver", "greedy,top-k"], 1, "runs one solver"),
    "professions": (["--model", "demo", "--solver", "gredy"], 1, "Did you mean 'greedy'?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_a_model_is_loaded(name: str, tmp_path: Path) -> None:
    options, code, message = REFUSED[name]
    result = call(name, *options, "--out", tmp_path / "run")
    assert result.exit_code == code
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_none_of_published_effects(tmp_path: Path) -> None:
    for text in ("[]", "{", '{"results": [{"base_string1": "x"}]}', '{"results": []}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.json is not a file of published effects"):
            read_effects(tmp_path / "x.json")


def test_every_experiment_says_what_it_is() -> None:
    for name, one in EXPERIMENTS.items():
        assert one.name == name and one.title and "arXiv:" in one.source and one.model
