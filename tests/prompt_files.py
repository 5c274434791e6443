"""Small files of prompts in every layout that is read, written for the tests, and how each is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_multitrace.tasks.ioi import read_ioi
from tl_multitrace.tasks.professions import read_professions
from tl_multitrace.tasks.readers import read_prompts
from tl_multitrace.tasks.winobias import read_winobias
from tl_multitrace.tasks.winogender import read_winogender

WINOBIAS = (
    "1 [The developer] met the nurse because [he] was early.\n"
    "2 The developer met [the nurse] because [she] was ill.\n"
    "3 [The developer] thanked the nurse for [his] medicine.\n"
    "4 The developer thanked [the nurse] for [her] visit.\n"
    "5 [The mover] saw the nurse as [he] cut [his] hand.\n"
    "6 The mover saw [the nurse] as [she] left.\n"
)
TEMPLATES = (
    "occupation(0)\tother-participant(1)\tanswer\tsentence\n"
    "baker\tguest\t0\tThe $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN would bake.\n"
    "baker\tguest\t1\tThe $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN would eat.\n"
    "pilot\tguest\t1\tThe $OCCUPATION asked the $PARTICIPANT about $POSS_PRONOUN seat.\n"
    "pilot\tguest\t0\tThe $OCCUPATION asked the $PARTICIPANT about $POSS_PRONOUN route.\n"
)
SHARES = "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\nbaker\t10\t60.8\t2015\npilot\t5\t5\t2015\n"
SENTENCES = "sentid\tsentence\n" + "".join(
    f"baker.guest.{answer}.{gender}.txt\tThe baker told the guest that {pronoun} would {verb}.\n"
    for answer, verb in enumerate(("bake", "eat"))
    for gender, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they"))
)
IOI = {
    "NAMES": ["Mary", "John", "Anna"],
    "PLACES": ["shop"],
    "OBJECTS": ["cup"],
    "BABA_TEMPLATES": ["Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]"],
}
FACT = {"prompt": "Rome is the capital of", "subject": "Rome", "attribute": "Italy", "relation_id": "P36"}
REWRITE = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "{} is the capital of",
        "subject": "Rome",
        "target_true": {"str": "Italy", "id": "Q1"},
        "target_new": {"str": "France", "id": "Q2"},
        "relation_id": "P36",
    },
    "paraphrase_prompts": ["x"],
}
DERIVED = {"base_prompt": FACT["prompt"], "subject": "Rome", "target_true": " Italy", "target_new": " France"}
AUTO_CIRCUIT: dict[str, Any] = {
    "seq_labels": ["a", "b"],
    "word_idxs": {"a": 1},
    "prompts": [
        {"clean": "Mary gave", "corrupt": "John gave", "answers": [" John"], "wrong_answers": [" Mary", " Tom"]},
        {"clean": "John gave", "corrupt": "Mary gave", "answers": [" Mary"], "wrong_answers": [" John"]},
    ],
}
MIB_IOI = {
    "prompt": "Mary and John went. John gave a cup to",
    "choices": ["Mary", "John"],
    "answerKey": 0,
    "metadata": {"subject": "John"},
    "abc_counterfactual": {
        "prompt": "Tom and Anna went. Paul gave a cup to",
        "choices": ["Tom", "Anna"],
        "answerKey": 0,
    },
    "s2_io_flip_counterfactual": {
        "prompt": "Mary and John went. Mary gave a cup to",
        "choices": ["Mary", "John"],
        "answerKey": 1,
    },
}
MIB_CHOICE = {
    "prompt": "The box is red. A. red B. blue Answer:",
    "choices": {"label": ["A", "B"], "text": ["red", "blue"]},
    "answerKey": 0,
    "symbol_counterfactual": {
        "prompt": "The box is red. C. red D. blue Answer:",
        "choices": {"label": ["C", "D"], "text": ["red", "blue"]},
        "answerKey": 0,
    },
}
MIB_SUM = {
    "prompt": "The sum of 1 and 2 is",
    "label": "3",
    "operator": "+",
    "random_counterfactual": {"prompt": "The sum of 5 and 2 is", "label": "7"},
}
TRUTHFUL = {
    "question": "Is the sky green?",
    "best_answer": "No, blue",
    "correct_answers": ["No, blue"],
    "incorrect_answers": ["Yes", "Yes, green"],
    "category": "colours",
}
YEARS = "clean,corrupted,{}\nFrom the year 1352 to the year 13,From the year 1301 to the year 13,{}\n"

Read = Callable[[Path], Any]


def read_folder(path: Path) -> Any:
    """The folder of word lists that ``path`` belongs to."""
    return read_professions(path.parent)


FILES: dict[str, tuple[str, str, Read, int]] = {
    "plain": (
        "p.csv",
        "base,source,answer,wrong_answer\nThe nurse,The man, he, she\nThe maid,The man, he, she\n",
        read_prompts,
        2,
    ),
    "plain json lines": ("p.jsonl", '{"base": "a", "source": "b", "answer": [" c", " d"]}\n\n', read_prompts, 1),
    "paired": ("q.csv", "prompt,answer,wrong_answer,group\nThe sky is,blue,green,x\n", read_prompts, 1),
    "truthful": ("t.json", json.dumps([TRUTHFUL], indent=1), read_prompts, 1),
    "truthful table": (
        "t.csv",
        "Type,Question,Best Answer,Correct Answers,Incorrect Answers\nA,Is it?,No,No; Never,Yes; Always\n",
        read_prompts,
        1,
    ),
    "greater than": ("g.csv", YEARS.format("label", "52"), read_prompts, 1),
    "greater than, newer": ("g2.csv", YEARS.format("correct_idx", "4").replace("1352", "1304"), read_prompts, 1),
    "greater than, mib": ("g3.csv", YEARS.format("year", "1352"), read_prompts, 1),
    "capitals": (
        "c.csv",
        "clean,capital,country,country_idx,corrupted,corrupted_capital,corrupted_country,corrupted_country_idx\n"
        '" Rome, the capital of",Rome,Italy,1," Oslo, the capital of",Oslo,Norway,2\n',
        read_prompts,
        1,
    ),
    "hypernyms": (
        "h.csv",
        "clean,corrupted,answers,answers_idx,corrupted_answers,corrupted_answers_idx\n"
        '", dogs and other",", planes and other","[\'animals\', \'pets\']","[1, 2]",[\'vehicles\'],[3]\n',
        read_prompts,
        1,
    ),
    "agreement": (
        "s.csv",
        "clean,corrupted,group,plural\nThe poems,The poem,simple,1\nThe song,The songs,simple,0\n",
        read_prompts,
        2,
    ),
    "auto-circuit": ("a.json", json.dumps(AUTO_CIRCUIT, indent=1), read_prompts, 2),
    "mib": ("m.json", json.dumps([MIB_IOI], indent=1), read_prompts, 1),
    "mib choices": ("m.jsonl", json.dumps(MIB_CHOICE) + "\n", read_prompts, 1),
    "mib sums": ("sums.jsonl", json.dumps(MIB_SUM) + "\n", read_prompts, 1),
    "known": ("known_1000.json", json.dumps([FACT, {**FACT, "subject": "Paris"}], indent=1), read_prompts, 2),
    "counterfact": ("counterfact.json", json.dumps([REWRITE], indent=1), read_prompts, 1),
    "derived": ("derived.json", json.dumps([DERIVED], indent=1), read_prompts, 1),
    "facts": ("f.csv", "prompt;subject;answer\nRome is in;Rome;Italy\nOslo is in;Oslo;Norway\n", read_prompts, 2),
    "winobias": ("pro_stereotyped_type1.txt.dev", WINOBIAS, read_winobias, 3),
    "winogender": ("templates.tsv", TEMPLATES, read_winogender, 2),
    "winogender sentences": ("all_sentences.tsv", SENTENCES, read_winogender, 1),
    "winogender shares": ("occupations-stats.tsv", SHARES, lambda p: read_winogender(p.with_name("templates.tsv")), 2),
    "professions": (
        "professions.json",
        '[["nurse", 0.0, -0.9],\n ["pilot", 0.1, 0.4],\n ["adjunct_poet", 0, 0]]',
        read_professions,
        0,
    ),
    "profession words": ("male_occupations.txt", "pilot\nfarmer\n", read_folder, 0),
    "profession templates": ("templates.txt", "The {} said that\nThe {} ate because\n", read_folder, 0),
    "ioi": ("ioi.json", json.dumps(IOI, indent=1), read_ioi, 0),
}
"""By name: what the file is called, what it holds, how it is read, and how many rows it has (0: it has none)."""


BESIDE = {
    "templates.tsv": TEMPLATES,
    "occupations-stats.tsv": SHARES,
    "male_occupations.txt": "pilot\n",
    "female_occupations.txt": "nurse\n",
    "templates.txt": "The {} ran as\n",
}
"""What some of the files are read with."""


def write(name: str, folder: Path, content: str | bytes | None = None) -> Path:
    """Write one of the files into a folder, beside what it needs, with another content if there is one."""
    file, good, _, _ = FILES[name]
    for other, text in BESIDE.items():
        if other != file and not (folder / other).is_file():
            (folder / other).write_text(text)
    chosen = good if content is None else content
    path = folder / file
    path.write_bytes(chosen.encode() if isinstance(chosen, str) else chosen)
    return path


def read(name: str, path: Path) -> Any:
    """Read one of the files."""
    return FILES[name][2](path)
