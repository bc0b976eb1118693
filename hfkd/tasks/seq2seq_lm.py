"""Sequence-to-sequence language modelling: T5, BART, Whisper.

B rows, L length of the targets.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from hfkd.data.used_columns import UsedColumns
from hfkd.models.calling import Call
from hfkd.tasks.base import Batch, Collate, Selecting, register_task
from hfkd.tasks.tokens import LabelCollator, PerToken, tokenizer_of
from hfkd.utils.targets import IGNORED

REMEDY = "pad labels on the right (padding_side='right' of the tokenizer)"


@dataclass
class WithoutDecoderInputs:
    """A collator that removes the `decoder_input_ids` that another collator derived from the labels."""

    collate: Collate

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        if batch.get("labels") is not None:
            batch.pop("decoder_input_ids", None)
        return batch


@register_task("seq2seq_lm")
class Seq2SeqLM(PerToken):
    """An item is a target token of the decoder, at its own position; a sample is a row.

    Each network gets the labels, and derives its decoder's inputs from them (see `Call.taken`).
    """

    pipeline_tag = "text2text-generation"
    item = "a target token"
    vocabulary = True
    generates = True
    labels_to_networks = True

    def hub_tag(self, call: Call) -> str:
        return "automatic-speech-recognition" if call.takes("input_features") else self.pipeline_tag

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        tokenizer = tokenizer_of(processing_class, self)
        _refuse_left(tokenizer)
        return LabelCollator(Selecting(DataCollatorForSeq2Seq(tokenizer), columns))

    def ready(self, collate: Collate) -> Collate:
        """Drop decoder inputs that the collator made for one network: each network makes its own from the labels."""
        of_a_model = collate.collate if isinstance(collate, UsedColumns) else collate
        if isinstance(of_a_model, DataCollatorForSeq2Seq):
            _refuse_left(of_a_model.tokenizer)
        own = isinstance(of_a_model, DataCollatorForSeq2Seq) and of_a_model.model is not None
        return super().ready(WithoutDecoderInputs(collate) if own else collate)

    def decoder_mask(self, batch: Batch) -> Tensor | None:
        """The positions up to the last label of each row: the decoder reads the labels."""
        given: Tensor | None = batch.get("decoder_attention_mask")
        return (batch["labels"] != IGNORED).int().flip(1).cummax(1).values.flip(1).bool() if given is None else given

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        """Refuse decoder inputs that are the labels at the same positions: the student would learn to copy them.

        And labels that are padded at their start. The labels' length is not that of the inputs: they are another text.
        """
        inputs, labels = batch.get("decoder_input_ids"), batch["labels"]
        if inputs is None and bool(((labels[:, 0] == IGNORED) & (labels != IGNORED).any(-1)).any()):
            raise ValueError(
                "the labels of the first rows begin with -100, of which networks make pad tokens between the decoder's "
                f"start token and the text, that generation never writes: {REMEDY}, or pass decoder_input_ids"
            )
        if not isinstance(inputs, Tensor) or inputs.shape != labels.shape:
            return
        known = labels != IGNORED
        before = known[:, 1:]
        in_place = torch.equal(inputs[known], labels[known].to(inputs.dtype))
        shifted = torch.equal(inputs[:, 1:][before], labels[:, :-1][before].to(inputs.dtype))
        if in_place and not shifted and bool(known.any()):
            raise ValueError(
                "the decoder_input_ids of the first rows are the labels at the same positions, so that the student "
                "would learn to copy its input: leave the column out, since networks make decoder inputs from the "
                "labels, or shift it by one position to the right"
            )


def _refuse_left(tokenizer: Any) -> None:
    """Raise ValueError for a tokenizer that pads on the left, where labels are the decoder's inputs."""
    if getattr(tokenizer, "padding_side", "right") == "left":
        raise ValueError(
            "the tokenizer pads rows on the left (padding_side='left'), and DataCollatorForSeq2Seq the labels too, so "
            "that a decoder would read padding between its start token and the text, which generation never writes: "
            f"{REMEDY}"
        )
