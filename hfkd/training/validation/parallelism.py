"""Refuses networks and rows that are split over processes in ways that training here does not support."""

from collections.abc import Sequence
from typing import Any

from accelerate.utils import get_int_from_env, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from hfkd.arguments import DistillationArguments
from hfkd.utils.launch import uses_fsdp

ROWS = {"cp_size": "context", "sp_size": "sequence"}


def refuse_parallelism(args: DistillationArguments, student: nn.Module, teachers: Sequence[nn.Module]) -> None:
    """Raise ValueError for rows that are split, and a teacher that is split otherwise than the student."""
    for name, kind in ROWS.items():
        if (size := _of_rows(args, name)) > 1:
            raise ValueError(
                f"{name}={size} splits each row over {size} processes ({kind} parallelism), but targets and weights "
                "are found for whole rows here: leave it out, and shard the student with accelerate_configs/fsdp.yaml"
            )
    for teacher in teachers:
        if (size := processes_of(teacher)) not in (1, processes_of(student)):
            raise ValueError(
                f"the teacher, a {type(teacher).__name__}, was loaded over {size} processes (tp_plan, or a "
                "distributed_config), which have to run it on the same rows, and here each process trains on rows of "
                "its own: load it without, so that each process has all of it, or shard it with shard_teacher=True"
            )


def refuse_sharded_student(student: nn.Module, args: DistillationArguments) -> None:
    """Raise ValueError for a student to train that was sharded by FSDP before the trainer is built.

    The checks run it, after which FSDP keeps the weights of its last layers whole, and an optimizer would get those in
    place of the shards that train.
    """
    if uses_fsdp(args) or not any(isinstance(module, FSDPModule) for module in student.modules()):
        return
    raise ValueError(
        f"the student, a {type(student).__name__}, was sharded when it was loaded (distributed_config), and would "
        "train in part only: load it without, and shard it for training with accelerate_configs/fsdp.yaml"
    )


def processes_of(network: nn.Module) -> int:
    """Over how many processes `from_pretrained` has split each layer of a network, or put its layers."""
    models = [module for module in network.modules() if isinstance(module, PreTrainedModel)]
    split = max((getattr(model, "_tp_size", None) or 1 for model in models), default=1)
    configs = [getattr(model.config, "distributed_config", None) for model in models]
    return split * max((getattr(config, "pp_size", None) or 1 for config in configs), default=1)


def _of_rows(args: DistillationArguments, name: str) -> int:
    """A size of the `parallelism_config`, or of that of `accelerate launch`."""
    given: Any = getattr(args, "parallelism_config", None)
    if given is None and parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return get_int_from_env([f"PARALLELISM_CONFIG_{name.upper()}"], 1)
    return getattr(given, name, None) or 1
