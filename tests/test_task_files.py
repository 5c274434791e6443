"""Tasks that read files of others: end to end on word-level, byte-pair and SentencePiece tokenizers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import prompt_files
import pytest
import torch
from typer.testing import CliRunner

import tiny_models
import tl_multitrace as mt
from tl_multitrace.cli import app as cli
from tl_multitrace.runs.job import Job, make_task
from tl_multitrace.tasks.coreference import CONTEXTS, OBJECT, SEVERAL_PRONOUNS
from tl_multitrace.tasks.counterfact import PAPER_NOISE
from tl_multitrace.tasks.eap_ig_tables import NO_LATER_YEAR
from tl_multitrace.tasks.professions import NEUTRAL
from tl_multitrace.tokens import LENGTHS, SUBJECT, UNKNOWN

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WINOBIAS = DATA / "winobias" / "pro_stereotyped_type1.txt.dev"
WINOGENDER = DATA / "winogender" / "winogender_templates_structurefilter.tsv"
COUNTERFACT = DATA / "counterfact" / "counterfact_compmech_gpt2_10k.json"
KNOWN = DATA / "known_1000" / "known_1000.json"
YEARS = DATA / "greater_than" / "greater_than_data.csv"
IOI = DATA / "ioi" / "ioi_templates_names.json"


def model_with(tokenizer: Any) -> Any:
    """A random model of one layer with this tokenizer's vocabulary."""
    hf = tiny_models.hf_model("gpt2", vocab_size=len(tokenizer), n_layer=1, n_positions=128)
    if tiny_models.HAS_BRIDGE:
        return tiny_models.bridge_from_hf(hf, tokenizer)
    return tiny_models.hooked_from_hf(hf, "gpt2", tokenizer)


@lru_cache
def model_of(folder: str) -> Any:
    """GPT-2's byte pairs, or the SentencePiece pieces of a small Llama model."""
    from transformers import AutoTokenizer

    return model_with(AutoTokenizer.from_pretrained(DATA / folder))


@pytest.fixture
def gpt2(shared_data: Path) -> Any:
    return model_of("gpt2_tokenizer")


@pytest.fixture
def pieces(shared_data: Path) -> Any:
    return model_of("stories260K")


@pytest.fixture(params=["gpt2", "pieces"])
def any_model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def words() -> Any:
    return model_with(tiny_models.word_tokenizer(leading_space=True))


def effect(model: Any, task: mt.Task, count: int = 3) -> torch.Tensor:
    """The effect of the first components of a task on its first prompts."""
    groups = task.hook_groups(model)[:count]
    tracer = mt.Tracer(model, task.pairs[:6], groups, task.metric, task.intervention)
    found = tracer.effect(torch.ones(len(groups)))
    assert found.isfinite().all() and (found != 0).any()
    return found


# -------------------------------------------------------------------------------------- the real files, end to end
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "winobias": ("winobias", {"path": WINOBIAS.parent}),
    "winobias, paper": ("winobias", {"path": WINOBIAS, "setting": "paper"}),
    "winogender": ("winogender", {"path": WINOGENDER}),
    "winogender, all": ("winogender", {"path": WINOGENDER.parent}),
    "counterfact": ("counterfact", {"path": COUNTERFACT}),
    "counterfact, paper": ("counterfact", {"path": COUNTERFACT, "setting": "paper"}),
    "known_facts": ("known_facts", {"path": KNOWN}),
    "professions": ("professions", {"path": DATA / "professions", "setting": "paper"}),
    "professions, scored": ("professions", {"path": DATA / "professions" / "professions.json", "n": 5000}),
    "ioi": ("ioi", {"path": IOI}),
    "ioi, early": ("ioi", {"path": IOI, "kind": "BABA_EARLY_IOS"}),
}
UNCUT = {CONTEXTS: 30, SEVERAL_PRONOUNS: 7, OBJECT: 1}
COUNTS: dict[str, dict[str, tuple[int, dict[str, int]]]] = {
    "gpt2": {
        "winobias": (160, UNCUT),
        "winobias, paper": (160, UNCUT),
        "winogender": (44, {}),
        "winogender, all": (44, {CONTEXTS: 13, OBJECT: 3}),
        "counterfact": (128, {SUBJECT: 1}),
        "counterfact, paper": (200, {}),
        "known_facts": (128, {}),
        "professions": (2703, {}),
        "professions, scored": (1272, {NEUTRAL: 21, LENGTHS: 1120}),
        "ioi": (128, {}),
        "ioi, early": (128, {}),
    },
    "pieces": {
        "winobias": (160, UNCUT),
        "winobias, paper": (160, UNCUT),
        "winogender": (44, {}),
        "winogender, all": (44, {CONTEXTS: 13, OBJECT: 3}),
        "counterfact": (128, {}),
        "counterfact, paper": (200, {}),
        "known_facts": (128, {}),
        "professions": (153, {LENGTHS: 2550}),
        "professions, scored": (96, {NEUTRAL: 21, LENGTHS: 2296}),
    },
}


@pytest.mark.parametrize("case", ASKED)
@pytest.mark.parametrize("tokenizer", ["gpt2", "pieces"])
def test_tasks_on_the_real_files(case: str, tokenizer: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(tokenizer)
    name, options = ASKED[case]
    task = mt.task(name, model, **options)
    if case in COUNTS[tokenizer]:
        assert (task.kept, task.dropped) == COUNTS[tokenizer][case]
    else:
        assert task.kept == 128 and set(task.dropped) == {LENGTHS}
    effect(model, task)


def test_the_same_seed_gives_the_same_prompts(gpt2: Any) -> None:
    for name, options in (ASKED["winobias"], ASKED["known_facts"]):
        digests = [mt.task(name, gpt2, n=20, seed=seed, **options).pairs.digest() for seed in (3, 3, 4)]
        assert digests[0] == digests[1] != digests[2]


# ------------------------------------------------------------------------------------------------ what they ask
def test_winobias_measures_the_published_odds(gpt2: Any) -> None:
    task = mt.task("winobias", gpt2, path=WINOBIAS, setting="paper")
    pairs = task.pairs[:3]

    def score(prompt: list[int], answer: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logp = gpt2(torch.tensor([prompt + answer]))[0].log_softmax(-1)
        return logp[torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), answer].mean()

    def log_odds(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        both = []
        for row, n, candidates in zip(tokens, lengths, pairs.candidates, strict=True):
            male, female = (score(row[:n].tolist(), [t for t in c.tolist() if t >= 0]) for c in candidates)
            both.append(male - female)
        return torch.stack(both)

    base, source = log_odds(pairs.base_tokens, pairs.lengths), log_odds(pairs.source_tokens, pairs.lengths)
    everything = mt.residual(gpt2, site="pre")[:1]  # the state before the only layer, at every position
    found = mt.Tracer(gpt2, pairs, everything, task.metric).effect(torch.ones(1))
    torch.testing.assert_close(found.double(), (source - base).double().expm1(), rtol=1e-3, atol=1e-4)
    assert task.groups == "heads:pattern" and task.direction == "maximize"


def test_the_papers_counterfact_measure(gpt2: Any) -> None:
    task = mt.task("counterfact", gpt2, path=COUNTERFACT, setting="paper")
    first = json.loads(COUNTERFACT.read_text())[0]["base_prompt"]
    assert "".join(task.pairs.base_words[0]) == first
    noise = task.intervention
    assert isinstance(noise, mt.NoiseCorruption)
    assert (noise.noise, noise.std, noise.at, noise.restore, noise.shared) == (3.0, PAPER_NOISE, "all", False, False)
    groups, pairs = task.hook_groups(gpt2), task.pairs[:5]
    probability = mt.Tracer(gpt2, pairs, groups, mt.AnswerProb(), noise)
    mask = torch.ones(len(groups))
    clean = probability.base_metric
    measured = mt.Tracer(gpt2, pairs, groups, task.metric, noise).effect(mask)
    expected = clean / (clean + probability.effect(mask)) - 1
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-5)


def test_facts_are_restored_at_the_subject(any_model: Any) -> None:
    for name, path in (("counterfact", COUNTERFACT), ("known_facts", KNOWN)):
        task = mt.task(name, any_model, path=path, n=12)
        assert torch.equal(task.pairs.base_tokens, task.pairs.source_tokens)
        assert task.intervention == mt.NoiseCorruption(noise=3.0, at="subject", restore=True)
        assert "subject" in task.pairs.spans
    with pytest.raises(ValueError, match=r"no counterfactual target .target_new.; the task known_facts takes them"):
        mt.task("counterfact", any_model, path=KNOWN)
    with pytest.raises(ValueError, match=r"greater_than_data\.csv: expected facts, .*found EAP-IG, greater than"):
        mt.task("known_facts", any_model, path=YEARS)


def test_later_years_are_answers(any_model: Any, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("".join(YEARS.read_text().splitlines(keepends=True)[:61]))
    task = mt.task_from_file(tmp_path / "some.csv", any_model)
    assert (task.kept, task.dropped, task.metric) == (60, {}, mt.ProbDiff(reduce="sum"))
    effect(any_model, task)
    answers, right = task.pairs.answer_words[0], task.pairs.right[0]
    assert answers == (*(f"{year}" for year in range(53, 100)), *(f"{year:02d}" for year in range(53)))
    assert right.sum() == 47 and right[:47].all()


def test_years_are_the_tokens_of_the_published_code(gpt2: Any) -> None:
    pairs = mt.task_from_file(YEARS, gpt2).pairs
    years = [gpt2.tokenizer(f"{year:02d}", add_special_tokens=False)["input_ids"] for year in range(100)]
    assert pairs.candidates.shape == (1000, 100, 1)
    for row, names in zip(pairs.candidates[:50].tolist(), pairs.answer_words, strict=False):
        assert row == [years[int(name)] for name in names]


def test_a_year_that_none_follows(gpt2: Any, tmp_path: Path) -> None:
    (tmp_path / "y.csv").write_text(prompt_files.YEARS.format("label", "52") + "From 1299 to 12,From 1201 to 12,99\n")
    assert mt.task_from_file(tmp_path / "y.csv", gpt2).dropped == {NO_LATER_YEAR: 1}


# ---------------------------------------------------------------------------------- the other layouts, end to end
def prompts_of(name: str) -> bool:
    return prompt_files.FILES[name][2] is prompt_files.read_prompts


@pytest.mark.parametrize("name", [name for name in prompt_files.FILES if prompts_of(name)])
def test_every_prompt_layout_is_a_task(name: str, any_model: Any, tmp_path: Path) -> None:
    task = mt.task_from_file(prompt_files.write(name, tmp_path), any_model, align="right")
    assert task.kept >= 1 and task.metric.name in ("logit_diff", "prob_diff", "answer_prob", "answer_logprob")
    groups = task.hook_groups(any_model)
    tracer = mt.Tracer(any_model, task.pairs, groups, task.metric, task.intervention)
    assert tracer.effect(torch.ones(len(groups))).isfinite().all()


def names_table(tokenizer: Any, rows: list[tuple[str, str]]) -> str:
    head = ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n"
    for number, (io, s) in enumerate(rows):
        start = f"Then {io} and {s} went to the shop."
        ids = ",".join(str(tokenizer(f" {name}", add_special_tokens=False)["input_ids"][-1]) for name in (io, s))
        head += f"{number},{start} {s} gave a cup to,{start} Paul gave a cup to,{start} {io} gave a cup to,{ids}\n"
    return head


def test_token_ids_are_read_with_the_models_tokenizer(gpt2: Any, pieces: Any, tmp_path: Path) -> None:
    (tmp_path / "ioi.csv").write_text(names_table(gpt2.tokenizer, [("Mary", "John"), ("Anna", "Tom")]))
    task = mt.task_from_file(tmp_path / "ioi.csv", gpt2)
    assert task.pairs.answer_words == ((" Mary", " John"), (" Anna", " Tom"))
    effect(gpt2, task)
    with pytest.raises(ValueError, match=r"ioi\.csv, line 2: expected a token id.*made for another tokenizer"):
        mt.task_from_file(tmp_path / "ioi.csv", pieces)
    wrong_ids = names_table(gpt2.tokenizer, [("Mary", "John")]).replace("5335", "3771")
    (tmp_path / "ioi.csv").write_text(wrong_ids)
    with pytest.raises(ValueError, match="a name of the prompt in 'correct_idx', found 3771, which is ' Pre' here"):
        mt.task_from_file(tmp_path / "ioi.csv", gpt2)


def test_pronoun_ids(gpt2: Any, tmp_path: Path) -> None:
    head = "clean,corrupted,clean_answer_idx,corrupted_answer_idx,label\n"
    (tmp_path / "gender.csv").write_text(
        head + "The poet was promoted because,The man was promoted because,673,339,0\n"
    )
    task = mt.task_from_file(tmp_path / "gender.csv", gpt2)
    assert (task.pairs.answer_words, task.metric) == (((" she", " he"),), mt.LogitDiff())
    (tmp_path / "gender.csv").write_text(
        head + "The poet was promoted because,The man was promoted because,674,339,0\n"
    )
    with pytest.raises(ValueError, match="line 2: expected a token id that stands for he or she"):
        mt.task_from_file(tmp_path / "gender.csv", gpt2)


# ------------------------------------------------------------------------------------------------ paired answers
PAIRED = "prompt,answer,wrong_answer,source\nThe doctor said that,he,she,The woman said that\n"
PAIRED += "The nurse said that,she,he,The man said that\n"


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    (tmp_path / "paired.csv").write_text(PAIRED)
    (tmp_path / "alone.csv").write_text(
        "prompt,answer,wrong_answer\nThe doctor said that,he,she\nThe nurse said that,she,he\n"
    )
    return tmp_path


def test_paired_answers_are_ablated_or_patched(words: Any, paired: Path) -> None:
    alone = mt.task("paired_answers", words, path=paired / "alone.csv")
    assert (alone.kept, alone.metric, alone.direction) == (2, mt.ProbDiff(), "minimize")
    assert isinstance(alone.intervention, mt.MeanAblation)
    assert torch.equal(alone.pairs.base_tokens, alone.pairs.source_tokens)
    patched = mt.task("paired_answers", words, path=paired / "paired.csv", setting="patch")
    assert (patched.intervention, patched.direction) == (mt.Interchange(), "maximize")
    for task in (alone, patched):
        effect(words, task)


def test_a_file_says_by_its_columns_whether_there_is_a_source(words: Any, paired: Path) -> None:
    alone, patched = (mt.task_from_file(paired / name, words) for name in ("alone.csv", "paired.csv"))
    assert (alone.direction, patched.direction) == ("minimize", "maximize")
    assert isinstance(alone.intervention, mt.MeanAblation) and isinstance(patched.intervention, mt.Interchange)


def test_paired_answers_need_false_ones(words: Any, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("base,source,answer\nThe doctor said that,The nurse said that, he\n")
    with pytest.raises(ValueError, match=r"p\.csv: expected true and false answers"):
        mt.task("paired_answers", words, path=tmp_path / "p.csv")


# --------------------------------------------------------------------------------------- word level, and the command
def test_a_word_level_tokenizer_drops_what_it_does_not_know(words: Any, tmp_path: Path) -> None:
    lines = (
        "1 [The doctor] shop the nurse and [he] was tired\n2 The doctor shop [the nurse] and [she] gave cup\n"
        "3 [The mover] saw the nurse and [he] left\n4 The mover saw [the nurse] and [she] left early\n"
    )
    (tmp_path / "pro_mine.txt").write_text(lines)
    task = mt.task("winobias", words, path=tmp_path / "pro_mine.txt")
    assert (task.kept, task.dropped, task.labels) == (1, {UNKNOWN: 1}, {"male": 1})
    effect(words, task)


def test_facts_on_a_word_level_tokenizer(words: Any, tmp_path: Path) -> None:
    record = {"prompt": "Paris was the capital of", "subject": "Paris", "attribute": "France"}
    other = {**record, "prompt": "Berlin was the capital of", "subject": "Berlin", "attribute": "Germany"}
    (tmp_path / "known.json").write_text(json.dumps([record, other]))
    task = mt.task("known_facts", words, path=tmp_path / "known.json")
    assert (task.kept, task.dropped) == (1, {UNKNOWN: 1})
    effect(words, task)


def test_a_task_without_its_file_says_where_it_is_from(words: Any) -> None:
    table = mt.tasks().set_index("name")
    for name in ("winobias", "winogender", "counterfact", "known_facts", "paired_answers"):
        with pytest.raises(ValueError, match=rf"the task '{name}' reads a file .*path="):
            mt.task(name, words)
        assert table.loc[name, "data"] != "in the package"
    with pytest.raises(ValueError, match="the task 'facts' reads no file"):
        mt.task("facts", words, path="x.json")
    with pytest.raises(ValueError, match="the task 'facts' has no setting 'paper'; it has none but its own"):
        mt.task("facts", words, setting="paper")
    with pytest.raises(ValueError, match="no setting 'own'; it has 'paper'"):
        mt.task("winobias", words, path="x", setting="own")
    with pytest.raises((ValueError, TypeError), match="pronouns"):  # a TypeError where types are checked
        mt.task("winobias", words, path="x", pronouns="he")


def test_a_job_takes_the_file_of_its_task(words: Any, tmp_path: Path) -> None:
    path = tmp_path / "secret" / "pro_mine.txt"
    path.parent.mkdir()
    path.write_text(
        "1 [The doctor] shop the nurse and [he] was tired\n2 The doctor shop [the nurse] and [she] gave cup\n"
    )
    job = Job(task="winobias", data=str(path))
    assert make_task(job, words).kept == 1
    assert job.arguments()["data"] == "pro_mine.txt" and "secret" not in json.dumps(job.arguments())
    with pytest.raises(ValueError, match="data is the file of a task"):
        make_task(Job(prompts="x.csv", data=str(path)), words)


def test_the_command_takes_the_file_of_a_task(tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, ["run", *map(str, arguments), "--out", str(tmp_path / "run")])

    lists = tmp_path / "secret" / "lists"
    lists.mkdir(parents=True)
    prompt_files.write("profession words", lists, "doctor\nlawyer\n")
    (lists / "templates.txt").write_text("The {} said that\nThe {} thought that\n")
    quick = ("--components", "heads", "--budget", 2, "--stability", 0, "--held-out", 0, "--device", "cpu", "--quiet")
    done = call("--task", "professions", "--data", lists, *quick)
    assert done.exit_code == 0, done.output
    records = [json.loads((tmp_path / "run" / name).read_text()) for name in ("run.json", "circuit.json")]
    assert records[0]["arguments"]["data"] == records[1]["provenance"]["data"] == "lists"
    assert not any("secret" in json.dumps(record) for record in records)
    assert call("--data", lists, "--prompts", "x.csv").exit_code == 2
    assert "the task 'facts' reads no file" in call("--task", "facts", "--data", lists, "--overwrite").output
