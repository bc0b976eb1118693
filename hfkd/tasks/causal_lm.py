"""The next token: causal language models, and models that read images or sound and write text."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfkd.data.target_collator import TargetCollator
from hfkd.data.text_collate import TokenCollator
from hfkd.models.calling import Call
from hfkd.tasks.base import Batch, Collate, register_task
from hfkd.tasks.tokens import PerToken
from hfkd.utils.targets import Targets


@register_task("causal_lm")
class CausalLM(PerToken):
    """An item is a target token, a sample its row, or its document where rows pack several.

    Position i predicts the label at i + 1, as these models shift them.
    """

    pipeline_tag = "text-generation"
    item = "a target token"
    vocabulary = True
    by_target = True
    generates = True
    shift = 1
    known = ("host_targets", "position_ids", "attention_mask")

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        """Without a tokenizer rows are padded with token 0, which nothing attends to and no label names."""
        return TokenCollator(processing_class if isinstance(processing_class, PreTrainedTokenizerBase) else 0)

    def ready(self, collate: Collate) -> Collate:
        return collate if isinstance(collate, TokenCollator) else TargetCollator(collate)

    def targets(self, batch: Batch) -> Targets:
        return Targets.of(batch)
