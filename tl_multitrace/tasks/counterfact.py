"""CounterFact: which components restore a fact when its subject is noised?

Source: CounterFact and the measure of causal tracing (Meng et al. 2022, arXiv:2202.05262).

One prompt, "The mother tongue of Danielle Darrieux is". The base run has noise on the subject's tokens, and clean
activations are restored in it. Metric: logit of what is true (" French") minus that of the counterfactual target ("
English"). Above 0: the components bring the fact back. ``known_facts`` asks the same of facts without such a target:
the probability of the attribute.

``setting="paper"`` asks as multi-component causal tracing (arXiv:2606.03085) does: noise of 3 x 0.2015 on every token,
one draw per prompt; noised activations of MLP output dimensions are patched into the clean run; the first 200 prompts;
effect ``p_clean(true) / p_patched(true) - 1``, which is the relative rise of the answer's perplexity.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from tl_multitrace.interventions import NoiseCorruption
from tl_multitrace.metrics import AnswerProb, LogitDiff, Metric, Perplexity
from tl_multitrace.records.fact_files import fact_of
from tl_multitrace.records.tables import Record
from tl_multitrace.tasks.readers import PromptLayout, RowReader, Vocabulary, read_prompts, spaced
from tl_multitrace.tasks.registry import TaskInfo
from tl_multitrace.tasks.sieve import Row, every_row

PAPER_NOISE = 0.2015
"""Standard deviation of the noise, before it is multiplied by 3."""

NO_SUBJECT = "the subject is not in the prompt"


def _row(record: Record, false: str | None = None, label: str | None = None) -> Row:
    fact = fact_of(record, record.line)
    if fact.answer is None or not fact.answer.strip():
        raise record.wrong("what is true of the subject, in 'attribute', 'answer' or 'target_true'")
    texts = {"prompt": fact.prompt, "subject": fact.subject, "answer": fact.answer}
    texts = {name: replace(record, fields=texts).text(name) for name in texts}  # no control characters
    wrong = () if false is None else (spaced(false.strip(), fact.prompt),)
    unusable = "" if fact.subject in fact.prompt else NO_SUBJECT
    return Row(fact.prompt, fact.prompt, (texts["answer"],), wrong, label or "", fact.subject, unusable=unusable)


def _published(record: Record, vocabulary: Vocabulary) -> Row:
    """A record of CounterFact."""
    rewrite = record.inner("requested_rewrite")
    rewrite.inner("target_true").text("str")
    return _row(record, rewrite.inner("target_new").text("str"), rewrite.optional("relation_id"))


def _plain(false: str | None = None) -> RowReader:
    """Reads records with what is true and, in the column ``false``, what is not."""
    return lambda record, vocabulary: _row(
        record, None if false is None else record.text(false), record.optional("relation_id")
    )


def restored() -> NoiseCorruption:
    """Noise of three standard deviations on the subject, and clean activations restored."""
    return NoiseCorruption(noise=3.0, at="subject", restore=True)


def _layout(name: str, columns: tuple[str, ...], row: RowReader, metric: Metric) -> PromptLayout:
    return PromptLayout(name, columns, row, metric=metric, groups="mlps", intervention=restored(), one_prompt=True)


SINGLE, TRACING = "CounterFact, one prompt a record", "CounterFact for tracing"
LAYOUTS = (
    _layout("CounterFact", ("requested_rewrite",), _published, LogitDiff()),
    _layout(SINGLE, ("base_prompt", "subject", "target_true", "target_new"), _plain("target_new"), LogitDiff()),
    _layout(TRACING, ("prompt", "subject", "target_true", "target_false"), _plain("target_false"), LogitDiff()),
    _layout("known_1000", ("prompt", "subject", "attribute"), _plain(), AnswerProb()),
    _layout("facts", ("prompt", "subject", "answer"), _plain(), AnswerProb()),
    _layout("facts", ("prompt", "subject", "target_true"), _plain(), AnswerProb()),
    _layout("facts", ("base_prompt", "subject", "target_true"), _plain(), AnswerProb()),
)


def _facts(path: str | Path, *, subjects: bool = True, targets: bool = False) -> list[Row]:
    """Every fact of a file, with ``targets`` only where each has a counterfactual one.

    With ``subjects=False``, subjects are not looked for: noise is not at them.
    """
    prompts = read_prompts(path)
    if prompts.layout not in LAYOUTS:
        expected = "; ".join(f"{', '.join(layout.columns)} ({layout.name})" for layout in LAYOUTS)
        raise ValueError(f"{path}: expected facts, with the columns {expected}; found {prompts.layout.name}.")
    if targets and not all(row.wrong for row in prompts.rows):
        raise ValueError(
            f"{path}: these facts have no counterfactual target (target_new); the task known_facts takes them."
        )
    return [row if subjects else replace(row, subject=None, unusable="") for row in prompts.rows]


def everywhere() -> NoiseCorruption:
    """The paper's noise, to be patched into the clean run."""
    return NoiseCorruption(noise=3.0, at="all", std=PAPER_NOISE)


PAPER = {
    "published_bos": True,
    "metric": Perplexity(),
    "groups": "mlp_dims",
    "intervention": everywhere,
    "n": 200,
    "options": {"shuffle": False, "subjects": False},
}

TASK = TaskInfo(
    "counterfact",
    "Which MLP layers restore a fact, against another object, when its subject is noised?",
    every_row(partial(_facts, targets=True)),
    LogitDiff(),
    "mlps",
    intervention=restored,
    one_prompt=True,
    source="CounterFact, Meng et al. 2022",
    data="counterfact.json, from rome.baulab.info/data/dsets",
    settings={"paper": PAPER},
)

KNOWN_FACTS = replace(
    TASK,
    name="known_facts",
    question="Which MLP layers restore a known fact when its subject is noised?",
    make=every_row(_facts),
    metric=AnswerProb(),
    source="known_1000, Meng et al. 2022",
    data="known_1000.json, from rome.baulab.info/data/dsets",
)
