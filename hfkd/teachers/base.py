"""The interface of teachers: one network, several, or stored outputs.

B batch rows, L length, N target tokens, V vocabulary, H hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
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
    """A teacher, live or stored. The trainer calls `check_use` before training, which refuses unsupported uses.

    networks: the unwrapped networks that it runs; none for a stored teacher.
    entropy_temperature: of the entropies in the trainer's scan of the training set; a stored teacher has its own.
    """

    networks: tuple[nn.Module, ...] = ()
    entropy_temperature: float = 3.0

    @property
    def members(self) -> tuple[Any, ...]:
        """The teachers of an ensemble, or this one; none for a stored teacher."""
        return (self,) if self.networks else ()

    @property
    def answers(self) -> int:
        """How many logits a batch gets with `each`: those of each of several teachers, or one."""
        return 1

    def reads(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a batch has what this teacher needs besides the inputs of its networks."""
        return True

    def probes(self, batch: Mapping[str, Any]) -> Iterator[tuple[tuple[nn.Module, ...], dict[str, Any]]]:
        """`batch` in as many forms as it takes for each network to run, each with the networks that do."""
        yield self.networks, dict(batch)

    @abstractmethod
    def __call__(self, *, each: bool = False, **inputs: Any) -> Tensor:
        """Logits [B, C] or [B, L, V] of a batch; `each`: those of each teacher of an ensemble, [K, B, ...]."""

    def check_use(
        self, loss: DistillationLoss, args: Any, student: nn.Module, tokenizer: Any, dataset: Any, task: Task
    ) -> int | None:
        """Raise ValueError for a loss, rows or settings that a stored teacher does not support; no-op for live
        teachers.

        Returns the size to which the student's vocabulary is cut, or None.
        """
        return None

    def at_targets(
        self, inputs: Mapping[str, Any], targets: Targets, num_classes: int | None, on_heads: bool
    ) -> tuple[Outputs, Tensor | None]:
        """The outputs at the target tokens, and the network's logits; None for the latter if no network ran.

        `on_heads`: whether the output head may be applied to these tokens only.
        """
        raise ValueError(f"{type(self).__name__} does not support outputs at target tokens: pass the live teacher")

    def hidden(self, inputs: Mapping[str, Any]) -> tuple[Tensor, nn.Module]:
        """The last hidden states [B, L, H], and the output head that computes logits from them."""
        raise ValueError(f"{type(self).__name__} has no hidden states: set loss_chunk_size to 0")

    def collator(self, collate: Callable[..., Any]) -> Callable[..., Any]:
        """`collate`, extended by what this teacher needs in a batch."""
        return collate

    def known(
        self, dataset: Any, energy_temperature: float, entropy_temperature: float, level: Level
    ) -> TeacherScan | None:
        """The scan of `dataset`, if it is stored and no pass is needed; else None."""
        return None

    def frozen(self) -> AbstractContextManager[None]:
        """Context with the networks in eval mode and without gradients; restores their state afterwards."""
        return nullcontext()

    def placed(self, accelerator: Accelerator, shard: bool = False) -> "Teacher":
        """This teacher on the student's device; `shard`: with the weights of its networks sharded over the ranks."""
        return self

    def channels_last(self) -> None:  # noqa: B027 - stored teachers have no memory format
        """Keep the weights in channels_last memory format while they are frozen."""

    def flush(self) -> None:  # noqa: B027 - most have nothing to write
        """Write everything that is pending to disk."""
