"""Whether a network's logits for a row depend on the padding beside it.

L tokens of a row.
"""

import torch
from torch import Tensor, nn

from hfkd.models.calling import Call
from hfkd.tasks.proof import untouched
from hfkd.utils.devices import device_of

FEW = 3  # number of tokens of the test row
PADDED = 2


@torch.no_grad()
def reads_padding(network: nn.Module, pad: int, left: bool, own: int | None = None, positions: bool = False) -> bool:
    """Whether the logits of a few tokens change when masked padding tokens are added, on the left or on the right.

    own: the network's own pad token, if it is not `pad`. positions: the row has its `position_ids`, as in the batches
    of causal language models.
    """
    device = device_of(network)
    tokens = torch.tensor([t for t in range(FEW + 2) if t not in (own, pad)][:FEW], device=device)  # [L]
    call = Call.of(network)

    def logits(left_padding: int, right_padding: int) -> Tensor:
        sides = (left_padding, right_padding)
        row = {
            "input_ids": nn.functional.pad(tokens, sides, value=pad),
            "attention_mask": nn.functional.pad(torch.ones_like(tokens), sides),
        }
        if positions:
            row["position_ids"] = nn.functional.pad(torch.arange(len(tokens), device=device), sides)
        found = call(network, {name: x[None] for name, x in row.items()})
        return (found if found.ndim < 3 else found[:, left_padding : left_padding + len(tokens)]).float()

    with untouched(network):
        alone = logits(0, 0)
        padded = logits(PADDED, 0) if left else logits(0, PADDED)
    return bool((alone - padded).abs().max() > (0.05 if _rounds(network) else 1e-3) * alone.abs().max())


def _rounds(network: nn.Module) -> bool:
    """Whether a network computes in fewer bits than float32, so that rows of another length differ by rounding."""
    kinds = {(p.dtype, p.device.type) for p in network.parameters()}
    return (
        any(dtype not in (torch.float32, torch.float64) for dtype, _ in kinds)  # quantised ones too
        or any(torch.is_autocast_enabled(device) for _, device in kinds)
        or hasattr(network, "_original_forward")  # in accelerate's autocast
        or (torch.get_float32_matmul_precision() != "highest" and any(device == "cuda" for _, device in kinds))
    )


def refuse_padded_prompts(network: nn.Module, pad: int, remedy: str) -> None:
    """Raise ValueError for a network whose answer to a prompt depends on the longer ones that it is padded to."""
    if next(network.parameters()).is_meta:  # on the ranks of FSDP that get their weights later
        return
    if reads_padding(network, pad, left=True, positions=True):
        raise ValueError(
            f"{type(network).__name__} reads the padding before a shorter prompt, which it cannot mask, so that an "
            f"answer would depend on the other prompts of its batch: {remedy}"
        )
