"""What a saved model's folder says of the weights in it: how images are prepared, and the names of the classes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TimmWrapperForImageClassification
from transformers.utils import CONFIG_NAME

from hfkd.models.checkpoints import SAVED_NAMES
from hfkd.models.inputs import PROCESSOR_FILES
from hfkd.models.label_names import class_names, label_names_in, warn_of_renamed

# the entries of timm's pretrained_cfg for preprocessing; the others describe weights that a new model does not have
INPUT_KEYS = ("input_size", "fixed_input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def folder_of_weights(checkpoint: str | os.PathLike[str]) -> str | None:
    """The folder of a saved model, if `checkpoint` is the file of its weights, beside its config.json; else None."""
    path = Path(checkpoint)
    return str(path.parent) if path.name in SAVED_NAMES and (path.parent / CONFIG_NAME).is_file() else None


def take_what_is_said(
    model: PreTrainedModel, checkpoint: str | os.PathLike[str], label_names: Sequence[str] | None
) -> None:
    """Give a classifier whose weights are from the file of a saved model what that model's folder says of them.

    An architecture's mean and std are those of its published weights, and its classes have no names: with these, other
    weights would get other images than they were trained on, and teach classes in another order. `label_names`, where
    given, are kept; a warning says if the folder has others.
    """
    folder = folder_of_weights(checkpoint)
    if folder is None or (saved := _config(folder)) is None:
        return
    prepared: dict[str, Any] = getattr(saved, "pretrained_cfg", None) or {}
    if isinstance(model, TimmWrapperForImageClassification):
        said = {key: prepared[key] for key in INPUT_KEYS if key in prepared}
        model.config.pretrained_cfg = {**(model.config.pretrained_cfg or {}), **said}
    elif any(os.path.isfile(os.path.join(folder, name)) for name in PROCESSOR_FILES):
        model.config.name_or_path = folder  # from where its image processor is read
    if label_names is not None:
        warn_of_renamed(folder, label_names)
    elif (names := label_names_in(saved)) is not None and len(names) == model.config.num_labels:
        for setting, value in class_names(names, len(names)).items():
            setattr(model.config, setting, value)


def _config(folder: str) -> PreTrainedConfig | None:
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError):  # of something else than a model of transformers
        return None
    return found
