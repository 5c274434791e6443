"""What is asked of the model: a prompt, the subject in it, and the answer with its probability.

The untouched model is run once, for the probability and the rank of the answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_multitrace.causal_trace.reading import Answer, Prompt, Reading, Subject
from tl_multitrace.engine.forward import padded, run
from tl_multitrace.engine.trials import trials_of
from tl_multitrace.models.compat import ModelView
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.tokens import Span


@dataclass(frozen=True)
class Question:
    """A prompt with its subject and answer, as tokens.

    Attributes:
        ids: token ids, BOS included where the model wants one.
        words: each token as text; ids in brackets without a tokenizer.
        subject: ``[start, stop)`` positions that are corrupted.
        answer: token ids of the answer.
        answer_text: the answer as text.
        answer_position: whose logits predict the answer's first token.
        probability: of the whole answer, in the clean run.
        rank: of the answer's first token among the clean run's predictions; 0 is the top one.
        top: the clean run's top prediction as text.
        pad_id: id that fills padding.
        masks: positions of masks, which are never corrupted: they are the question, not what is said.
        frame: special tokens in front of the prompt and after it.
        given: the prompt, where it was given as text.
        doubts: what is doubtful about prompt and subject, in words.
    """

    ids: tuple[int, ...]
    words: tuple[str, ...]
    subject: Span
    answer: tuple[int, ...]
    answer_text: str
    answer_position: int
    probability: float
    rank: int
    top: str
    pad_id: int = 0
    masks: tuple[int, ...] = ()
    frame: tuple[int, int] = (0, 0)
    given: str | None = None
    doubts: tuple[str, ...] = ()

    @classmethod
    def ask(
        cls,
        model: Any,
        prompt: Prompt,
        subject: Subject,
        answer: Answer = None,
        *,
        answer_position: int | None = None,
        prepend_bos: bool | None = None,
    ) -> Question:
        """Tokenise, find the subject, and run the model once for its answer.

        Args:
            model: a TransformerLens model.
            prompt: text or token ids.
            subject: a part of the prompt, a ``(start, stop)`` span of positions, or ``"all"`` (every token but BOS).
            answer: text with its leading space, or token ids; default: the model's own top prediction.
            answer_position: default: the mask of a masked language model, else the prompt's last token.
            prepend_bos: for text; default: what TransformerLens does for this model.

        Raises:
            ValueError: an empty prompt, or tokens outside the model; a subject that is not in the prompt, splits a
                token, or lies outside; no mask where one is needed; an answer that does not continue the prompt.
        """
        view = ModelView(model)
        reading = Reading.of(view, prompt, prepend_bos)
        span = reading.span(subject)
        position = reading.position(answer_position)
        given = reading.answer(answer, position)
        logp = clean_run(view, [*reading.ids, *given[:-1]], position, max(1, len(given)))
        answer_ids = given or (int(logp[0].argmax()),)
        picked = logp[torch.arange(len(answer_ids)), list(answer_ids)]
        return cls(
            ids=reading.ids,
            words=reading.words(reading.ids),
            subject=span,
            answer=answer_ids,
            answer_text="".join(reading.words(answer_ids)),
            answer_position=position,
            probability=float(picked.sum().exp()),
            rank=int((logp[0] > logp[0, answer_ids[0]]).sum()),
            top="".join(reading.words([int(logp[0].argmax())])),
            pad_id=reading.encoder.pad_id if reading.encoder else 0,
            masks=reading.masks,
            frame=reading.frame(),
            given=reading.text,
            doubts=reading.doubts(subject),
        )

    @property
    def text(self) -> str:
        """The prompt as text, as it was given where it was."""
        return self.given or "".join(self.words)

    @property
    def corrupted(self) -> list[int]:
        """Positions that a corruption changes: the subject's, masks left out."""
        return [p for p in range(*self.subject) if p not in self.masks]

    @property
    def predicted(self) -> bool:
        """Whether the answer's first token is the model's top prediction."""
        return self.rank == 0

    def warn_unpredicted(self) -> str | None:
        """Warn of doubts, and where the answer is not what the model predicts; the latter warning's text, or None."""
        for doubt in self.doubts:
            warnings.warn(f"{doubt}.", stacklevel=4)
        if self.predicted:
            return None
        note = (
            f"the model does not predict the answer {self.answer_text!r}: its rank is {self.rank} (0 is the top), with "
            f"probability {self.probability:.3g}; the top prediction is {self.top!r}. A trace then follows an answer "
            "that is hardly there. Leave answer= out to trace the prediction."
        )
        warnings.warn(note, stacklevel=4)
        return note

    def pairs(self, sources: Int[Tensor, "n pos"], bases: Int[Tensor, "n pos"]) -> PromptPairs:
        """Prompt pairs of this question with the given tokens, the subject as a named span."""
        n = len(bases)
        pairs = PromptPairs.from_tokens(
            bases,
            sources,
            [[list(self.answer)]] * n,
            lengths=[len(self.ids)] * n,
            answer_positions=[self.answer_position] * n,
        )
        return replace(pairs, spans={"subject": torch.tensor([self.subject] * n)}, pad_id=self.pad_id)


def clean_run(view: ModelView, ids: Sequence[int], position: int, steps: int) -> Float[Tensor, "steps vocab"]:
    """Log probabilities of the untouched model at ``steps`` positions from ``position`` on."""
    at = torch.arange(position, position + steps, device=view.device)
    plain = replace(padded([list(ids)], view.device), reads=(torch.zeros_like(at), at))
    _ = trials_of(view, ids).padding  # whether the model is told what is padding
    with torch.no_grad():
        logits = run(view, plain).logits
    dtype = torch.float64 if view.dtype == torch.float64 else torch.float32
    return logits[0].to(dtype).log_softmax(-1).cpu()
