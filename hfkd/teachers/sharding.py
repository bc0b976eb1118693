"""A teacher that no device could hold whole: sharded by FSDP 2, as the student is."""

from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard_networks(networks: tuple[nn.Module, ...], accelerator: Accelerator) -> None:
    """Shard each network over the ranks that share the student, a block at a time (its `_no_split_modules`).

    Between forwards every rank holds its share of each weight, and within one the whole of one block and of what is in
    none (embeddings, head). All ranks have to call it together, as they do in training. The numbers stay what they are.
    Raises ValueError where the student is not sharded by FSDP 2, and for quantised weights.
    """
    if not getattr(accelerator, "is_fsdp2", False):
        raise ValueError(
            "shard_teacher=True shards the teacher as FSDP 2 shards the student, and this run has no FSDP 2 "
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
                f"shard_teacher=True, and {type(network).__name__} has weights of whole numbers, as 4 and 8 bits are: "
                "load it in float32 or bfloat16, or leave shard_teacher out"
            )
        blocks = set(getattr(network, "_no_split_modules", None) or ())
        inner = [module for module in network.modules() if type(module).__name__ in blocks and module is not network]
        for module in [*reversed(inner), network]:
            fully_shard(module, reshard_after_forward=True, **over)
