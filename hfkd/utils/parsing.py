"""Dataclasses of settings from the command line and YAML files: one parser for every recipe."""

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from hfkd.utils.command import TYPED
from hfkd.utils.output_folder import refuse_inputs_as_output
from hfkd.utils.precedence import merge
from hfkd.utils.setting_types import TextLoader, typed
from hfkd.utils.shipped import shipped, shipped_or_given

IMPORT = "import"
WITH = "with"


class CommandLineError(SystemExit, ValueError):
    """What was typed cannot be done: a ValueError to whoever calls, a line and no traceback to whoever typed it."""


class Parsed(tuple[Any, ...]):
    """The dataclasses that `parse` has filled. given: the names of what the command line and --config gave."""

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
    """Parse `argv` into dataclasses. The command line wins over `--config FILE.yaml ...`, which wins over `defaults`.

    Of several files the later ones win; see `read_layers` for a file that has settings for another one. `defaults`, a
    recipe's protocol, are YAML files too, or mappings of settings. A setting that a later one leaves without effect
    gives way to it, see `hfkd.utils.precedence`. Raises ValueError for a
    key that no dataclass has, with the closest one that exists; for a value that its field does not take; and for an
    output_dir that is one of the inputs. It ends a program that reads its own command line (None) with that line.
    """
    try:
        return _parsed(dataclasses, list(sys.argv[1:] if argv is None else argv), defaults, **parser_options)
    except ValueError as error:
        if argv is not None:
            raise
        raise CommandLineError(str(error)) from error


def _parsed(
    dataclasses: Sequence[type],
    argv: list[str],
    defaults: Sequence[str | Path | Mapping[str, Any]],
    **parser_options: Any,
) -> Parsed:
    _show_log()
    import_modules(_flags(dataclasses, argv).get(IMPORT, []))
    parser, flags = _parser(dataclasses, **parser_options), _flags(dataclasses, argv)
    flags.pop(IMPORT, None)
    given = [shipped_or_given(source, shipped("recipes") / "configs") for source in flags.pop("config", [])]
    layers = typed_layers([*defaults, *given], dataclasses)
    files = [layer for several in layers[len(defaults) :] for layer in several]
    settings = merge([*(layer for several in layers for layer in several), flags])
    for action in parser._actions:  # a setting that the file gives is no longer required on the command line
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
    parsed = Parsed(parts, frozenset().union(flags, *files))
    found = {name: value for part in parts for name, value in vars(part).items()}
    _refuse_what_is_not_done(settings, found)
    refuse_inputs_as_output(found)
    return parsed


def _refuse_what_is_not_done(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise ValueError for a do_train, do_eval or do_predict that says otherwise than what the command does."""
    scores = bool(found.get("evaluate_only"))
    done = {"do_train": not scores, "do_eval": scores or found.get("eval_strategy") != "no", "do_predict": False}
    instead = {
        "do_train": "whether a network is trained is for train_teacher.py --evaluate_only to say, other recipes train",
        "do_eval": "whether a run evaluates is said by eval_strategy",
        "do_predict": "no recipe predicts; evaluation is said by eval_strategy",
    }
    for name in done:
        if name in wanted and wanted[name] != done[name]:
            raise ValueError(f"{name}={wanted[name]}: {instead[name]}; leave {name} out")


def _parser(dataclasses: Sequence[type], **options: Any) -> HfArgumentParser:
    parser = HfArgumentParser(cast(Any, list(dataclasses)), allow_abbrev=False, prog=os.environ.get(TYPED), **options)
    said = "Settings to start from, files or names of hfkd's own (kd, dkd, ...); later ones win, and flags over all."
    parser.add_argument(
        f"--{IMPORT}",
        metavar="MODULE",
        nargs="+",
        action="extend",
        default=[],
        help="Modules that register slots of your own (`hfkd.register_objective`), to be named like any other.",
    )
    parser.add_argument("--config", metavar="FILE.yaml", nargs="+", action="extend", default=[], help=said)
    for action in parser._actions:
        if action.type is string_to_bool and action.nargs is None:  # `bool | None`: let a bare --bf16 mean true
            action.nargs, action.const = "?", True
    _group(parser)
    return parser


def _group(parser: HfArgumentParser) -> None:
    """In `--help` the flags of hfkd come first, and those that every Trainer has after them."""
    parser.usage = "%(prog)s [--config FILE.yaml ...] [--flag value ...]"
    own, of_trainer = parser._optionals, {field.name for field in fields(TrainingArguments)}
    trainers = parser.add_argument_group("flags of every Trainer of transformers")
    for action in [action for action in own._group_actions if action.dest in of_trainer]:
        own._group_actions.remove(action)
        trainers._group_actions.append(action)


def import_modules(names: Sequence[str]) -> None:
    """Import a user's modules, from the working directory too, as `python -m` would."""
    if names and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise  # something that the module itself imports
            raise ValueError(
                f"--{IMPORT} {name}: there is no such module; give its name without .py, from the folder that it is in"
            ) from None


def _flags(dataclasses: Sequence[type], argv: Sequence[str]) -> dict[str, Any]:
    """What the command line itself says, by name; what it says wrongly is for the parser proper to tell."""
    parser = _parser(dataclasses, add_help=False)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    return vars(parser.parse_known_args(argv)[0])


def _show_log() -> None:
    """A recipe's user sees what hfkd logs (resumed from where, thresholds, what was passed over), once."""
    logger = logging.getLogger("hfkd")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(levelname)s|%(name)s] %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # libraries that are loaded later give the root logger a handler of its own
        logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


def typed_layers(
    sources: Sequence[str | Path | Mapping[str, Any]], dataclasses: Sequence[type]
) -> list[list[dict[str, Any]]]:
    """`read_layers`, each setting as its field in `dataclasses` wants it. Raises ValueError for what none has."""
    hints: dict[str, Any] = {}
    for cls in dataclasses:
        known = get_type_hints(cls, include_extras=True)
        hints |= {f.name: known[f.name] for f in fields(cls) if f.init}
    found = []
    for several in read_layers(sources):
        for where, settings in several.items():
            check_known(settings, set(hints), where)
        found.append(
            [{k: typed(v, hints[k], f"{where}: {k}") for k, v in layer.items()} for where, layer in several.items()]
        )
    return found


def read_layers(sources: Sequence[str | Path | Mapping[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Of each file or mapping of settings the layers that it adds, later ones winning, by where they come from.

    What a file holds under `with`, by the names of other files (`with: {dkd: {objective: "dkd(beta=6)"}}`), is added
    where such a file is among `sources` too, on top of both: what a pair of networks needs of each method.
    """
    found, earlier = [], dict[str, dict[str, Any]]()
    for source in sources:
        if isinstance(source, Mapping):
            found.append({"settings": dict(source)})
            continue
        where, stem, settings = f"--config {source}", Path(source).stem, read_settings(source)
        others = settings.pop(WITH, None) or {}
        if not isinstance(others, dict) or not all(isinstance(one, dict) for one in others.values()):
            raise ValueError(f"{where}: {WITH} must hold settings by the names of other files")
        layers = {where: settings}
        for other, its in earlier.items():
            layers |= {f"--config of {other}: with {stem}": its[stem]} if stem in its else {}
            layers |= {f"{where}: with {other}": others[other]} if other in others else {}
        earlier[stem] = others
        found.append(layers)
    return found


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file (safe loader: no code), as text: what a word means is for its field to say."""
    try:
        settings = deepcopy(_yaml(Path(path).read_text(encoding="utf-8")))
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


@lru_cache(256)  # a table of methods reads a few files again and again
def _yaml(text: str) -> Any:
    return yaml.load(text, TextLoader)


def check_known(settings: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise ValueError for a setting that is not in `known`."""
    for key in settings:
        if key == IMPORT:
            raise ValueError(f"{where}: {key} runs code, which a file of settings may not: give --{key} as a flag")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"{where}: unknown setting {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
