"""Checks that the first rows' tokens have embeddings, and that no row exceeds a network's positions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

from hfkd.data.columns import whole_column
from hfkd.models.positions import embeddings, farthest, position_limit, said_limit, target_limit, too_long

LABELS = "labels for its decoder"


def check_tokens(network: nn.Module, batch: Mapping[str, Any]) -> None:
    """Check that the first rows' tokens, including padding, have embeddings, and that the rows are not too long."""
    ids, known, limit = batch["input_ids"], embeddings(network), position_limit(network)
    if known is not None and ids.numel() and int(ids.max()) >= known:
        raise ValueError(
            f"token id {int(ids.max())} in the first rows, or in their padding, is out of range: "
            f"{type(network).__name__} has embeddings for {known} tokens (0 to {known - 1}); tokenise with the "
            "networks' own tokenizer, and pad with one of its tokens (tokenizer.pad_token = tokenizer.eos_token)"
        )
    length = farthest(batch)
    if limit is not None and length > limit:
        raise ValueError(too_long(length, limit, type(network).__name__))


def check_target_length(network: nn.Module, batch: Mapping[str, Any]) -> None:
    """Check that the first rows' labels are not too many for the decoder that reads them."""
    labels, limit = batch["labels"], target_limit(network)
    if limit is not None and labels.ndim == 2 and labels.shape[1] > limit:
        raise ValueError(too_long(labels.shape[1], limit, type(network).__name__, LABELS))


def check_positions(network: nn.Module, dataset: Any, column: str = "length") -> None:
    """Raise ValueError if a row of `tokenize_dataset` exceeds the network's maximum length."""
    limit = said_limit(network)
    if limit is None or not isinstance(dataset, Dataset) or column not in dataset.column_names:
        return
    longest = int(np.max(whole_column(dataset, column)))
    if longest > limit:
        raise ValueError(
            f"the longest training row has {longest} tokens, but {type(network).__name__} has {limit} positions: "
            f"lower {column.replace('length', 'max_length')} to {limit} or less"
        )
