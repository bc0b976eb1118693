"""A label for each token, or for some tokens: named entities, parts of speech; `ForTokenClassification`.

B rows, L length.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForTokenClassification

from hfkd.models.calling import Call
from hfkd.tasks.base import Batch, Collate, Selecting, register_task
from hfkd.tasks.tokens import LabelCollator, PerToken, tokenizer_of
from hfkd.utils.targets import IGNORED


@register_task("token_classification")
class TokenClassification(PerToken):
    """An item is a labelled token, predicted at its own position; a sample is a row."""

    pipeline_tag = "token-classification"
    item = "a labelled token"
    scored_by = "accuracy"

    def stand_ins(self, batch: Batch, classes: int | None) -> Tensor:
        """Every attended token is an item."""
        tokens, mask = batch["input_ids"], batch.get("attention_mask")
        labels = torch.zeros_like(tokens)
        return labels if mask is None else labels.masked_fill(mask == 0, IGNORED)

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        return LabelCollator(
            Selecting(DataCollatorForTokenClassification(tokenizer_of(processing_class, self)), columns)
        )
