"""What cannot give inner features to the loss is refused before anything is built."""

from typing import Any

from torch import nn

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import Peers
from hfkd.teachers import Teacher
from hfkd.training.preparation import uses_fsdp


def refuse_features(loss: DistillationLoss, student: nn.Module, teacher: Any, args: DistillationArguments) -> None:
    """Raise ValueError where a slot reads inner layers, and a network keeps none or nobody could say whose they are."""
    layers = loss.requirements.features
    builds = bool(loss.kd_weight) and loss.builds
    if not layers and not builds:
        return
    several = isinstance(teacher, (list, tuple)) or (isinstance(teacher, Teacher) and len(teacher.networks) > 1)
    unmet = {
        "Peers are each other's teachers, each in its turn": (isinstance(student, Peers), "give a fixed teacher"),
        "a stored teacher has its logits alone": (
            isinstance(teacher, Teacher) and not teacher.networks,
            "train with the live teacher",
        ),
        "teacher_cache_dir stores the teacher's logits alone": (args.teacher_cache_dir, "leave it out"),
        "of several teachers nobody says whose layers are meant": (several, "give one teacher"),
        "torch_compile does not show the attention within": (
            args.torch_compile and any(key.startswith("attention:") for key in layers),
            "train without it",
        ),
        "FSDP shards them": (uses_fsdp(args), "train without it"),
        "DataParallel runs copies of the networks": (args.n_gpu > 1, "launch one process a GPU, as by torchrun"),
        "reentrant gradient checkpointing gives inner layers no gradient": (
            _reentrant(student, args),
            "set use_reentrant=False",
        ),
    }
    for why, (need, remedy) in unmet.items():
        if need:
            read = (
                f"reads inner layers of the networks ({', '.join(dict.fromkeys(layers))})"
                if layers
                else "is built from both networks"
            )
            raise ValueError(
                f"{loss.objective!r} {read}, and {why}: {remedy}, or choose an objective that reads logits"
            )


def _reentrant(student: nn.Module, args: DistillationArguments) -> bool:
    """Whether activations are recomputed by the reentrant kind, as the arguments say or as the network is set."""
    given: Any = args
    if given.activation_checkpointing and (given.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        return True
    functions = (getattr(module, "_gradient_checkpointing_func", None) for module in student.modules())
    return any(getattr(function, "keywords", {}).get("use_reentrant") for function in functions)
