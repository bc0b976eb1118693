"""Layer norms in float32 under bfloat16 autocast on a CPU, as autocast computes them on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hfkd.arguments import DistillationArguments


@contextmanager
def layer_norms_in_float32(student: nn.Module, args: DistillationArguments) -> Iterator[None]:
    """Context in which the student's layer norms get their input in float32, if it trains in bfloat16 on a CPU.

    torch adds up the gradients of their weight and bias over all rows in the input's dtype there. In bfloat16 a sum
    no longer grows from about 256 times its terms on: over 4,096 rows a gradient of one sign is 70 % too small, one of
    both signs 8 % wrong. Other norms, and the gradient of the input, are right, and so are networks whose embeddings
    are in float32 and are added to (GPT-2, BERT, ViT): there it is the norms' input already.
    """
    wanted = student.modules() if args.bf16 and args.device.type == "cpu" else ()
    handles = [part.register_forward_pre_hook(_widened) for part in wanted if isinstance(part, nn.LayerNorm)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widened(part: Any, inputs: Any) -> Any:
    trained = [p for p in part.parameters() if p.requires_grad and p.dtype == torch.float32]
    if not trained or not torch.is_grad_enabled() or not inputs or inputs[0].dtype != torch.bfloat16:
        return None  # unchanged
    return inputs[0].float(), *inputs[1:]
