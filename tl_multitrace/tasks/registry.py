"""The registry of tasks. A new task is one function that yields rows of text, and one ``register`` call."""

from __future__ import annotations

import difflib
import inspect
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from tl_multitrace.groups import HookGroups
from tl_multitrace.interventions import Interchange, Intervention
from tl_multitrace.metrics import Metric
from tl_multitrace.objective import Goal, Objective
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.spec import groups_from_text
from tl_multitrace.tasks.corpus import DEMO_TOKENIZER
from tl_multitrace.tasks.sieve import Alignment, Row, pairs_of, published_bos, sieve_of
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["maximize", "minimize"]
RowMaker = Callable[..., Iterator[Row]]
"""``make(sieve, rng, **options)``: yields candidate rows, in the order they are to be tried."""


@dataclass(frozen=True)
class Task:
    """Prompts that ask one question of a model, with the number that measures the answer.

    In every task that ships with the package the *answer* is what the source prompt calls for and the *wrong answer*
    what the base prompt calls for. So a positive effect means: the patched components carry what differs between the
    two prompts, and ``direction`` is ``"maximize"``. Where something is to be left alone (operation
    invariance, neutral text), ``direction`` is ``"minimize"`` and 0 is perfect.

    Attributes:
        pairs: the prompts that tokenise cleanly; ``pairs.labels`` are the subgroups.
        metric: of each prompt, with its sign; ``direction`` says whether it is to rise or to fall.
        groups: components it is usually asked about, as ``--components`` takes them: ``"neurons"``, ``"heads"``.
        intervention: where patched activations come from.
        source: where the prompts come from; ``licence`` is theirs.
        desiderata: further wishes beside ``pairs``, by name, each with its own prompts, metric and direction.

    Examples:
        >>> task.kept, task.labels, task.metric.name
        (16, {'female': 8, 'male': 8}, 'odds_ratio')
        >>> len(task.hook_groups(model))
        2048
    """

    name: str
    pairs: PromptPairs
    metric: Metric
    groups: str = "heads"
    intervention: Intervention = field(default_factory=Interchange)
    direction: Direction = "maximize"
    question: str = ""
    source: str = ""
    licence: str = ""
    desiderata: Mapping[str, Task] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Number of prompts."""
        return len(self.pairs)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Prompts that were tried and left out, by reason."""
        return dict(self.pairs.dropped)

    @property
    def labels(self) -> Mapping[str, int]:
        """Number of prompts in each subgroup."""
        return dict(sorted(Counter(self.pairs.labels).items()))

    def hook_groups(self, model: Any) -> HookGroups:
        """The suggested components as hook groups of ``model``."""
        return groups_from_text(model, self.groups)

    def objective(self, groups: HookGroups, model: Any, *, weights: Mapping[str, float] | None = None) -> Objective:
        """The task and its desiderata as the goals of one search: ``select(task.objective(groups, model), ...)``.

        Weights are by name of the goal, 1 unless given; the task's own prompts are called by the task's name.

        Raises:
            ValueError: a weight for a name that is no goal of the task.
        """
        goals = {self.name: self, **self.desiderata}
        given = dict(weights or {})
        strange = sorted(set(given) - set(goals))
        if strange:
            raise ValueError(f"the task {self.name!r} has no goal {strange[0]!r}; it has {', '.join(goals)}.")
        return Objective([one._goal(name, groups, model, given.get(name, 1.0)) for name, one in goals.items()])

    def _goal(self, name: str, groups: HookGroups, model: Any, weight: float) -> Goal:
        tracer = Tracer(model, self.pairs, groups, self.metric, self.intervention)
        return Goal(name, tracer, weight=weight, direction=self.direction)

    def __repr__(self) -> str:
        lines = [
            f"Task {self.name}: {self.question}",
            f"  metric  {self.metric.name}, {self.direction}; components {self.groups}; {self.intervention.name}",
            f"  source  {self.source} ({self.licence})",
        ]
        also = [f"  also    {name}: {one.question} ({one.kept} pairs)" for name, one in self.desiderata.items()]
        return "\n".join([*lines, *also, repr(self.pairs)])


@dataclass(frozen=True)
class TaskInfo:
    """How a task is made.

    Attributes:
        question: what it asks, in one line.
        make: yields candidate rows; see :data:`RowMaker`.
        groups: components it is usually asked about.
        n: prompts kept unless told otherwise.
        single_token: whether every answer must be one token.
        intervention: makes the default intervention.
        direction: whether the metric is to rise or to fall.
        one_prompt: whether base and source are the same prompt, as where the source run is a noised or averaged one.
        data: the file that ``task(name, model, path=...)`` has to be given and where it comes from; empty where the
            prompts ship with the package or are generated.
        desiderata: further wishes, each a task of its own; their ``name`` is the key in ``task.desiderata``.
        options: what ``make`` is given unless told otherwise.
        published_bos: prompts begin as in the published code, which put no BOS in front of GPT-2's.
        settings: named ways to ask, each with what it changes of the above: ``"paper"`` is that of multi-component
            causal tracing (arXiv:2606.03085).

    Examples:
        >>> from tl_multitrace.tasks import Row, TaskInfo
        >>> def rows(view, rng, **options):
        ...     yield Row("The nurse said that", "The man said that", (" he",), (" she",))
        >>> TaskInfo("mine", "Who is meant?", rows, mt.LogitDiff(), groups="heads").n
        128
    """

    name: str
    question: str
    make: RowMaker
    metric: Metric
    groups: str
    n: int = 128
    source: str = "written for this package"
    licence: str = "MIT"
    single_token: bool = False
    intervention: Callable[[], Intervention] = Interchange
    direction: Direction = "maximize"
    one_prompt: bool = False
    data: str = ""
    desiderata: tuple[TaskInfo, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    published_bos: bool = False
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def in_setting(self, name: str | None) -> TaskInfo:
        """The task as asked for by name, a key of ``settings``, or as it is; raises ValueError for another."""
        if name is None:
            return self
        if name not in self.settings:
            known = ", ".join(map(repr, self.settings)) or "none but its own"
            raise ValueError(f"the task {self.name!r} has no setting {name!r}; it has {known}.")
        return replace(self, **self.settings[name])


IN_PACKAGE = "in the package"
"""What :func:`tasks` says of data that no file is needed for."""

SHARED = ("name", "metric", "groups", "direction", "question", "source", "licence")
"""What a task has from its entry as it stands there."""

REGISTRY: dict[str, TaskInfo] = {}


def register(info: TaskInfo) -> TaskInfo:
    """Make a task available to :func:`task` under its name.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> from tl_multitrace.tasks import Row, TaskInfo, register
        >>> def rows(view, rng, **options):
        ...     yield Row("The nurse said that", "The man said that", (" he",), (" she",))
        >>> _ = register(TaskInfo("mine", "Who is meant?", rows, mt.LogitDiff(), groups="heads"))
        >>> mt.task("mine", mt.load_model("demo")).kept
        1
    """
    if info.name in REGISTRY:
        raise ValueError(f"there is a task {info.name!r} already: choose another name.")
    REGISTRY[info.name] = info
    return info


def info_of(name: str) -> TaskInfo:
    """The entry of a task; raises ValueError for an unknown name, with the closest known one."""
    if name not in REGISTRY:
        close = difflib.get_close_matches(name, REGISTRY, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown task {name!r}.{hint} The tasks are {', '.join(sorted(REGISTRY))}.")
    return REGISTRY[name]


def task(
    name: str,
    model: Any,
    n: int | None = None,
    seed: int = 0,
    *,
    align: Alignment = "drop",
    setting: str | None = None,
    prepend_bos: bool | None = None,
    **options: Any,
) -> Task:
    """Make a task for a model: prompts, metric, subgroups and suggested components.

    Prompts that don't tokenise cleanly are left out and counted in ``task.dropped``. The demo model gets prompts it was
    trained for.

    Args:
        name: see :func:`tasks`.
        model: a TransformerLens model with a tokenizer.
        n: prompts to keep, at most; default: the task's own number.
        seed: of the draw and order of prompts.
        align: pairs of different token length are left out (``"drop"``), or lined up at one end (``"right"``,
            ``"left"``; tokens without a partner are never patched).
        setting: a named way to ask, where the task has one: ``"paper"`` for the experiment of arXiv:2606.03085.
        prepend_bos: put a BOS token in front of prompts; default: the setting's way, else the model's.
        options: the task's own, such as ``templates=``; ``path=`` where the task reads a file of others.

    Raises:
        ValueError: unknown task, no tokenizer, no ``path`` for a task that reads a file, a malformed file, or no prompt
            left; the message counts the reasons.
        TypeError: an option that this task does not have.

    Examples:
        >>> task = mt.task("ioi", mt.load_model("demo"), n=8, seed=1)
        >>> task.kept, task.direction
        (8, 'maximize')
    """
    info = info_of(name)
    if info.data and options.get("path") is None:
        raise ValueError(
            f"the task {name!r} reads a file that does not ship with the package: {info.data}. Download it, and pass "
            f"task({name!r}, model, path=...), or --data on the command line."
        )
    if "path" in options and "path" not in inspect.signature(info.make).parameters:
        raise ValueError(
            f"the task {name!r} reads no file: leave path= (--data) out, or use task_from_file (--prompts)."
        )
    return _made(info.in_setting(setting), model, n, seed, align, prepend_bos, options)


def _made(
    info: TaskInfo, model: Any, n: int | None, seed: int, align: Alignment, bos: bool | None, options: Mapping[str, Any]
) -> Task:
    if bos is None and info.published_bos:
        bos = published_bos(model)
    sieve = sieve_of(model, align=align, single_token=info.single_token, one_prompt=info.one_prompt, prepend_bos=bos)
    demo = str(getattr(sieve.encoder.tokenizer, "name_or_path", "")) == DEMO_TOKENIZER  # its facts are its own
    rows = info.make(sieve, random.Random(seed), demo=demo, **{**info.options, **options})
    pairs = pairs_of(model, rows, sieve, info.n if n is None else n)
    shared = {name: getattr(info, name) for name in SHARED}
    others = {one.name: _made(one, model, n, seed, align, bos, options) for one in info.desiderata}
    return Task(pairs=pairs, intervention=info.intervention(), desiderata=others, **shared)


def tasks() -> pd.DataFrame:
    """The tasks: name, what each asks, metric, usual components, number of prompts, source, licence and data.

    Examples:
        >>> mt.tasks()[["name", "metric"]].head(2).to_dict("records")
        [{'name': 'corr2cause', 'metric': 'logit_diff'}, {'name': 'counterfact', 'metric': 'logit_diff'}]
    """
    import pandas as pd

    columns = ["name", "asks", "metric", "components", "prompts", "source", "licence", "data"]
    infos = [info for _, info in sorted(REGISTRY.items())]
    rows = [
        (i.name, i.question, i.metric.name, i.groups, i.n, i.source, i.licence, i.data or IN_PACKAGE) for i in infos
    ]
    return pd.DataFrame(rows, columns=columns)
