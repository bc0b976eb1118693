"""The configuration of a student as its user gave it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

USE_CACHE = "use_cache"


class KeptConfig:
    """A student's `use_cache` as its configuration has it now, absent where it has none: to be saved so.

    Trainer's constructor sets it to `args.use_cache`, False by default, which is for training: a published language
    model would generate without its cache, and an image model's file would speak of one.
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
    """The attribute, if the model's configuration has it as its own."""
    config = getattr(model, "config", None)
    return {} if config is None else {name: value for name, value in vars(config).items() if name == USE_CACHE}


def _replace(model: Any, attribute: dict[str, Any]) -> None:
    config = getattr(model, "config", None)
    if config is not None:
        vars(config).pop(USE_CACHE, None)
        vars(config).update(attribute)
