"""Checks that networks keep the documents of packed rows apart.

L tokens of a document.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from hfkd.data.first_rows import first_rows, sets_by_name
from hfkd.data.token_rows import PACKING
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call
from hfkd.tasks.base import Collate
from hfkd.tasks.proof import untouched
from hfkd.utils.devices import device_of
from hfkd.utils.launch import uses_fsdp
from hfkd.utils.targets import HostTargets

PROBED_TOKENS = 4  # of each of two documents
PROBED_ROWS = 1000  # rows that are searched for a packed one
ROUNDED = 1e-5  # of a logit: a mixture of experts sums up other tokens of an expert in another order


class PackingCheck:
    """Refuses a packed batch unless each network computes the same logits for its documents as in separate rows.

    Documents are separated by position ids that restart, without an attention mask or key-value cache; some networks
    ignore these, so that a document attends to those before it (OPT, BLOOM, Mamba).
    """

    def __init__(self, networks: Sequence[nn.Module], sharded: bool = False) -> None:
        self._networks, self._sharded = tuple(networks), sharded
        self._proved: set[int] = set()  # separately for batches of one row and of more, as attention differs

    def __call__(self, inputs: Mapping[str, Any]) -> None:
        """Raise ValueError for a packed batch that a network does not support."""
        known: HostTargets | None = inputs.get("host_targets")
        if known is None or not known.packed:
            return
        rows = min(known.shape[0], 2)
        if rows in self._proved:
            return
        if self._sharded:
            raise ValueError(
                "packed rows appeared after FSDP had sharded the networks, too late to check that these keep "
                "documents apart: put packed rows first in the dataset"
            )
        for network in self._networks:
            if not keeps_apart(network, rows):
                raise ValueError(
                    f"the rows pack several documents (position_ids restart), but in {type(network).__name__} a "
                    "document attends to those before it: use one document per row, or networks that keep "
                    "documents apart (Llama, Qwen, GPT-2, GPT-NeoX)"
                )
        self._proved.add(rows)

    def check_datasets(self, datasets: Mapping[str, Any], collate: Collate) -> None:
        """Raise ValueError if the first rows of a dataset, or one of its first thousand, are packed and unsupported."""
        for dataset in datasets.values():
            for rows in sets_by_name(dataset).values():
                for batch in _looked_at(rows, collate):
                    self(batch)


def packing_check(
    networks: Sequence[nn.Module], args: Any, loss: DistillationLoss, datasets: Mapping[str, Any], collate: Collate
) -> PackingCheck:
    """A `PackingCheck`, applied to `datasets` now.

    Also raises ValueError for packed training rows if a term of the loss compares whole rows.
    """
    refuse_packed_rows(loss, datasets["train_dataset"], collate)
    check = PackingCheck(networks, sharded=uses_fsdp(args) or bool(args.deepspeed))
    check.check_datasets(datasets, collate)
    return check


def refuse_packed_rows(loss: DistillationLoss, dataset: Any, collate: Collate) -> None:
    """Raise ValueError if first training rows are packed, and a term of the loss compares whole rows."""
    for term in loss.terms if loss.kd_weight else ():
        if term.by_sample and term.reads_features:
            _refuse_packed(term.objective, dataset, collate)


def _refuse_packed(objective: Any, dataset: Any, collate: Collate) -> None:
    """Raise ValueError if first rows of a dataset are packed, for an `objective` that compares whole rows."""
    for batch in _looked_at(dataset, collate):
        known: HostTargets | None = batch.get("host_targets")
        if known is not None and known.packed:
            raise ValueError(
                f"the rows pack several documents (position_ids restart), but {objective!r} compares the "
                "networks' layers over whole rows: use one document per row, or choose an objective on logits"
            )


@torch.no_grad()
def keeps_apart(network: nn.Module, rows: int) -> bool:
    """Whether the logits of the second of two packed documents are as in a separate row, for any first document.

    Tried in a batch of `rows` rows, one or two.
    """
    call, device = Call.of(network), device_of(network)
    tokens = len(network.get_input_embeddings().weight)  # type: ignore[operator]
    first, other, second = torch.arange(3 * PROBED_TOKENS, device=device).remainder(tokens).view(3, -1)  # [L] each

    def logits(*documents: Tensor) -> Tensor:
        """The logits of the last of the documents packed into a row: [rows, L, V]."""
        positions = torch.cat([torch.arange(len(ids), device=device) for ids in documents])
        inputs = {"input_ids": torch.cat(documents), "position_ids": positions}
        return call(network, {name: x.expand(rows, -1) for name, x in inputs.items()})[:, -PROBED_TOKENS:].float()

    with untouched(network):
        after_first, after_other, alone = logits(first, second), logits(other, second), logits(second)
    size = alone.abs().max().item()
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in network.parameters())
    seen, rounded = (after_first - after_other).abs().max().item(), (after_first - alone).abs().max().item()
    return seen <= ROUNDED * size and rounded <= (0.05 if half else 1e-3) * size


def _looked_at(dataset: Any, collate: Collate) -> Iterator[Mapping[str, Any]]:
    """The batches to check before training."""
    return (collate(rows) for rows in (first_rows(dataset), _packed_rows(dataset)) if rows)


def _packed_rows(dataset: Any) -> list[Any]:
    """The first packed row of a dataset, if its columns show which rows are packed."""
    if not isinstance(dataset, Dataset):
        return []
    few = dataset.select(range(min(PROBED_ROWS, len(dataset))))
    for name in set(PACKING) & set(dataset.column_names):
        for number, values in enumerate(few.with_format(None)[name]):
            if len(values) > 1 and (name != "position_ids" or bool((np.diff(values) <= 0).any())):
                return [dataset[number]]
    return []
