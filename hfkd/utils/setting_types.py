"""What a settings file says is text until the dataclass's field tells what it is.

YAML by itself reads `no`, 0012, 12:30 and 2026-11-28 as false, 10, 750 and a date.
"""

from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

BOOLS = dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True)
BOOLS |= dict.fromkeys(("false", "no", "off", "n", "f", "0"), False)
NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


SUM = "a sum"  # as Annotated[str, SUM]: a file may give a list of terms, which are added


class TextLoader(yaml.SafeLoader):
    """yaml.SafeLoader that makes text of every value but null, and refuses a name that is there twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as its base class declares it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag in KEPT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def typed(value: Any, hint: Any, where: str) -> Any:
    """A setting as its field wants it; ValueError, which begins with `where`, if it cannot be that.

    `value` is what TextLoader read, or a plain value of the right kind already.
    """
    if get_origin(hint) is Annotated:
        if SUM in hint.__metadata__ and isinstance(value, list):
            value = " + ".join(str(typed(one, str, where)) for one in value)
        hint = hint.__origin__
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None:
        if NoneType not in kinds:
            raise ValueError(f"{where} is blank: give it a value, or leave the line out")
        return None
    if isinstance(value, dict):
        if not any(dict in (kind, get_origin(kind)) for kind in kinds):
            raise ValueError(f"{where}: {shown(value)} are settings, where one value is expected")
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
    """What a list of this kind holds; text where it does not say."""
    return next(iter(get_args(kind)), str)


def _scalar(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """One value of one of `kinds`; a list is none."""
    text = None if isinstance(value, (list, bool)) else str(value)
    choices = _choices(kinds)
    if choices:
        if text not in choices:
            raise ValueError(f"{where}: {shown(value)} is none of {choices}")
        return text
    if bool in kinds and (isinstance(value, bool) or (text or "").lower() in BOOLS):
        return value if isinstance(value, bool) else BOOLS[str(text).lower()]
    if str in kinds and text is not None:
        return text
    kind = next((kind for kind in NAMES if kind in kinds), None)
    if kind is None:
        raise ValueError(f"{where}: {shown(value)} cannot be given in a file")
    try:
        if kind in (int, float) and text is not None:
            return kind(text)
    except ValueError:
        pass
    raise ValueError(f"{where}: {shown(value)} is not {NAMES[kind]}")


def _choices(kinds: tuple[Any, ...]) -> list[str]:
    """The words a setting is one of, if it is: an enumeration's, or a literal's where no other text is taken."""
    enums = [member.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for member in kind]
    literals = [word for kind in kinds if get_origin(kind) is Literal and str not in kinds for word in get_args(kind)]
    return [*enums, *literals]


def _plain(value: Any) -> Any:
    """A value whose kind nobody knows, as YAML 1.2 and Python write it: 1e-7 is a number, `no` a word."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, str) or value in ("true", "false"):
        return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def shown(value: Any) -> str:
    """A value as a settings file has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def resume_choice(wanted: str | bool | None) -> str | bool | None:
    """`resume_from_checkpoint`, whose booleans a command line and a settings file write as words."""
    words = {"true": True, "yes": True, "false": False, "no": False, "": None}
    return words.get(wanted.lower(), wanted) if isinstance(wanted, str) else wanted
