"""A check for teachers that share modules or weights with the student, and would change in training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hfkd.utils.messages import some

# Values of PEFT's init_lora_weights that leave the base model's weights as they are.
UNCHANGED = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def changes_its_base(config: Any) -> str | None:
    """The setting by which a PEFT configuration changes the base model's weights when its adapters are made; or None.

    PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ take the adapters' start out of the weights, and KaSA truncates them.
    """
    start = getattr(config, "init_lora_weights", None)
    if start not in UNCHANGED:
        return f"init_lora_weights={start!r}"
    return "kasa_config" if getattr(config, "kasa_config", None) is not None else None


def refuse_shared(student: nn.Module, teachers: Sequence[nn.Module], peft_config: Any = None) -> None:
    """Raise ValueError for a teacher that shares modules or trained weights with the student.

    Frozen weights of the student may be shared. peft_config: of adapters that it will get, which freeze the others: it
    is to be checked again once it has them.
    """
    own = {id(module) for module in student.modules() if _has_state(module)}
    changing = _changing(student) if peft_config is None else {}
    start = changes_its_base(peft_config)
    made_anew = {_storage(one): name for name, one in student.named_parameters()} if start else {}
    for teacher in teachers:
        shared = [name or "all of it" for name, module in teacher.named_modules() if id(module) in own]
        tensors = [*teacher.parameters(), *teacher.buffers()]
        shared = shared or [changing[_storage(tensor)] for tensor in tensors if _storage(tensor) in changing]
        if shared:
            raise ValueError(
                f"the teacher shares {some(shared)} with the student, and would change in training: pass a separate "
                "network, such as copy.deepcopy of the student"
            )
        if held := [made_anew[_storage(tensor)] for tensor in tensors if _storage(tensor) in made_anew]:
            raise ValueError(
                f"{start} of peft_config changes the student's weights when the adapters are made, and the teacher "
                f"shares {some(held)} with it, and would be another network: use the default initialisation, or pass a "
                "separate network, such as copy.deepcopy of the student"
            )


def _has_state(module: nn.Module) -> bool:
    """Whether a module has state, so that sharing it matters; a ReLU, for example, has none."""
    return isinstance(module, _DropoutNd) or any(True for _ in (*module.parameters(), *module.buffers()))


def _changing(student: nn.Module) -> dict[tuple[torch.device, int], str]:
    """The storage and name of all tensors that training changes: trained parameters and running statistics."""
    learning = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    statistics = [(name, buffer) for name, buffer in student.named_buffers() if buffer.is_floating_point()]
    return {_storage(tensor): name for name, tensor in learning + statistics}


def _storage(tensor: Tensor) -> tuple[torch.device, int]:
    """The storage of a tensor, which several tensors may share; the tensor itself if it has no visible storage."""
    hidden = is_lazy(tensor) or tensor.is_meta or is_traceable_wrapper_subclass(tensor)
    return tensor.device, id(tensor) if hidden else tensor.untyped_storage().data_ptr() or id(tensor)
