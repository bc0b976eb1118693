"""A label for each token, or each of some: names, parts of speech; `ForTokenClassification`.

B rows, L length.
"""

from collections.abc import Collection
from typing import Any

from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from hfkd.models.calling import Call
from hfkd.tasks.base import Collate, register_task
from hfkd.tasks.tokens import LabelCollator, PerToken, Selecting


@register_task("token_classification")
class TokenClassification(PerToken):
    """An item is a labelled token, predicted in its own place; a sample is its row."""

    pipeline_tag = "token-classification"
    item = "a labelled token"

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise ValueError(
                f"{self.name} needs a tokenizer to pad rows with: pass it as processing_class, or a data_collator"
            )
        return LabelCollator(Selecting(DataCollatorForTokenClassification(processing_class), frozenset(columns)))

    def ready(self, collate: Collate) -> Collate:
        return LabelCollator(collate)
