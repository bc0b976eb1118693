"""What the run that wrote a network says of it in its results.json."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfkd.models import InputSpec
from hfkd.models.checkpoints import SAVED_NAMES
from hfkd.models.label_names import is_numbering
from hfkd.reports.results import RESULTS_NAME
from hfkd.utils.json_file import json_if_any

logger = logging.getLogger(__name__)

IOU = "eval_iou_"


def results_of(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The results.json of the run whose output folder, checkpoint or file of weights this is; {} without one."""
    path = Path(name).expanduser()
    folder = path.parent if path.is_file() else path
    places = (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,)
    for place in places if folder.is_dir() else ():
        found = json_if_any(place / RESULTS_NAME)
        if found is not None and isinstance(found.get("config"), dict):
            return found
    return {}


def mask_inputs(checkpoint: str | None) -> tuple[InputSpec | None, list[str] | None]:
    """How the images were normalised, and the names of the classes, of a run of `hfkd segment` that wrote this file.

    torchvision's networks have no config.json to say so. None each without such a run, names that are numbers too.
    """
    found = results_of(checkpoint) if checkpoint is not None and Path(checkpoint).name in SAVED_NAMES else {}
    config = found.get("config", {})
    if not isinstance(config.get("image_mean"), list) or not isinstance(config.get("image_std"), list):
        return None, None
    names = iou_names(found.get("epochs", []))
    return InputSpec(tuple(config["image_mean"]), tuple(config["image_std"]), None), names


def iou_names(epochs: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The class names, in the order of a run's evaluations; None if it has none."""
    names = [key.removeprefix(IOU) for row in epochs[-1:] for key in row if key.startswith(IOU)]
    return names if names and not is_numbering(names) else None


def trained_with_template(name: str) -> bool | None:
    """Whether a language model was trained on prompts in its chat template; None if no run says so."""
    config = results_of(name).get("config", {})
    said = config.get("prompts_with_template") or config.get("chat_template")
    return None if said is None else bool(said)


def warn_of_template(name: str, templated: bool, done: str) -> None:
    """Warn if a network gets prompts in a chat template and was trained without it, or the reverse.

    done: what is done with it, as a predicate.
    """
    trained = trained_with_template(name) if name else None
    if trained is not None and trained != templated:
        logger.warning(
            "%s was trained %s its chat template but %s %s it: %s --chat_template",
            name,
            *(("with", done, "without", "pass") if trained else ("without", done, "with", "leave out")),
        )
