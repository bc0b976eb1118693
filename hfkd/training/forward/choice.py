"""Which way a batch takes to the loss: decided once, from what is trained and how."""

from torch import nn

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import Peers
from hfkd.models.calling import Call
from hfkd.tasks.base import Task
from hfkd.tasks.tokens import PerToken
from hfkd.teachers import LiveTeacher, Teachers
from hfkd.training.forward.dense import ChunkedStep, DenseStep, MutualStep
from hfkd.training.forward.he_da import HighEnergyStep
from hfkd.training.forward.target_tokens import TargetStep
from hfkd.training.preparation import uses_fsdp

Chosen = DenseStep | ChunkedStep | TargetStep
AnyStep = Chosen | HighEnergyStep  # which wraps a chosen one when training starts


def choose_step(
    student: nn.Module,
    teacher: LiveTeacher | None,
    task: Task,
    loss: DistillationLoss,
    args: DistillationArguments,
    num_classes: int | None,
) -> Chosen:
    """The step for these networks. Raises ValueError for a `loss_chunk_size` that they cannot have.

    `num_classes` cuts padded vocabularies to what they share (None: as they are).
    """
    call = Call.of(student)
    if args.loss_chunk_size:
        if not task.by_target or uses_fsdp(args) or isinstance(teacher, Teachers):
            raise ValueError(
                "loss_chunk_size is for causal language models, whole on each device, with one teacher: set it to 0"
            )
        return ChunkedStep(student, teacher and teacher.model, loss, args.loss_chunk_size, num_classes)
    if isinstance(student, Peers):
        return MutualStep(call, task, loss, peers=len(student.peers))
    if isinstance(task, PerToken) and not isinstance(teacher, Teachers):
        heads_on_targets = not (args.torch_compile or task.labels_to_networks)
        return TargetStep(call, task, loss, num_classes, heads_on_targets)
    return DenseStep(call, task, loss, num_classes)
