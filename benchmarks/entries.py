"""The entries of run_all.py: scripts with their flags, and where they can run."""

import importlib.util
from dataclasses import dataclass

import torch

GRAPHS = ("--torch_compile", "true", "--torch_compile_mode", "reduce-overhead")
PAIRS = {  # the two whose 240 epochs are to take minutes on a GPU
    "resnet32x4_resnet8x4": ("--teacher_name", "cifar_resnet32x4", "--student_name", "cifar_resnet8x4"),
    "resnet56_resnet20": ("--teacher_name", "cifar_resnet56", "--student_name", "cifar_resnet20"),
}


@dataclass(frozen=True)
class Entry:
    """A script and its flags; `on_gpu`: only there, and only with the package `needs`."""

    script: str
    flags: tuple[str, ...] = ()
    on_gpu: bool = False
    needs: str = "torch"

    @property
    def can_run(self) -> bool:
        return not self.on_gpu or (torch.cuda.is_available() and importlib.util.find_spec(self.needs) is not None)


ENTRIES = {
    "image_step": Entry("image_step"),
    "image_step_graphs": Entry("image_step", GRAPHS, on_gpu=True),
    **{name: Entry("image_step", pair, on_gpu=True) for name, pair in PAIRS.items()},
    **{f"{name}_graphs": Entry("image_step", pair + GRAPHS, on_gpu=True) for name, pair in PAIRS.items()},
    "loss_overhead": Entry("loss_overhead"),
    "teacher_scan": Entry("teacher_scan"),
    "input_pipeline": Entry("input_pipeline"),
    "chunked_loss": Entry("chunked_loss"),
    # Liger has no weights for tokens
    "chunked_loss_liger": Entry("chunked_loss", ("--peers", "liger", "--weighting", "uniform"), True, "liger_kernel"),
    "text_step": Entry("text_step"),
    "scaling": Entry("scaling"),
}
