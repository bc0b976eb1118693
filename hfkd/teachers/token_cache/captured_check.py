"""Captured log-probabilities held against the rows that are to be trained on, before anything is stored.

N target tokens of a row.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from hfkd.data.text_collate import TokenCollator
from hfkd.teachers.token_cache.captured_rows import Aligned, CapturedRows, Position, aligned
from hfkd.utils.targets import Targets

logger = logging.getLogger(__name__)

ROUNDING = 1e-5  # by which a log-probability in float32 may be above 0
SUM = 1e-3  # by which the sum of a row's probabilities may be above 1, in half precision
NORMALISED = 1e-6  # the most that the probabilities of every token leave, where they were normalised over themselves
PROOF = 2000  # target tokens that tell which token an entry is of
NATS, ERRORS = 1.0, 4.0  # by which the tokens must be likelier one place off, on the mean and in standard errors


def target_places(row: Any) -> np.ndarray:
    """The positions [N] of a row that predict a target: the token behind each."""
    return Targets.of(TokenCollator(0)([row])).position.numpy()


def check_captured(
    rows: Dataset, captured: CapturedRows, num_classes: int, k: int | None, alignment: Aligned | None = None
) -> tuple[int, Aligned]:
    """How many log-probabilities every target token has, up to `k`, and how entries are aligned with tokens.

    Raises ValueError for other rows or tokens, entries that are missing, ids outside of the vocabulary, and values that
    are no log-probabilities.
    """
    if len(captured) != len(rows):
        raise ValueError(
            f"{len(captured)} captured rows for {len(rows)} rows to train on: capture those that tokenize_dataset "
            "gives, one for each and in their order"
        )
    found: set[Aligned] = set()
    counts, proof, mass = _Counts(k), _Proof(num_classes), _Mass(num_classes)
    for number in range(len(rows)):
        tokens, entries = captured[number]
        row = rows[number]
        if tokens != list(row["input_ids"]):
            raise ValueError(_other_tokens(rows, number, tokens))
        mine = aligned(len(tokens), entries, number, alignment)
        found.add(mine)
        if len(found) > 1:
            raise ValueError(
                f"captured row {number} has entries of the token {'at' if mine == 'token' else 'behind'} their place, "
                "and rows before it have not: the first entry must be empty in every row, or in none"
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
    """The sum of the probabilities. ValueError where they are none."""
    ids, values = position
    if not len(ids):
        raise ValueError(f"{where} has no log-probability, and is to be learned: capture it, or mask its label (-100)")
    outside = ids[(ids < 0) | (ids >= num_classes)]
    if len(outside):
        raise ValueError(
            f"{where} names the token {outside[0]}, outside of the vocabulary of {num_classes}: it is another "
            "tokenizer's, or num_classes is too small"
        )
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"{where} names a token twice ({sorted(ids.tolist())[:8]}, ...): each counts once")
    if values[0] > ROUNDING:
        raise ValueError(
            f"{where} has the log-probability {values[0]:g}, and none is above 0: these are logits or probabilities; "
            "take log_softmax over the whole vocabulary, or the logarithm"
        )
    total = float(np.exp(values).sum())
    if total > 1 + SUM:
        raise ValueError(f"{where}: its probabilities sum to {total:g}: they are not of one natural-log softmax")
    return total


def _other_tokens(rows: Dataset, number: int, tokens: Sequence[int]) -> str:
    mine = list(rows[number]["input_ids"])
    other = next((n for n in range(len(rows)) if list(rows[n]["input_ids"]) == list(tokens)), None)
    if other is not None:
        return (
            f"captured row {number} has the tokens of row {other}: the captured rows are in another order; sort them "
            "as the rows to train on are (their column index)"
        )
    if len(mine) != len(tokens) and mine[: len(tokens)] == list(tokens)[: len(mine)]:
        return (
            f"captured row {number} has {len(tokens)} tokens and the row to train on {len(mine)}, of which the first "
            "are the same: it was cut or padded otherwise; capture the rows as tokenize_dataset gives them"
        )
    place = next((i for i, (a, b) in enumerate(zip(tokens, mine, strict=False)) if a != b), 0)
    return (
        f"captured row {number} has other tokens than the row to train on: {list(tokens)[place : place + 5]} and "
        f"{mine[place : place + 5]} from token {place} on; another tokenizer or template read it: capture the "
        "input_ids that tokenize_dataset gives"
    )


class _Counts:
    """How many log-probabilities tokens have: a store keeps as many of each."""

    def __init__(self, k: int | None) -> None:
        self.k, self.most = k, 0
        self.fewest: tuple[int, int, int] | None = None  # count, row, token

    def look(self, count: int, row: int, token: int) -> None:
        self.most = max(self.most, count)
        self.fewest = (count, row, token) if self.fewest is None else min(self.fewest, (count, row, token))

    def conclude(self) -> int | None:
        """How many are kept; None: there is no token. ValueError where some have fewer than are asked for."""
        if self.fewest is None:
            return self.k
        count, row, token = self.fewest
        if self.k is not None and count < self.k:
            raise ValueError(
                f"k={self.k}, and captured row {row}, token {token} has {count} log-probabilities: capture more, or "
                f"give k={count}, which keeps as many of every token"
            )
        if self.k is None and self.most > count + 1:  # one more is usual: vLLM adds the token itself
            logger.warning(
                "Captured row %d, token %d has %d log-probabilities, and others up to %d: of every token %d are kept.",
                row, token, count, self.most, count,
            )  # fmt: skip
        return self.k or count


class _Mass:
    """Whether the probabilities of every token leave nothing for the tokens that are not named."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.left: float | None = None  # the most that a token's leave

    def look(self, total: float, position: Position) -> None:
        if len(position[0]) < self.num_classes:
            self.left = 1 - total if self.left is None else max(1 - total, self.left)

    def conclude(self) -> None:
        if self.left is not None and self.left < NORMALISED:
            logger.warning(
                "The log-probabilities of every captured token sum to 1: they were normalised over those alone, and "
                "all other tokens count as impossible. Capture those of the whole vocabulary's softmax."
            )


class _Proof:
    """Whether the tokens that follow are likelier by the entries one place off: then entries are of other tokens."""

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
        """Raise ValueError; a warning where the user has said it (`given`): a teacher may just repeat what it reads."""
        if len(self.pairs) < 2:
            return
        here, there = np.mean(self.pairs, 0)
        gaps = np.diff(self.pairs)
        if there - here > max(NATS, ERRORS * float(gaps.std()) / len(gaps) ** 0.5):
            words = ("the token at their place", "the token behind it")
            believed, likelier = words if mine == "token" else words[::-1]
            said = (
                f"the captured entries were taken to be of {believed}, and the rows' tokens have a mean "
                f"log-probability of {here:.2f} there and of {there:.2f} as {likelier}: if that is what they are, give "
                f"alignment={'next' if mine == 'token' else 'token'!r}, else alignment={mine!r}"
            )
            if not given:
                raise ValueError(said)
            logger.warning("%s", said)
