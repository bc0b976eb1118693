"""Tasks whose items are the labelled tokens of a row.

B rows, L length, C classes or vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfkd.losses.items import Items, token_items
from hfkd.tasks.base import Batch, Collate, Task, refuse_bool
from hfkd.tasks.label_tokens import warn_of_label_tokens
from hfkd.utils.targets import IGNORED, HostTargets, Targets, count_token_items

PROBED_TOKENS = 8
ALONG_TOKENS = (  # [B, L] each
    "input_ids", "attention_mask", "position_ids", "token_type_ids", "labels", "decoder_input_ids",
    "decoder_attention_mask",
)  # fmt: skip


class PerToken(Task):
    """Labels [B, L], -100 for no label; logits [B, L, C].

    `shift`: distance from a position to the label that it predicts; 1 for causal models, which shift by themselves.
    """

    one_item_a_row = False
    ignores = (IGNORED,)
    shift: ClassVar[int] = 0
    known: ClassVar[tuple[str, ...]] = ("host_targets",)  # keys of a batch that describe its targets

    def targets(self, batch: Batch) -> Targets:
        return Targets(batch["labels"], shift=self.shift, **self._known(batch))

    def count(self, batch: Batch) -> Tensor | int:
        return count_token_items(batch["labels"], shift=self.shift, **self._known(batch))

    def count_samples(self, batch: Batch) -> Tensor | int:
        return self.targets(batch).samples_with_items

    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        labels, known = batch["labels"], self._known(batch)
        return token_items(student, teacher, labels, progress=progress, shift=self.shift, **known)

    def ready(self, collate: Collate) -> Collate:
        return LabelCollator(collate)

    def _known(self, batch: Batch) -> dict[str, Any]:
        return {name: batch[name] for name in self.known if name in batch}

    def check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 3:
            raise ValueError(
                f"the student's logits have shape {tuple(logits.shape)}, but {self.name} needs [batch, length, "
                "classes]: set another task, such as task='sequence_classification' for one label per row"
            )

    def check_labels(self, labels: Tensor, classes: int | None) -> None:
        shape, kind = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
        refuse_bool(labels)
        if labels.is_floating_point() or labels.ndim != 2:
            a_row = ", or set task='sequence_classification' for one label per row" if labels.ndim == 1 else ""
            raise ValueError(
                f"labels are of type {kind}, shape {shape}: pass integers [batch, length], one label per token{a_row}"
            )

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        """Refuse labels per word, as in datasets for named entities, that were padded as if they were per token."""
        for number, row in enumerate(rows if len(rows) == len(batch["labels"]) else ()):
            if not isinstance(row, Mapping) or row.get("input_ids") is None or row.get("labels") is None:
                continue
            tokens, labels = len(row["input_ids"]), torch.as_tensor(row["labels"])
            if labels.ndim != 1 or len(labels) == tokens:
                continue
            made = batch["labels"][number]
            if len(made) >= len(labels) and torch.equal(made[made != IGNORED].cpu(), labels[labels != IGNORED].cpu()):
                raise ValueError(
                    f"row {number} has {len(labels)} labels for {tokens} tokens: align labels with tokens, with "
                    "-100 for tokens without a label (word_ids() of a fast tokenizer maps tokens to words)"
                )

    def look_at_labels(self, student: nn.Module, batch: Batch) -> None:
        if self.generates:
            warn_of_label_tokens(student, batch, bool(self.shift), self.labels_to_networks)

    def probe(self, batch: Batch) -> dict[str, Any]:
        """The first tokens of each row, if all tensors along the tokens are known; else the whole batch."""
        tokens = batch.get("input_ids")
        others = [v for k, v in batch.items() if isinstance(v, Tensor) and v.ndim > 1 and k not in ALONG_TOKENS]
        if tokens is None or others or any(k.startswith("cu_seq_lens") for k in batch):
            return dict(batch)
        return {
            k: v[:, :PROBED_TOKENS].contiguous() if k in ALONG_TOKENS and v.ndim == 2 else v for k, v in batch.items()
        }

    def sure_labels(self, network: nn.Module, batch: Batch) -> Tensor:
        """The batch's labels, else the tokens themselves, which are valid labels for any model with a vocabulary."""
        given = batch.get("labels")
        if given is not None and self.count(batch):
            return given.long()
        tokens, mask = batch["input_ids"], batch.get("attention_mask")
        labels = tokens if self.vocabulary else tokens % getattr(network, "config").num_labels  # noqa: B009
        return labels if mask is None or mask.shape != labels.shape else labels.masked_fill(mask == 0, IGNORED)


@dataclass
class LabelCollator:
    """A collator that adds the positions of the labels, found on the host, as `host_targets`."""

    collate: Collate

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        labels = batch.get("labels")
        if isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point():
            batch["host_targets"] = HostTargets.in_place(labels)
        elif labels is None:
            batch.pop("labels", None)  # DataCollatorForSeq2Seq sets labels to None
        return batch


def tokenizer_of(processing_class: Any, task: Task) -> PreTrainedTokenizerBase:
    """The tokenizer for padding a task's rows. Raises ValueError if there is none."""
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return processing_class
    raise ValueError(f"{task.name} needs a tokenizer for padding: pass it as processing_class, or pass a data_collator")
