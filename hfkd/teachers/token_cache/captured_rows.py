"""Reads log-probabilities of other programs row by row: their columns, and the alignment of entries with tokens.

L tokens of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset

# Columns of log-probabilities, and of token ids for entries that do not contain them.
VALUES = ("prompt_logprobs", "target_logprobs", "logprobs", "top_logprobs")
IDS = ("target_token_ids", "token_ids", "top_token_ids")
PACKED = ("compressed_logprobs", "packed_indices", "bytepacked_indices")  # DistillKit's compressed columns
Aligned = Literal["token", "next"]
Position = tuple[np.ndarray, np.ndarray]  # ids and log-probabilities, the most probable first


@dataclass(frozen=True)
class CapturedRows:
    """`rows[n]` -> tokens and, for each entry, (ids, log-probabilities), or empty arrays."""

    dataset: Dataset
    values: str
    ids: str | None

    @classmethod
    def of(cls, dataset: Dataset, columns: Sequence[str] | None = None) -> "CapturedRows":
        """Find the columns by their usual names, or use those given: one, or two (values, ids)."""
        there = dataset.column_names
        missing = [name for name in ("input_ids", *(columns or ())) if name not in there]
        if missing:
            raise ValueError(
                f"the captured rows have no column {missing[0]!r}, only {there}: each row needs the teacher's "
                "input_ids and their log-probabilities"
            )
        if columns is not None:
            return cls(dataset, columns[0], columns[1] if len(columns) > 1 else None)
        values = next((name for name in VALUES if name in there), None)
        ids = next((name for name in IDS if name in there), None)
        if values is None:
            packed = next((name for name in PACKED if name in there), None)
            remedy = (
                f"{packed} is DistillKit's compressed format: decompress it with its "
                "LogprobCompressor.decompress_to_sparse into target_logprobs and target_token_ids"
                if packed
                else f"pass columns=(log-probabilities, token ids), or rename them to {VALUES[1]} and {IDS[0]}"
            )
            raise ValueError(f"the captured rows have the columns {there}, but none of {', '.join(VALUES)}: {remedy}")
        return cls(dataset, values, ids)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[list[int], list[Position]]:
        row = self.dataset[number]
        entries = row[self.values] or []
        beside = row[self.ids] if self.ids else [None] * len(entries)
        if len(beside) != len(entries):
            raise ValueError(
                f"captured row {number} has {len(entries)} entries of {self.values} and {len(beside)} of "
                f"{self.ids}: both need one entry per token"
            )
        found = [self._position(number, place, one, ids) for place, (one, ids) in enumerate(zip(entries, beside))]  # noqa: B905 - compared above
        return list(row["input_ids"]), found

    def _position(self, number: int, place: int, entry: Any, ids: Any) -> Position:
        where = f"captured row {number}, entry {place}"
        pairs = list(_pairs(entry, ids, where))
        tokens = np.array([token for token, _ in pairs], dtype=np.int64)
        values = np.array([value for _, value in pairs], dtype=np.float64)
        if np.isnan(values).any():
            raise ValueError(f"{where} has a NaN log-probability: capture it again")
        kept = values > -np.inf  # padding, or a suppressed token
        order = np.argsort(-values[kept], kind="stable")
        return tokens[kept][order], values[kept][order]


def _pairs(entry: Any, ids: Any, where: str) -> Iterator[tuple[int, float]]:
    """(token id, log-probability) pairs of an entry: numbers with separate ids, or elements that contain their ids."""
    if entry is None:
        return
    if isinstance(entry, Mapping):  # vLLM's {token id: Logprob} from JSON; in a table every row has all keys
        entry = [(token, one) for token, one in entry.items() if one is not None]
    named = bool(len(entry)) and isinstance(entry[0], (Mapping, tuple, list))
    if not named and (ids is None or len(ids) != len(entry)):
        count = "none" if ids is None else len(ids)
        raise ValueError(f"{where} has {len(entry)} log-probabilities and {count} token ids: pass one id for each")
    for one, token in zip(entry, [None] * len(entry) if named else ids, strict=True):
        yield _pair(*(_named(one) if named else (token, one)), where)


def _named(one: Any) -> tuple[Any, Any]:
    """Token and log-probability of an element that contains both."""
    if isinstance(one, Mapping):
        return one.get("token_id", one.get("token")), one.get("logprob")
    token, value = one
    return token, value.get("logprob") if isinstance(value, Mapping) else value


def _pair(token: Any, value: Any, where: str) -> tuple[int, float]:
    try:
        number = int(str(token).removeprefix("token_id:"))
    except ValueError:
        raise ValueError(
            f"{where} has the token {token!r} instead of a token id: pass it as token_id, or as 'token_id:123' "
            "(vLLM's server returns it with return_tokens_as_token_ids)"
        ) from None
    try:
        return number, float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{where} has {value!r} instead of a log-probability for token {number}: in JSON lines null may stand "
            "for NaN or -inf; leave suppressed tokens out, and capture NaN values again"
        ) from None


def aligned(length: int, entries: Sequence[Position], number: int, known: Aligned | None = None) -> Aligned:
    """Whether entry i is for token i, with an empty first entry (vLLM, axolotl), or for token i + 1 (DistillKit)."""
    if known not in (None, "token", "next"):
        raise ValueError(f"alignment={known!r}: pass 'token', 'next' or None")
    if len(entries) == length:
        return known or ("next" if length and len(entries[0][0]) else "token")
    if len(entries) == length - 1 and known != "token":
        return "next"
    raise ValueError(
        f"captured row {number} has {length} tokens and {len(entries)} entries of log-probabilities: pass an "
        "entry for each token, empty (null) if it has none, as in vLLM's prompt_logprobs; for responses only, "
        "add empty entries for the prompt"
    )
