"""One pass of the teacher over the training set: the energy and entropy of every sample, or of every item.

About a million pixels are kept, spread over all images, and of tokens up to 16,777,216 (`sampled_items`); quantiles are
computed from these.

S samples: images, rows of tokens, or packed documents. N items of a batch: images, or target tokens. B its rows.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from hfkd.data.collate import ImageCollator
from hfkd.data.epochs import OneEpoch, epoch_transform, first_epoch, image_transform, refuse_streams
from hfkd.data.he_da import original_images
from hfkd.data.streams import WholeStream, even_stream, read_by_each_rank
from hfkd.losses.temperatures import Level
from hfkd.tasks.base import Task
from hfkd.tasks.image_classification import ImageClassification
from hfkd.teachers.agreement import everywhere, spread_rows
from hfkd.teachers.all_ranks import of_all_ranks, samples_of_all_ranks
from hfkd.teachers.base import Teacher
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.teachers.row_reader import RowReader, row_means
from hfkd.teachers.sampled_items import EvenItems, per_row, spread_items
from hfkd.teachers.statistics_file import ScanFile, ScanKey
from hfkd.teachers.teacher_scan import TeacherScan
from hfkd.utils.argument_types import SoftmaxTemperature, fitting
from hfkd.utils.finite import broken_rows

logger = logging.getLogger(__name__)
Views = Literal["train", "clean"]


def refuse_unknown(teacher: Teacher) -> None:
    """Raise ValueError for a teacher without a network, whose energies over the training set are not known."""
    raise ValueError(
        f"a scan of the training set needs the teacher's energies, and {type(teacher).__name__} runs no network: "
        "return them from known(), or pass thresholds to the temperature (energy(thresholds=(low, high)))"
    )


def scan(
    teacher: nn.Module,
    dataset: Any,
    *,
    views: Views = "train",
    energy_temperature: float = 4.0,
    entropy_temperature: float = 3.0,
    collate: Callable[..., dict[str, Tensor]] | None = None,
    task: Task | None = None,
    level: Level = "sample",
    num_classes: int | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> TeacherScan:
    """Run the teacher once over `dataset` and return energy and entropy of each image, or their means over each
    sequence.

    `level="item"` returns those of each target token, ordered by row, instead of the means; of more than 16,777,216
    each second, fourth, ... one. `num_classes` cuts a padded vocabulary, as in training.

    `views="train"` uses the images as in the first epoch of training (augmented, since thresholds are compared with
    such views); "clean" uses them without augmentation (to select HE-DA samples), and needs an `ImageTransform`. Rows
    are distributed over the ranks of `accelerator`. With `cache_dir` the result is stored under a fingerprint of
    teacher, data, transform and their code; a file that is damaged or stale, or differs from the teacher on a few rows,
    is computed again, with a warning, which is also all that follows if it cannot be stored. Random transforms other
    than `ImageTransform` are seeded by `seed`, and not compared. The paper's authors drop the last partial batch; here
    every image counts, except those added by HE-DA. A stored teacher needs no pass. Raises ValueError if the teacher
    returns NaN or infinity, naming the first images.
    """
    known = (
        teacher.known(dataset, energy_temperature, entropy_temperature, level) if isinstance(teacher, Teacher) else None
    )
    if known is not None:
        return known
    task = task or ImageClassification()
    level = "sample" if task.one_item_a_row else level  # an image is a single item
    for name, value in {"energy_temperature": energy_temperature, "entropy_temperature": entropy_temperature}.items():
        fitting("scan", name, value, SoftmaxTemperature)
    reader = RowReader(
        _live(teacher),
        seen(original_images(dataset), views),
        collate or ImageCollator(),
        task,
        batch_size,
        energy_temperature,
        entropy_temperature,
        num_classes,
        accelerator.mixed_precision if accelerator else "no",
    )
    key = ScanKey.of(reader, views, seed, level) if cache_dir else None
    file = ScanFile(Path(cache_dir).expanduser(), key) if cache_dir and key else None
    found = _found(reader, file, accelerator)
    return found or _made(reader, file, accelerator, level, num_workers, seed, progress_bar)


def _made(
    reader: RowReader,
    file: ScanFile | None,
    accelerator: Accelerator | None,
    level: Level,
    num_workers: int,
    seed: int,
    progress_bar: bool,
) -> TeacherScan:
    """Run a pass over the rows, and write the result to `file`."""
    loader = _loader(reader, accelerator, num_workers)
    # The loader uses the CPU generator; by default fork_rng would initialize every GPU of the node.
    with reader.frozen(), torch.random.fork_rng(devices=[]), first_epoch(reader.dataset):
        torch.default_generator.manual_seed(seed)
        result = _run(reader, loader, accelerator, level, progress_bar)
    if file and (accelerator is None or accelerator.is_local_main_process):
        try:
            file.write(result.columns, reader.device.type)
        except OSError as error:  # the folder may be one that nobody chose, in a home folder that is full or read-only
            logger.warning("The teacher scan is used, but not stored, so that a later run scans again: %s", error)
    if accelerator is not None:
        accelerator.wait_for_everyone()  # so that all ranks find the file in the next scan
    return result


def _found(reader: RowReader, file: ScanFile | None, accelerator: Accelerator | None) -> TeacherScan | None:
    """The scan in `file` if all ranks can read it, and the teacher reproduces a few of its rows; else None."""
    stored = file.read(len(reader.dataset)) if file else None
    if not everywhere(stored is not None, accelerator) or file is None or stored is None:
        return None
    columns, device = stored
    result = TeacherScan.of_columns(columns)
    fault = reader.differs_from(vars(result.rows), spread_rows(len(reader.dataset)), device)
    if everywhere(fault is None, accelerator):
        return result
    file.pass_over(fault or "another process found different values")
    return None


def _live(teacher: nn.Module) -> FrozenTeacher:
    """Raises ValueError for a teacher that runs no network."""
    if isinstance(teacher, Teacher) and not isinstance(teacher, nn.Module):
        refuse_unknown(teacher)
    return teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher).unfreeze()


def _loader(reader: RowReader, accelerator: Accelerator | None, num_workers: int) -> Any:
    """The loader of this rank's share of the rows."""
    workers = 0 if isinstance(reader.dataset, OneEpoch) else num_workers  # each worker would read all rows

    def of(rows: Any) -> Any:
        return DataLoader(rows, reader.batch_size, num_workers=workers, collate_fn=reader.collate)

    if accelerator is None:
        return of(reader.dataset)
    with read_by_each_rank(reader.dataset, reader.task.one_item_a_row, accelerator):
        rows = even_stream(reader.dataset, accelerator, scored=True)
        loader = accelerator.prepare(of(rows))
    return rows.count_for(loader) if isinstance(rows, WholeStream) else loader


def _run(
    reader: RowReader, loader: Any, accelerator: Accelerator | None, level: Level, progress_bar: bool
) -> TeacherScan:
    samples, rows, every_item = [], [], EvenItems()
    most, found = per_row(reader.task.scanned_items, len(reader.dataset)), 0
    quiet = not progress_bar or not (accelerator is None or accelerator.is_main_process)
    for batch in tqdm(loader, desc="Scanning the training set with the teacher", disable=quiet, leave=False):
        per_item, items = reader.read(batch)  # [N, 4]
        seen = items.sample_means(per_item)  # [S, 4], the last 0 for a sample without items
        samples.append(samples_of_all_ranks(seen, items, accelerator))
        if not items.own_sample:
            of_rows = row_means(per_item, items)  # [B, 4]
            rows.append(accelerator.gather_for_metrics(of_rows) if accelerator is not None else of_rows)
        if level == "item":
            row, num_rows = items.rows
            kept = spread_items(row, num_rows, most)
            found += len(row)
            every_item.add(of_all_ranks(per_item[kept], row[kept], num_rows, accelerator).cpu())
        del items  # and its logits, before the next batch's
    of_samples = torch.cat(samples)
    broken = (~torch.isfinite(of_samples[:, :2].sum(-1))).nonzero().flatten().tolist()
    if broken:
        part = _what_broke(reader, reader.collate([reader.dataset[broken[0]]]))
        raise ValueError(
            part.format(f"for {len(broken)} of {len(of_samples)} training rows (first at rows {broken[:5]})")
        )
    kept_items = every_item.joined() if level == "item" else of_samples
    if most is not None and level == "item":
        logger.info("The scan keeps %d items, at most %d of a row (this process saw %d).", len(kept_items), most, found)
    elif every_item.step > 1:
        logger.info("The scan keeps each %dth of %d items.", every_item.step, every_item.seen)
    return _as_scan(kept_items, _as_scan(torch.cat(rows)) if rows else None)


def _as_scan(columns: Tensor, of_rows: TeacherScan | None = None) -> TeacherScan:
    """A scan from columns [.., 4], the last of which is 0 for rows without items."""
    values = columns[:, :3].float().where(columns[:, 3:] > 0, torch.nan)
    energies, entropies, predictions = values.cpu().T.contiguous()
    return TeacherScan(energies, entropies, predictions.nan_to_num().long(), of_rows)


def _what_broke(reader: RowReader, batch: dict[str, Any]) -> str:
    """A message for a row with non-finite energy or entropy, naming the inputs, the temperatures or the teacher."""
    if broken_rows(batch):
        return "the inputs are NaN or infinite {}: check the data and the output of its transform"
    if torch.isfinite(reader.teacher(**send_to_device(reader.task.for_teacher(batch), reader.device))).all():
        temperatures = (
            f"energy_temperature={reader.energy_temperature} or entropy_temperature={reader.entropy_temperature}"
        )
        return f"{temperatures} gives NaN or infinity {{}}: choose one nearer 1"
    return (
        "the teacher's logits are NaN or infinite {}: check its checkpoint and its precision, and mask classes "
        "with a finite number"
    )


def seen(dataset: Any, views: Views) -> Any:
    """The dataset for a scan: without augmentation, or as in the first epoch of training."""
    if views not in ("train", "clean"):
        raise ValueError(f"views={views!r} must be 'train' or 'clean'")
    refuse_streams(dataset)
    if isinstance(dataset, IterableDataset):
        return OneEpoch(dataset)
    images, transform = image_transform(dataset), epoch_transform(dataset)
    if views == "clean" and images is not None:
        return dataset.with_transform(images.clean())
    if views == "clean":
        raise ValueError(
            "views='clean' needs a dataset with an hfkd ImageTransform; for other datasets remove the "
            "augmentation yourself and pass views='train'"
        )
    return dataset if transform is None else dataset.with_transform(transform.at_epoch(0).one_view())
