"""Refuses networks whose logits for a row depend on its padding: on the pad token, or on the padding side."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfkd.models.calling import Call, bare
from hfkd.tasks.proof import untouched

FEW = 3  # number of tokens of the test row


def refuse_other_padding(networks: Sequence[nn.Module], processing_class: object) -> None:
    """Raise ValueError for a network whose logits for a row depend on the tokenizer's padding.

    Decoder classifiers use the last token that is not `config.pad_token_id`. Trainer sets that of the student's config
    to the tokenizer's when training starts, but not that of the teacher's. Learned positions count left padding.
    Networks whose logits do not change with padding are accepted.
    """
    if not isinstance(processing_class, PreTrainedTokenizerBase) or processing_class.pad_token_id is None:
        return
    pad, left = processing_class.pad_token_id, processing_class.padding_side == "left"
    for network in networks:
        inside = bare(network)
        if not isinstance(inside, PreTrainedModel) or inside.config.is_encoder_decoder:
            continue
        own, name = getattr(inside.config.get_text_config(), "pad_token_id", None), type(inside).__name__
        if (not left and own in (None, pad)) or not _reads_padding(network, own, pad, left):
            continue
        if left:
            raise ValueError(
                f"{name} counts padding in the positions of a row, and the tokenizer pads rows on the left "
                "(padding_side='left'), so that the logits would depend on the other rows of the batch: set "
                "padding_side='right'"
            )
        raise ValueError(
            f"{name} finds the last token of a row by pad_token_id={own} in its config, but the tokenizer pads "
            f"rows with {pad}, so that it would classify a padding token: set config.pad_token_id={pad} of this "
            "network, or set the tokenizer's pad token to that of the network"
        )


@torch.no_grad()
def _reads_padding(network: nn.Module, own: int | None, pad: int, left: bool) -> bool:
    """Whether the logits of a few tokens change when a masked padding token is added."""
    device = next(network.parameters()).device
    tokens = [token for token in range(FEW + 2) if token not in (own, pad)][:FEW]
    rows = (
        torch.tensor([tokens], device=device),
        torch.tensor([[pad, *tokens] if left else [*tokens, pad]], device=device),
    )
    call = Call.of(network)
    with untouched(network):
        alone, padded = (
            call(network, {"input_ids": row, "attention_mask": (row != pad).long()}).float() for row in rows
        )
    if alone.ndim > 2:  # one label per token
        padded = padded[:, 1:] if left else padded[:, :-1]
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in network.parameters())
    return bool((alone - padded).abs().max() > (0.05 if half else 1e-3) * alone.abs().max())
