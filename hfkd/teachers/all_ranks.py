"""Gathers the results of a scan from all ranks, in the order of the dataset.

B rows of a batch, S samples, M numbers of a row's samples or items.
"""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from hfkd.losses.items import Items


def samples_of_all_ranks(seen: Tensor, items: Items, accelerator: Accelerator | None) -> Tensor:
    """Each sample's numbers [S, 4], from all ranks. For packed rows only documents with items, since the row of others
    is unknown.
    """
    if items.own_sample:
        return accelerator.gather_for_metrics(seen) if accelerator is not None else seen
    row, num_rows = items.rows
    if items.num_samples == num_rows:
        return of_all_ranks(seen, torch.arange(num_rows, device=seen.device), num_rows, accelerator)
    of_samples = row.new_zeros(items.num_samples).scatter_(0, items.sample, row)
    counted = seen[:, 3] > 0
    return of_all_ranks(seen[counted], of_samples[counted], num_rows, accelerator)


def of_all_ranks(values: Tensor, row: Tensor, num_rows: int, accelerator: Accelerator | None) -> Tensor:
    """[M, k] of this rank, ordered by row -> those of all ranks, without rows that pad the last batch."""
    if accelerator is None or accelerator.num_processes == 1:
        return values
    lengths = torch.bincount(row, minlength=num_rows).tolist()
    flagged = pad(values, (0, 1), value=1.0)
    by_row = pad_sequence(flagged.split(lengths), batch_first=True)  # [B, M of a row, k + 1], padded with 0
    everywhere = accelerator.gather_for_metrics(accelerator.pad_across_processes(by_row, dim=1))
    return everywhere[everywhere[..., -1] == 1][:, :-1]
