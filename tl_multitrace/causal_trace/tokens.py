"""Which input tokens carry the prediction: each alone, and sets of them jointly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from tl_multitrace._version import __version__
from tl_multitrace.causal_trace.corruption import Corrupted, Corruption, describe_corruption, named_corruption
from tl_multitrace.causal_trace.question import Question
from tl_multitrace.causal_trace.reading import Answer, Prompt, Subject
from tl_multitrace.causal_trace.sweep import Sweep, check_samples, warn_unchanged
from tl_multitrace.groups import residual
from tl_multitrace.metrics import AnswerProb
from tl_multitrace.models.ambient import neutral
from tl_multitrace.models.compat import ModelView
from tl_multitrace.records.provenance import Provenance
from tl_multitrace.records.record import Result, result
from tl_multitrace.records.stats import Score
from tl_multitrace.records.stored import NUMBERS, TABLE, Unsaved
from tl_multitrace.solvers import SubsetPath, select
from tl_multitrace.tracer import Tracer

if TYPE_CHECKING:
    import pandas as pd


@result("tl_multitrace.causal_tokens")
@dataclass(frozen=True, repr=False, eq=False)  # tensors have no single truth to compare by
class CausalTokens(Result):
    """Effect of every input token on the answer's probability.

    Attributes:
        tokens: the prompt's tokens.
        positions: those that were tested.
        clean: p(answer) of the clean run.
        corrupted: p(answer) with all tested tokens corrupted, per sample.
        corrupt: change of p(answer) when one token of the clean prompt is corrupted; negative: the token is needed.
        restore: change of p(answer) when one token of the corrupted prompt is restored; positive: the token is enough
            for that much.
        answer: the answer as text.
        path: the tokens that matter jointly, for every budget, where budgets were given; saved by ``path.save``.
        provenance: model, prompt, corruption, cost, versions.

    Examples:
        >>> found = mt.causal_tokens(model, "The Falcon Tower is in the city of", answer=" Rome", samples=4)
        >>> table = found.to_dataframe().nsmallest(2, "corrupt")
        >>> print(table[["token", "corrupt"]].round(1).to_string(index=False))
         token  corrupt
            of     -1.0
         Tower     -0.8
    """

    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    clean: float
    corrupted: Annotated[Float[Tensor, " sample"], NUMBERS]
    corrupt: Annotated[Float[Tensor, "sample position"], TABLE]
    restore: Annotated[Float[Tensor, "sample position"], TABLE]
    answer: str
    path: Unsaved[SubsetPath | None] = None
    provenance: Provenance = field(default_factory=dict)

    WIDTH: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if any(not 0 <= p < len(self.tokens) for p in self.positions):
            raise ValueError(f"positions {self.positions[:4]} lie outside {len(self.tokens)} tokens.")
        shape = (len(self.corrupted), len(self.positions))
        if not shape[0] or tuple(self.corrupt.shape) != shape or tuple(self.restore.shape) != shape:
            raise ValueError(f"effects of shape {tuple(self.corrupt.shape)} for (samples, positions) {shape}.")
        if not all(bool(x.isfinite().all()) for x in (self.corrupted, self.corrupt, self.restore)):
            raise ValueError("an effect is not finite.")

    def to_dataframe(self) -> pd.DataFrame:
        """One row per tested token: position, token, both effects with their 95 % intervals over samples."""
        import pandas as pd

        rows = []
        for i, p in enumerate(self.positions):
            row: dict[str, Any] = {"position": p, "token": self.tokens[p]}
            for name, values in (("corrupt", self.corrupt), ("restore", self.restore)):
                score = Score.of(values[:, i].double().numpy())
                row |= {name: score.mean, f"{name}_low": score.low, f"{name}_high": score.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def headline(self) -> str:
        """What was asked."""
        return f"CausalTokens of {''.join(self.tokens)!r} -> {self.answer!r}"

    def summary(self) -> list[tuple[str, str]]:
        """The probability with all tokens as they are, and with all that were tested corrupted."""
        return [("p", f"{self.clean:.3g} clean, {float(self.corrupted.mean()):.3g} with all tested tokens corrupted")]

    def table_lines(self) -> list[str]:
        """Both effects of every token, then the sets that matter jointly."""
        frame = self.to_dataframe()[["position", "token", "corrupt", "restore"]]
        table = frame.to_string(index=False, float_format=lambda x: f"{x:.3f}")
        sizes = self.path.sizes if self.path else []
        return [table, *[f"  {len(self.path[s])} tokens: {', '.join(self._named(s))}" for s in sizes if self.path]]

    def _named(self, size: int) -> list[str]:
        assert self.path is not None
        return [f"{self.tokens[self.positions[i]]!r}" for i in self.path[size].indices]

    def show(self, **options: Any) -> Any:
        """Circuitsvis token view; see :func:`tl_multitrace.render.trace.show_tokens`."""
        return self.drawn("show", **options)


@neutral()
def causal_tokens(
    model: Any,
    prompt: Prompt,
    *,
    answer: Answer = None,
    tokens: Subject = "all",
    samples: int = 10,
    noise: float = 3.0,
    seed: int = 0,
    corruption: str | Corruption = "gaussian",
    subjects: Sequence[str] | None = None,
    budgets: int | Iterable[int] | None = None,
    sets: str = "corrupt",
    solver: Any = None,
    answer_position: int | None = None,
    prepend_bos: bool | None = None,
    progress: bool | None = None,
) -> CausalTokens:
    """Which input tokens carry the prediction?

    A token is corrupted or restored at the input of the first block, with its position embedding.

    Args:
        model: a TransformerLens model; for masked language models the prompt holds the mask.
        prompt: text or token ids.
        answer: as :func:`causal_trace`.
        tokens: the tokens to test: ``"all"`` (but BOS, separators and masks), a part of the prompt, or a
            ``(start, stop)`` span.
        samples: draws of the corruption.
        noise: in standard deviations.
        seed: of the draws and the solver.
        corruption: as :func:`causal_trace`; ``"replace"`` puts other tokens in their place.
        subjects: as :func:`causal_trace`.
        budgets: also find the sets of at most so many tokens that matter jointly.
        sets: ``"corrupt"``: sets whose corruption lowers p(answer) most; ``"restore"``: whose restoration raises it
            most.
        solver: for the sets; see :func:`~tl_multitrace.solvers.select`.
        answer_position: for masked language models; default: the mask.
        prepend_bos: for text.
        progress: show progress bars.

    Raises:
        ValueError: as :func:`causal_trace`.

    Examples:
        >>> prompt = "The Falcon Tower is in the city of"
        >>> found = mt.causal_tokens(model, prompt, answer=" Rome", samples=4, budgets=[2])
        >>> found.path[2].labels
        ['L0@4', 'L0@8']
    """
    samples = check_samples(samples)
    if sets not in ("corrupt", "restore"):
        raise ValueError(f"sets must be 'corrupt' or 'restore', got {sets!r}.")
    question = Question.ask(model, prompt, tokens, answer, answer_position=answer_position, prepend_bos=prepend_bos)
    question.warn_unpredicted()
    view, chosen = ModelView(model), named_corruption(corruption, noise, seed, subjects)
    positions = question.corrupted
    groups = residual(model, layers=[0], site="pre", positions=positions)
    tracers, record = {}, {}
    for how in ("corrupt", "restore"):
        made = Corrupted.of(view, question, chosen, samples, subjects, restore=how == "restore")
        tracers[how] = Tracer(model, made.pairs, groups, AnswerProb(reduce="sum"), made.intervention)
        record = made.record
    effects = {how: Sweep(tracer).effects(progress) for how, tracer in tracers.items()}
    corrupted = tracers["restore"].base_metric.cpu()
    warn_unchanged(Score.of((question.probability - corrupted).double().numpy()))
    path = _jointly(tracers[sets], sets, budgets, solver, seed, progress)
    return CausalTokens(
        tokens=question.words,
        positions=tuple(positions),
        clean=question.probability,
        corrupted=corrupted,
        corrupt=effects["corrupt"],
        restore=effects["restore"],
        answer=question.answer_text,
        path=path,
        provenance={
            "tl_multitrace": __version__,
            "model": view.describe(),
            "prompt": question.text,
            "intervention": record,
            "corruption_text": describe_corruption(record),
            "cost": {"equivalents": sum(t.cost.equivalents for t in tracers.values())},
        },
    )


def _jointly(
    tracer: Tracer, sets: str, budgets: int | Iterable[int] | None, solver: Any, seed: int, progress: bool | None
) -> SubsetPath | None:
    if budgets is None:
        return None
    direction: Literal["minimize", "maximize"] = "minimize" if sets == "corrupt" else "maximize"
    return select(tracer, budgets, solver, direction=direction, seed=seed, progress=progress)
