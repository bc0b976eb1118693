"""A teacher that has something in common with the student would change as the student learns."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hfkd.models.checkpoints import some


def refuse_shared(student: nn.Module, teachers: Sequence[nn.Module], adapters: bool = False) -> None:
    """Raise ValueError for a teacher that is, holds or changes with a part of the student.

    Weights that the student keeps frozen, as those under `adapters` that it is about to get, may be the teacher's too.
    """
    own = {id(module) for module in student.modules() if _has_state(module)}
    changing = {} if adapters else _changing(student)
    for teacher in teachers:
        shared = [name or "all of it" for name, module in teacher.named_modules() if id(module) in own]
        tensors = [*teacher.parameters(), *teacher.buffers()]
        shared = shared or [changing[_storage(tensor)] for tensor in tensors if _storage(tensor) in changing]
        if shared:
            raise ValueError(
                f"the teacher shares {some(shared)} with the student, and would change as the student learns: give it "
                "a network of its own, such as copy.deepcopy of the student"
            )


def _has_state(module: nn.Module) -> bool:
    """Whether it matters who else uses this module. One without weights, such as a ReLU, may be anywhere."""
    return isinstance(module, _DropoutNd) or any(True for _ in (*module.parameters(), *module.buffers()))


def _changing(student: nn.Module) -> dict[tuple[torch.device, int], str]:
    """Where what training changes lies in memory, and its name: parameters that train, and statistics."""
    learning = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    statistics = [(name, buffer) for name, buffer in student.named_buffers() if buffer.is_floating_point()]
    return {_storage(tensor): name for name, tensor in learning + statistics}


def _storage(tensor: Tensor) -> tuple[torch.device, int]:
    """The memory of a tensor, which others may use under another name; itself where there is none to see."""
    hidden = is_lazy(tensor) or tensor.is_meta or is_traceable_wrapper_subclass(tensor)
    return tensor.device, id(tensor) if hidden else tensor.untyped_storage().data_ptr() or id(tensor)
