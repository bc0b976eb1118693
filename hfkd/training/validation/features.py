"""Refuses settings under which inner features cannot be read."""

from typing import Any

from torch import nn

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import Peers
from hfkd.teachers import Teacher
from hfkd.training.validation.student import checkpointing
from hfkd.utils.launch import uses_fsdp


def refuse_features(loss: DistillationLoss, student: nn.Module, teacher: Any, args: DistillationArguments) -> None:
    """Raise ValueError if a slot reads inner layers and these are not available, or ambiguous."""
    layers = loss.requirements.features
    builds = bool(loss.kd_weight) and loss.builds
    if not layers and not builds:
        return
    several = isinstance(teacher, (list, tuple)) or (isinstance(teacher, Teacher) and len(teacher.networks) > 1)
    unmet = {
        "Peers teach each other and have no fixed teacher": (
            isinstance(student, Peers),
            "train one student with a fixed teacher",
        ),
        "a stored teacher has only logits": (
            isinstance(teacher, Teacher) and not teacher.networks,
            "train with the live teacher",
        ),
        "teacher_cache_dir stores only the teacher's logits": (args.teacher_cache_dir, "leave it out"),
        "with several teachers it is ambiguous whose layers are meant": (several, "pass one teacher"),
        "torch_compile hides the attention inside of them": (
            args.torch_compile and any(key.startswith("attention:") for key in layers),
            "train without it",
        ),
        "FSDP shards them": (uses_fsdp(args), "train without it"),
        "DataParallel runs copies of the networks": (
            args.n_gpu > 1,
            "launch one process per GPU, for example with torchrun",
        ),
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
                f"{loss.objective!r} {read}, but {why}: {remedy}, or choose an objective that reads logits"
            )


def _reentrant(student: nn.Module, args: DistillationArguments) -> bool:
    """Whether reentrant gradient checkpointing is set, in the arguments or in the network."""
    given, name = args, checkpointing(args)
    if getattr(given, name) and (getattr(given, f"{name}_kwargs") or {}).get("use_reentrant"):
        return True
    functions = (getattr(module, "_gradient_checkpointing_func", None) for module in student.modules())
    return any(getattr(function, "keywords", {}).get("use_reentrant") for function in functions)
