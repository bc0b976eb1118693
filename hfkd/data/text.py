"""(prompt, response) texts -> token ids, prompt masked, end of sequence appended.

L tokens of a row, prompt and response together. Padding is the collator's (`text_collate.py`).
"""

import logging
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import to_prompt_response
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

LongPrompts = Literal["drop", "cut"]
Tokenization = Literal["joint", "separate"]

REVISION = 2  # see instructions.REVISION


def tokenize_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 512,
    max_prompt_length: int = 256,
    long_prompts: LongPrompts = "drop",
    tokenization: Tokenization = "joint",
    chat_template: bool = False,
) -> Dataset:
    """Instruction, chat or plain text data -> `input_ids`, `labels` (both [L]), `prompt_length`, `length` and `index`.

    The defaults are MiniLLM's: prompt and response tokenised as one text, rows with a longer prompt dropped. DSKD is
    `long_prompts="cut", tokenization="separate"`: each tokenised alone, a long prompt cut to its first tokens. On Dolly
    with GPT-2 the two tokenisations agree on every row.

    `labels` are the ids with -100 over the prompt, unshifted. A row longer than `max_length` loses the end of its
    response and with it the end-of-sequence token, so nobody learns to stop there. An empty response is kept: its only
    target is the end of the sequence. A row of one token has nothing to predict and is dropped. Each is counted in a
    log line. `index` is the row's number in the dataset returned; it stays with the row through shuffling and
    selecting. `length` is what `train_sampling_strategy="group_by_length"` reads. Prompts get the tokenizer's own
    special tokens (a BOS, say) unless a chat template wrote them, here or before. `datasets` caches it by data,
    tokenizer, arguments.
    Raises ValueError for columns that are not accepted, unknown names, impossible lengths, or when no row is left.
    """
    check_tokenising(dataset, tokenizer, max_length, max_prompt_length, long_prompts, tokenization)
    pairs = to_prompt_response(dataset, tokenizer, chat_template)
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
            "add_special_tokens": not chat_template,
            "revision": REVISION,
        },
        desc="Tokenising",
    )
    if len(tokens) == 0:
        raise ValueError(
            f"none of the {len(pairs)} rows is left: each is a single token, or has a prompt of more than "
            f"{max_prompt_length} tokens; raise max_prompt_length, or pass long_prompts='cut'"
        )
    _log_counts(pairs, tokens, tokenizer.eos_token_id, max_length)
    return tokens.add_column("index", np.arange(len(tokens)))


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool = True
) -> list[list[int]]:
    """Ids as training and generation both see them: the tokenizer's special tokens once, no end of sequence added."""
    if len(texts) == 0:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]
    if not add_special_tokens:
        return encoded
    return [_as_written(ids, text, tokenizer) for ids, text in zip(encoded, texts, strict=True)]


def _as_written(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids without a start that the text has written itself, and without an end of sequence that it has not.

    A lone BOS that is the EOS, as OPT's, stays.
    """
    start, end = tokenizer.bos_token, tokenizer.eos_token_id
    if start and ids[:2] == [tokenizer.bos_token_id] * 2 and text.lstrip().startswith(str(start)):
        ids = ids[1:]  # a template's, before which the tokenizer has put its own
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
    """Raise ValueError for settings of `tokenize_dataset` that make no rows."""
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
            f"the dataset is of type {type(dataset).__name__}: tokenised here is one split, a datasets.Dataset, whose "
            "rows can be counted; make one of a stream, datasets.Dataset.from_generator(lambda: stream)"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token: set one, for every response ends with it")
    if len(dataset) == 0:
        raise ValueError("the dataset is empty: there is no text to learn from")


def _tokenize_batch(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_prompt_length: int,
    long_prompts: str,
    tokenization: str,
    add_special_tokens: bool,
    revision: int,  # only there to be hashed
) -> dict[str, list]:
    rows: dict[str, list] = {"input_ids": [], "labels": [], "prompt_length": [], "length": []}
    for prompt, response in encode_rows(batch, tokenizer, tokenization, add_special_tokens):
        if len(prompt) > max_prompt_length and long_prompts == "drop":
            continue
        prompt = prompt[:max_prompt_length]
        ids = [*prompt, *response][:max_length]
        if len(ids) < 2:
            continue
        rows["input_ids"].append(ids)
        rows["labels"].append([IGNORED] * len(prompt) + ids[len(prompt) :])
        rows["prompt_length"].append(len(prompt))
        rows["length"].append(len(ids))
    return rows


def encode_rows(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, tokenization: str, add_special_tokens: bool = True
) -> list[tuple[list[int], list[int]]]:
    """The ids of each prompt, and of its response with the end of sequence."""
    eos, rows = tokenizer.eos_token_id, []
    prompts = encode_texts(batch["prompt"], tokenizer, add_special_tokens)
    responses = _encode_responses(batch, prompts, tokenizer, tokenization, add_special_tokens)
    for prompt, response in zip(prompts, responses, strict=True):
        if prompt == response[:1] == [tokenizer.bos_token_id]:  # an empty prompt's, and the one that the text has
            response = response[1:]
        end = [] if response[-1:] == [eos] else [eos]  # a text may bring its own
        rows.append((prompt, [*response, *end]))
    return rows


def _encode_responses(
    batch: dict[str, list[str]],
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    tokenization: str,
    add_special_tokens: bool,
) -> list[list[int]]:
    """Response ids without end of sequence.

    Joint: what follows the prompt's ids in the ids of the whole. Where a merge crosses the border (a response that
    starts with a line break, for GPT-2) the whole does not start with the prompt's ids, and cutting it would lose or
    repeat text: that row is tokenised separately, so the model trains on the prompt it will be asked with.
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
    cut = sum(labels[-1] != eos for labels in tokens.select(full)["labels"][:])
    empty = sum(not response for response in pairs["response"][:])
    logger.info(
        "%d rows tokenised: %d dropped (prompt too long, or a single token), %d with a response cut at %d tokens and "
        "so without end of sequence, %d empty responses (their target is the end of sequence alone).",
        len(tokens),
        len(pairs) - len(tokens),
        cut,
        max_length,
        empty,
    )
