"""mkdocstrings' extension: in signatures a flag has its default alone, without the text that docs/api/flags.md has."""

from typing import Any

import griffe


class Flags(griffe.Extension):
    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) == "flag":
            attr.value = attr.value.arguments[0]
