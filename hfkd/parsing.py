"""Dataclasses of settings from the command line and YAML files: one parser for every recipe."""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from hfkd.output_folder import refuse_inputs_as_output

CONFIG: dict[str, Any] = {"metavar": "FILE.yaml", "nargs": "+", "default": []}


def parse(
    dataclasses: Sequence[type],
    argv: Sequence[str] | None = None,
    defaults: Sequence[str | Path | Mapping[str, Any]] = (),
    **parser_options: Any,
) -> tuple[Any, ...]:
    """Parse `argv` into dataclasses. The command line wins over `--config FILE.yaml ...`, which wins over `defaults`.

    Of several files the later ones win. `defaults`, a recipe's protocol, are YAML files too, or mappings of settings. A
    key that no dataclass has raises ValueError with the closest one that exists.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(cast(Any, list(dataclasses)), allow_abbrev=False, **parser_options)
    parser.add_argument("--config", help="Settings to start from; later files win, and flags over all.", **CONFIG)
    for action in parser._actions:
        if action.type is string_to_bool and action.nargs is None:  # `bool | None`: let a bare --bf16 mean true
            action.nargs, action.const = "?", True
    known = {f.name for cls in dataclasses for f in fields(cls) if f.init}
    for source in [*defaults, *_config_paths(argv)]:
        if isinstance(source, Mapping):
            settings, where = dict(source), "settings"
        else:
            settings, where = read_settings(source), f"--config {source}"
        check_known(settings, known, where)
        for action in parser._actions:  # a setting that the file gives is no longer required on the command line
            if action.dest in settings:
                action.required = False
                settings[action.dest] = _as_typed(action, settings[action.dest], where)
        parser.set_defaults(**settings)
    *parsed, rest = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    del rest.config
    _show_log()
    refuse_inputs_as_output({name: value for part in parsed for name, value in vars(part).items()})
    return tuple(parsed)


def _show_log() -> None:
    """A recipe's user sees what hfkd logs (resumed from where, thresholds, what was passed over), once."""
    logger = logging.getLogger("hfkd")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(levelname)s|%(name)s] %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # libraries that are loaded later give the root logger a handler of its own
        logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


def _config_paths(argv: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", **CONFIG)
    return parser.parse_known_args(argv)[0].config


def _as_typed(action: argparse.Action, value: Any, where: str) -> Any:
    """A YAML value as the command line would have read it: to YAML 1.1, 5e-2 is a string."""
    if value is None or action.nargs == 0:
        return value
    if action.nargs in ("+", "*"):
        return [_number(action, v, where) for v in (value if isinstance(value, list) else [value])]
    return _number(action, value, where)


def _number(action: argparse.Action, value: Any, where: str) -> Any:
    """`value` as the action's int or float, where it wants one; a list, a bool or a mapping reads as no number."""
    if action.type not in (int, float):
        return value
    try:
        return action.type(str(value))
    except ValueError:
        kind = "whole number" if action.type is int else "number"
        raise ValueError(f"{where}: {action.dest}: {value!r} is not a {kind}") from None


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file (safe loader: no code)."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--config {path}: there is no such file") from None
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"--config {path} is not a YAML file of settings: {error}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, dict) or not all(isinstance(k, str) for k in settings):
        held = "names that are not text" if isinstance(settings, dict) else f"a {type(settings).__name__}"
        raise ValueError(f"--config {path} must hold `name: value` lines, and holds {held}")
    return settings


def check_known(settings: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise ValueError for a setting that is not in `known`."""
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"{where}: unknown setting {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
