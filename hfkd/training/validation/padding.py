"""Networks whose logits of a row would depend on how it is padded: by its pad token, or by the side it is put on."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfkd.models.calling import Call, bare
from hfkd.tasks.proof import untouched

FEW = 3  # tokens of the row that is tried


def refuse_other_padding(networks: Sequence[nn.Module], processing_class: object) -> None:
    """Raise ValueError for a network whose logits of a row would depend on the padding that the tokenizer gives it.

    Decoders take the last token that is not `config.pad_token_id`. Trainer gives the student's config the tokenizer's,
    once it trains; nobody gives it to the teacher's. And positions that are learned are counted from the padding on,
    where that comes first. Networks whose logits do not change by padding pass.
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
                f"{name} counts the positions of a row from its padding on, and the tokenizer pads rows at their start "
                "(padding_side='left'): a row's logits would depend on the rows beside it; set padding_side='right'"
            )
        raise ValueError(
            f"{name} finds the last token of a row by its config's pad_token_id={own}, and the tokenizer pads rows "
            f"with {pad}: it would classify the padding; set config.pad_token_id={pad} of this network, or give "
            "the tokenizer its pad token"
        )


@torch.no_grad()
def _reads_padding(network: nn.Module, own: int | None, pad: int, left: bool) -> bool:
    """Whether the logits of a few tokens change when one of padding, which is masked, is put beside them."""
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
    if alone.ndim > 2:  # a label a token
        padded = padded[:, 1:] if left else padded[:, :-1]
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in network.parameters())
    return bool((alone - padded).abs().max() > (0.05 if half else 1e-3) * alone.abs().max())
