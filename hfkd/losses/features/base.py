"""The base class of objectives on inner features.

S samples.
"""

import inspect
from typing import Literal

from torch import nn

from hfkd.losses.base import Objective, by_attributes


class FeatureObjective(nn.Module, Objective):
    """One value per sample [S], from `items.student.features[key]` and the teacher's; T is not used.

    A subclass stores its arguments as attributes of the same names, declares the layers it reads in `requirements()`,
    creates its connectors in `build(context)`, and computes its values in `forward(items, temperature)`.
    """

    level: Literal["item", "sample"] = "sample"
    softens = False

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        if not all(hasattr(self, name) for name in names):  # a class of somebody's own
            return by_attributes(self, ("training", "pairs"))
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
