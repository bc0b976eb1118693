"""Refuses networks whose logits for a row depend on its padding: on the pad token, or on the padding side."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfkd.models.calling import bare
from hfkd.tasks.padding import reads_padding

logger = logging.getLogger(__name__)


def refuse_other_padding(networks: Sequence[nn.Module], processing_class: object) -> None:
    """Raise ValueError for a network whose logits for a row depend on the tokenizer's padding.

    Decoder classifiers use the last token that is not `config.pad_token_id`. Trainer sets that of the student's config
    to the tokenizer's when training starts, but not that of the teacher's. XLNet uses the last token. Learned positions
    count left padding. Networks whose logits do not change with padding are accepted; where they do on both sides
    (FNet, ConvBERT), a warning is logged.
    """
    if not isinstance(processing_class, PreTrainedTokenizerBase) or processing_class.pad_token_id is None:
        return
    pad, left = processing_class.pad_token_id, processing_class.padding_side == "left"
    for network in networks:
        inside = bare(network)
        if not isinstance(inside, PreTrainedModel) or inside.config.is_encoder_decoder:
            continue
        own, name = getattr(inside.config.get_text_config(), "pad_token_id", None), type(inside).__name__
        if (not left and own is None) or not _reads(network, pad, left, own):
            continue
        if own is not None and all(_reads(network, own, side, own) for side in (True, False)):
            _warn(name)
        elif left:
            raise ValueError(
                f"{name} counts padding in the positions of a row, and the tokenizer pads rows on the left "
                "(padding_side='left'), so that the logits would depend on the other rows of the batch: set "
                "padding_side='right'"
            )
        elif own in (None, pad):
            raise ValueError(
                f"{name} reads the last token of a row, and the tokenizer pads rows on the right, so that it would "
                "read padding, and the logits depend on the other rows of the batch: set padding_side='left'"
            )
        else:
            raise ValueError(
                f"{name} finds the last token of a row by pad_token_id={own} in its config, but the tokenizer pads "
                f"rows with {pad}, so that it would classify a padding token: set config.pad_token_id={pad} of this "
                "network, or set the tokenizer's pad token to that of the network"
            )


def _reads(network: nn.Module, pad: int, left: bool, own: int | None) -> bool:
    """`reads_padding`; False for a network that needs more than a few tokens, such as their boxes (LayoutLMv3)."""
    try:
        return reads_padding(network, pad, left, own)
    except Exception:  # whatever such a network raises
        return False


def _warn(name: str) -> None:
    logger.warning(
        "The logits of %s for a row depend on the padding in its batch, which it does not mask, so that losses and "
        "scores depend on the batch size and the order of the rows: pad all rows to one length "
        "(padding='max_length' in the tokenizer).",
        name,
    )


def refuse_left_padding(network: nn.Module, batch: Mapping[str, Any]) -> None:
    """Raise ValueError for a causal language model that reads the padding on the left of a batch's rows."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(bare(network), PreTrainedModel) or not isinstance(ids, Tensor) or not isinstance(mask, Tensor):
        return
    if mask.shape != ids.shape or bool(mask[:, 0].all()):
        return
    pad = int(ids[:, 0][mask[:, 0] == 0][0])
    if reads_padding(network, pad, left=True, positions="position_ids" in batch):
        raise ValueError(
            f"{type(bare(network)).__name__} reads the padding on the left of a row, which it cannot mask, so that its "
            "logits would depend on the other rows of the batch: pad rows on the right (padding_side='right' of the "
            "tokenizer that the data_collator pads with)"
        )
