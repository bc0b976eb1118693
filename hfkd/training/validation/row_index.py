"""The `index` of training rows, by which an objective that keeps something of each row looks them up.

N training rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from transformers.trainer_utils import has_length

from hfkd.data.epochs import unchanged_column
from hfkd.losses.base import with_settings

NUMBERED = "rows.add_column('index', np.arange(len(rows)))"


def row_index(slot: Any, rows: Any, batch: Mapping[str, Any]) -> Tensor | None:
    """The index of each row [N]; None if it is the row's number, as in a dataset that is used whole and in its order,
    and if there are no stored rows (a stream).

    batch: of the first rows, which show what a dataset of the user's own has. Raises ValueError if rows have no index,
    if several have the same, or if it is neither stored nor the row's number.
    """
    first, name = batch.get("index"), with_settings(slot)
    if not isinstance(first, Tensor):
        raise ValueError(
            f"{name} looks training rows up by their number, and the rows have no column 'index': add it, as in "
            f"{NUMBERED}, or return it in each row of a dataset of your own"
        )
    if not has_length(rows):
        return None
    stored = _stored(rows)
    if stored is None:
        if first[0] != 0:
            raise ValueError(
                f"{name} looks training rows up by their number, and 'index' of the first row is "
                f"{int(first[0])}, as in a part of another dataset: return the row's number in this one"
            )
        return None
    if len(stored.unique()) < len(stored):
        raise ValueError(
            f"{name} looks training rows up by 'index', which several rows have in common: number them anew, "
            f"with rows.remove_columns('index') and {NUMBERED}"
        )
    return None if torch.equal(stored, torch.arange(len(stored))) else stored


def _stored(rows: Any) -> Tensor | None:
    """The column `index` of all rows, also of the datasets in torch's `Subset` and `ConcatDataset`."""
    if isinstance(rows, Subset):
        whole = _stored(rows.dataset)
        return None if whole is None else whole[torch.as_tensor(rows.indices, dtype=torch.long)]
    if isinstance(rows, ConcatDataset):
        parts = [_stored(part) for part in rows.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    stored = unchanged_column(rows, "index")
    return None if stored is None else torch.from_numpy(np.asarray(stored, dtype=np.int64))
