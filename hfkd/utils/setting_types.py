"""Conversion of the text in settings files to the types of dataclass fields.

YAML would read `no`, 0012, 12:30 and 2026-11-28 as false, 10, 750 and a date.
"""

from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

BOOLS = dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True)
BOOLS |= dict.fromkeys(("false", "no", "off", "n", "f", "0"), False)
NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
WORDS = {form(word): word == "true" for word in ("true", "false") for form in (str.lower, str.title, str.upper)}
KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


SUM = "a sum"  # for Annotated[str, SUM]: a file may have a list of terms, which are added


class TextLoader(yaml.SafeLoader):
    """A yaml.SafeLoader that reads all values except null as text, and refuses duplicate names."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as declared in the base class)
        first: [(tag, pattern) for tag, pattern in resolvers if tag in KEPT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def typed(value: Any, hint: Any, where: str) -> Any:
    """A setting converted to the type of its field. Raises ValueError, beginning with `where`, if this is impossible.

    `value` is from TextLoader, or already has the right type.
    """
    if get_origin(hint) is Annotated:
        if SUM in hint.__metadata__ and isinstance(value, list):
            value = " + ".join(str(typed(one, str, where)) for one in value)
        hint = hint.__origin__
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None:
        if NoneType not in kinds:
            raise ValueError(f"{where} has no value: set one, or remove the line")
        return None
    if isinstance(value, dict):
        if not any(dict in (kind, get_origin(kind)) for kind in kinds):
            raise ValueError(f"{where}: {shown(value)} is a mapping of settings, but a single value is expected")
        return {name: _plain(one) for name, one in value.items()}
    lists = [kind for kind in kinds if list in (kind, get_origin(kind))]
    if isinstance(value, list):
        if not lists:
            return _scalar(value, kinds, where)
        return [typed(one, _element(lists[0]), where) for one in value]
    if lists and str not in kinds:
        return [typed(value, _element(lists[0]), where)]
    return _scalar(value, kinds, where)


def _element(kind: Any) -> Any:
    """The element type of a list type, by default text."""
    return next(iter(get_args(kind)), str)


def _scalar(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """A single value of one of `kinds`; a list raises ValueError."""
    text = None if isinstance(value, (list, bool)) else str(value)
    choices = _choices(kinds)
    if choices:
        if text not in choices:
            raise ValueError(f"{where}: {shown(value)} is not one of {choices}")
        return text
    if bool in kinds and (isinstance(value, bool) or (text or "").lower() in BOOLS):
        return value if isinstance(value, bool) else BOOLS[str(text).lower()]
    if str in kinds and text is not None:
        return text
    kind = next((kind for kind in NAMES if kind in kinds), None)
    if kind is None:
        raise ValueError(f"{where}: {shown(value)} cannot be set in a file")
    try:
        if kind in (int, float) and text is not None:
            return kind(text)
    except ValueError:
        pass
    raise ValueError(f"{where}: {shown(value)} is not {NAMES[kind]}")


def _choices(kinds: tuple[Any, ...]) -> list[str]:
    """The choices of a setting, from an enum, or a Literal if no other text is allowed; empty if there are none."""
    enums = [member.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for member in kind]
    literals = [word for kind in kinds if get_origin(kind) is Literal and str not in kinds for word in get_args(kind)]
    return [*enums, *literals]


def _plain(value: Any) -> Any:
    """A value without a declared type, read as in YAML 1.2 and Python: 1e-7 is a number, False a boolean, `no` text."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, str):
        return value
    if value in WORDS:  # as text, False would count as true
        return WORDS[value]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def shown(value: Any) -> str:
    """A value as in a settings file."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def resume_choice(wanted: str | bool | None) -> str | bool | None:
    """`resume_from_checkpoint`, with booleans that are given as text on the command line or in a file."""
    words = {"true": True, "yes": True, "false": False, "no": False, "": None}
    return words.get(wanted.lower(), wanted) if isinstance(wanted, str) else wanted
