"""What the processes of a run know of each other."""

from typing import Any

import torch.distributed as dist
from accelerate.utils import gather_object


def of_each(found: Any) -> list[Any]:
    """What each process has found, in the order of their ranks. Called on every rank."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return gather_object([found]) if several else [found]
