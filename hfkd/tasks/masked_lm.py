"""Masked language modelling: BERT's pre-training, `ForMaskedLM`."""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from hfkd.data.used_columns import UsedColumns
from hfkd.models.calling import Call
from hfkd.tasks.base import Batch, Collate, Selecting, register_task
from hfkd.tasks.tokens import LabelCollator, PerToken, tokenizer_of
from hfkd.utils.targets import IGNORED

SURELY_MASKED = 8  # with so many labels some tokens must differ: BERT's masking keeps one in ten


@register_task("masked_lm")
class MaskedLM(PerToken):
    """An item is a masked token, predicted at its own position; a sample is a row."""

    pipeline_tag = "fill-mask"
    item = "a masked token"
    vocabulary = True
    scored_by = "accuracy"

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        return LabelCollator(Selecting(MaskingCollator(tokenizer_of(processing_class, self)), columns))

    def ready(self, collate: Collate) -> Collate:
        inner = collate.collate if isinstance(collate, UsedColumns) else collate
        whole_words = isinstance(inner, DataCollatorForLanguageModeling) and getattr(inner, "whole_word_mask", False)
        return super().ready(WholeWords(collate) if whole_words else collate)

    def for_prediction(self, collate: Collate) -> Collate:
        """No random masking in prediction: it is only for training. Other collators may be wrapped around it."""
        if isinstance(collate, MaskingCollator):
            return collate.pad
        within = getattr(collate, "collate", None)
        found = None if within is None else self.for_prediction(within)
        if found is within:
            return collate
        made = copy(collate)
        vars(made)["collate"] = found
        return made

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        """Refuse labels that equal the unmasked inputs, as `group_texts` in the transformers examples creates them."""
        super().check_rows(rows, batch)
        tokens, labels = batch.get("input_ids"), batch["labels"]
        if tokens is None or tokens.shape != labels.shape:
            return
        known = labels != IGNORED
        if int(known.sum()) >= SURELY_MASKED and torch.equal(tokens[known], labels[known]):
            raise ValueError(
                f"all of the {int(known.sum())} labels of the first rows equal the tokens at their positions: "
                "nothing is masked, and the student would learn to copy its input. Leave the labels out, so that "
                "tokens are masked automatically, or pass data_collator=DataCollatorForLanguageModeling(tokenizer)"
            )


class WholeWords:
    """transformers' collator for whole-word masking, after checking that rows have the `offset_mapping` it needs."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Any]) -> Any:
        if rows and isinstance(rows[0], Mapping) and "offset_mapping" not in rows[0]:
            raise ValueError(
                f"whole_word_mask=True needs the column offset_mapping, but the rows have {sorted(rows[0])}: "
                "tokenise with return_offsets_mapping=True, and keep that column"
            )
        return self.collate(rows)


class MaskingCollator:
    """Pads rows with `labels`; masks 15 % of the tokens of other rows, differently each time, as in BERT."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad = DataCollatorForTokenClassification(tokenizer)
        self._mask = None if tokenizer.mask_token is None else DataCollatorForLanguageModeling(tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        if "labels" in rows[0]:
            return self.pad(rows)
        if self._mask is None:
            raise ValueError(
                "they have no labels, and the tokenizer has no mask token to create them: set its mask_token"
            )
        return self._mask(rows)
