"""The prompts of a batch, for generating responses to them.

B rows, L length.
"""

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import pad

from hfkd.data.teacher_columns import TEACHER_LABELS, TEACHER_LENGTH
from hfkd.utils.targets import IGNORED, HostTargets

LOOKED_AT = 1000  # rows whose labels are read to find the longest prompt, if no column has the lengths


def prompts_of(batch: Mapping[str, Any]) -> tuple[list[list[int]], list[int]]:
    """The tokens of each row before its response (all tokens if it has none), and the rows' `index`.

    Its response is its last run of labels: of a chat whose answers all have labels, the last answer, as in TRL.

    Raises ValueError for a row without a prompt, for packed rows, and for rows without an index.
    """
    known: HostTargets | None = batch.get("host_targets")
    if known is not None and known.packed:
        raise ValueError(
            "on_policy and seq_kd generate one response to the prompt of each row, but these rows pack several "
            "documents: leave packing out"
        )
    index = batch.get("index")
    if index is None:
        raise ValueError(
            "on_policy and seq_kd seed each response by the index of its row, but the batch has no 'index': "
            "tokenise with hfkd.data.text.tokenize_dataset, or add a column with rows.add_column('index', "
            "range(len(rows))), which a custom data_collator must keep"
        )
    numbers: list[int] = index.tolist()
    tokens, labels = batch["input_ids"], batch["labels"]
    attended = batch.get("attention_mask")
    kept = torch.ones_like(tokens) if attended is None else attended
    begins, place = _begins(labels), torch.arange(labels.shape[1], device=labels.device)  # [B, L], [L]
    last = (begins * place).amax(-1).where(begins.any(-1), labels.shape[1])  # [B]: where the last run of labels begins
    wanted = kept.bool() & (place < last[:, None])  # [B, L]
    prompts = [ids[there].tolist() for ids, there in zip(tokens, wanted, strict=True)]
    for number, prompt in zip(numbers, prompts, strict=True):
        if not prompt:
            raise ValueError(
                f"row {number} has a label on its first token, and thus no prompt to generate a response to: "
                "label prompt tokens with -100, or leave on_policy and seq_kd out"
            )
    return prompts, numbers


def has_several_answers(batch: Mapping[str, Any]) -> bool:
    """Whether some row has several runs of labels."""
    return bool((_begins(batch["labels"]).sum(-1) > 1).any())


def _begins(labels: Tensor) -> Tensor:
    """Where a run of labels begins [B, L]."""
    labelled = labels != IGNORED
    return labelled & ~pad(labelled[:, :-1], (1, 0))


def longest_prompt(rows: Any, of_teacher: bool = False) -> tuple[int, int]:
    """The row with the longest prompt, and its number of tokens, among the rows that can be read cheaply.

    of_teacher: of the prompts that the teacher reads, which are the student's unless rows have others.
    """
    if not isinstance(rows, Dataset):
        return 0, 0
    if "prompt_length" in rows.column_names:
        lengths = rows["prompt_length"][:]
        if of_teacher and TEACHER_LENGTH in rows.column_names:  # its prompt, before the same response
            both = zip(lengths, rows["length"][:], rows[TEACHER_LENGTH][:], strict=True)
            lengths = [own + its - whole for own, whole, its in both]
    elif "labels" in rows.column_names:
        column = TEACHER_LABELS if of_teacher and TEACHER_LABELS in rows.column_names else "labels"
        few = rows.with_format(None)[column][:LOOKED_AT]
        begins = [_begins(torch.tensor([labels])).nonzero()[:, 1].tolist() for labels in few]
        lengths = [starts[-1] if starts else len(labels) for starts, labels in zip(begins, few, strict=True)]
    else:
        return 0, 0
    row = max(range(len(lengths)), key=lengths.__getitem__, default=0)
    return row, lengths[row] if lengths else 0


def refuse_long(row: int, prompt: int, new: int, limit: int | None) -> None:
    """Raise ValueError if a prompt and its response may exceed the positions of the networks that read them."""
    if limit is not None and prompt + new > limit:
        raise ValueError(
            f"the prompt of row {row} has {prompt} tokens, so that with on_policy_max_new_tokens={new} the row "
            f"may take {prompt + new} positions, but the networks have {limit}: lower on_policy_max_new_tokens to "
            f"{max(limit - prompt, 1)} or less, or truncate or drop long prompts "
            "(tokenize_dataset(max_prompt_length=...))"
        )
