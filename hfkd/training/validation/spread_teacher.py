"""Refuses what a teacher that Accelerate has spread over devices does not support, when the trainer is built."""

from typing import Any

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.feature_capture import LOGITS
from hfkd.utils.devices import is_spread


def refuse_spread_teacher(args: DistillationArguments, loss: DistillationLoss, teacher: Any) -> None:
    """Raise ValueError for a teacher loaded with `device_map` where its layers are called one by one, or by ranks."""
    if teacher is None or not any(map(is_spread, teacher.networks)):
        return
    unmet = {
        "several processes would each run it on the same devices": ("processes", args.world_size > 1),
        "its output head may be on another device than its hidden states": (
            "loss_chunk_size",
            bool(args.loss_chunk_size),
        ),
        "its inner layers are on other devices than the student's": (
            f"objective={loss.objective!r}",
            any(layer != LOGITS for layer in loss.requirements.teacher),
        ),
    }
    for why, (what, asked) in unmet.items():
        if asked:
            raise ValueError(
                f"the teacher is spread over devices (device_map), which is not supported with {what}: {why}. Load it "
                "without device_map, quantised or in half precision, or shard it over GPUs by FSDP 2 (shard_teacher)"
            )
