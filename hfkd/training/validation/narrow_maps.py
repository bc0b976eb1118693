"""Refuses bfloat16 on a CPU for networks of which torch computes a gradient wrongly there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hfkd.arguments import DistillationArguments
from hfkd.utils.messages import some

PLAIN, TRANSPOSED = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def refusing_narrow_maps(student: nn.Module, args: DistillationArguments) -> Iterator[None]:
    """Context in which the student runs on first rows; raises ValueError at its end for a convolution over maps that
    are narrower than its stride, if it would train in bfloat16 on a CPU.

    Its weight gradient is then made from memory that nothing has written: other numbers each time, at times NaN. Seen
    in torch 2.11 to 2.15 on CPUs that compute bfloat16, in both memory formats, for kernels larger than 1; output and
    input gradient are right. A transposed convolution is the same one backwards: there it is the maps that it makes.
    """
    found: dict[str, int] = {}
    handles = []
    for name, part in student.named_modules() if args.bf16 and args.device.type == "cpu" else ():
        if isinstance(part, PLAIN + TRANSPOSED) and part.weight.requires_grad and _strides(part):
            handles.append(part.register_forward_hook(_looking(name, found)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if found:
        raise ValueError(
            f"{some(list(found))} of the student: the images leave maps of {min(found.values())} pixels in width, less "
            "than the convolution's stride, whose weight gradient torch computes wrongly in bfloat16 on a CPU: pass "
            "bf16=False, or larger images"
        )


def _strides(part: Any) -> bool:
    return max(part.stride) > 1 and max(part.kernel_size) > 1


def _looking(name: str, found: dict[str, int]) -> Any:
    def look(part: Any, inputs: Any, output: Any) -> None:
        width = int((output if isinstance(part, TRANSPOSED) else inputs[0]).shape[-1])
        if width < part.stride[-1]:
            found[name] = width

    return look
