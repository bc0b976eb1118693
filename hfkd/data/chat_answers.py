"""Chats with several answers -> a row for each answer."""

from collections.abc import Iterator
from typing import Any, Literal

from datasets import Dataset

from hfkd.data.teacher_columns import TEACHER_PROMPT
from hfkd.utils import formats

Answers = Literal["last", "each"]


def answers_as_rows(dataset: Dataset, column: str) -> Dataset:
    """A row for each of the assistant's turns in `column` (`messages`, or TRL's `completion`): the turns up to it.

    The turns before it are its prompt, so that each answer is a sample with a weight and a temperature of its own. What
    follows the last answer is left out, as is an answer without a turn before it. Other columns are repeated. Raises
    ValueError for a row without an answer, and for rows with a `teacher_prompt`, which is that of one answer.
    """
    if TEACHER_PROMPT in dataset.column_names:
        raise ValueError(
            f"answers='each' makes several rows of a chat, but {TEACHER_PROMPT} is what the teacher reads before one "
            "answer: make the rows yourself, each with the turns up to its answer, or set answers='last'"
        )
    return dataset.map(
        _rows_of_batch,
        batched=True,
        with_indices=True,
        features=dataset.features,
        fn_kwargs={"column": column, "revision": formats.ANSWERS},
        desc="A row for each answer",
    )


def _rows_of_batch(
    batch: dict[str, list[Any]],
    numbers: list[int],
    column: str,
    revision: int,  # only used in the cache's hash
) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {name: [] for name in batch}
    for place, number in enumerate(numbers):
        row = {name: values[place] for name, values in batch.items()}
        turns = row[column] or []
        found = [turns] if isinstance(turns, str) else list(_up_to_each(turns, first=int(column == "messages")))
        if not found:
            raise ValueError(
                f"row {number} has no turn of the assistant in {column} that follows another turn: remove the row, or "
                "add an answer"
            )
        for turns in found:
            for name, value in (row | {column: turns}).items():
                made[name].append(value)
    return made


def _up_to_each(turns: list[Any], first: int) -> Iterator[list[Any]]:
    """The turns up to each answer, from the turn number `first` on."""
    for place in range(first, len(turns)):
        if turns[place].get("role") == "assistant":
            yield turns[: place + 1]
