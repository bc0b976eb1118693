"""The next token: causal language models, and models that read images or sound and write text."""

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import ACCEPTED
from hfkd.data.target_collator import TargetCollator
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_collate import TokenCollator
from hfkd.models.calling import Call
from hfkd.tasks.base import Batch, Collate, register_task
from hfkd.tasks.tokens import PerToken
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

LONGEST = 1024  # tokens of a row that is tokenised here: TRL's default


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
    without_labels = (
        "tokenise with hfkd.data.text.tokenize_dataset, which masks prompts, or pass "
        "data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False), whose labels are the tokens"
    )
    known = ("host_targets", "position_ids", "attention_mask")

    def hub_tag(self, call: Call) -> str:
        return "image-text-to-text" if call.takes_images else self.pipeline_tag

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        """Without a tokenizer rows are padded with token 0, which nothing attends to and no label names.

        Rows without labels learn their tokens, as TRL's do; where no label is learned they stay without.
        """
        pad = processing_class if isinstance(processing_class, PreTrainedTokenizerBase) else 0
        return TokenCollator(pad, labels_from_tokens=True)

    def tokenised(self, rows: Any, processing_class: Any, limit: int | None) -> Any:
        """Texts, prompts and completions, instructions and messages -> tokens; other rows as they are.

        Cut to LONGEST tokens, or what the networks take, as TRL does; a warning says how it was done.
        """
        texts = are_texts(rows, f"{tokenize_dataset.__module__}.{tokenize_dataset.__name__}")
        if not texts or not isinstance(processing_class, PreTrainedTokenizerBase):
            return rows
        longest = min(limit or LONGEST, LONGEST)
        templated = "messages" in rows.column_names and bool(processing_class.chat_template)
        logger.warning(
            "The rows are texts, and tokenised by hfkd.data.text.tokenize_dataset(max_length=%d, max_prompt_length=%d, "
            "long_prompts='cut', chat_template=%s): call it yourself for other lengths.",
            longest,
            longest - 1,
            templated,
        )
        return tokenize_dataset(
            rows,
            processing_class,
            max_length=longest,
            max_prompt_length=longest - 1,
            long_prompts="cut",
            chat_template=templated,
        )

    def ready(self, collate: Collate) -> Collate:
        return collate if isinstance(collate, TokenCollator) else TargetCollator(collate)

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        """Labels that are the next tokens already would be shifted once more."""
        super().check_rows(rows, batch)
        tokens, labels = batch.get("input_ids"), batch["labels"]
        if tokens is None or tokens.shape != labels.shape or torch.equal(*_known(tokens, labels)):
            return
        following, shifted = _known(tokens[:, 1:], labels[:, :-1])
        if len(shifted) and torch.equal(following, shifted):
            raise ValueError(
                "each label of the first rows is the token after its own place: causal models shift the labels by one "
                "themselves, so that the student would learn the token after the next; give labels that are the "
                "input_ids, and -100 where there is none"
            )
        if self.guessed:
            raise ValueError(
                "the networks do not say what their head is for, and labels of the first rows are not the tokens in "
                "their places, as a model of the next token has them: name the task with task= (token_classification "
                "takes each label in its own place, causal_lm predicts it from the tokens before)"
            )
        logger.warning(
            "Labels of the first rows are not the tokens in their places. A causal model predicts them from the tokens "
            "before: is the collator one for masked language modelling (mlm=True)?"
        )


def are_texts(rows: Any, remedy: str) -> bool:
    """Whether rows are a stored dataset of texts. ValueError for a stream whose columns say that it is one of texts.

    remedy: the function that tokenises them.
    """
    columns = set(getattr(rows, "column_names", None) or ()) if isinstance(rows, (Dataset, IterableDataset)) else set()
    if "input_ids" in columns or not any(set(names) <= columns for names in ACCEPTED):
        return False
    if isinstance(rows, IterableDataset):
        raise ValueError(
            f"the rows are a stream of texts (columns {sorted(columns)}), and only a stored dataset is tokenised here: "
            f"make one of it, datasets.Dataset.from_generator(lambda: stream), for {remedy}; or give a stream of tokens"
        )
    return True


def _known(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and labels [B, L] where there is a label."""
    known = labels != IGNORED
    return tokens[known], labels[known].to(tokens.dtype)
