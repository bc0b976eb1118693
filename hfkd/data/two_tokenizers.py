"""(prompt, response) texts -> token ids of two tokenizers, and the byte of the response at which each token ends."""

import logging
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import to_prompt_response
from hfkd.data.teacher_columns import TEACHER, TEACHER_PROMPT
from hfkd.data.text import Tokenization, are_blank, are_unfinished, check_tokenising, encode_rows
from hfkd.data.token_bytes import token_bytes
from hfkd.utils import formats
from hfkd.utils.targets import IGNORED
from hfkd.utils.token_groups import PLACELESS, byte_ends

logger = logging.getLogger(__name__)


def tokenize_for_both(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 512,
    max_prompt_length: int = 256,
    teacher_max_length: int | None = None,
    tokenization: Tokenization = "joint",
    add_special_tokens: bool = True,
) -> Dataset:
    """`tokenize_dataset` for a student and a teacher with different tokenizers, for the objectives uld and gold.

    The columns are those of `tokenize_dataset` and the teacher's: `teacher_input_ids`, `teacher_labels`; `byte_ends`
    and `teacher_byte_ends`, the byte of the response (in UTF-8) at which each token ends (-1 for prompt tokens, and
    from where a tokenizer writes a different text); `response_bytes`, the length of the response. The end of sequence
    is at `response_bytes` + 1. `teacher_max_length` defaults to `max_length`. Blank texts and rows whose prompt leaves
    no room on one side are dropped. If a response is truncated on one side, the remaining tokens of the other side are
    in no group, but are still trained on labels. All of this is counted in the log. Raises the ValueErrors of
    `tokenize_dataset`; also for tokenizers whose tokens cannot be mapped to bytes, and if in no row tokens of both
    sides end at the same byte. The teacher reads a `teacher_prompt` in place of the prompt, if the rows have one.
    """
    limits = max_length, teacher_max_length or max_length
    check_tokenising(dataset, tokenizer, max_length, max_prompt_length, "drop", tokenization)
    check_tokenising(dataset, teacher_tokenizer, limits[1], limits[1] - 1, "drop", tokenization)
    for one in (tokenizer, teacher_tokenizer):
        token_bytes(one)  # raises before anything is tokenised
    pairs = to_prompt_response(dataset)
    rows = pairs.map(
        _tokenize_batch,
        batched=True,
        remove_columns=pairs.column_names,
        fn_kwargs={
            "tokenizers": (tokenizer, teacher_tokenizer),
            "limits": limits,
            "prompts": (max_prompt_length, limits[1] - 1),
            "tokenization": tokenization,
            "add_special_tokens": add_special_tokens,
            "revision": formats.TOKENS_OF_TWO,
        },
        desc="Tokenising for student and teacher",
    )
    if len(rows) == 0:
        raise ValueError(
            f"none of the {len(pairs)} rows is left, because each has a prompt of more than {max_prompt_length} "
            f"tokens, or of more than {limits[1] - 1} teacher tokens: increase max_prompt_length, or "
            "teacher_max_length"
        )
    _log_counts(len(pairs), rows, limits)
    return rows.add_column("index", np.arange(len(rows)))


def _tokenize_batch(
    batch: dict[str, list[str]],
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    limits: tuple[int, int],
    prompts: tuple[int, int],
    tokenization: str,
    add_special_tokens: bool,
    revision: int,  # only used in the cache's hash
) -> dict[str, list[Any]]:
    texts = [response.encode() for response in batch["response"]]
    sides = []
    asked = batch["prompt"], batch.get(TEACHER_PROMPT, batch["prompt"])
    for tokenizer, prompts_of_one, limit, prompt in zip(tokenizers, asked, limits, prompts, strict=True):
        spelled = token_bytes(tokenizer)
        encoded = encode_rows(batch | {"prompt": prompts_of_one}, tokenizer, tokenization, add_special_tokens)
        whole = zip(encoded, texts, are_unfinished(batch), strict=True)
        sides.append([_side(*row, text, spelled, limit, prompt, cut) for row, text, cut in whole])
    rows: dict[str, list[Any]] = {}
    for mine, its, text, blank in zip(*sides, texts, are_blank(batch), strict=True):
        if mine is None or its is None or blank:
            continue
        both = mine | {TEACHER + name: its[name] for name in ("input_ids", "labels", "byte_ends", "length")}
        for name, value in (both | {"response_bytes": len(text)}).items():
            rows.setdefault(name, []).append(value)
    return rows or {name: [] for name in ("input_ids", "labels", "length")}


def _side(
    prompt: list[int],
    response: list[int],
    text: bytes,
    spelled: list[bytes | None],
    limit: int,
    longest_prompt: int,
    unfinished: bool,
) -> dict[str, Any] | None:
    """One network's row; None if its prompt is too long, or it is a single token."""
    if len(prompt) > longest_prompt or len(prompt) + len(response) < 2:
        return None
    *pieces, _ = response  # without the end of sequence
    ends = [*byte_ends([spelled[token] if token < len(spelled) else None for token in pieces], text), len(text) + 1]
    ids = [*prompt, *(pieces if unfinished else response)][:limit]
    count = len(ids) - len(prompt)
    return {
        "input_ids": ids,
        "labels": [IGNORED] * len(prompt) + response[:count],
        "prompt_length": len(prompt),
        "length": len(ids),
        "byte_ends": [PLACELESS] * len(prompt) + ends[:count],
    }


def _log_counts(given: int, rows: Dataset, limits: tuple[int, int]) -> None:
    """Log the numbers of unpaired tokens. Raises ValueError if no token is paired."""
    known, cut, other = 0, [0, 0], [0, 0]
    first, alone, total = None, [0, 0], [0, 0]
    names = ("byte_ends", "labels"), (f"{TEACHER}byte_ends", f"{TEACHER}labels")
    for number, row in enumerate(rows):
        sides = [
            [e for e, label in zip(row[ends], row[labels], strict=True) if label != IGNORED] for ends, labels in names
        ]
        common = set(sides[0]) & set(sides[1]) - {PLACELESS}
        known += any(end <= row["response_bytes"] for end in common)
        last = max((end for end in common if end <= row["response_bytes"]), default=-1)
        for side, ends in enumerate(sides):
            cut[side] += ends[-1] <= row["response_bytes"]
            alone[side] += sum(not 0 <= end <= last and end <= row["response_bytes"] for end in ends)
            total[side] += len(ends)
            if PLACELESS in ends:
                other[side] += 1
                first = number if first is None else first
    logger.info(
        "%d of %d rows tokenised for student and teacher; responses truncated: %d at the student's %d tokens, %d at "
        "the teacher's %d; %d of the student's %d response tokens and %d of the teacher's %d are after the last "
        "common token end, and in no group.",
        len(rows), given, cut[0], limits[0], cut[1], limits[1], alone[0], total[0], alone[1], total[1],
    )  # fmt: skip
    if first is not None:
        logger.warning(
            "In %d rows the student's tokens do not give the original text, and in %d rows the teacher's (the first "
            "is row %d): unknown words, or a tokenizer that changes the text. From there on these rows are not "
            "distilled, only trained on labels.",
            *other, first,
        )  # fmt: skip
    if not known:
        raise ValueError(
            f"in none of the {len(rows)} rows do tokens of student and teacher end at the same byte of the response, "
            "so that nothing can be aligned: check for empty responses, or a tokenizer that changes the text"
        )
