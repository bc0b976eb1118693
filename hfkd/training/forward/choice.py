"""Chooses the forward pass, once, from the networks, the task and the arguments."""

from torch import nn

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import Peers
from hfkd.models.calling import Call, output_head
from hfkd.tasks.base import Task
from hfkd.tasks.tokens import PerToken
from hfkd.tasks.two_tokenizers import TwoTokenizerLM
from hfkd.teachers import Teacher
from hfkd.training.forward.dense import ChunkedForward, DenseForward, MutualForward
from hfkd.training.forward.groups import ChunkedGroupForward, GroupForward
from hfkd.training.forward.he_da import HighEnergyForward
from hfkd.training.forward.strips import StripForward, by_strips
from hfkd.training.forward.target_tokens import TargetForward
from hfkd.utils.compiled import compiled_around
from hfkd.utils.devices import is_spread
from hfkd.utils.launch import uses_fsdp

Chosen = DenseForward | ChunkedForward | TargetForward
AnyForward = Chosen | HighEnergyForward  # wraps a chosen one when training starts


def choose_forward(
    student: nn.Module,
    teacher: Teacher | None,
    task: Task,
    loss: DistillationLoss,
    args: DistillationArguments,
    num_classes: int | None,
) -> Chosen:
    """The forward pass for these networks. Raises ValueError if they do not support `loss_chunk_size`.

    `num_classes` cuts padded vocabularies to the common size (None: no cut).
    """
    call, taught_by = Call.of(student), () if teacher is None else teacher.networks
    several, combined = len(taught_by) > 1, teacher is not None and teacher.answers > 1
    # Hooks on the head are ignored by a compiled network, and get positions of another device in one that is spread.
    unfit = (is_spread(one) or compiled_around(one, output_head(one)) for one in (student, *taught_by))
    on_targets = not (args.torch_compile or any(unfit))
    if args.loss_chunk_size:
        if not task.by_target or uses_fsdp(args) or several:
            raise ValueError(
                "loss_chunk_size works for causal language models that are not sharded, with one teacher: set it to 0"
            )
        network = None if teacher is None else teacher.networks[0]
        if isinstance(task, TwoTokenizerLM) and network is not None:
            return ChunkedGroupForward(student, network, task, loss, args.loss_chunk_size)
        return ChunkedForward(student, network, task, loss, args.loss_chunk_size, num_classes)
    if isinstance(task, TwoTokenizerLM):
        return GroupForward(call, task, loss, None, heads_on_targets=on_targets)
    if isinstance(student, Peers):
        return MutualForward(call, task, loss, peers=len(student.peers))
    if isinstance(task, PerToken) and not combined:
        return TargetForward(call, task, loss, num_classes, on_targets and not task.labels_to_networks)
    if task.by_map and not several and by_strips(loss):
        return StripForward(call, task, loss, num_classes)
    return DenseForward(call, task, loss, num_classes)
