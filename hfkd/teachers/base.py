"""What training, scans and reports ask of a teacher: one network, several, or what they said, stored.

B batch rows, L length, N target tokens, V vocabulary, H hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.outputs import Outputs
from hfkd.losses.temperatures import Level
from hfkd.tasks.base import Task
from hfkd.teachers.teacher_scan import TeacherScan
from hfkd.utils.targets import Targets


class Teacher(ABC):
    """A teacher, live or stored. What one cannot serve it refuses; the trainer asks before training begins.

    networks: the bare networks that run for it; none where everything is stored.
    """

    networks: tuple[nn.Module, ...] = ()

    @property
    def members(self) -> tuple[Any, ...]:
        """Each of several teachers, or the one; none where everything is stored."""
        return (self,) if self.networks else ()

    @abstractmethod
    def __call__(self, *, each: bool = False, **inputs: Any) -> Tensor:
        """Logits [B, C] or [B, L, V] of a batch; `each`: those of several teachers one by one, [K, B, ...]."""

    def check_use(
        self, loss: DistillationLoss, args: Any, student: nn.Module, tokenizer: Any, dataset: Any, task: Task
    ) -> int | None:
        """Raise ValueError for a loss, rows or settings that a stored teacher cannot serve. Networks are tried instead.

        Returns the size to which the student's vocabulary is cut, if it is.
        """
        return None

    def at_targets(
        self, inputs: Mapping[str, Any], targets: Targets, num_classes: int | None, on_heads: bool
    ) -> tuple[Outputs, Tensor | None]:
        """The outputs of the target tokens alone, and the network's logits that they are of; None where it did not run.

        `on_heads`: the output head may see these tokens alone too.
        """
        raise ValueError(f"{type(self).__name__} gives no outputs of target tokens: pass the live teacher")

    def hidden(self, inputs: Mapping[str, Any]) -> tuple[Tensor, nn.Module]:
        """The last hidden states [B, L, H], and the output head that makes logits of them."""
        raise ValueError(f"{type(self).__name__} gives no hidden states: set loss_chunk_size to 0")

    def collator(self, collate: Callable[..., Any]) -> Callable[..., Any]:
        """`collate`, whose batches have what this teacher needs besides."""
        return collate

    def known(
        self, dataset: Any, energy_temperature: float, entropy_temperature: float, level: Level
    ) -> TeacherScan | None:
        """What a scan of `dataset` would find, where it is stored and no pass is needed."""
        return None

    def frozen(self) -> AbstractContextManager[None]:
        """Within it the networks are in eval mode and without gradients; afterwards as their owner had them."""
        return nullcontext()

    def placed(self, accelerator: Accelerator, shard: bool = False) -> "Teacher":
        """This teacher where the student trains; `shard`: each rank a share of its weights."""
        if shard:
            raise ValueError(
                f"shard_teacher=True, and {type(self).__name__} has no network whose weights could be shared out: "
                "leave shard_teacher out"
            )
        return self

    def channels_last(self) -> None:  # noqa: B027 - what is stored has no memory format
        """Keep the weights in channels_last memory format while they are frozen."""

    def flush(self) -> None:  # noqa: B027 - most have nothing to write
        """Have everything on disk that is to be."""
