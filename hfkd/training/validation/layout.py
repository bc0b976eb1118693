"""Networks that must not be laid out in channels_last."""

from torch import nn

from hfkd.arguments import DistillationArguments

SAFE_CHANNELS = 8


def refuse_unsafe_layout(model: nn.Module, args: DistillationArguments) -> None:
    """Raise ValueError for a convolution whose gradient torch computes wrongly in channels_last on a CPU.

    That of a 1 x 1 convolution with a stride and 2 to 7 input channels is written outside of its memory (seen in torch
    2.15: most runs crash, some go on with wrong gradients).
    """
    if not args.channels_last or args.device.type != "cpu":
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and _unsafe(module):
            raise ValueError(
                f"{name} is a 1 x 1 convolution of {module.in_channels} channels with stride {module.stride}: on a "
                "CPU torch computes its gradient wrongly in channels_last; pass channels_last=False"
            )


def _unsafe(module: nn.Conv2d) -> bool:
    strided = set(module.kernel_size) == {1} and max(module.stride) > 1
    return strided and 1 < module.in_channels < SAFE_CHANNELS
