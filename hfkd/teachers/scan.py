"""One pass of the teacher over the training set: every item's energy and entropy.

N training images.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from accelerate import Accelerator
from datasets import Dataset
from datasets.fingerprint import Hasher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hfkd.data.collate import ImageCollator
from hfkd.data.transforms import ImageTransform
from hfkd.files import write_atomically
from hfkd.signals import energy, entropy
from hfkd.teachers.live import LiveTeacher

logger = logging.getLogger(__name__)

HASHED_WHOLE = 2 << 30  # bytes of Arrow data up to which the content itself is hashed
Views = Literal["train", "clean"]


@dataclass(frozen=True)
class TeacherScan:
    """Energy and entropy of every training image, in the order of the dataset, float32 [N] on the CPU."""

    energy: Tensor
    entropy: Tensor

    def add_to(self, dataset: Dataset) -> Dataset:
        """The dataset with the columns `teacher_energy` and `teacher_entropy`."""
        dataset = dataset.add_column("teacher_energy", self.energy.tolist())
        return dataset.add_column("teacher_entropy", self.entropy.tolist())


@dataclass(frozen=True)
class _Key:
    """Everything a scan's numbers depend on; a cached scan is used only when all of it is the same."""

    teacher: str
    data: str
    transform: str
    views: Views
    precision: str
    energy_temperature: float
    entropy_temperature: float
    seed: int

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def file_name(self) -> str:
        return f"scan-{xxhash.xxh3_64_hexdigest(self.text.encode())}.safetensors"


def scan(
    teacher: nn.Module,
    dataset: Any,
    *,
    views: Views = "train",
    energy_temperature: float = 4.0,
    entropy_temperature: float = 3.0,
    collate: Callable[..., dict[str, Tensor]] | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> TeacherScan:
    """Run the teacher once over `dataset` and return each image's energy and entropy.

    `views="train"` takes the images as training will (augmented: thresholds are compared with such views), "clean"
    without augmentation (to choose HE-DA samples), which needs an `ImageTransform`. Sharded over the ranks of
    `accelerator`. With `cache_dir`, stored under a fingerprint of teacher weights, data and transform; a damaged or
    stale file is redone, with a log line. Random transforms other than `ImageTransform` start from `seed`.
    The paper's authors drop the last partial batch; here every image counts.
    Raises ValueError when the teacher gives NaN or infinity, naming the first images.
    """
    teacher = teacher if isinstance(teacher, LiveTeacher) else LiveTeacher(teacher)
    if views == "clean":
        dataset = _clean(dataset)
    precision = accelerator.mixed_precision if accelerator else "no"
    key = _key(teacher, dataset, views, precision, energy_temperature, entropy_temperature, seed)
    path = Path(cache_dir) / key.file_name if cache_dir and key else None
    if path and key and (cached := _read(path, key, len(dataset))):
        return cached
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate or ImageCollator())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        result = _run(teacher, loader, accelerator, energy_temperature, entropy_temperature, progress_bar)
    _refuse_broken(result)
    if path and key and (accelerator is None or accelerator.is_main_process):
        metadata = {"key": key.text, "checksum": _checksum(result)}
        write_atomically(path, save({"energy": result.energy, "entropy": result.entropy}, metadata))
    return result


@torch.no_grad()
def _run(
    teacher: LiveTeacher, loader: Any, accelerator: Accelerator | None, t_e: float, t_h: float, progress_bar: bool
) -> TeacherScan:
    energies, entropies, device = [], [], next(teacher.parameters()).device
    if accelerator is not None:
        loader = accelerator.prepare(loader)
    quiet = not progress_bar or not (accelerator is None or accelerator.is_main_process)
    for batch in tqdm(loader, desc="Scanning the training set with the teacher", disable=quiet, leave=False):
        logits = teacher(**{k: v.to(device) for k, v in batch.items()})
        both = torch.stack([energy(logits, t_e), entropy(logits, t_h)], dim=-1)  # [B, 2]
        both = accelerator.gather_for_metrics(both) if accelerator is not None else both
        energies.append(both[:, 0])
        entropies.append(both[:, 1])
    return TeacherScan(torch.cat(energies).float().cpu(), torch.cat(entropies).float().cpu())


def _refuse_broken(result: TeacherScan) -> None:
    broken = (~torch.isfinite(result.energy)).nonzero().flatten()
    if len(broken):
        raise ValueError(
            f"the teacher gives NaN or infinite logits for {len(broken)} of {len(result.energy)} training images "
            f"(first at rows {broken[:5].tolist()}): check its checkpoint and its precision"
        )


def _clean(dataset: Any) -> Any:
    transform = image_transform(dataset)
    if transform is None:
        raise ValueError(
            "views='clean' needs a dataset whose transform is an hfkd ImageTransform; pass the dataset without "
            "augmentation, with views='train'"
        )
    return dataset.with_transform(transform.clean())


def image_transform(dataset: Any) -> ImageTransform | None:
    """The `ImageTransform` that `set_transform` gave a dataset, if it is one of ours."""
    transform = dataset.format["format_kwargs"].get("transform") if isinstance(dataset, Dataset) else None
    return transform if isinstance(transform, ImageTransform) else None


def _key(
    teacher: LiveTeacher, dataset: Any, views: Views, precision: str, t_e: float, t_h: float, seed: int
) -> _Key | None:
    """None for a dataset whose content has no name: such a scan is not cached."""
    if not isinstance(dataset, Dataset):
        return None
    ours = image_transform(dataset)
    transform = repr(ours) if ours is not None else Hasher.hash(dataset.format["format_kwargs"])
    weights = weights_fingerprint(teacher)
    return _Key(weights, data_fingerprint(dataset), transform, views, precision, t_e, t_h, seed)


def weights_fingerprint(teacher: LiveTeacher) -> str:
    """A hash of every weight and buffer, their names, and the inputs the teacher gets."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(f"{type(teacher.model).__name__}{teacher.received}{teacher.wanted}".encode())
    return digest.hexdigest()


def data_fingerprint(dataset: Dataset) -> str:
    """A hash of the rows themselves; of what `datasets` knows about their origin when they are many gigabytes."""
    if dataset.data.table.nbytes > HASHED_WHOLE:
        return dataset._fingerprint
    digest = xxhash.xxh3_128(",".join(dataset.column_names).encode())
    for table in dataset.with_format("arrow").iter(batch_size=4096):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _read(path: Path, key: _Key, rows: int) -> TeacherScan | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            result = TeacherScan(file.get_tensor("energy"), file.get_tensor("entropy"))
    except (SafetensorError, OSError) as error:
        reason = f"it cannot be read ({error})"
    else:
        sound = metadata.get("checksum") == _checksum(result) and len(result.energy) == rows
        if sound and metadata.get("key") == key.text:
            logger.info("Using the teacher scan in %s", path)
            return result
        reason = "it belongs to another teacher, dataset or transform" if sound else "its numbers were altered"
    logger.warning("The teacher scan in %s is not used: %s. Scanning again.", path, reason)
    return None


def _checksum(result: TeacherScan) -> str:
    return xxhash.xxh3_64_hexdigest(torch.stack([result.energy, result.entropy]).numpy().tobytes())
