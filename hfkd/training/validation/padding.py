"""Classifiers that find the last token of a row by their config's pad token, which may be another than the rows'."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfkd.models.calling import Call, bare
from hfkd.tasks.proof import untouched

FEW = 3  # tokens of the row that is tried


def refuse_other_padding(networks: Sequence[nn.Module], processing_class: object) -> None:
    """Raise ValueError for a network that would classify what it says of padding, with the tokenizer's pad token.

    Decoders take the last token that is not `config.pad_token_id`. Trainer gives the student's config the tokenizer's,
    once it trains; nobody gives it to the teacher's. Networks whose logits do not change by padding pass.
    """
    if not isinstance(processing_class, PreTrainedTokenizerBase) or processing_class.padding_side == "left":
        return
    pad = processing_class.pad_token_id
    for network in networks:
        inside = bare(network)
        if pad is None or not isinstance(inside, PreTrainedModel) or inside.config.is_encoder_decoder:
            continue
        own = getattr(inside.config.get_text_config(), "pad_token_id", None)
        if own not in (None, pad) and _reads_padding(network, own, pad):
            name = type(inside).__name__
            raise ValueError(
                f"{name} finds the last token of a row by its config's pad_token_id={own}, and the tokenizer pads rows "
                f"with {pad}: it would classify the padding; set config.pad_token_id={pad} of this network, or give "
                "the tokenizer its pad token"
            )


@torch.no_grad()
def _reads_padding(network: nn.Module, own: int, pad: int) -> bool:
    """Whether the logits of a few tokens change when one of padding, which is masked, comes behind them."""
    device = next(network.parameters()).device
    tokens = [token for token in range(FEW + 2) if token not in (own, pad)][:FEW]
    row = torch.tensor([[*tokens, pad]], device=device)
    mask = (row != pad).long()
    call = Call.of(network)
    with untouched(network):
        alone, padded = (
            call(network, {"input_ids": row[:, :n], "attention_mask": mask[:, :n]}).float()
            for n in (len(tokens), len(tokens) + 1)
        )
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in network.parameters())
    return bool((alone - padded).abs().max() > (0.05 if half else 1e-3) * alone.abs().max())
