"""The loss that a trainer makes of its arguments and keywords."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from hfkd.arguments import DistillationArguments
from hfkd.losses.base import trained_modules
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.temperatures import OF_LANGUAGE, Constant, Fitted
from hfkd.tasks.base import Task

logger = logging.getLogger(__name__)


def chosen_loss(args: DistillationArguments, **given: Any) -> DistillationLoss:
    """The loss built from the slots and weights in `given`, or in `args` where they are None."""
    values = {name: getattr(args, name) if value is None else value for name, value in given.items()}
    chosen = values["temperature"] is not None
    values["temperature"] = _to_fit(values["temperature"] if chosen else args.slot_temperature)
    loss = DistillationLoss(**values, label_smoothing=args.label_smoothing_factor)
    loss.temperature_chosen = chosen
    return loss


def reads_temperature(loss: DistillationLoss, args: DistillationArguments) -> bool:
    """Whether anything reads the temperature: some term, or the KD on the images that HE-DA mixes as released."""
    return loss.softens or args.he_da == "released"


def slots_in_use(given: Mapping[str, Any], loss: DistillationLoss, args: DistillationArguments) -> dict[str, Any]:
    """What a trainer was given in place of its arguments' slots and weights, and the temperature that nobody chose."""
    found = {name: value for name, value in given.items() if value is not None}
    read, default = loss.distils and reads_temperature(loss, args), loss.temperature
    if read and not loss.temperature_chosen and isinstance(default, Constant):
        found["temperature"] = default.temperature
    return found


def _to_fit(temperature: Any) -> Any:
    """A temperature that is still to be fitted as this trainer's own, which leaves the caller's unfitted.

    Two trainers may share the object (also in `args`), and the second would have the thresholds that were found for the
    teacher and the rows of the first. What it learns, its parameters, remains the caller's.
    """
    if not isinstance(temperature, Fitted) or temperature.thresholds_or_none is not None:
        return temperature
    learned = [parameter for module in trained_modules(temperature) for parameter in module.parameters()]
    return deepcopy(temperature, {id(parameter): parameter for parameter in learned})


def suit_temperature(loss: DistillationLoss, task: Task) -> None:
    """Use temperature 1 for language models, unless a temperature was chosen."""
    if loss.kd_weight and task.vocabulary and not loss.temperature_chosen:
        loss.temperature = Constant(OF_LANGUAGE)
        logger.info(
            "No temperature was set: using temperature=%g, the default for language models (4 for images).", OF_LANGUAGE
        )
