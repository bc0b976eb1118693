"""Refuses settings of an optimizer that Trainer would not pass on to it, and optimizers that are not installed."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import Trainer

from hfkd.arguments import DistillationArguments
from hfkd.training.run_settings import ADAM
from hfkd.utils.optimizers import optimizer_name
from hfkd.utils.temporary_settings import setting

OF_THE_NETWORK = ("galore", "apollo", "lomo")  # which are made for a network, and change it
NOT_PASSED = {"galore": ("weight_decay", *ADAM), "apollo": ("weight_decay",), "lomo": ("weight_decay", *ADAM)}
PROBES = ("7", "true")  # each setting takes one of them for another value than its default, or refuses it
FLAGS = "learning_rate, weight_decay and adam_beta1, adam_beta2, adam_epsilon are settings of their own"


def check_optimizer_settings(args: DistillationArguments, keywords: Mapping[str, Any], trains: bool) -> None:
    """Raise ValueError for settings that would have no effect, or an optimizer that cannot be made for training.

    keywords: Trainer's.
    """
    _refuse_unread_settings(args, keywords)
    if trains:
        _refuse_not_installed(args, keywords)


def _refuse_unread_settings(args: DistillationArguments, keywords: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that the optimizer does not get, and for a weight decay that is replaced.

    Trainer gives each group of parameters the `weight_decay` of the arguments, whatever else says.
    """
    given: Mapping[str, Any] = (keywords.get("optimizer_cls_and_kwargs") or (None, {}))[1]
    if given.get("weight_decay", args.weight_decay) != args.weight_decay:
        raise ValueError(
            f"optimizer_cls_and_kwargs has weight_decay={given['weight_decay']}, but Trainer gives the parameters that "
            f"of its arguments, which is {args.weight_decay}: set weight_decay there"
        )
    if not _made_by_name(args, keywords):
        return
    name = optimizer_name(args.optim)
    _refuse_not_passed(args, name)
    if not args.optim_args:
        return
    wanted = _pairs(args.optim_args)
    if unread := [key for key in wanted if key == "weight_decay" or not _reads(args, name, key)]:
        raise ValueError(
            f"optim_args={args.optim_args!r}: {', '.join(unread)} would have no effect with optim={name!r}. Correct "
            f"the name, or leave it out ({FLAGS})"
        )


def _refuse_not_passed(args: DistillationArguments, name: str) -> None:
    """Raise ValueError for arguments that Trainer does not pass on to an optimizer made for a network."""
    defaults = {field.name: field.default for field in fields(args)}
    settings = next((of for kind, of in NOT_PASSED.items() if kind in name), ())
    if given := [f"{one}={getattr(args, one):g}" for one in settings if getattr(args, one) != defaults[one]]:
        raise ValueError(
            f"{', '.join(given)} would have no effect with optim={name!r}, to which Trainer does not pass it: leave it "
            "out, or choose another optimizer"
        )


def _refuse_not_installed(args: DistillationArguments, keywords: Mapping[str, Any]) -> None:
    """Raise ValueError for an `optim` whose library is missing. Trainer makes it in `train()`, after a teacher scan."""
    if not _made_by_name(args, keywords):
        return
    try:
        _made(args, None)
    except ImportError as error:
        raise ValueError(f"optim={optimizer_name(args.optim)!r} cannot be made: {error}") from error
    except Exception:  # without a network, or with settings that are judged elsewhere
        return


def _made_by_name(args: DistillationArguments, keywords: Mapping[str, Any]) -> bool:
    """Whether Trainer makes the optimizer that `optim` names."""
    given = (keywords.get("optimizers") or (None,))[0], keywords.get("optimizer_cls_and_kwargs")
    return given == (None, None) and not args.deepspeed


def _pairs(written: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in written.replace(" ", "").split(",")]
    if not all(name and value for name, _, value in pairs):
        raise ValueError(f"optim_args={written!r} must be name=value, separated by commas, such as momentum=0.9")
    return {name: value for name, _, value in pairs}


def _reads(args: DistillationArguments, name: str, key: str) -> bool:
    """Whether the optimizer depends on a setting in `optim_args`; True where that is not known."""
    if any(one in name for one in OF_THE_NETWORK):
        return True
    try:
        without = _made(args, None)
    except (ImportError, ValueError):  # not installed
        return True
    for value in PROBES:
        try:
            found = _made(args, f"{key}={value}")
        except Exception:  # as it has read a value of another kind
            return True
        if found != without:
            return True
    return False


def _made(args: DistillationArguments, given: str | None) -> Any:
    with setting(args, optim_args=given):
        return Trainer.get_optimizer_cls_and_kwargs(args)
