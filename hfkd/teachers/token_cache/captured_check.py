"""Compares captured log-probabilities with the training rows, before anything is stored.

N target tokens of a row.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from hfkd.data.text_collate import TokenCollator
from hfkd.teachers.token_cache.captured_rows import Aligned, CapturedRows, Position, aligned
from hfkd.utils.targets import Targets

logger = logging.getLogger(__name__)

ROUNDING = 1e-5  # by how much a log-probability in float32 may exceed 0
SUM = 1e-3  # by how much the sum of probabilities may exceed 1, in half precision
NORMALISED = 1e-6  # maximum remaining mass if probabilities were normalised over the captured tokens only
PROOF = 2000  # number of target tokens used to verify the alignment
NATS, ERRORS = 1.0, 4.0  # required gain of the other alignment, in nats and in standard errors


def target_places(row: Any) -> np.ndarray:
    """The positions [N] of a row that predict a target, the token after each."""
    return Targets.of(TokenCollator(0)([row])).position.numpy()


def check_captured(
    rows: Dataset,
    captured: CapturedRows,
    num_classes: int,
    k: int | None,
    alignment: Aligned | None = None,
    progress_bar: bool = False,
) -> tuple[int, Aligned]:
    """The number of log-probabilities that every target token has, up to `k`, and the alignment of entries with tokens.

    Raises ValueError for other rows or tokens, missing entries, ids outside of the vocabulary, and values that are not
    log-probabilities.
    """
    if len(captured) != len(rows):
        raise ValueError(
            f"there are {len(captured)} captured rows for {len(rows)} training rows: capture exactly the rows of "
            "tokenize_dataset, in their order"
        )
    found: set[Aligned] = set()
    counts, proof, mass = _Counts(k), _Proof(num_classes), _Mass(num_classes)
    for number in tqdm(range(len(rows)), desc="Checking log-probabilities", disable=not progress_bar):
        tokens, entries = captured[number]
        row = rows[number]
        if tokens != list(row["input_ids"]):
            raise ValueError(_other_tokens(rows, number, tokens))
        mine = aligned(len(tokens), entries, number, alignment)
        found.add(mine)
        if len(found) > 1:
            raise ValueError(
                f"captured row {number} has entries for the token {'at' if mine == 'token' else 'after'} their "
                "position, unlike the rows before it: the first entry must be empty in all rows, or in none"
            )
        for place in target_places(row):
            at = place + (mine == "token")
            position = entries[at] if at < len(entries) else (np.zeros(0), np.zeros(0))
            mass.look(_check_values(position, num_classes, f"captured row {number}, token {place + 1}"), position)
            counts.look(len(position[0]), number, place + 1)
            proof.look(tokens[place + 1], position, entries, at + (1 if mine == "next" else -1))
    proof.conclude(next(iter(found), "token"), given=alignment is not None)
    mass.conclude()
    return counts.conclude() or num_classes, next(iter(found), "token")


def _check_values(position: Position, num_classes: int, where: str) -> float:
    """Return the sum of the probabilities. Raises ValueError for invalid values."""
    ids, values = position
    if not len(ids):
        raise ValueError(f"{where} is a target but has no log-probability: capture it, or mask its label (-100)")
    outside = ids[(ids < 0) | (ids >= num_classes)]
    if len(outside):
        raise ValueError(
            f"{where} has the token id {outside[0]}, outside of the vocabulary of {num_classes}: check that it is "
            "the student's tokenizer, and that num_classes is not too small"
        )
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"{where} has a token id twice ({sorted(ids.tolist())[:8]}, ...): each may occur once")
    if values[0] > ROUNDING:
        raise ValueError(
            f"{where} has the log-probability {values[0]:g}, but log-probabilities are at most 0: for logits take "
            "log_softmax over the whole vocabulary, for probabilities the logarithm"
        )
    total = float(np.exp(values).sum())
    if total > 1 + SUM:
        raise ValueError(
            f"{where} has probabilities that sum to {total:g}: pass the natural logarithms of a single softmax"
        )
    return total


def _other_tokens(rows: Dataset, number: int, tokens: Sequence[int]) -> str:
    mine = list(rows[number]["input_ids"])
    other = next((n for n in range(len(rows)) if list(rows[n]["input_ids"]) == list(tokens)), None)
    if other is not None:
        return (
            f"captured row {number} has the tokens of training row {other}: the captured rows are in another "
            "order; sort them like the training rows (by their column index)"
        )
    if len(mine) != len(tokens) and mine[: len(tokens)] == list(tokens)[: len(mine)]:
        return (
            f"captured row {number} has {len(tokens)} tokens and the training row {len(mine)}, with the same "
            "beginning: it was truncated or padded differently; capture the rows as returned by tokenize_dataset"
        )
    place = next((i for i, (a, b) in enumerate(zip(tokens, mine, strict=False)) if a != b), 0)
    return (
        f"captured row {number} has other tokens than the training row: {list(tokens)[place : place + 5]} instead "
        f"of {mine[place : place + 5]} from token {place} on; it was tokenised with another tokenizer or "
        "template: capture the input_ids of tokenize_dataset"
    )


class _Counts:
    """Counts log-probabilities per token: a cache stores the same number for each."""

    def __init__(self, k: int | None) -> None:
        self.k, self.most = k, 0
        self.fewest: tuple[int, int, int] | None = None  # count, row, token

    def look(self, count: int, row: int, token: int) -> None:
        self.most = max(self.most, count)
        self.fewest = (count, row, token) if self.fewest is None else min(self.fewest, (count, row, token))

    def conclude(self) -> int | None:
        """The number to store; None without tokens. Raises ValueError if a token has fewer than k."""
        if self.fewest is None:
            return self.k
        count, row, token = self.fewest
        if self.k is not None and count < self.k:
            raise ValueError(
                f"k={self.k}, but captured row {row}, token {token} has {count} log-probabilities: capture more, "
                f"or pass k={count}"
            )
        if self.k is None and self.most > count + 1:  # one more is common: vLLM adds the token itself
            logger.warning(
                "Captured row %d, token %d has %d log-probabilities, others have up to %d: %d are stored for "
                "every token.",
                row, token, count, self.most, count,
            )  # fmt: skip
        return self.k or count


class _Mass:
    """Checks whether the captured probabilities leave some mass for the other tokens."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.left: float | None = None  # the largest remaining mass

    def look(self, total: float, position: Position) -> None:
        if len(position[0]) < self.num_classes:
            self.left = 1 - total if self.left is None else max(1 - total, self.left)

    def conclude(self) -> None:
        if self.left is not None and self.left < NORMALISED:
            logger.warning(
                "The probabilities of every captured entry sum to 1: they were normalised over the captured "
                "tokens only, so that all other tokens have probability 0. Capture log-probabilities of the "
                "softmax over the whole vocabulary."
            )


class _Proof:
    """Checks the alignment: whether tokens are more probable under entries shifted by one position."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.pairs: list[tuple[float, float]] = []

    def look(self, token: int, position: Position, entries: Sequence[Position], other: int) -> None:
        if len(self.pairs) >= PROOF or not 0 <= other < len(entries) or not len(entries[other][0]):
            return
        self.pairs.append((self._log_probability(token, position), self._log_probability(token, entries[other])))

    def _log_probability(self, token: int, position: Position) -> float:
        ids, values = position
        if (there := values[ids == token]).size:
            return float(there[0])
        rest = max(1 - float(np.exp(values).sum()), 1e-9)
        return float(np.log(rest / max(self.num_classes - len(ids), 1)))

    def conclude(self, mine: Aligned, given: bool) -> None:
        """Raise ValueError for a wrong alignment; warn if the user set it (`given`): a teacher may repeat its input."""
        if len(self.pairs) < 2:
            return
        here, there = np.mean(self.pairs, 0)
        gaps = np.diff(self.pairs)
        if there - here > max(NATS, ERRORS * float(gaps.std()) / len(gaps) ** 0.5):
            words = ("the token at their position", "the token after it")
            believed, likelier = words if mine == "token" else words[::-1]
            said = (
                f"the captured entries were assumed to be for {believed}, with a mean log-probability of "
                f"{here:.2f}, but as entries for {likelier} it is {there:.2f}: pass "
                f"alignment={'next' if mine == 'token' else 'token'!r} if that is right, else alignment={mine!r}"
            )
            if not given:
                raise ValueError(said)
            logger.warning("%s", said)
