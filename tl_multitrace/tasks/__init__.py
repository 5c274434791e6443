"""Ready prompt sets, each with its metric, for any model with a tokenizer; and prompts from files.

A data set is one file: its task, and where it is published as a file, the reader of that. Here they are put on the two
lists by which they are found: tasks by name, layouts of files by their columns.
"""

from tl_multitrace.tasks import (
    benchmarks,
    corr2cause,
    counterfact,
    eap_ig_tables,
    facts,
    gendered_pronouns,
    greater_than,
    hypernymy,
    induction,
    ioi,
    neutral_text,
    paired_answers,
    professions,
    prompt_file,
    subject_verb_agreement,
    variable_binding,
    winobias,
    winogender,
)
from tl_multitrace.tasks.prompt_file import task_from_file
from tl_multitrace.tasks.readers import LAYOUTS
from tl_multitrace.tasks.registry import Task, TaskInfo, register, task, tasks
from tl_multitrace.tasks.sieve import Row

__all__ = ["Row", "Task", "TaskInfo", "register", "task", "task_from_file", "tasks"]

LAYOUTS += [
    prompt_file.PLAIN,
    *paired_answers.LAYOUTS,
    *benchmarks.LAYOUTS,
    *eap_ig_tables.LAYOUTS,
    *counterfact.LAYOUTS,
]
for _info in (
    corr2cause.TASK,
    counterfact.TASK,
    counterfact.KNOWN_FACTS,
    facts.TASK,
    gendered_pronouns.TASK,
    greater_than.TASK,
    hypernymy.TASK,
    induction.TASK,
    ioi.TASK,
    neutral_text.TASK,
    paired_answers.TASK,
    professions.TASK,
    subject_verb_agreement.TASK,
    variable_binding.TASK,
    winobias.TASK,
    winogender.TASK,
):
    register(_info)
