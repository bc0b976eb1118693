"""Keeps a student's `use_cache` setting while Trainer changes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

USE_CACHE = "use_cache"


class KeptConfig:
    """The `use_cache` of a student's configuration (possibly absent), which the student has, and is saved with, except
    while it is trained or evaluated.

    Trainer's constructor sets it to `args.use_cache`, by default False, which is meant for training. If this stayed, a
    language model would generate without its cache, also one that is trained further by another trainer and saved by
    that, and the configuration of an image model would have a setting that does not apply to it.
    """

    def __init__(self, model: Any) -> None:
        self.model, self._given = model, _own(model)
        self.of_training = self._given
        self._in_use = False

    def leave(self) -> None:
        """Called once Trainer has changed it."""
        self.of_training = _own(self.model)
        _replace(self.model, self._given)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context of a training or an evaluation, also of one within the other."""
        if self._in_use:
            yield
            return
        self._given, self._in_use = _own(self.model), True
        try:
            _replace(self.model, self.of_training)
            yield
        finally:
            _replace(self.model, self._given)
            self._in_use = False

    @contextmanager
    def as_given(self) -> Iterator[None]:
        """Context in which the student is saved."""
        now = _own(self.model)
        try:
            if self._in_use:
                _replace(self.model, self._given)
            yield
        finally:
            _replace(self.model, now)


def _own(model: Any) -> dict[str, Any]:
    """The attribute, if the model's configuration has it as an instance attribute."""
    config = getattr(model, "config", None)
    return {} if config is None else {name: value for name, value in vars(config).items() if name == USE_CACHE}


def _replace(model: Any, attribute: dict[str, Any]) -> None:
    config = getattr(model, "config", None)
    if config is not None:
        vars(config).pop(USE_CACHE, None)
        vars(config).update(attribute)
