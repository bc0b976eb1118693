"""Shards a teacher that is too large for one device, with FSDP 2 like the student."""

from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard_networks(networks: tuple[nn.Module, ...], accelerator: Accelerator) -> None:
    """Shard each network over the student's FSDP ranks, block by block (its `_no_split_modules`).

    Between forward passes every rank has its shard of each weight; during one it gathers a whole block at a time, and
    what is outside of blocks (embeddings, head). All ranks have to call the teacher together, as in training. Outputs
    do not change. Raises ValueError if the student is not sharded by FSDP 2, and for quantised weights.
    """
    if not getattr(accelerator, "is_fsdp2", False):
        raise ValueError(
            "shard_teacher=True needs FSDP 2, which this run does not use "
            f"({accelerator.distributed_type.value}): launch with accelerate_configs/fsdp.yaml on several GPUs, or "
            "leave shard_teacher out"
        )
    mesh: Any = getattr(accelerator, "torch_device_mesh", None)
    config: Any = accelerator.parallelism_config
    over = {} if mesh is None else {"mesh": mesh[tuple(config.fsdp_dim_names)]}
    for network in networks:
        if isinstance(network, FSDPModule):
            continue
        if any(not parameter.is_floating_point() for parameter in network.parameters()):
            raise ValueError(
                f"shard_teacher=True does not support {type(network).__name__} with quantised integer weights (4 "
                "or 8 bits): load it in float32 or bfloat16, or leave shard_teacher out"
            )
        blocks = set(getattr(network, "_no_split_modules", None) or ())
        inner = [module for module in network.modules() if type(module).__name__ in blocks and module is not network]
        for module in [*reversed(inner), network]:
            fully_shard(module, reshard_after_forward=True, **over)
