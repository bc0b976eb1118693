"""Which columns of a dataset's rows reach a collator: what a network takes, and no texts, words or file names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import DataCollatorForLanguageModeling

LABELS = ("labels", "label", "label_ids")  # what transformers' collators take for labels, the first that a row has
READ_BY_MASKING = frozenset({"special_tokens_mask", "offset_mapping"})
Wanted = Callable[[str], bool]


def used(row: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """The columns of a row that are `wanted`, its index, and one column of labels."""
    labels = next((name for name in LABELS if name in row), None)
    return {name: v for name, v in row.items() if name in (labels, "index") or (name not in LABELS and wanted(name))}


def only_used(collate: Any, wanted: Sequence[Wanted], names: Iterable[str], always: bool) -> Callable[..., Any]:
    """A user's collator, which gets the `used` columns alone where it is one of transformers, or `always`.

    Those of transformers make tensors of every column they are given, so Trainer leaves the others out before
    (`remove_unused_columns`, which is on by its default). A collator of the user's own may read any of them.
    """
    module = getattr(collate, "__module__", None) or ""
    if not (always or module.startswith("transformers.")):
        return collate
    read = READ_BY_MASKING if isinstance(collate, DataCollatorForLanguageModeling) else ()
    return UsedColumns(collate, tuple(wanted), frozenset({*names, *read}))


@dataclass(frozen=True)
class UsedColumns:
    """`collate` for rows of their `used` columns: those of `names`, and what any network wants (`wanted`).

    Rows that are no mappings are left to the collator as they are.
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
