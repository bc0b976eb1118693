"""Parsing of settings dataclasses from the command line and YAML files, for all recipes."""

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from hfkd.utils.command import TYPED, print_in_any_encoding
from hfkd.utils.command_line_error import CommandLineError
from hfkd.utils.dependent_settings import refuse_without_effect
from hfkd.utils.output_folder import refuse_inputs_as_output
from hfkd.utils.precedence import merge
from hfkd.utils.setting_types import TextLoader, typed
from hfkd.utils.shipped import shipped, shipped_or_given

IMPORT = "import"
WITH = "with"


class Parsed(tuple[Any, ...]):
    """The dataclasses from `parse`. given: the names of the settings from the command line and --config."""

    given: frozenset[str]

    def __new__(cls, parts: Sequence[Any], given: frozenset[str]) -> "Parsed":
        parsed = super().__new__(cls, parts)
        parsed.given = given
        return parsed


def parse(
    dataclasses: Sequence[type],
    argv: Sequence[str] | None = None,
    defaults: Sequence[str | Path | Mapping[str, Any]] = (),
    **parser_options: Any,
) -> Parsed:
    """Parse `argv` into dataclasses. The command line overrides `--config FILE.yaml ...`, which overrides `defaults`.

    Later files override earlier ones; see `read_layers` for a file with settings for another one. `defaults`, the
    protocol of a recipe, are YAML files or mappings of settings. A setting that would have no effect because of a later
    one is removed, see `hfkd.utils.precedence`. Raises ValueError for an unknown key, with the closest known one; for a
    value that its field does not accept; and for an output_dir that is one of the inputs. A value that begins with ~/
    is a path in the home folder, also in a file and after an equals sign, where shells leave it. With `argv=None`
    (the process's own command line) the error ends the program, with its message only.
    """
    with _in_one_line(argv):
        return _parsed(dataclasses, _words(argv), defaults, **parser_options)


def given_settings(dataclasses: Sequence[type], argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The settings of `argv` and its --config by name, as in `parse`, but not yet checked by the dataclasses.

    For a flag that says which defaults the others have, without which they may be refused.
    """
    _show_log()
    with _in_one_line(argv):
        flags = _flags(dataclasses, _words(argv))
        flags.pop(IMPORT, None)
        return merge([*_joined(_layers(dataclasses, flags, ())), flags])


@contextmanager
def _in_one_line(argv: Sequence[str] | None) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if argv is not None:
            raise
        raise CommandLineError(str(error)) from error


def _words(argv: Sequence[str] | None) -> list[str]:
    return [_at_home(word) for word in (sys.argv[1:] if argv is None else argv)]


def _layers(
    dataclasses: Sequence[type], flags: dict[str, Any], defaults: Sequence[str | Path | Mapping[str, Any]]
) -> list[list[dict[str, Any]]]:
    """The settings of `defaults`, and of the files of --config, which is removed from `flags`."""
    given = [shipped_or_given(source, shipped("recipes") / "configs") for source in flags.pop("config", [])]
    return typed_layers([*defaults, *given], dataclasses)


def _joined(layers: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [layer for several in layers for layer in several]


def _parsed(
    dataclasses: Sequence[type],
    argv: list[str],
    defaults: Sequence[str | Path | Mapping[str, Any]],
    **parser_options: Any,
) -> Parsed:
    _show_log()
    flags = _flags(dataclasses, argv)
    import_modules(flags.pop(IMPORT, []))
    parser, layers = _parser(dataclasses, **parser_options), _layers(dataclasses, flags, defaults)
    settings = merge([*_joined(layers), flags])
    for action in parser._actions:  # a setting from a file is no longer required on the command line
        if action.dest in settings:
            action.required = False
    parser.set_defaults(**settings)
    *parts, rest, unknown = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        close = difflib.get_close_matches(unknown[0].partition("=")[0], parser._option_string_actions, n=1)
        raise ValueError(f"unknown flag {unknown[0]}" + (f"; did you mean {close[0]}?" if close else "; see --help"))
    del rest.config, rest.__dict__[IMPORT]
    parsed = Parsed(parts, frozenset().union(flags, *_joined(layers[len(defaults) :])))
    found = {name: value for part in parts for name, value in vars(part).items()}
    _refuse_what_is_not_done(settings, found)
    refuse_without_effect(*parts)  # also of different dataclasses
    refuse_inputs_as_output(found)
    return parsed


def _at_home(value: Any) -> Any:
    """A setting, or a word of the command line, with ~/ as the home folder.

    Folders are otherwise made under the name ~ in the working directory.
    """
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    if not isinstance(value, str):
        return value
    flag, equals, path = value.partition("=") if value.startswith("--") else ("", "", value)
    return flag + equals + (os.path.expanduser(path) if path.startswith("~/") else path)


def _refuse_what_is_not_done(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise ValueError for a do_train, do_eval or do_predict that differs from what the command does."""
    scores = bool(found.get("evaluate_only"))
    done = {"do_train": not scores, "do_eval": scores or found.get("eval_strategy") != "no", "do_predict": False}
    instead = {
        "do_train": "recipes always train, except train_teacher.py --evaluate_only",
        "do_eval": "evaluation is controlled by eval_strategy",
        "do_predict": "no recipe predicts; evaluation is controlled by eval_strategy",
    }
    for name in done:
        if name in wanted and wanted[name] != done[name]:
            raise ValueError(f"{name}={wanted[name]}: {instead[name]}; leave {name} out")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the flags, and the commands of a recipe's description on lines of their own."""


def _parser(dataclasses: Sequence[type], **options: Any) -> HfArgumentParser:
    options |= {"allow_abbrev": False, "prog": os.environ.get(TYPED), "formatter_class": _Help}
    parser = HfArgumentParser(cast(Any, list(dataclasses)), **options)
    said = "Settings files, or names of those of hfkd (kd, dkd, ...); later ones win, and flags override all."
    parser.add_argument(
        f"--{IMPORT}",
        metavar="MODULE",
        nargs="+",
        action="extend",
        default=[],
        help="Modules that register custom slots (`hfkd.register_objective`), which can then be used by name.",
    )
    parser.add_argument("--config", metavar="FILE.yaml", nargs="+", action="extend", default=[], help=said)
    for action in parser._actions:
        if action.type is string_to_bool and action.nargs is None:  # `bool | None`: --bf16 without a value means true
            action.nargs, action.const = "?", True
    _group(parser)
    return parser


def _group(parser: HfArgumentParser) -> None:
    """In `--help`, list the flags of hfkd before those of transformers' Trainer."""
    parser.usage = "%(prog)s [--config FILE.yaml ...] [--flag value ...]"
    own, of_trainer = parser._optionals, {field.name for field in fields(TrainingArguments)}
    trainers = parser.add_argument_group("flags of transformers' Trainer")
    for action in [action for action in own._group_actions if action.dest in of_trainer]:
        own._group_actions.remove(action)
        trainers._group_actions.append(action)


def import_modules(names: Sequence[str]) -> None:
    """Import a user's modules, also from the working directory, like `python -m`."""
    if names and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise  # a missing import of the module itself
            raise ValueError(
                f"--{IMPORT} {name}: this module does not exist; pass its name without .py, and run the command in "
                "its folder"
            ) from None


def _flags(dataclasses: Sequence[type], argv: Sequence[str]) -> dict[str, Any]:
    """The settings on the command line, by name; errors in them are left to the main parser."""
    parser = _parser(dataclasses, add_help=False)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    return vars(parser.parse_known_args(argv)[0])


def _show_log() -> None:
    """Show the log of hfkd to the user of a recipe, once."""
    print_in_any_encoding()
    logger = logging.getLogger("hfkd")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(levelname)s|%(name)s] %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # libraries that are imported later may add a handler to the root logger
        logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


def typed_layers(
    sources: Sequence[str | Path | Mapping[str, Any]], dataclasses: Sequence[type]
) -> list[list[dict[str, Any]]]:
    """`read_layers`, with settings in the types of their fields. Raises ValueError for unknown settings."""
    hints: dict[str, Any] = {}
    for cls in dataclasses:
        known = get_type_hints(cls, include_extras=True)
        hints |= {f.name: known[f.name] for f in fields(cls) if f.init}
    found = []
    for several in read_layers(sources):
        for where, settings in several.items():
            check_known(settings, set(hints), where)
        found.append(
            [
                {k: _at_home(typed(v, hints[k], f"{where}: {k}")) for k, v in layer.items()}
                for where, layer in several.items()
            ]
        )
    return found


def read_layers(sources: Sequence[str | Path | Mapping[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """For each file or mapping, its layers of settings by their origin; later layers override earlier ones.

    Settings of a file under `with` and the name of another file (`with: {dkd: {objective: "dkd(beta=6)"}}`) are added
    on top of both if that file is among `sources` too, such as those of a pair of networks for each method.
    """
    found, earlier = [], dict[str, dict[str, Any]]()
    for source in sources:
        if isinstance(source, Mapping):
            found.append({"settings": dict(source)})
            continue
        where, stem, settings = f"--config {source}", Path(source).stem, read_settings(source)
        others = settings.pop(WITH, None) or {}
        if not isinstance(others, dict) or not all(isinstance(one, dict) for one in others.values()):
            raise ValueError(f"{where}: {WITH} must be a mapping from names of other files to settings")
        layers = {where: settings}
        for other, its in earlier.items():
            layers |= {f"--config of {other}: with {stem}": its[stem]} if stem in its else {}
            layers |= {f"{where}: with {other}": others[other]} if other in others else {}
        earlier[stem] = others
        found.append(layers)
    return found


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file as text, which is converted by the type of each field (safe loader: no code)."""
    try:
        settings = deepcopy(_yaml(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"--config {path}: this file does not exist") from None
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"--config {path} is not a YAML file of settings: {error}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, dict) or not all(isinstance(k, str) for k in settings):
        held = "names that are not text" if isinstance(settings, dict) else f"a {type(settings).__name__}"
        raise ValueError(f"--config {path} must have `name: value` lines, but has {held}")
    return settings


@lru_cache(256)  # a table of methods reads the same files many times
def _yaml(text: str) -> Any:
    return yaml.load(text, TextLoader)


def check_known(settings: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise ValueError for a setting that is not in `known`."""
    for key in settings:
        if key == IMPORT:
            raise ValueError(
                f"{where}: {key} runs code, which is not allowed in a settings file: pass --{key} as a flag"
            )
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"{where}: unknown setting {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
