"""What objectives on inner features share.

S samples.
"""

import inspect
from typing import Literal

from torch import nn

from hfkd.losses.base import Objective


class FeatureObjective(nn.Module, Objective):
    """One number a sample [S], from `items.student.features[key]` and the teacher's; T is not used.

    A subclass sets its arguments as attributes of the same names, says what it reads in `requirements()`, makes its
    connectors in `build(context)`, and computes in `forward(items, temperature)`.
    """

    level: Literal["item", "sample"] = "sample"
    softens = False

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
