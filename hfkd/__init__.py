"""hfkd: distillation with the Hugging Face Trainer, choosing per sample how hard to soften and how much to learn."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

MODULES = {  # of each public name, imported when it is asked for: `hfkd --help` need not wait for torch
    "DistillationArguments": "arguments",
    "DistillationLoss": "losses.distillation",
    "DistillationTrainer": "trainer",
    **dict.fromkeys(("Objective", "Requirements", "Temperature", "Weighting"), "losses.base"),
    **dict.fromkeys(("register_objective", "register_temperature", "register_weighting"), "losses.registry"),
}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")  # hfkd.models, after `import hfkd` alone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
