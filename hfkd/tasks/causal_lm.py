"""Next-token prediction: causal language models, also with image or audio inputs."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import ACCEPTED, are_turns
from hfkd.data.target_collator import TargetCollator
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_collate import TokenCollator
from hfkd.models.calling import Call
from hfkd.tasks.base import Batch, Collate, register_task
from hfkd.tasks.tokens import PerToken
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

LONGEST = 1024  # maximum number of tokens of a row tokenised here: TRL's default


@register_task("causal_lm")
class CausalLM(PerToken):
    """An item is a target token; a sample is a row, or a document of a packed row.

    Position i predicts the label at i + 1, as these models shift labels by one.
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
    teacher_limit: int | None = None  # of the rows of a teacher with prompts of its own

    def hub_tag(self, call: Call) -> str:
        return "image-text-to-text" if call.takes_images else self.pipeline_tag

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        """Without a tokenizer rows are padded with token 0, which is masked in attention and labels.

        The labels of rows without any are their tokens, as in TRL, if the loss uses labels.
        """
        pad = processing_class if isinstance(processing_class, PreTrainedTokenizerBase) else 0
        return TokenCollator(pad, labels_from_tokens=True)

    def tokenised(self, rows: Any, processing_class: Any, limit: int | None) -> Any:
        """Tokenise texts, prompts with completions, instructions and messages; return other rows unchanged.

        Truncates to LONGEST tokens, or to the networks' limit, as TRL does; a warning shows the settings.
        """
        texts = are_texts(rows, f"{tokenize_dataset.__module__}.{tokenize_dataset.__name__}")
        if not texts or not isinstance(processing_class, PreTrainedTokenizerBase):
            return rows
        longest = min(limit or LONGEST, LONGEST)
        templated = are_turns(rows) and bool(processing_class.chat_template)
        logger.warning(
            "The rows are texts and are tokenised with hfkd.data.text.tokenize_dataset(max_length=%d, "
            "max_prompt_length=%d, long_prompts='cut', chat_template=%s): call it yourself to change the lengths.",
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
            teacher_max_length=self.teacher_limit,
        )

    def ready(self, collate: Collate) -> Collate:
        return collate if isinstance(collate, TokenCollator) else TargetCollator(collate)

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        """Refuse labels that are already shifted, which the loss would shift once more."""
        super().check_rows(rows, batch)
        tokens, labels = batch.get("input_ids"), batch["labels"]
        if tokens is None or tokens.shape != labels.shape:
            return
        if torch.equal(*_known(tokens, labels)):
            if not any(isinstance(row, Mapping) and "labels" in row for row in rows):
                _warn_of_hidden_ends(batch)
            return
        following, shifted = _known(tokens[:, 1:], labels[:, :-1])
        if len(shifted) and torch.equal(following, shifted):
            raise ValueError(
                "each label of the first rows is the token at the next position, but causal models shift labels "
                "by one themselves, so that the student would learn the token after the next: pass unshifted "
                "labels, equal to input_ids or -100"
            )
        if self.guessed:
            raise ValueError(
                "the task of the networks is unknown, and the labels of the first rows are not the tokens at "
                "their positions, as for a causal language model: set task= (token_classification predicts each "
                "label at its own position, causal_lm from the tokens before it)"
            )
        logger.warning(
            "The labels of the first rows are not the tokens at their positions. A causal model predicts labels "
            "from the tokens before them: check that the collator is not one for masked language modelling (mlm=True)."
        )


def of_tokens(collate: Collate, but: str) -> TokenCollator:
    """`collate`, for a task that puts the teacher's tokens beside the student's. ValueError for any other collator, of
    which what a class of the user's own does would be lost; but: why it cannot be used."""
    if type(collate) is TokenCollator:
        return collate
    given = type(getattr(collate, "collate", collate)).__name__  # unwrapped
    raise ValueError(
        f"data_collator={given} creates batches of the student's tokens only, but {but}: leave it out, or pass an "
        "hfkd.data.text_collate.TokenCollator"
    )


def _warn_of_hidden_ends(batch: Batch) -> None:
    """Warn if all rows end in the same token, and only that has no label: it is the pad token of the collator too."""
    tokens, labels, mask = batch["input_ids"], batch["labels"], batch.get("attention_mask")
    lasts = set()
    for row in range(len(tokens)):
        attended = torch.ones_like(tokens[row]) if mask is None else mask[row]
        known: list[int] = attended.nonzero().flatten().tolist()
        before, last = [-1, -1, *known][-2:]
        if before < 0 or labels[row, before] == IGNORED or labels[row, last] != IGNORED:
            return
        lasts.add(int(tokens[row, last]))
    if len(lasts) == 1:
        logger.warning(
            "The first rows end in token %d, which has no label, so that the student does not learn where to end: "
            "DataCollatorForLanguageModeling hides every pad token, and with it an end of sequence that is the pad "
            "token too. Set another pad token, or leave data_collator out.",
            lasts.pop(),
        )


def are_texts(rows: Any, remedy: str) -> bool:
    """Whether rows are a map-style dataset of texts. ValueError for a stream with columns of texts.

    remedy: the function that tokenises them.
    """
    columns = set(getattr(rows, "column_names", None) or ()) if isinstance(rows, (Dataset, IterableDataset)) else set()
    if "input_ids" in columns or not any(set(names) <= columns for names in ACCEPTED):
        return False
    if isinstance(rows, IterableDataset):
        raise ValueError(
            f"the rows are a stream of texts (columns {sorted(columns)}), but only a map-style dataset is "
            "tokenised automatically: convert it with datasets.Dataset.from_generator(lambda: stream) and "
            f"tokenise it with {remedy}, or pass a stream of tokens"
        )
    return True


def _known(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens and labels at positions with a label."""
    known = labels != IGNORED
    return tokens[known], labels[known].to(tokens.dtype)
