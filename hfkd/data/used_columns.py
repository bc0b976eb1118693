"""Selection of the columns that are passed to a collator: the inputs of a network, without texts or file names."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import DataCollatorForLanguageModeling

# The label columns of transformers' collators; the first one in a row is used.
LABELS = ("labels", "label", "label_ids")
READ_BY_MASKING = frozenset({"special_tokens_mask", "offset_mapping"})
Wanted = Callable[[str], bool]


def label_column(names: Container[str]) -> str | None:
    """The first of `LABELS` among the names of columns; None if there is none."""
    return next((name for name in LABELS if name in names), None)


def used(row: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """The `wanted` columns of a row, its index, and one column of labels."""
    labels = label_column(row)
    return {name: v for name, v in row.items() if name in (labels, "index") or (name not in LABELS and wanted(name))}


def only_used(collate: Any, wanted: Sequence[Wanted], names: Iterable[str], always: bool) -> Callable[..., Any]:
    """Wrap a collator so that it gets the `used` columns only, if it is from transformers, or `always`.

    Collators of transformers make tensors of all columns, for which Trainer removes the others before
    (`remove_unused_columns`, on by default). Custom collators may read any column.
    """
    module = getattr(collate, "__module__", None) or ""
    if not (always or module.startswith("transformers.")):
        return collate
    read = READ_BY_MASKING if isinstance(collate, DataCollatorForLanguageModeling) else ()
    return UsedColumns(collate, tuple(wanted), frozenset({*names, *read}))


@dataclass(frozen=True)
class UsedColumns:
    """Calls `collate` on the `used` columns of rows: those in `names`, and those `wanted` by any network.

    Rows that are not mappings are passed on unchanged.
    """

    collate: Callable[..., Any]
    wanted: tuple[Wanted, ...]
    names: frozenset[str]

    def __call__(self, rows: Any) -> Any:
        if isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows):
            return self.collate(rows)
        return self.collate([used(row, self._wants) for row in rows])

    def _wants(self, name: str) -> bool:
        return name in self.names or any(wanted(name) for wanted in self.wanted)
