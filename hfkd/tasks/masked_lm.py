"""The masked tokens: BERT's pre-training, `ForMaskedLM`."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from hfkd.models.calling import Call
from hfkd.tasks.base import Collate, register_task
from hfkd.tasks.tokens import LabelCollator, PerToken


@register_task("masked_lm")
class MaskedLM(PerToken):
    """An item is a masked token, predicted in its own place; a sample is its row."""

    pipeline_tag = "fill-mask"
    item = "a masked token"
    vocabulary = True

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        return LabelCollator(MaskingCollator(processing_class, frozenset(columns)))

    def ready(self, collate: Collate) -> Collate:
        return LabelCollator(collate)


class MaskingCollator:
    """Rows with `labels` padded as they are; others masked anew each time, 15 % of their tokens as BERT has it."""

    def __init__(self, tokenizer: Any, columns: frozenset[str]) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                "masked language modelling needs a tokenizer, whose mask token it writes: pass it as processing_class, "
                "or a data_collator of your own"
            )
        self.columns = columns
        self._pad = DataCollatorForTokenClassification(tokenizer)
        self._mask = DataCollatorForLanguageModeling(tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        kept = [{k: v for k, v in row.items() if k in self.columns or k in ("labels", "index")} for row in rows]
        return (self._pad if "labels" in rows[0] else self._mask)(kept)
