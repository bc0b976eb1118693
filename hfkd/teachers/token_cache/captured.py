"""A token cache from log-probabilities captured by another program: vLLM, DistillKit, axolotl.

N target tokens, k stored classes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from hfkd.data.text_files import read_splits
from hfkd.teachers.fingerprint import data_fingerprint
from hfkd.teachers.token_cache.build import check_settings
from hfkd.teachers.token_cache.captured_check import check_captured, target_places
from hfkd.teachers.token_cache.captured_rows import Aligned, CapturedRows
from hfkd.teachers.token_cache.columns import LOWEST, tokens_hash
from hfkd.teachers.token_cache.manifest import Manifest

logger = logging.getLogger(__name__)


def build_captured_cache(
    captured: Dataset | str | Path,
    dataset: Dataset,
    folder: str | Path,
    *,
    num_classes: int,
    k: int | None = None,
    temperature: float = 1.0,
    columns: Sequence[str] | None = None,
    alignment: Aligned | None = None,
    dtype: Literal["float16", "float32"] = "float32",
    shard_rows: int = 512,
    name: str = "",
    progress_bar: bool = True,
) -> None:
    """Store top-k log-probabilities of another program, for `CachedTextTeacher(folder)`.

    captured: one row for each of `dataset` (`tokenize_dataset`), in the same order, with the same `input_ids` and an
    entry of log-probabilities for each token; or a file or folder with such rows (Parquet, JSON lines). Supported are
    vLLM's `prompt_logprobs` (entries {token id: logprob}, or lists of token_id and logprob; the first is empty, and an
    entry is for the token at its position), axolotl's `target_logprobs` and `target_token_ids`, and any two such
    columns, given as `columns=(values, ids)`. If the first entry is not empty, an entry is for the next token, as with
    logits (set `alignment` to "token" or "next" to override it). The alignment is verified with the following tokens.
    num_classes: size of the student's vocabulary. k: number of log-probabilities to keep; None: as many as every token
    has, with a warning if some have more. temperature: that of the captured softmax; 1 for vLLM's raw
    log-probabilities. log p = z - logsumexp(z) determines logits up to a constant, and 1 - sum of p the mass of the
    rest: divergences at `temperature` are those of `build_text_cache`. Not available are energies, which need the
    logsumexp; entropies, which need all classes; and the bucket at another temperature. Slots that need these are
    refused when the trainer is built. Raises ValueError as `check_captured` does, before anything is written.
    """
    rows = (captured if isinstance(captured, Dataset) else _read(captured)).with_format(None)
    check_settings(dataset, k or 1, (float(temperature),), dtype, 1, shard_rows)
    dataset = dataset.with_format(None)
    source = CapturedRows.of(rows, columns)
    fewest, places = check_captured(dataset, source, num_classes, k, alignment, progress_bar)
    manifest = Manifest(
        teacher=data_fingerprint(rows),
        data=data_fingerprint(dataset),
        rows=len(dataset),
        num_classes=num_classes,
        k=fewest,
        temperatures=(float(temperature),),
        entropy_temperature=float(temperature),
        energy_temperature=float(temperature),
        dtype=dtype,
        precision="no",
        shard_rows=shard_rows,
        name=name,
        captured=True,
    )
    folder = Path(folder).expanduser()
    manifest.refuse_other(folder)
    absent = manifest.missing(folder)
    manifest.write(folder)
    for number in tqdm(range(len(manifest.shards)), desc="Storing log-probabilities", disable=not progress_bar):
        if manifest.shards[number] not in absent:
            continue
        first = number * shard_rows
        some = range(first, min(first + shard_rows, len(dataset)))
        manifest.write_shard(folder, manifest.shards[number], _columns(dataset, source, some, manifest, places))


def _read(path: str | Path) -> Dataset:
    splits = read_splits(str(path))
    if len(splits) != 1:
        raise ValueError(f"{path} has the splits {sorted(splits)}: pass the file, or the Dataset, of one split")
    return next(iter(splits.values()))


def _columns(
    dataset: Dataset, source: CapturedRows, numbers: range, manifest: Manifest, places: Aligned
) -> dict[str, list[Any]]:
    """The columns of some rows."""
    found: dict[str, list[Any]] = {name: [] for name in manifest.features}
    for number in numbers:
        row = dataset[number]
        entries = source[number][1]
        at = target_places(row) + (places == "token")
        ids = np.array([entries[i][0][: manifest.k] for i in at], dtype=np.int64).reshape(-1, manifest.k)
        values = np.array([entries[i][1][: manifest.k] for i in at]).reshape(-1, manifest.k)  # [N, k]
        rest = np.clip(1 - np.exp(values).sum(-1), 0, None)
        T = manifest.temperatures[0]
        with np.errstate(divide="ignore"):
            tails = T * (np.log(rest) - values[:, 0]) if manifest.has_tail else np.zeros(0)
        unknown = np.full(len(at), np.nan, dtype=np.float32)
        found["index"].append(int(row["index"]))
        found["tokens"].append(tokens_hash(row))
        found["ids"].append(ids.ravel())
        found["logits"].append(np.clip(T * (values - values[:, :1]), LOWEST[manifest.dtype], None).ravel())
        found["tails"].append(np.clip(tails, LOWEST["float32"], None))
        found["spreads"].append(np.zeros(int(manifest.has_tail)))
        for name in ("entropy", "energy", "logsumexp"):
            found[name].append(unknown)
    return found
