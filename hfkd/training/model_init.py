"""A student that `model_init` makes anew for every training, and for every trial of a search of hyperparameters."""

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import enable_full_determinism, set_seed
from transformers.trainer_utils import number_of_arguments

from hfkd.arguments import DistillationArguments


def student_of(
    model: Any, model_init: Callable[..., Any] | None, args: DistillationArguments, keywords: Mapping[str, Any]
) -> Any:
    """`model`, or the first that `model_init` makes, from `args.seed`. ValueError for both, or neither."""
    if model_init is None:
        if model is None:
            raise ValueError("there is no student: pass model=, or model_init=, a function that makes one")
        return model
    if model is not None:
        raise ValueError("model= and model_init= are both given: pass the student, or the function that makes it")
    if any(part is not None for part in keywords.get("optimizers") or ()):
        raise ValueError(
            "optimizers= hold the parameters of one student, and model_init makes another for each training: leave "
            "them out, or override create_optimizer"
        )
    takes = number_of_arguments(model_init)
    if takes > 1:
        raise ValueError(f"model_init takes {takes} arguments: it is called with none, or with the trial of a search")
    return seeded(args, lambda: model_init(*[None] * takes))


def seeded(args: DistillationArguments, make: Callable[[], Any]) -> Any:
    """What is made with the random state of a run's start. ValueError where it is no network."""
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    made = make()
    if not isinstance(made, nn.Module):
        raise ValueError(f"model_init returned a {type(made).__name__}: return the student, a network")
    return made


@dataclass
class Anew:
    """What a trainer was given to build itself from, to be built again around a new student.

    slots: the trainer's keywords, None where `args` decide; each training gets them as they were, what learns too.
    """

    teacher: Any
    slots: dict[str, Any]
    keywords: dict[str, Any]
    _student: nn.Module | None = field(default=None, init=False)
    _state: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.slots = copy.deepcopy(self.slots)

    def fresh_slots(self) -> dict[str, Any]:
        return copy.deepcopy(self.slots)

    def refuse_hidden(self, before: Mapping[str, Any], args: DistillationArguments) -> None:
        """Raise ValueError where a search sets what a keyword of the trainer decides: every trial would be the same."""
        hidden = [
            name for name, value in self.slots.items() if value is not None and before[name] != getattr(args, name)
        ]
        if hidden:
            raise ValueError(
                f"the search sets {', '.join(hidden)}, and the trainer was given {hidden[0]}=, which wins over the "
                "arguments: leave that keyword out"
            )

    def keep(self, student: nn.Module) -> None:
        """Have `student`, and the random state now, ready for Trainer, which asks for a student when it starts."""
        self._student = student
        self._state = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def kept(self) -> nn.Module | None:
        """That student, once; the random state is what it was after it had been made."""
        student, self._student = self._student, None
        if student is not None:
            python, legacy, generator = self._state
            random.setstate(python)
            np.random.set_state(legacy)
            torch.set_rng_state(generator)
        return student
