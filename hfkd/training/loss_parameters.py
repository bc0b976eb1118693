"""Slots that learn: they train as a child of the student or of a module in it, and stay out of the student's own files.

The student is their parent for as long as `train()` takes, however it ends, and its plain self before and after. As a
child their parameters are in the optimizer, synced over ranks and clipped with the student's; a second optimizer group
beside the model would drift apart between ranks without a word.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from transformers import TrainerCallback

from hfkd.arguments import DistillationArguments
from hfkd.losses.base import Slot
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.training.host import Host
from hfkd.training.preparation import setting, uses_fsdp
from hfkd.utils.files import write_atomically

logger = logging.getLogger(__name__)

CHILD = "distillation_loss"
FILE = "distillation.safetensors"


def learns(loss: DistillationLoss) -> bool:
    """Whether the loss has parameters to train."""
    return bool(loss.kd_weight) and any(p.requires_grad for p in loss.parameters())


def prepare(loss: DistillationLoss, num_classes: int | None, args: Any) -> None:
    """Give a loss that learns its parameters. No-op for one that does not.

    Raises ValueError where its parameters would not be trained as one expects.
    """
    if not learns(loss):
        return
    if uses_fsdp(args):
        raise ValueError("a slot with trainable parameters cannot be sharded with the student: train without FSDP")
    if any(is_lazy(p) for p in loss.parameters()):
        if num_classes is None:
            raise ValueError(
                "an instance-wise learned temperature needs the number of classes: train on rows with a length"
            )
        with torch.no_grad():  # sizes that depend on the number of classes
            logits = torch.zeros(1, num_classes)
            loss.choose(image_items(logits, logits, torch.zeros(1, dtype=torch.long)))


def touched(loss: DistillationLoss, student: nn.Module) -> Tensor | None:
    """Zero, through which every parameter of the wrapped student gets a gradient; None where DDP looks by itself.

    Beside a loss that learns it cannot look for unused ones (DINOv2's mask token), see `used_by_ddp`.
    """
    if not learns(loss) or not isinstance(student, DistributedDataParallel):
        return None
    nothing = [parameter.reshape(-1)[:0].sum() for parameter in student.parameters() if parameter.requires_grad]
    return torch.stack([one.float() for one in nothing]).sum()


def used_by_ddp(loss: DistillationLoss, args: DistillationArguments) -> AbstractContextManager[None]:
    """While Trainer is built: DDP is not to look for unused parameters, for which it takes those of the loss."""
    return setting(args, ddp_find_unused_parameters=False) if learns(loss) else nullcontext()


@contextmanager
def attached(loss: DistillationLoss, student: nn.Module) -> Iterator[None]:
    """Within it a loss that learns is a child of the student: entered before anything wraps the student for training.

    The same parameters each time, so an optimizer or a wrapper of an earlier `train()` still has them.
    """
    if not learns(loss):
        yield
        return
    parent = _parent(student)
    parent.add_module(CHILD, loss)
    try:
        yield
    finally:
        parent._modules.pop(CHILD, None)


@contextmanager
def without_loss(student: nn.Module) -> Iterator[None]:
    """The student as it is before and after training: for reading and writing its own files."""
    parent = next((module for module in student.modules() if CHILD in module._modules), student)
    child = parent._modules.pop(CHILD, None)
    try:
        yield
    finally:
        if child is not None:
            parent.add_module(CHILD, child)


def _parent(student: nn.Module) -> nn.Module:
    """The student; for an nn.Sequential, which calls each of its children, a module within that has no children."""
    if not isinstance(student, nn.Sequential):
        return student
    return next(module for module in student.modules() if not any(module.children()))


def join(loss: DistillationLoss, optimizer: Any, scheduler: Any = None) -> None:
    """Let an optimizer that the trainer did not make, if any, train what the loss learns: groups by its own defaults.

    Those of `Slot.parameter_groups` at their own rates.

    Raises ValueError for a `scheduler`, which knows the groups that there were when it was made.
    """
    missing = not_in(optimizer, loss) if learns(loss) and optimizer is not None else []
    if not missing:
        return
    if scheduler is not None:
        raise ValueError(
            f"{learner(loss)!r} learns, and optimizers=(optimizer, scheduler) have no part of it: build it yourself, "
            "pass it to the trainer and its parameters() to the optimizer, or leave the scheduler to the trainer"
        )
    for group in _groups(loss, missing):
        optimizer.add_param_group(group)
        settings = {name: optimizer.param_groups[-1].get(name) for name in ("lr", "weight_decay")}
        logger.warning("%r joins the optimizer that was given, as a group of its own: %s", learner(loss), settings)


def regroup(loss: DistillationLoss, optimizer: torch.optim.Optimizer) -> None:
    """Put what a slot trains at a rate of its own (`Slot.parameter_groups`) into groups of its own.

    What the optimizer does not train is left to `CheckTrained`.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [group for group in _groups(loss, trained) if len(group) > 1] if learns(loss) else []
    apart = {id(p) for group in groups for p in group["params"]}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in apart]
    for group in groups:
        optimizer.add_param_group(group)


def _groups(loss: DistillationLoss, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """`parameters` by the groups that slots ask for, and those of none together at the optimizer's own settings."""
    slots = (loss.objective, loss.temperature, loss.weighting)
    asked = [group for slot in slots if isinstance(slot, Slot) for group in slot.parameter_groups()]
    wanted = {id(p) for p in parameters}
    groups = [group | {"params": [p for p in group["params"] if id(p) in wanted]} for group in asked]
    apart = {id(p) for group in groups for p in group["params"]}
    groups.append({"params": [p for p in parameters if id(p) not in apart]})
    return [group for group in groups if group["params"]]


def learner(loss: DistillationLoss) -> Any:
    """The slot that learns, for messages."""
    slots = (loss.objective, loss.temperature, loss.weighting)
    learning = (s for s in slots if isinstance(s, nn.Module) and any(p.requires_grad for p in s.parameters()))
    return next(learning, loss.temperature)


def not_in(optimizer: Any, loss: DistillationLoss) -> list[nn.Parameter]:
    """What the loss learns and `optimizer` does not train."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [parameter for parameter in loss.parameters() if parameter.requires_grad and id(parameter) not in trained]


class CheckTrained(TrainerCallback):
    """Raises ValueError before the first step when the loss learns and the optimizer, whoever made it, lacks it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        loss = self.host.distillation_loss
        if learns(loss) and not args.deepspeed and not_in(keywords["optimizer"], loss):
            raise ValueError(
                f"{loss.temperature!r} learns, and the optimizer does not train it: let your create_optimizer "
                "give it all parameters of self.model that train"
            )


def students_own(state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
    """A state dict without the loss's part."""
    return state_dict and {k: v for k, v in state_dict.items() if CHILD not in k.split(".")}


def write(loss: DistillationLoss, folder: str | Path) -> None:
    """Write what the loss has learned to `folder`; nothing for a loss that does not learn."""
    if learns(loss):
        write_atomically(Path(folder) / FILE, save({k: v.contiguous() for k, v in loss.state_dict().items()}))


def read(loss: DistillationLoss, folder: str | Path) -> None:
    """Load what `write` left in a checkpoint. Raises ValueError when it is missing or belongs to another loss."""
    if not learns(loss):
        return
    path = Path(folder) / FILE
    try:
        loss.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not hold what {learner(loss)!r} learned ({error}): resume from another checkpoint"
        ) from error
