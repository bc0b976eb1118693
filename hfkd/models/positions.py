"""The vocabulary size and the maximum length of networks.

B rows, L length.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model

# Tables of learned positions; a position beyond their end raises IndexError.
TABLES = ("position_embeddings", "wpe", "embed_positions", "positions_embed", "pos_encoding")


def embeddings(network: nn.Module) -> int | None:
    """The number of token embeddings of a transformers model; None if it is not known."""
    bare: Any = unwrap_peft_model(network)
    try:
        table = bare.get_input_embeddings() if isinstance(bare, PreTrainedModel) else None
    except NotImplementedError:  # transformers' ResNet and other convolutional networks
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def said_limit(network: nn.Module) -> int | None:
    """The maximum length in a network's config, without the positions of padding; None if there is none."""
    config = getattr(unwrap_peft_model(network), "config", None)
    if not isinstance(config, PreTrainedConfig):
        return None
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else limit - positions_of_padding(network)


def position_limit(network: nn.Module) -> int | None:
    """`said_limit` if positions are a table, learned or stored as a buffer, so that no row can be longer; else None.

    Rotary positions that are computed have no limit. Of encoder-decoders, whose two tables may differ, the encoder's.
    """
    config = getattr(unwrap_peft_model(network), "config", None)
    if not isinstance(config, PreTrainedConfig):
        return None
    if config.is_encoder_decoder:
        return _table_of(network, "encoder")
    learned = any(isinstance(m, nn.Embedding) for name, m in network.named_modules() if name.endswith(TABLES))
    stored = any(name.endswith(TABLES) for name, _ in network.named_buffers())  # GPT-J, CodeGen, CTRL
    return said_limit(network) if learned or stored else None


def target_limit(network: nn.Module) -> int | None:
    """The number of labels of a row that the decoder of an encoder-decoder has positions for; None: no limit."""
    config = getattr(unwrap_peft_model(network), "config", None)
    coupled = isinstance(config, PreTrainedConfig) and config.is_encoder_decoder
    return _table_of(network, "decoder") if coupled else None


def _table_of(network: nn.Module, side: str) -> int | None:
    """The length of the table of positions on one side of an encoder-decoder.

    Tables with an entry for padding are extended (FSMT), or end rows at their last position (ProphetNet): no limit.
    """
    for name, module in network.named_modules():
        if f".{side}." in f".{name}" and name.endswith(TABLES) and isinstance(module, nn.Embedding):
            offset = getattr(module, "offset", 0)  # entries before the first position, as in BART
            return None if module.padding_idx is not None else module.num_embeddings - int(offset)
    return None


def shortest_limit(networks: Iterable[nn.Module]) -> int | None:
    """The smallest `position_limit` of the networks; None if none has one."""
    limits = [limit for network in networks if (limit := position_limit(network)) is not None]
    return min(limits, default=None)


def farthest(batch: Mapping[str, Any]) -> int:
    """The number of positions that a batch [B, L] needs: L, or with `position_ids` the largest of these plus 1."""
    positions = batch.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.numel():
        return int(positions.max()) + 1
    return int(batch["input_ids"].shape[-1])


def too_long(length: int, limit: int, network: str, what: str = "tokens") -> str:
    return (
        f"a row has {length} {what}, but {network} has {limit} positions: truncate the rows to {limit} {what} "
        f"(truncation=True, max_length={limit})"
    )


def positions_of_padding(network: nn.Module) -> int:
    """The number of positions that tokens cannot use: RoBERTa and similar models count from the padding index on."""
    tables = (m for name, m in network.named_modules() if name.endswith("position_embeddings"))
    padding = next((m.padding_idx for m in tables if isinstance(m, nn.Embedding)), None)
    return 0 if padding is None else padding + 1
