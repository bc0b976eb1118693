"""The masked tokens: BERT's pre-training, `ForMaskedLM`."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from hfkd.models.calling import Call
from hfkd.tasks.base import Batch, Collate, Selecting, register_task
from hfkd.tasks.tokens import LabelCollator, PerToken, tokenizer_of
from hfkd.utils.targets import IGNORED

SURELY_MASKED = 8  # labels, of which BERT leaves one in ten its token


@register_task("masked_lm")
class MaskedLM(PerToken):
    """An item is a masked token, predicted in its own place; a sample is its row."""

    pipeline_tag = "fill-mask"
    item = "a masked token"
    vocabulary = True
    scored_by = "accuracy"

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        return LabelCollator(Selecting(MaskingCollator(tokenizer_of(processing_class, self)), columns))

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        """Labels that a copy of the input would get right, as group_texts of the tutorials leaves them."""
        super().check_rows(rows, batch)
        tokens, labels = batch.get("input_ids"), batch["labels"]
        if tokens is None or tokens.shape != labels.shape:
            return
        known = labels != IGNORED
        if int(known.sum()) >= SURELY_MASKED and torch.equal(tokens[known], labels[known]):
            raise ValueError(
                f"all of the {int(known.sum())} labels of the first rows are the tokens that stand in their places: "
                "nothing is masked, and the student would learn to copy its input. Leave the labels out, so that "
                "tokens are masked here, or pass data_collator=DataCollatorForLanguageModeling(tokenizer)"
            )


class MaskingCollator:
    """Rows with `labels` padded as they are; others masked anew each time, 15 % of their tokens as BERT has it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad = DataCollatorForTokenClassification(tokenizer)
        self._mask = None if tokenizer.mask_token is None else DataCollatorForLanguageModeling(tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        if "labels" in rows[0]:
            return self._pad(rows)
        if self._mask is None:
            raise ValueError(
                "they have no labels, and the tokenizer no mask token to make them with: set its mask_token"
            )
        return self._mask(rows)
