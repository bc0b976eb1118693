"""Builds a cache of a language-model teacher: the k largest logits per target token, and statistics of the rest.

N target tokens, V vocabulary, k stored classes, S temperatures.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from hfkd.data.teacher_columns import TEACHER_IDS
from hfkd.losses.temperatures import OF_LANGUAGE
from hfkd.tasks.choice import chosen_task
from hfkd.tasks.proof import compare_own_loss
from hfkd.teachers.agreement import everywhere
from hfkd.teachers.fingerprint import configuration, data_fingerprint, weights_fingerprint
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.teachers.token_cache.check import cache_differs
from hfkd.teachers.token_cache.columns import HIGHEST_TEMPERATURE, LOWEST, text_columns
from hfkd.teachers.token_cache.manifest import MANIFEST, Manifest
from hfkd.utils.argument_types import SoftmaxTemperature, fitting
from hfkd.utils.devices import device_of
from hfkd.utils.launch import refuse_unshared
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

AT_ONCE = 10_000  # rows of which the labels are counted at a time


def build_text_cache(
    teacher: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    *,
    k: int = 64,
    temperatures: float | Sequence[float] = OF_LANGUAGE,
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
    """Run `teacher` once over the tokenised rows (`tokenize_dataset`) and store what training needs of its outputs.

    Stored per target token: the k largest logits (relative to the largest, in `dtype`) and their ids; in float32 the
    entropy at T', the energy at T_E, the logsumexp, and for each of `temperatures` the logsumexp over all other
    classes, so that the last of k + 1 buckets is exact. All temperatures used in training must be among these (by
    default that of language models, 1): (2, 4, 6) for `energy` around 4. `num_classes` cuts the logits to the student's
    vocabulary if the teacher's is padded further. Rows are identified by their `index` and a hash of their tokens.
    Files of `shard_rows` rows are distributed over the ranks of `accelerator` and written atomically with a checksum: a
    repeated call after an interruption or damage creates only missing or damaged files, after comparing a few existing
    rows with the teacher. `source` identifies the files that the teacher was loaded from, so that a caller can check it
    without loading the teacher. Raises ValueError if the folder has a cache of another teacher, dataset or setting, for
    rows without a unique `index`, for a temperature at which `dtype` is too narrow for masked classes, for a teacher
    that returns NaN, and for one that does not predict the next token.
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
    folder = Path(folder).expanduser()
    absent = _absent(live, dataset, folder, manifest, batch_size, accelerator)
    _make(live, dataset, folder, manifest, absent, batch_size, accelerator, progress_bar)


def _proved(teacher: nn.Module) -> FrozenTeacher:
    """The teacher, frozen only while it runs. Raises ValueError for one that does not predict the next token."""
    live = teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher).unfreeze()
    task = chosen_task("auto", live.networks)
    if not task.by_target:
        raise ValueError(
            f"a token cache stores outputs of a causal language model, but this model is for {task.name}: train "
            "with the live teacher"
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
    """The shards to create, after checking that the folder is this teacher's. Writes the manifest."""
    manifest.refuse_other(folder)
    present = [shard for shard in manifest.shards if (folder / shard).exists()]
    absent = set(manifest.missing(folder))
    fault = cache_differs(teacher, dataset, folder, manifest, absent, batch_size)
    if not everywhere(fault is None, accelerator):
        raise ValueError(
            f"{folder} has the outputs of another teacher, or of another state of this one: "
            f"{fault or 'on another rank'}; choose another folder, or delete that one"
        )
    if accelerator is None or accelerator.is_main_process:
        for shard in absent.intersection(present):
            logger.warning("%s is damaged, or belongs to another cache, and is created again", folder / shard)
        manifest.write(folder)
    if accelerator is not None:
        accelerator.wait_for_everyone()
        refuse_unshared(folder, (folder / MANIFEST).is_file())
    return absent


def _make(
    teacher: FrozenTeacher,
    dataset: Dataset,
    folder: Path,
    manifest: Manifest,
    absent: Collection[str],
    batch_size: int,
    accelerator: Accelerator | None,
    progress_bar: bool,
) -> None:
    """Write the missing shards, distributed over the ranks."""
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
    """Raise ValueError for invalid settings, and for rows without a unique index."""
    for name, value in (("k", k), ("batch_size", batch_size), ("shard_rows", shard_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"build_text_cache: {name}={value!r} must be a whole number above 0")
    if not temperatures or len(set(temperatures)) != len(temperatures):
        raise ValueError(f"build_text_cache: temperatures={temperatures!r} must be one or more different numbers")
    if dtype not in LOWEST:
        raise ValueError(f"build_text_cache: dtype={dtype!r} must be 'float16' or 'float32'")
    if max(temperatures) > HIGHEST_TEMPERATURE[dtype]:
        raise ValueError(
            f"build_text_cache: temperatures go up to {max(temperatures):g}, but {dtype} stores logits down to "
            f"{LOWEST[dtype]:g} relative to the largest, which have probability 0 only up to T = "
            f"{HIGHEST_TEMPERATURE[dtype]:g}: lower the temperatures, or pass dtype='float32'"
        )
    if not isinstance(dataset, Dataset) or not {"input_ids", "labels", "index"} <= set(dataset.column_names):
        raise ValueError("a teacher cache needs a dataset with input_ids, labels and index: use tokenize_dataset")
    if TEACHER_IDS in dataset.column_names:
        raise ValueError(
            f"the rows have {TEACHER_IDS}, which a teacher reads in place of input_ids, but a teacher cache is made "
            "from input_ids: train with the live teacher, or leave these columns out"
        )
    index = np.asarray(dataset.with_format("numpy")["index"][:])
    if len(index) == 0 or len(np.unique(index)) != len(index):
        raise ValueError(
            f"the column index has {len(np.unique(index))} different values for {len(index)} rows: "
            "it must be unique for each row"
        )


@torch.no_grad()
def _vocabulary(teacher: FrozenTeacher, num_classes: int | None) -> int:
    device = device_of(teacher)
    given = teacher(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device)).shape[-1]
    if num_classes is not None and not 1 <= num_classes <= given:
        raise ValueError(f"build_text_cache: num_classes={num_classes} must be within the teacher's {given} logits")
    return num_classes or given


def _announce(manifest: Manifest, dataset: Dataset, missing: int) -> None:
    count = _target_tokens(dataset)
    logger.info(
        "The teacher cache takes %.1f MB: %d target tokens of %d bytes; this process creates %d of %d files",
        count * manifest.bytes_per_token / 1e6,
        count,
        manifest.bytes_per_token,
        missing,
        len(manifest.shards),
    )


def _target_tokens(dataset: Dataset) -> int:
    """The number of labels that a token before them predicts. In Arrow: one by one, a million rows take minutes."""
    count = 0
    for table in dataset.select_columns("labels").with_format("arrow").iter(AT_ONCE):
        predicted = pc.list_flatten(pc.list_slice(table["labels"], 1))
        count += pc.sum(pc.not_equal(predicted, IGNORED)).as_py() or 0
    return count
