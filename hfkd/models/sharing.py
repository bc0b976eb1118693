"""A check for teachers that share modules or weights with the student, and would change in training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hfkd.utils.messages import some


def refuse_shared(student: nn.Module, teachers: Sequence[nn.Module], adapters: bool = False) -> None:
    """Raise ValueError for a teacher that shares modules or trained weights with the student.

    Frozen weights of the student may be shared, also those that will be frozen under `adapters`.
    """
    own = {id(module) for module in student.modules() if _has_state(module)}
    changing = {} if adapters else _changing(student)
    for teacher in teachers:
        shared = [name or "all of it" for name, module in teacher.named_modules() if id(module) in own]
        tensors = [*teacher.parameters(), *teacher.buffers()]
        shared = shared or [changing[_storage(tensor)] for tensor in tensors if _storage(tensor) in changing]
        if shared:
            raise ValueError(
                f"the teacher shares {some(shared)} with the student, and would change in training: pass a separate "
                "network, such as copy.deepcopy of the student"
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
