"""What an optimizer's state and parameters are, where it is loaded and where they are saved."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


@torch.no_grad()
def as_laid_out(optimizer: torch.optim.Optimizer) -> None:
    """Convert each state tensor of a parameter's shape to the parameter's memory layout, with unchanged values.

    Fused kernels iterate over both in memory order: with a contiguous `exp_avg` and channels_last weights, each weight
    would be updated with the moment of another. A loaded state has the layout of the run that saved it. Raises
    ValueError for a quantized state in another layout, whose blocks follow the memory order.
    """
    for parameter, states in optimizer.state.items():
        for name, state in states.items() if isinstance(states, dict) else ():
            if _laid_out_otherwise(state, parameter):
                states[name] = torch.empty_like(parameter, dtype=state.dtype, device=state.device).copy_(state)


def show_result(optimizer: Any) -> None:
    """Give parameters the values that are the result of an optimizer which trains at others, as schedule-free ones do.

    Trainer does so before an evaluation alone, and takes them back in the next step.
    """
    if callable(to_result := getattr(optimizer, "eval", None)):
        to_result()


def _laid_out_otherwise(state: Any, parameter: Tensor) -> bool:
    if not isinstance(state, Tensor) or isinstance(state, DTensor) or state.shape != parameter.shape:
        return False
    if _order(state) == _order(parameter):
        return False
    if type(state) is not Tensor or not state.is_floating_point():
        raise ValueError(
            f"the checkpoint's optimizer state is quantized ({state.dtype}) for another memory layout of the "
            "weights, and cannot be converted: resume with the value of channels_last that it was saved with"
        )
    return True


def _order(tensor: Tensor) -> list[int]:
    """The strides of dimensions larger than 1, which determine the order of the elements in memory."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
