"""Trainable parameters and buffers of slots: parameters train as a child module of the student, and none is in its
files.

The loss is attached to the student only during `train()`, however it ends. As those of a child module, its parameters
are in the optimizer, synchronized over ranks and clipped with the student's; parameters outside of the model would
silently diverge between ranks.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from transformers import TrainerCallback

from hfkd.arguments import DistillationArguments
from hfkd.losses.base import Objective, Slot, with_settings
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.terms import terms_of
from hfkd.training.host import Host
from hfkd.utils.files import write_atomically
from hfkd.utils.launch import uses_fsdp
from hfkd.utils.messages import some
from hfkd.utils.optimizers import steps_in_backward
from hfkd.utils.temporary_settings import setting

logger = logging.getLogger(__name__)

CHILD = "distillation_loss"
FILE = "distillation.safetensors"


def learns(loss: DistillationLoss) -> bool:
    """Whether the loss has parameters to train."""
    return loss.distils and any(p.requires_grad for p in loss.parameters())


def keeps(loss: DistillationLoss) -> bool:
    """Whether the loss has parameters or buffers, such as running means, that belong into checkpoints."""
    return loss.distils and bool(loss.state_dict())


def prepare(loss: DistillationLoss, num_classes: int | None, args: Any) -> None:
    """Create the parameters of a loss that has trainable ones; no-op for others.

    Raises ValueError if they would not be trained as expected.
    """
    if not learns(loss):
        return
    if uses_fsdp(args):
        raise ValueError("a slot with trainable parameters cannot be sharded with the student: train without FSDP")
    if any(is_lazy(p) for p in loss.parameters()):
        if num_classes is None:
            raise ValueError(
                "an instance-wise learned temperature needs the number of classes, which a stream does not give: "
                "pass a train_dataset with a length"
            )
        with torch.no_grad():  # initializes sizes that depend on the number of classes
            logits = torch.zeros(1, num_classes)
            loss.temperature(image_items(logits, logits, torch.zeros(1, dtype=torch.long)))
    if lazy := [name for name, p in loss.named_parameters() if is_lazy(p)]:
        raise ValueError(
            f"{some(lazy)} of the loss has no shape yet, and no optimizer takes it: make such layers in "
            "build(context) of the objective, which says the sizes (context.num_classes, context.student.shape(layer))"
        )


def touched(loss: DistillationLoss, student: nn.Module) -> Tensor | None:
    """Zero, through which every parameter of the wrapped student gets a gradient; None where DDP does not need it.

    With trainable parameters in the loss, DDP cannot search for unused parameters (such as DINOv2's mask token), see
    `used_by_ddp`.
    """
    if not learns(loss) or not isinstance(student, DistributedDataParallel):
        return None
    nothing = [parameter.reshape(-1)[:0].sum() for parameter in student.parameters() if parameter.requires_grad]
    return torch.stack([one.float() for one in nothing]).sum()


def used_by_ddp(loss: DistillationLoss, args: DistillationArguments) -> AbstractContextManager[None]:
    """While Trainer is built: stop DDP from searching for unused parameters, as it would count those of the loss."""
    return setting(args, ddp_find_unused_parameters=False) if learns(loss) else nullcontext()


@contextmanager
def attached(loss: DistillationLoss, student: nn.Module, hidden: bool = True) -> Iterator[None]:
    """Context in which a loss with trainable parameters is a child of the student; entered before the student is
    wrapped.

    The parameters are the same each time, so that the optimizer and wrappers of an earlier `train()` stay valid.
    hidden: the student's state dict is without them, as callbacks save it, copy it, or load that of an earlier step.
    """
    if not learns(loss):
        yield
        return
    parent = _parent(student)
    parent.add_module(CHILD, loss)
    hooks = [parent.register_state_dict_post_hook(_left_out)] if hidden else []
    hooks += [parent.register_load_state_dict_post_hook(_not_missing)] if hidden else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        parent._modules.pop(CHILD, None)


def _left_out(parent: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}{CHILD}.")]:
        del state_dict[name]


def _not_missing(parent: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if CHILD not in name.split(".")]


@contextmanager
def without_loss(student: nn.Module) -> Iterator[None]:
    """Context in which the loss is detached from the student, for reading and writing the student's files."""
    parent = next((module for module in student.modules() if CHILD in module._modules), student)
    child = parent._modules.pop(CHILD, None)
    try:
        yield
    finally:
        if child is not None:
            parent.add_module(CHILD, child)


def _parent(student: nn.Module) -> nn.Module:
    """The student; for an nn.Sequential, which would call the loss as a layer, a module in it without children."""
    if not isinstance(student, nn.Sequential):
        return student
    return next(module for module in student.modules() if not any(module.children()))


def join(loss: DistillationLoss, optimizer: Any, scheduler: Any = None) -> None:
    """Add the loss's parameters to an optimizer passed by the caller, if any, as groups with its default settings.

    Groups of `Slot.parameter_groups` keep their own learning rates.

    Raises ValueError for a `scheduler`, which covers only the groups that existed when it was created.
    """
    missing = not_in(optimizer, loss) if learns(loss) and optimizer is not None else []
    if not missing:
        return
    if scheduler is not None:
        raise ValueError(
            f"{learner(loss)!r} has trainable parameters, which optimizers=(optimizer, scheduler) do not include: "
            "build it yourself, pass it to the trainer and its parameters() to the optimizer, or leave the "
            "scheduler to the trainer"
        )
    for group in _groups(loss, missing):
        optimizer.add_param_group(group)
        settings = {name: optimizer.param_groups[-1].get(name) for name in ("lr", "weight_decay")}
        logger.warning(
            "The parameters of %r are added to the optimizer that was passed, as a separate group: %s",
            learner(loss),
            settings,
        )


def regroup(loss: DistillationLoss, optimizer: torch.optim.Optimizer) -> None:
    """Move parameters with their own learning rate (`Slot.parameter_groups`) into separate groups.

    What these do not say, such as the weight decay, stays as it was, not as an optimizer has it by default (0.01 in
    AdamW). Parameters missing in the optimizer are reported by `CheckTrained`.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [group for group in _groups(loss, trained) if len(group) > 1] if learns(loss) else []
    apart = {id(p) for group in groups for p in group["params"]}
    before = {id(p): _settings(group) for group in optimizer.param_groups for p in group["params"]}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in apart]
    for group in groups:
        parts: list[dict[str, Any]] = []
        for p in group["params"]:
            settings = before[id(p)] | _settings(group)
            part = next((part for part in parts if _settings(part) == settings), None)
            if part is None:
                parts.append(part := settings | {"params": []})
            part["params"].append(p)
        for part in parts:
            optimizer.add_param_group(part)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _groups(loss: DistillationLoss, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """`parameters` in the groups that slots ask for; the others form one group with the optimizer's settings."""
    asked = [group for slot in loss.slots if isinstance(slot, Slot) for group in slot.parameter_groups()]
    wanted = {id(p) for p in parameters}
    groups = [group | {"params": [p for p in group["params"] if id(p) in wanted]} for group in asked]
    apart = {id(p) for group in groups for p in group["params"]}
    groups.append({"params": [p for p in parameters if id(p) not in apart]})
    return [group for group in groups if group["params"]]


def learner(loss: DistillationLoss) -> Any:
    """The slot with trainable parameters, for messages."""
    learning = (s for s in loss.slots if isinstance(s, nn.Module) and any(p.requires_grad for p in s.parameters()))
    return next(learning, loss.temperature)


def not_in(optimizer: Any, loss: DistillationLoss) -> list[nn.Parameter]:
    """Trainable parameters of the loss that `optimizer` lacks."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [parameter for parameter in loss.parameters() if parameter.requires_grad and id(parameter) not in trained]


class CheckTrained(TrainerCallback):
    """Raises ValueError before the first step if the optimizer lacks trainable parameters of the loss, and warns at the
    first step of parameters that got no gradient, such as those of an output that the loss does not read."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._looked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        loss = self.host.distillation_loss
        if learns(loss) and not args.deepspeed and not_in(keywords["optimizer"], loss):
            raise ValueError(
                f"{loss.temperature!r} has trainable parameters, which the optimizer does not include: pass all "
                "trainable parameters of self.model in your create_optimizer"
            )
        _say_trained_elsewhere(loss, self.host, resumed=state.global_step > 0)
        elsewhere = bool(args.deepspeed) or self.host.is_fsdp_enabled or steps_in_backward(args.optim)
        self._looked = elsewhere  # where its gradients are

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        loss = self.host.distillation_loss
        paused = () if loss.kd_weight else tuple(loss.parameters())
        for parameter in paused:
            parameter.grad = None  # under DDP it is 0, with which weight decay and momentum would move them
        if self._looked:
            return
        apart = {id(parameter) for parameter in paused}
        named = ((name, p) for name, p in self.host.model.named_parameters() if id(p) not in apart)
        trainable = {name: p for name, p in named if p.requires_grad}
        without = [name for name, parameter in trainable.items() if parameter.grad is None]
        own = [name for name in without if CHILD in name.split(".")]
        if len(without) == len(trainable):  # a step that is left out, or an optimizer that has taken it already
            return
        self._looked = True
        if own:
            logger.warning(
                "%s of the loss got no gradient at the first step, and train only if later values depend on them.",
                some(name.partition(f"{CHILD}.")[2] for name in own),
            )
        if len(without) > len(own):
            logger.warning(
                "%s got no gradient at the first step, and train only if later batches reach them: the loss reads the "
                "student's logits, of several outputs the first.",
                some(name for name in without if name not in own),
            )


# A part of the last trainer of a slot, as a weak reference.
_trained_by: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def _say_trained_elsewhere(loss: DistillationLoss, host: Host, resumed: bool) -> None:
    """Warn of slots that have learned something in another trainer, as one object may be given to several."""
    if not loss.distils:
        return
    for slot in (loss.temperature, loss.weighting, *(term.objective for term in loss.terms)):
        if not isinstance(slot, nn.Module) or not slot.state_dict():
            continue
        other, mine = _trained_by.get(slot), host.judged
        if other is not None and other() is not mine and not resumed:
            logger.warning(
                "%s has been trained in another trainer, and begins with what it learned there: make one for each "
                "trainer, unless this training goes on with that one.",
                with_settings(slot),
            )
        _trained_by[slot] = ref(mine)


def built_anew(objective: Any) -> None:
    """Called when an objective has been built, with layers of its own that have learned nothing."""
    for one in (term.objective for term in terms_of(objective)):
        if isinstance(one, nn.Module) and isinstance(one, Objective) and one.builds:
            _trained_by.pop(one, None)


def students_own(state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
    """A state dict without the entries of the loss."""
    return state_dict and {k: v for k, v in state_dict.items() if CHILD not in k.split(".")}


def write(loss: DistillationLoss, folder: str | Path) -> None:
    """Write the loss's parameters and buffers to `folder`, if it has any."""
    if keeps(loss):  # copies, as a tensor that has two names cannot be saved
        write_atomically(Path(folder) / FILE, save({k: v.clone().contiguous() for k, v in loss.state_dict().items()}))


def read(loss: DistillationLoss, folder: str | Path) -> None:
    """Load what `write` stored in a checkpoint. Raises ValueError if it is missing or belongs to another loss.

    A checkpoint without the buffers of a loss that learns nothing is warned of, as plain Trainer writes none.
    """
    if not keeps(loss):
        return
    path = Path(folder) / FILE
    if not path.exists() and not learns(loss):
        logger.warning("%s does not have the buffers of the loss, %s: they start anew.", path, some(loss.state_dict()))
        return
    try:
        loss.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        owner = repr(learner(loss)) if learns(loss) else "the loss"
        raise ValueError(
            f"{path} does not have the parameters of {owner} ({error}): resume from another checkpoint"
        ) from error
