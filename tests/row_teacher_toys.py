"""Teachers of which each row names its own, and such rows."""

from dataclasses import dataclass
from typing import Any

import torch
from text_toys import taught_model, token_dataset
from toys import CLASSES, Net, Rows, teacher


def specialists():
    """Two confident image teachers that disagree."""
    other = Net(16, CLASSES, seed=7)
    with torch.no_grad():
        other.head.weight.mul_(25)
    return {"photos": teacher(), "drawings": other}


class NamedRows(Rows):
    """`Rows` of which each third, or each for which `name_of` says so, is another teacher's."""

    def __init__(self, n=32, name_of=lambda i: "drawings" if i % 3 == 0 else "photos", seed=0):
        super().__init__(n, seed=seed)
        self.name_of = name_of

    def __getitem__(self, i):
        return super().__getitem__(i) | {"teacher": self.name_of(i)}


def writers():
    """Two language models."""
    return {"maths": taught_model(), "code": taught_model(32)}


def named_tokens(n=24):
    return token_dataset(n).add_column("teacher", ["code" if i % 3 == 0 else "maths" for i in range(n)])


@dataclass(frozen=True)
class WithoutNames:
    """A user's collator, which knows no column `teacher`."""

    collate: Any

    def __call__(self, rows):
        return self.collate([{name: value for name, value in row.items() if name != "teacher"} for row in rows])


def of_kind(kind):
    """Two teachers of a kind of model (task_toys), and a trainer's keywords with rows that take turns."""
    keywords = kind.keywords()
    for name in ("train_dataset", "eval_dataset"):
        keywords[name] = [row | {"teacher": "ab"[i % 2]} for i, row in enumerate(keywords[name])]
    if "data_collator" in keywords:
        keywords["data_collator"] = WithoutNames(keywords["data_collator"])
    return {"a": kind.network(16, 1), "b": kind.network(16, 2)}, keywords
