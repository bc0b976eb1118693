"""The result of a teacher scan: energy and entropy of every sample, or of every item.

S samples: images, rows of tokens, or packed documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from datasets import Dataset
from torch import Tensor

COLUMNS, ROWS = ("energy", "entropy", "prediction"), "row_"


@dataclass(frozen=True)
class TeacherScan:
    """Energy, entropy and predicted class in the order of the dataset, on the CPU: [S] each, or one for every item.

    NaN for a row of tokens without targets, which is not a sample. `of_rows`: the means over the rows of tokens, if the
    values are of items or packed documents.
    """

    energy: Tensor
    entropy: Tensor
    prediction: Tensor
    of_rows: "TeacherScan | None" = None

    @property
    def rows(self) -> "TeacherScan":
        """The scan with one value for each row of the dataset."""
        return self.of_rows or self

    @property
    def columns(self) -> dict[str, Tensor]:
        """All values by name, as stored in a file."""
        own = {name: getattr(self, name) for name in COLUMNS}
        return own if self.of_rows is None else own | {ROWS + k: v for k, v in self.of_rows.columns.items()}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Tensor]) -> "TeacherScan":
        of_rows = {k.removeprefix(ROWS): v for k, v in columns.items() if k.startswith(ROWS)}
        energy, entropy, prediction = (columns[name] for name in COLUMNS)
        return cls(energy, entropy, prediction, cls.of_columns(of_rows) if of_rows else None)

    def add_to(self, dataset: Dataset) -> Dataset:
        """The dataset with the columns `teacher_energy` and `teacher_entropy`."""
        dataset = dataset.add_column("teacher_energy", self.energy.tolist())
        return dataset.add_column("teacher_entropy", self.entropy.tolist())
