"""A row of the training set with a generated response in place of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hfkd.data.teacher_columns import TEACHER, TEACHER_PROMPT
from hfkd.utils.targets import IGNORED


@dataclass(frozen=True)
class WrittenRow:
    """index: of the row in the dataset. its: the prompt of a teacher that reads one of its own. All are token ids."""

    index: int
    prompt: list[int]
    response: list[int]
    its: list[int] | None = None

    def columns(self) -> dict[str, Any]:
        """The row as a collator takes it."""
        made = _columns(self.prompt, self.response) | {"index": self.index}
        its = {} if self.its is None else _columns(self.its, self.response)
        return made | {TEACHER + name: value for name, value in its.items()}

    def texts(self, text_of: Callable[[list[int]], Any]) -> dict[str, Any]:
        """The row as `log_completions` keeps it."""
        its = {} if self.its is None else {TEACHER_PROMPT: text_of(self.its)}
        return {"prompt": text_of(self.prompt), **its, "response": text_of(self.response)}


def _columns(prompt: list[int], response: list[int]) -> dict[str, Any]:
    return {"input_ids": [*prompt, *response], "labels": [IGNORED] * len(prompt) + response}
