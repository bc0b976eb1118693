"""A language teacher's outputs on disk: per target token its k largest logits, and what makes the rest exact.

N target tokens, V vocabulary, k stored classes, S temperatures.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from hfkd.tasks.choice import chosen_task
from hfkd.tasks.proof import compare_own_loss
from hfkd.teachers.agreement import everywhere
from hfkd.teachers.fingerprint import configuration, data_fingerprint, weights_fingerprint
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.teachers.token_cache.check import cache_differs
from hfkd.teachers.token_cache.columns import HIGHEST_TEMPERATURE, LOWEST, text_columns
from hfkd.teachers.token_cache.manifest import Manifest
from hfkd.utils.argument_types import SoftmaxTemperature, fitting

logger = logging.getLogger(__name__)


def build_text_cache(
    teacher: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    *,
    k: int = 64,
    temperatures: float | Sequence[float] = 2.0,
    entropy_temperature: float = 3.0,
    energy_temperature: float = 4.0,
    num_classes: int | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 8,
    shard_rows: int = 512,
    accelerator: Accelerator | None = None,
    name: str = "",
    source: str | None = None,
    progress_bar: bool = True,
) -> None:
    """Run `teacher` once over the tokenised rows (`tokenize_dataset`) and store what training needs of it.

    Per target token: the k largest logits (less the largest, in `dtype`) and their ids; in float32 the entropy at T',
    the energy at T_E, the logsumexp, and for each of `temperatures` the logsumexp over all other classes, which makes
    the last of k + 1 buckets exact there. Temperatures that training may use must be among them: (2, 4, 6) for
    `energy` around 4. `num_classes` cuts the logits to the student's vocabulary where the teacher's is padded further.

    A row is found again by its `index` and a hash of its tokens. Files of `shard_rows` rows, shared out over the ranks
    of `accelerator`, each written whole or not at all, with a checksum: called again after a kill or damage, only those
    that are missing or not whole are made. A few rows of what is there are compared with the teacher first. `source`
    is a word for the files that the teacher comes from, which a caller may look at before loading it again.
    Raises ValueError when the folder holds another teacher's, data's or setting's cache, for rows without a unique
    `index`, for a temperature at which `dtype` is too narrow for masked classes, for a teacher that gives NaN, and for
    one that does not predict the token after its place.
    """
    temperatures = (temperatures,) if isinstance(temperatures, (int, float)) else tuple(temperatures)
    for value in (entropy_temperature, energy_temperature, *temperatures):
        fitting("build_text_cache", "temperature", value, SoftmaxTemperature)
    check_settings(dataset, k, temperatures, dtype, batch_size, shard_rows)
    live = _proved(teacher)
    vocabulary = _vocabulary(live, num_classes)
    manifest = Manifest(
        teacher=weights_fingerprint(live),
        data=data_fingerprint(dataset),
        rows=len(dataset),
        num_classes=vocabulary,
        k=min(k, vocabulary),
        temperatures=tuple(map(float, temperatures)),
        entropy_temperature=float(entropy_temperature),
        energy_temperature=float(energy_temperature),
        dtype=dtype,
        precision=accelerator.mixed_precision if accelerator else "no",
        shard_rows=shard_rows,
        name=name,
        config=configuration(live),
        source=source,
    )
    absent = _absent(live, dataset, Path(folder), manifest, batch_size, accelerator)
    _make(live, dataset, folder, manifest, absent, batch_size, accelerator, progress_bar)


def _proved(teacher: nn.Module) -> FrozenTeacher:
    """The teacher, frozen while it is used. ValueError for one that does not predict the token after its place."""
    live = teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher).unfreeze()
    task = chosen_task("auto", live.networks)
    if not task.by_target:
        raise ValueError(
            f"a token cache holds what a causal language model says, and this one is for {task.name}: train with the "
            "live teacher"
        )
    for network in live.networks:
        compare_own_loss(network, None, task)
    return live


def _absent(
    teacher: FrozenTeacher,
    dataset: Dataset,
    folder: Path,
    manifest: Manifest,
    batch_size: int,
    accelerator: Accelerator | None,
) -> set[str]:
    """The shards that are to be made, of a folder that is this teacher's. Writes its manifest."""
    manifest.refuse_other(folder)
    present = [shard for shard in manifest.shards if (folder / shard).exists()]
    absent = set(manifest.missing(folder))
    fault = cache_differs(teacher, dataset, folder, manifest, absent, batch_size)
    if not everywhere(fault is None, accelerator):
        raise ValueError(
            f"{folder} holds what another teacher, or this one in another state, said: {fault or 'on another rank'}; "
            "choose another folder, or delete that one"
        )
    if accelerator is None or accelerator.is_main_process:
        for shard in absent.intersection(present):
            logger.warning("%s is damaged, or of another cache, and is made again", folder / shard)
        manifest.write(folder)
    return absent


def _make(
    teacher: FrozenTeacher,
    dataset: Dataset,
    folder: str | Path,
    manifest: Manifest,
    absent: Collection[str],
    batch_size: int,
    accelerator: Accelerator | None,
    progress_bar: bool,
) -> None:
    """Write the shards that are absent, each rank its share."""
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    missing = [i for i, shard in enumerate(manifest.shards) if i % ranks == rank and shard in absent]
    _announce(manifest, dataset, len(missing))
    for number in tqdm(
        missing, desc="Storing the teacher's outputs", disable=not progress_bar or rank > 0, leave=False
    ):
        first = number * manifest.shard_rows
        rows = dataset.select(range(first, min(first + manifest.shard_rows, len(dataset))))
        with teacher.frozen():
            columns = text_columns(teacher, [dict(row) for row in rows], manifest, batch_size)
        manifest.write_shard(folder, manifest.shards[number], columns)
    if accelerator is not None:
        accelerator.wait_for_everyone()


def check_settings(
    dataset: Any, k: int, temperatures: Sequence[float], dtype: str, batch_size: int, shard_rows: int
) -> None:
    """Raise ValueError for settings that make no sense, and rows that are not told apart."""
    for name, value in (("k", k), ("batch_size", batch_size), ("shard_rows", shard_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"build_text_cache: {name}={value!r} must be a whole number above 0")
    if not temperatures or len(set(temperatures)) != len(temperatures):
        raise ValueError(f"build_text_cache: temperatures={temperatures!r} must be one or more different numbers")
    if dtype not in LOWEST:
        raise ValueError(f"build_text_cache: dtype={dtype!r} must be 'float16' or 'float32'")
    if max(temperatures) > HIGHEST_TEMPERATURE[dtype]:
        raise ValueError(
            f"build_text_cache: temperatures up to {max(temperatures):g}, and {dtype} holds logits down to "
            f"{LOWEST[dtype]:g} below the largest, which is probability 0 up to T = {HIGHEST_TEMPERATURE[dtype]:g}: "
            "lower the temperatures, or pass dtype='float32'"
        )
    if not isinstance(dataset, Dataset) or not {"input_ids", "labels", "index"} <= set(dataset.column_names):
        raise ValueError("a teacher cache is of a dataset with input_ids, labels and index: use tokenize_dataset")
    index = np.asarray(dataset.with_format("numpy")["index"][:])
    if len(index) == 0 or len(np.unique(index)) != len(index):
        raise ValueError(f"the column index names {len(np.unique(index))} of {len(index)} rows: it must name each once")


@torch.no_grad()
def _vocabulary(teacher: FrozenTeacher, num_classes: int | None) -> int:
    device = next(teacher.parameters()).device
    given = teacher(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device)).shape[-1]
    if num_classes is not None and not 1 <= num_classes <= given:
        raise ValueError(f"build_text_cache: num_classes={num_classes} must be within the teacher's {given} logits")
    return num_classes or given


def _announce(manifest: Manifest, dataset: Dataset, missing: int) -> None:
    lengths = sum(int((np.asarray(labels[1:]) != -100).sum()) for labels in dataset.with_format("numpy")["labels"])
    size = lengths * manifest.bytes_per_token
    logger.info(
        "The teacher cache takes %.1f MB: %d target tokens of %d bytes; %d of %d files are to be made here",
        size / 1e6,
        lengths,
        manifest.bytes_per_token,
        missing,
        len(manifest.shards),
    )
