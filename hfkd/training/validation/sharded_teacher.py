"""Refuses a teacher that cannot be sharded, when the trainer is built."""

from typing import Any

from hfkd.arguments import DistillationArguments
from hfkd.utils.launch import uses_fsdp


def refuse_sharded_teacher(args: DistillationArguments, teacher: Any) -> None:
    """Raise ValueError for `shard_teacher` without FSDP, or without a live teacher."""
    if not args.shard_teacher:
        return
    if not uses_fsdp(args):
        raise ValueError(
            "shard_teacher=True needs FSDP 2, which this run does not use: launch with "
            "accelerate_configs/fsdp.yaml on several GPUs, or leave shard_teacher out"
        )
    if teacher is None or not teacher.networks:
        what = "there is no teacher" if teacher is None else f"{type(teacher).__name__} does not run a network"
        raise ValueError(f"shard_teacher=True has nothing to shard: {what}; leave shard_teacher out")
