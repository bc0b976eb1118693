"""`hfkd methods`: every slot by name, with its arguments and its paper."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from hfkd.losses.registry import OBJECTIVES, TEMPERATURES, WEIGHTINGS

SLOTS = {"objective": OBJECTIVES, "temperature": TEMPERATURES, "weighting": WEIGHTINGS}


def methods() -> str:
    """All slots as text: the string that builds each one, with its defaults, and the first line of its docstring."""
    lines = []
    for slot, table in SLOTS.items():
        lines.append(f"{slot} (--{slot}):")
        for name, factory in sorted(table.items()):
            lines += textwrap.wrap(f"{name}{arguments(factory)}", 118, initial_indent="  ", subsequent_indent="      ")
            lines.append(f"      {summary(factory)}")
        lines.append("")
    return "\n".join(lines).rstrip()


def arguments(factory: Callable[..., Any]) -> str:
    """Arguments and defaults as `(alpha=1.0, beta=8.0)`; empty if there are none."""
    given = inspect.signature(factory).parameters.values()
    words = [name.name if name.default is name.empty else f"{name.name}={name.default!r}" for name in given]
    return f"({', '.join(words)})" if words else ""


def summary(factory: Callable[..., Any]) -> str:
    return (inspect.getdoc(factory) or "").partition("\n")[0]
