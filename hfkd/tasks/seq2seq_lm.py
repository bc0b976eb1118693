"""The target text of an encoder and decoder: T5, BART, Whisper.

B rows, L length of the targets.
"""

from collections.abc import Collection, Sequence
from typing import Any

from transformers import DataCollatorForSeq2Seq

from hfkd.models.calling import Call
from hfkd.tasks.base import Batch, Collate, Selecting, register_task
from hfkd.tasks.tokens import LabelCollator, PerToken, tokenizer_of


@register_task("seq2seq_lm")
class Seq2SeqLM(PerToken):
    """An item is a target token of the decoder, in its own place; a sample is its row.

    The labels go to each network, which shifts its decoder's inputs by itself (see `Call.taken`).
    """

    pipeline_tag = "text2text-generation"
    item = "a target token"
    vocabulary = True
    generates = True
    labels_to_networks = True

    def hub_tag(self, call: Call) -> str:
        return "automatic-speech-recognition" if call.takes("input_features") else self.pipeline_tag

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        return LabelCollator(Selecting(DataCollatorForSeq2Seq(tokenizer_of(processing_class, self)), columns))

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        """The labels are another text than the inputs, of another length."""
