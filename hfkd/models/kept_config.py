"""The configuration of a student as its user gave it."""

from typing import Any

from transformers import Trainer

USE_CACHE = "use_cache"


class KeptConfig(Trainer):
    """Trainer that saves the student's `use_cache` as its configuration had it, absent where it had none.

    Trainer's constructor sets it to `args.use_cache`, False by default, which is for training: a published language
    model would generate without its cache, and an image model's file would speak of one.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._use_cache = _own(keywords.get("model"))
        super().__init__(*arguments, **keywords)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        of_training = _own(self.model)
        try:
            _replace(self.model, self._use_cache)
            super()._save(output_dir, state_dict)
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
