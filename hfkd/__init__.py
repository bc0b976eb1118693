"""hfkd: distillation with the Hugging Face Trainer, choosing per sample how hard to soften and how much to learn."""

from hfkd.arguments import DistillationArguments
from hfkd.losses.base import Objective, Requirements, Temperature, Weighting
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.registry import register_objective, register_temperature, register_weighting
from hfkd.trainer import DistillationTrainer

__all__ = [
    "DistillationArguments",
    "DistillationLoss",
    "DistillationTrainer",
    "Objective",
    "Requirements",
    "Temperature",
    "Weighting",
    "register_objective",
    "register_temperature",
    "register_weighting",
]
__version__ = "0.2.0"
