"""Log-probabilities that other programs wrote, row by row: their columns, and which token an entry is of.

L tokens of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset

# Columns of log-probabilities, and of the token ids beside them where entries do not name their own.
VALUES = ("prompt_logprobs", "target_logprobs", "logprobs", "top_logprobs")
IDS = ("target_token_ids", "token_ids", "top_token_ids")
PACKED = ("compressed_logprobs", "packed_indices", "bytepacked_indices")  # DistillKit's, by its own compressor
Aligned = Literal["token", "next"]
Position = tuple[np.ndarray, np.ndarray]  # ids and log-probabilities, the likeliest first


@dataclass(frozen=True)
class CapturedRows:
    """`rows[n]` -> tokens and, for each entry, (ids, log-probabilities); empty arrays where there is nothing."""

    dataset: Dataset
    values: str
    ids: str | None

    @classmethod
    def of(cls, dataset: Dataset, columns: Sequence[str] | None = None) -> "CapturedRows":
        """The columns by the names that they are known by, or by those given: one, or two (values, ids)."""
        there = dataset.column_names
        missing = [name for name in ("input_ids", *(columns or ())) if name not in there]
        if missing:
            raise ValueError(
                f"the captured rows have no {missing[0]!r}: they have {there}; each needs the tokens that the teacher "
                "read as input_ids, and log-probabilities of them"
            )
        if columns is not None:
            return cls(dataset, columns[0], columns[1] if len(columns) > 1 else None)
        values = next((name for name in VALUES if name in there), None)
        ids = next((name for name in IDS if name in there), None)
        if values is None:
            packed = next((name for name in PACKED if name in there), None)
            remedy = (
                f"{packed} is DistillKit's packed form: unpack it with its LogprobCompressor.decompress_to_sparse into "
                "target_logprobs and target_token_ids"
                if packed
                else f"name columns=(log-probabilities, token ids), or rename them to {VALUES[1]} and {IDS[0]}"
            )
            raise ValueError(f"the captured rows have the columns {there}, none of {', '.join(VALUES)}: {remedy}")
        return cls(dataset, values, ids)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[list[int], list[Position]]:
        row = self.dataset[number]
        entries = row[self.values] or []
        beside = row[self.ids] if self.ids else [None] * len(entries)
        if len(beside) != len(entries):
            raise ValueError(
                f"captured row {number} has {len(entries)} entries of {self.values} and {len(beside)} of {self.ids}: "
                "they belong together one by one"
            )
        found = [self._position(number, place, one, ids) for place, (one, ids) in enumerate(zip(entries, beside))]  # noqa: B905 - compared above
        return list(row["input_ids"]), found

    def _position(self, number: int, place: int, entry: Any, ids: Any) -> Position:
        where = f"captured row {number}, entry {place}"
        pairs = list(_pairs(entry, ids, where))
        tokens = np.array([token for token, _ in pairs], dtype=np.int64)
        values = np.array([value for _, value in pairs], dtype=np.float64)
        if np.isnan(values).any():
            raise ValueError(f"{where} has a log-probability that is NaN: capture it again")
        kept = values > -np.inf  # padding, or a token that was forbidden
        order = np.argsort(-values[kept], kind="stable")
        return tokens[kept][order], values[kept][order]


def _pairs(entry: Any, ids: Any, where: str) -> Iterator[tuple[int, float]]:
    """(token id, log-probability) of one entry: numbers with ids beside them, or entries that name their tokens."""
    if entry is None:
        return
    if isinstance(entry, Mapping):  # vLLM's {token id: Logprob}, as JSON has it; a table gives every key to each
        entry = [(token, one) for token, one in entry.items() if one is not None]
    named = bool(len(entry)) and isinstance(entry[0], (Mapping, tuple, list))
    if not named and (ids is None or len(ids) != len(entry)):
        count = "none" if ids is None else len(ids)
        raise ValueError(f"{where} has {len(entry)} log-probabilities and {count} token ids: give one each")
    for one, token in zip(entry, [None] * len(entry) if named else ids, strict=True):
        yield _pair(*(_named(one) if named else (token, one)), where)


def _named(one: Any) -> tuple[Any, Any]:
    """The token and the log-probability of what names both."""
    if isinstance(one, Mapping):
        return one.get("token_id", one.get("token")), one.get("logprob")
    token, value = one
    return token, value.get("logprob") if isinstance(value, Mapping) else value


def _pair(token: Any, value: Any, where: str) -> tuple[int, float]:
    try:
        number = int(str(token).removeprefix("token_id:"))
    except ValueError:
        raise ValueError(
            f"{where} names the token {token!r}: a token's number is needed, as token_id, or as 'token_id:123' (vLLM's "
            "server gives it with return_tokens_as_token_ids)"
        ) from None
    try:
        return number, float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{where} has the log-probability {value!r} for token {number}, and no number: JSON lines are read with "
            "null for NaN, and for -inf in entries with names; leave a token out that was forbidden, and capture a NaN "
            "again"
        ) from None


def aligned(length: int, entries: Sequence[Position], number: int, known: Aligned | None = None) -> Aligned:
    """Whether entry i is of token i, whose first is empty (vLLM, axolotl), or of token i + 1 (logits, DistillKit)."""
    if known not in (None, "token", "next"):
        raise ValueError(f"alignment={known!r}: pass 'token', 'next' or None")
    if len(entries) == length:
        return known or ("next" if length and len(entries[0][0]) else "token")
    if len(entries) == length - 1 and known != "token":
        return "next"
    raise ValueError(
        f"captured row {number} has {length} tokens and {len(entries)} entries of log-probabilities: give an entry for "
        "each token, empty (null) where there is none, as vLLM's prompt_logprobs; those of a response alone need such "
        "empty ones for the prompt"
    )
