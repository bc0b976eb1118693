"""Support for `model_init`, which creates the student for every training and every hyperparameter-search trial."""

import copy
import os
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
    """`model` (a path as text), or the first that `model_init` creates, seeded by `args.seed`.

    Raises ValueError for both or neither, and for a model that is no network and no name of one.
    """
    if model_init is None:
        if model is None:
            raise ValueError("there is no student: pass model=, or model_init=, a function that creates it")
        if not isinstance(model, (nn.Module, str, os.PathLike)):
            raise ValueError(
                f"the student is a {type(model).__name__}: pass an nn.Module, or the name or the folder of a model"
            )
        return os.fspath(model) if isinstance(model, os.PathLike) else model
    if model is not None:
        raise ValueError(
            "model= and model_init= are both given: pass either the student or the function that creates it"
        )
    if any(part is not None for part in keywords.get("optimizers") or ()):
        raise ValueError(
            "optimizers= has the parameters of one student, but model_init creates another for each training: "
            "leave it out, or override create_optimizer"
        )
    takes = number_of_arguments(model_init)
    if takes > 1:
        raise ValueError(
            f"model_init takes {takes} arguments: it must take none, or one, the trial of a hyperparameter search"
        )
    return seeded(args, lambda: model_init(*[None] * takes))


def seeded(args: DistillationArguments, make: Callable[[], Any]) -> Any:
    """Call `make` with the random state of the start of a run. ValueError if the result is not a module."""
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    made = make()
    if not isinstance(made, nn.Module):
        raise ValueError(f"model_init returned a {type(made).__name__}: return the student, an nn.Module")
    return made


@dataclass
class Anew:
    """The arguments that a trainer was built from, for rebuilding it around a new student.

    slots: the trainer's keywords, None where `args` apply; each training gets unchanged copies, also of trained slots.
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
        """Raise ValueError if a search varies a setting that a keyword overrides: all trials would be equal."""
        hidden = [
            name for name, value in self.slots.items() if value is not None and before[name] != getattr(args, name)
        ]
        if hidden:
            raise ValueError(
                f"the search varies {', '.join(hidden)}, but the trainer was given {hidden[0]}=, which takes "
                "precedence over the arguments: leave that keyword out"
            )

    def keep(self, student: nn.Module) -> None:
        """Store `student` and the current random state for Trainer, which calls `model_init` when it starts."""
        self._student = student
        self._state = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def kept(self) -> nn.Module | None:
        """Return that student once, and restore the random state after its creation."""
        student, self._student = self._student, None
        if student is not None:
            python, legacy, generator = self._state
            random.setstate(python)
            np.random.set_state(legacy)
            torch.set_rng_state(generator)
        return student
