"""Students whose layers are split over several processes (tensor parallelism), which have the same rows."""

from typing import Any

from accelerate.utils import recursively_apply
from torch import Tensor

from hfkd.utils.temporary_settings import setting


def count_rows_once(trainer: Any) -> None:
    """Let a trainer's `gather_for_metrics` return each row once, where some processes in a row have the same ones.

    Rows that fill up the last batch are dropped by their place: what they left of it counted once, and others twice.
    """
    accelerator, copies = trainer.accelerator, trainer.get_tp_size()
    if copies == 1:
        return
    gather, for_metrics, processes = accelerator.gather, accelerator.gather_for_metrics, accelerator.num_processes

    def of_first(values: Tensor) -> Tensor:
        return values.unflatten(0, (processes, -1))[::copies].flatten(0, 1)

    def once(values: Any) -> Any:
        return recursively_apply(of_first, gather(values))

    def counted(*given: Any, **keywords: Any) -> Any:
        with setting(accelerator, gather=once):
            return for_metrics(*given, **keywords)

    # Trainer has taken accelerate's own for its first evaluation, and asks again after that.
    vars(accelerator)["gather_for_metrics"] = trainer.gather_function = counted
