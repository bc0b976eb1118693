"""How many tokens a network knows, and how many of them in a row.

B rows, L length.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model

TABLES = ("position_embeddings", "wpe", "embed_positions")  # learned: a place behind their end is an IndexError


def embeddings(network: nn.Module) -> int | None:
    """How many tokens a model of transformers has an embedding of; None where it does not say."""
    bare: Any = unwrap_peft_model(network)
    try:
        table = bare.get_input_embeddings() if isinstance(bare, PreTrainedModel) else None
    except NotImplementedError:  # transformers' ResNet and other networks of convolutions
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def said_limit(network: nn.Module) -> int | None:
    """The longest row that a network's config speaks of, without the positions of padding; None: it does not."""
    config = getattr(unwrap_peft_model(network), "config", None)
    if not isinstance(config, PreTrainedConfig):
        return None
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else limit - _positions_of_padding(network)


def position_limit(network: nn.Module) -> int | None:
    """`said_limit` where the positions are a learned table, so that no row can be longer; else None.

    Rotary positions have no end. An encoder-decoder has two tables, and is not looked at.
    """
    config = getattr(unwrap_peft_model(network), "config", None)
    if not isinstance(config, PreTrainedConfig) or config.is_encoder_decoder:
        return None
    learned = any(isinstance(m, nn.Embedding) for name, m in network.named_modules() if name.endswith(TABLES))
    return said_limit(network) if learned else None


def shortest_limit(networks: Iterable[nn.Module]) -> int | None:
    """The `position_limit` of all of them; None where none has one."""
    limits = [limit for network in networks if (limit := position_limit(network)) is not None]
    return min(limits, default=None)


def farthest(batch: Mapping[str, Any]) -> int:
    """The positions that a batch [B, L] needs: L, or those that its documents count to."""
    positions = batch.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.numel():
        return int(positions.max()) + 1
    return int(batch["input_ids"].shape[-1])


def too_long(length: int, limit: int, network: str) -> str:
    return (
        f"a row has {length} tokens, and {network} has {limit} positions: cut the rows to {limit} tokens where they "
        f"are made (truncation=True, max_length={limit})"
    )


def _positions_of_padding(network: nn.Module) -> int:
    """How many positions are no token's: RoBERTa and its like count from behind their padding's."""
    tables = (m for name, m in network.named_modules() if name.endswith("position_embeddings"))
    padding = next((m.padding_idx for m in tables if isinstance(m, nn.Embedding)), None)
    return 0 if padding is None else padding + 1
