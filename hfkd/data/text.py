"""(prompt, response) texts -> token ids, with masked prompts and an end-of-sequence token.

L tokens in a row, prompt and response together. Rows are padded by the collator (`text_collate.py`).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.chat_answers import Answers
from hfkd.data.instructions import UNFINISHED, to_prompt_response
from hfkd.data.teacher_columns import (
    ROW_TEACHER,
    TEACHER,
    TEACHER_IDS,
    TEACHER_LABELS,
    TEACHER_LENGTH,
    TEACHER_PROMPT,
)
from hfkd.utils import formats
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

LongPrompts = Literal["drop", "cut"]
Tokenization = Literal["joint", "separate"]

AT_ONCE = 1000  # rows of which Python objects are made at a time


def tokenize_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 512,
    max_prompt_length: int = 256,
    long_prompts: LongPrompts = "drop",
    tokenization: Tokenization = "joint",
    chat_template: bool = False,
    add_special_tokens: bool = True,
    teacher_max_length: int | None = None,
    answers: Answers = "last",
) -> Dataset:
    """Instruction, chat or plain text data -> `input_ids`, `labels` (both [L]), `prompt_length`, `length` and `index`.

    The defaults are MiniLLM's: prompt and response are tokenised as one text, and rows with a longer prompt dropped.
    DSKD is `long_prompts="cut", tokenization="separate"`: both are tokenised separately, and a long prompt is truncated
    to its first tokens, which is warned of. On Dolly with GPT-2 the two tokenisations agree for every row.

    `labels` are the ids with -100 for the prompt, unshifted. A row longer than `max_length` loses the end of its
    response with the end-of-sequence token, so that the student does not learn to stop there; nor does a row get one
    that is True in a column `unfinished` (of `hfkd generate --keep_unfinished`). An empty response is kept: its only
    target is the end of the sequence. A row of one token has no target and is dropped, as is a blank `text`, with which
    the end would be the only target after BOS. These rows are counted in a log line. `index` is the row's number in the
    returned dataset, and is kept by shuffling and selecting. `length` is for
    `train_sampling_strategy="group_by_length"`. Prompts get the tokenizer's special tokens (such as BOS), unless they
    come from a chat template, here or earlier (`add_special_tokens=False`). `datasets` caches the result by data,
    tokenizer and arguments.

    Rows with a `teacher_prompt` (see `to_prompt_response`) also get `teacher_input_ids`, `teacher_labels` and
    `teacher_length`: that prompt, never cut, and the same tokens of the response. Those longer than
    `teacher_max_length` are dropped. Of a chat the last answer is the response; with `answers="each"` each one, in a
    row of its own. Raises ValueError for columns that are not accepted, unknown names, impossible lengths, or if no row
    is left.
    """
    check_tokenising(dataset, tokenizer, max_length, max_prompt_length, long_prompts, tokenization)
    pairs = to_prompt_response(dataset, tokenizer, chat_template, answers)
    tokens = pairs.map(
        _tokenize_batch,
        batched=True,
        remove_columns=pairs.column_names,
        fn_kwargs={
            "tokenizer": tokenizer,
            "max_length": max_length,
            "max_prompt_length": max_prompt_length,
            "long_prompts": long_prompts,
            "tokenization": tokenization,
            "add_special_tokens": add_special_tokens and not chat_template,
            "teacher_max_length": teacher_max_length,
            "revision": formats.TOKENS,
        },
        desc="Tokenising",
    )
    if len(tokens) == 0:
        of_teacher = "" if teacher_max_length is None else f", or teacher_max_length={teacher_max_length}"
        raise ValueError(
            f"none of the {len(pairs)} rows is left, because each is a single token, is blank, or has a prompt of "
            f"more than {max_prompt_length} tokens: increase max_prompt_length{of_teacher}, or set long_prompts='cut'"
        )
    _log_counts(pairs, tokens, tokenizer.eos_token_id, max_length)
    if prompts := int(np.sum(tokens["cut"][:])):
        logger.warning(
            "%d prompts were truncated to their first %d tokens, so that their responses follow an unfinished prompt.",
            prompts,
            max_prompt_length,
        )
    tokens = tokens.remove_columns("cut")
    return tokens.add_column("index", np.arange(len(tokens)))


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool = True
) -> list[list[int]]:
    """Ids as in training and generation: special tokens are added once, and no end of sequence is added."""
    encoded: list[list[int]] = []
    for start in range(0, len(texts), AT_ONCE):  # a tokenizer's own objects take 120 bytes a token
        some = list(texts[start : start + AT_ONCE])
        encoded += tokenizer(some, add_special_tokens=add_special_tokens)["input_ids"]
    if not add_special_tokens:
        return encoded
    return [_as_written(ids, text, tokenizer) for ids, text in zip(encoded, texts, strict=True)]


def _as_written(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids without a second BOS if the text contains one, and without an end of sequence that is not in the text.

    A single token that is both BOS and EOS (OPT) is kept.
    """
    start, end = tokenizer.bos_token, tokenizer.eos_token_id
    if start and ids[:2] == [tokenizer.bos_token_id] * 2 and text.lstrip().startswith(str(start)):
        ids = ids[1:]  # the tokenizer has added its BOS before that of a template
    added_end = end is not None and len(ids) > 1 and ids[-1] == end and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if added_end else ids


def check_tokenising(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_prompt_length: int,
    long_prompts: str,
    tokenization: str,
) -> None:
    """Raise ValueError for invalid arguments of `tokenize_dataset`."""
    for name, value, choices in (
        ("long_prompts", long_prompts, get_args(LongPrompts)),
        ("tokenization", tokenization, get_args(Tokenization)),
    ):
        if value not in choices:
            raise ValueError(f"unknown {name} {value!r}: pass one of {list(choices)}")
    if not 0 < max_prompt_length < max_length:
        raise ValueError(
            f"max_prompt_length={max_prompt_length} and max_length={max_length}: the prompt must have at least 1 token "
            "and leave room for a response within max_length"
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"the dataset is of type {type(dataset).__name__}: pass one split as a datasets.Dataset; for a stream, "
            "datasets.Dataset.from_generator(lambda: stream)"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, which is appended to every response: set one")
    if len(dataset) == 0:
        raise ValueError("the dataset is empty: pass one with texts")


def _tokenize_batch(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_prompt_length: int,
    long_prompts: str,
    tokenization: str,
    add_special_tokens: bool,
    teacher_max_length: int | None,
    revision: int,  # only used in the cache's hash
) -> dict[str, list]:
    rows: list[dict[str, Any]] = []
    encoded = encode_rows(batch, tokenizer, tokenization, add_special_tokens)
    read = encode_texts(batch[TEACHER_PROMPT], tokenizer, add_special_tokens) if TEACHER_PROMPT in batch else None
    marks = zip(are_blank(batch), are_unfinished(batch), strict=True)
    for number, ((prompt, response), (blank, unfinished)) in enumerate(zip(encoded, marks, strict=True)):
        if blank or (len(prompt) > max_prompt_length and long_prompts == "drop"):
            continue
        cut = len(prompt) > max_prompt_length
        prompt = prompt[:max_prompt_length]
        response = (response[:-1] if unfinished else response)[: max_length - len(prompt)]
        if len(prompt) + len(response) < 2:
            continue
        row = _row(prompt, response) | {"prompt_length": len(prompt), "cut": cut}
        if ROW_TEACHER in batch:
            row[ROW_TEACHER] = batch[ROW_TEACHER][number]
        if read is not None:
            first = int(not prompt)  # tokens of the response that the student reads first, and does not predict
            its = _row([*read[number], *response[:first]], response[first:])
            if teacher_max_length is not None and its["length"] > teacher_max_length:
                continue
            row |= {TEACHER + name: value for name, value in its.items()}
        rows.append(row)
    names = ("input_ids", "labels", "prompt_length", "length", "cut")
    of_teacher = () if read is None else (TEACHER_IDS, TEACHER_LABELS, TEACHER_LENGTH)
    chosen = (ROW_TEACHER,) if ROW_TEACHER in batch else ()
    return {name: [row[name] for row in rows] for name in (*names, *of_teacher, *chosen)}


def _row(prompt: list[int], response: list[int]) -> dict[str, Any]:
    ids = [*prompt, *response]
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + response, "length": len(ids)}


def are_blank(batch: dict[str, list[str]]) -> list[bool]:
    """Whether rows have neither a prompt nor a response with text, as the empty lines of a text file."""
    return [not prompt and not text.strip() for prompt, text in zip(batch["prompt"], batch["response"], strict=True)]


def are_unfinished(batch: Mapping[str, Sequence[Any]]) -> list[bool]:
    """Whether each row's response was cut off, and is to have no end of sequence."""
    return [bool(value) for value in batch.get(UNFINISHED) or [False] * len(batch["prompt"])]


def encode_rows(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, tokenization: str, add_special_tokens: bool = True
) -> list[tuple[list[int], list[int]]]:
    """The ids of each prompt, and of its response with an end of sequence."""
    eos, rows = tokenizer.eos_token_id, []
    prompts = encode_texts(batch["prompt"], tokenizer, add_special_tokens)
    responses = _encode_responses(batch, prompts, tokenizer, tokenization, add_special_tokens)
    for prompt, response in zip(prompts, responses, strict=True):
        if prompt == response[:1] == [tokenizer.bos_token_id]:  # the BOS of an empty prompt, and that of the text
            response = response[1:]
        end = [] if response[-1:] == [eos] else [eos]  # unless the text ends with it
        rows.append((prompt, [*response, *end]))
    return rows


def _encode_responses(
    batch: dict[str, list[str]],
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    tokenization: str,
    add_special_tokens: bool,
) -> list[list[int]]:
    """The ids of responses without an end of sequence.

    Joint: the ids of the whole text after those of the prompt. If a token spans the border (with GPT-2, for a response
    that starts with a line break), the whole does not start with the ids of the prompt, and a cut would lose or repeat
    text. Such a row is tokenised separately, so that the model is trained on the same prompt ids as in generation.
    """
    texts = batch["response"]
    if tokenization == "separate":
        return encode_texts(texts, tokenizer, add_special_tokens=False)
    whole = encode_texts([p + r for p, r in zip(batch["prompt"], texts, strict=True)], tokenizer, add_special_tokens)
    responses = [ids[len(prompt) :] for ids, prompt in zip(whole, prompts, strict=True)]
    merged = [row for row, prompt in enumerate(prompts) if whole[row][: len(prompt)] != prompt]
    for row, ids in zip(merged, encode_texts([texts[row] for row in merged], tokenizer, False), strict=True):
        responses[row] = ids
    return responses


def _log_counts(pairs: Dataset, tokens: Dataset, eos: int, max_length: int) -> None:
    full = np.flatnonzero(np.asarray(tokens["length"][:]) == max_length)
    labels = tokens.select(full).select_columns("labels").with_format("numpy")
    cut = sum(int((np.stack(part["labels"])[:, -1] != eos).sum()) for part in labels.iter(AT_ONCE))
    empty = sum(
        not response and not blank
        for part in pairs.select_columns(["prompt", "response"]).iter(AT_ONCE)
        for response, blank in zip(part["response"], are_blank(part), strict=True)
    )
    logger.info(
        "%d rows tokenised: %d dropped (prompt or the teacher's row too long, a single token, or blank), %d with a "
        "response truncated at %d tokens and therefore without end of sequence, %d empty responses (their only target "
        "is the end of sequence).",
        len(tokens),
        len(pairs) - len(tokens),
        cut,
        max_length,
        empty,
    )
