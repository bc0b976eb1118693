"""Verifies that a language model's logits are its output head on its last hidden state, rescaled.

L length, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hfkd.losses.rescaling import Rescaling, all_sizes
from hfkd.models.calling import Call, output_head
from hfkd.tasks.proof import untouched

PROBED_TOKENS = 8


@torch.no_grad()
def rescaling_of(network: nn.Module) -> Rescaling:
    """How `network` rescales the output of its head. ValueError if it has no `logits_to_keep`, or does anything else.

    Independent of weights and precision: the head's output is replaced by numbers of all magnitudes, and the result is
    compared with these.
    """
    call, name = Call.of(network), type(network).__name__
    if call.keywords is None or "logits_to_keep" not in call.keywords or output_head(network) is None:
        raise ValueError(
            f"loss_chunk_size: {name}.forward has no argument logits_to_keep, or {name} has no output embedding, "
            "so that its logits cannot be left out; set loss_chunk_size to 0"
        )
    with untouched(network):
        found = _rescaling(network, call, _probe(network)) if _reads_last_hidden(network, call) else None
    if found is None:
        raise ValueError(
            f"loss_chunk_size: the logits of {name} are not its output embedding applied to its last hidden "
            "state, scaled and capped; set loss_chunk_size to 0"
        )
    return found


def _probe(network: Any) -> dict[str, Tensor]:
    table = network.get_input_embeddings().weight
    return {"input_ids": torch.arange(PROBED_TOKENS, device=table.device).remainder(len(table)).unsqueeze(0)}  # [1, L]


def _reads_last_hidden(network: nn.Module, call: Call) -> bool:
    """Whether the head's input is what `call.hidden` returns."""
    read: list[Tensor] = []
    hook = output_head(network).register_forward_pre_hook(lambda module, args: read.append(args[0]))
    try:
        hidden = call.hidden(network, _probe(network))[:, -1:]  # [1, 1, H]
    finally:
        hook.remove()
    return len(read) == 1 and read[0].shape == hidden.shape and torch.allclose(read[0], hidden, rtol=1e-5, atol=1e-7)


def _rescaling(network: nn.Module, call: Call, inputs: dict[str, Tensor]) -> Rescaling | None:
    put: list[Tensor] = []

    def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        put.append(all_sizes(output))  # [1, L, V]
        return put[-1]

    hook = output_head(network).register_forward_hook(replace)
    try:
        given = call(network, inputs)
    finally:
        hook.remove()
    return Rescaling.fitted(put[0], given) if len(put) == 1 and put[0].shape == given.shape else None
