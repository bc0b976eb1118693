"""Checks of rows of two tokenizers: their columns, and the text of their tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from hfkd.data.teacher_columns import TEACHER, TEACHER_IDS, TEACHER_LABELS
from hfkd.data.token_rows import PACKING, TokenRow

COLUMNS = (TEACHER_IDS, TEACHER_LABELS, "byte_ends", f"{TEACHER}byte_ends", "response_bytes")
SIDES = ("input_ids", "labels", "byte_ends"), (COLUMNS[0], COLUMNS[1], COLUMNS[3])
Spelled = tuple[Sequence[bytes | None], Sequence[bytes | None]]  # bytes of each token id of the student and the teacher
REMEDY = "tokenise the rows by hfkd.data.two_tokenizers.tokenize_for_both"


def check_row(number: int, row: Mapping[str, Any], unread: frozenset[str]) -> None:
    """Raise ValueError for a row without tokens, with some of the columns of two tokenizers only, or with packing.

    Also for a row with one of the columns `unread`, which a network would read but which are not in the batch.
    """
    if "input_ids" not in row:
        raise ValueError(
            f"the dataset's rows have no 'input_ids' but {sorted(row)}, and student and teacher have different "
            f"tokenizers: {REMEDY}; convert a stream by datasets.Dataset.from_generator first"
        )
    if COLUMNS[0] not in row and COLUMNS[2] not in row:  # the student's tokens only, as rows for evaluation may have
        return
    if missing := [name for name in ("labels", *COLUMNS) if row.get(name) is None]:
        raise ValueError(
            f"{_name(number, row)} has no {' and no '.join(missing)}, but other columns of two tokenizers: {REMEDY}, "
            "and keep all of its columns"
        )
    for side in SIDES:
        if len({len(row[name]) for name in side}) > 1:
            raise ValueError(
                f"{', '.join(side)} of {_name(number, row)} have the lengths "
                f"{', '.join(str(len(row[name])) for name in side)}, which must be equal: {REMEDY}, and do not change "
                "single columns"
            )
    packed = any(row.get(name) is not None for name in PACKING) and TokenRow.of(row).packed
    masked = row.get("attention_mask") is not None and not all(_list(row["attention_mask"]))
    if packed or masked:
        what = "holds several documents" if packed else "has an attention_mask with 0"
        raise ValueError(
            f"{_name(number, row)} {what}, which does not fit the teacher's tokens: leave "
            f"{' and '.join(PACKING) if packed else 'it'} out, and put each text into a separate row"
        )
    if media := sorted(name for name in unread & row.keys() if row[name] is not None):
        raise ValueError(
            f"{_name(number, row)} has {' and '.join(media)}, but batches of two tokenizers have text only: remove "
            "these columns, or use a student with the teacher's tokenizer"
        )


def check_spelling(number: int, row: Mapping[str, Any], spelled: Spelled) -> None:
    """Raise ValueError unless both sides of a row have the same text up to the last place where tokens of both end."""
    tokens, places = [_list(row[ids]) for ids, *_ in SIDES], [_list(row[ends]) for *_, ends in SIDES]
    last = max((end for end in {*places[0]} & {*places[1]} if end <= row["response_bytes"]), default=0)
    last, texts = max(int(last), 0), []
    for ids, ends, known in zip(tokens, places, spelled, strict=True):
        said = [token for token, end in zip(ids, ends, strict=True) if 0 <= end <= last]
        pieces = [known[token] if token < len(known) else None for token in said]
        texts.append(b"".join(piece or b"" for piece in pieces)[-last:] if last else b"")
    if texts[0] != texts[1]:
        mine, its = (text[:40].decode(errors="replace") for text in texts)
        raise ValueError(
            f"the response of {_name(number, row)} is {mine!r} in the student's tokens and {its!r} in the teacher's: "
            "the rows were made with other tokenizers than processing_class and teacher_processing_class: pass the "
            "same ones"
        )


def _list(values: Any) -> list[int]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _name(number: int, row: Mapping[str, Any]) -> str:
    return f"row {number} of a batch" if row.get("index") is None else f"row {int(row['index'])}"
