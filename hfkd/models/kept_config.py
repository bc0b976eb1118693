"""Keeps a student's `use_cache` setting while Trainer changes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

USE_CACHE = "use_cache"


class KeptConfig:
    """The `use_cache` of a student's configuration at construction (possibly absent), with which the student is saved.

    Trainer's constructor sets it to `args.use_cache`, by default False, which is meant for training. If this were
    saved, a language model would generate without its cache, and the configuration of an image model would have a
    setting that does not apply to it.
    """

    def __init__(self, model: Any) -> None:
        self.model, self._given = model, _own(model)

    @contextmanager
    def as_given(self) -> Iterator[None]:
        of_training = _own(self.model)
        try:
            _replace(self.model, self._given)
            yield
        finally:
            _replace(self.model, of_training)


def _own(model: Any) -> dict[str, Any]:
    """The attribute, if the model's configuration has it as an instance attribute."""
    config = getattr(model, "config", None)
    return {} if config is None else {name: value for name, value in vars(config).items() if name == USE_CACHE}


def _replace(model: Any, attribute: dict[str, Any]) -> None:
    config = getattr(model, "config", None)
    if config is not None:
        vars(config).pop(USE_CACHE, None)
        vars(config).update(attribute)
