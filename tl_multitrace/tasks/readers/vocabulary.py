"""From the token ids that some files hold as answers to the text of those tokens."""

from __future__ import annotations

from dataclasses import dataclass

from tl_multitrace.tasks.readers.records import Record
from tl_multitrace.tokens import Encoder


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer, as readers need it.

    Attributes:
        encoder: the tokenizer; None where a file is read without a model.

    Examples:
        >>> from tl_multitrace.tasks.readers import Record, Vocabulary
        >>> record = Record("mine.json", line=1, fields={"answer": 17})
        >>> try:
        ...     Vocabulary().text(record, "answer", "The nurse said that", 17)
        ... except ValueError as error:
        ...     print(str(error).partition(", found")[0])
        mine.json, line 1: expected answers as text in 'answer'
    """

    encoder: Encoder | None = None

    def text(self, record: Record, name: str, prompt: str, token: int) -> str:
        """The text that a token adds to a prompt.

        Args:
            record: that the token stands in.
            name: of its column.
            prompt: before it.
            token: id of the token.

        Raises:
            ValueError: no tokenizer, an id outside it, or one that is not how the tokenizer continues the prompt: the
                file was made for another tokenizer.
        """
        if self.encoder is None:
            raise record.wrong(
                f"answers as text in {name!r}",
                "token ids of one tokenizer. Read the file with task_from_file(path, model)",
            )
        if not 0 <= token < len(self.encoder.tokenizer):
            raise self._foreign(record, name, token, "which this tokenizer does not have")
        before = self.encoder.prompt(prompt)[-1]
        added = self.encoder.words([before, token])[1]
        try:
            same = self.encoder.answer(prompt, added) == [token]
        except ValueError:
            same = False
        if not same:
            raise self._foreign(record, name, token, f"{added!r} here, which does not continue {prompt[-40:]!r}")
        return added

    def _foreign(self, record: Record, name: str, token: int, why: str) -> ValueError:
        return record.wrong(
            f"a token id of this model's tokenizer in {name!r}",
            f"{token}, {why}: the file was made for another tokenizer",
        )
