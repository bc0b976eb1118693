"""hfkd: distillation with the Hugging Face Trainer, choosing per sample how hard to soften and how much to learn."""

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.trainer import DistillationTrainer

__all__ = ["DistillationArguments", "DistillationLoss", "DistillationTrainer"]
__version__ = "0.1.0"
